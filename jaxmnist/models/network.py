"""The interface between the training engine and every network; loading a person's own."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import traceback
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import (
    JaxmnistError,
    Named,
    NetworkError,
    local_path,
    may_interrupt,
    one_line,
    whole_traceback,
    wrong,
)
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method
from jaxmnist.models.questions import Definition
from jaxmnist.runs.trial import Computation, Layer
from jaxmnist.settings import SETTINGS, TrainingSettings

# --- A function `build_model` from a person's own Python file ---

FUNCTION = "build_model"  # unless another one is named


def load_function(given: str) -> Callable[[Any], Any]:
    """The function of `FILE` or `FILE:FUNCTION`.

    The file is run as a module of its name, which its classes and annotations can be found by; its
    folder is on Python's path, for what it imports.

    Raises `UsageError` if there is no such file or function, or if the file can't be run.
    """
    name, _, function = given.rpartition(":") if ":" in given else (given, "", FUNCTION)
    path = Path(local_path(name, Named("model"))).absolute()
    if not path.is_file():
        raise wrong("model", f"{name}: there is no such file")
    if not function.isidentifier():
        raise wrong("model", f"{given}: {function!r} is not the name of a function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or path.suffix != ".py":
        raise wrong("model", f"{name}: must be a Python file, with a name that ends in .py")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) != str(path):
        raise wrong("model", f"{name}: a module {path.stem!r} is imported already; rename the file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as problem:
        if _is_ctrl_c(problem):
            raise
        sys.modules.pop(path.stem, None)
        line = problem.lineno if isinstance(problem, SyntaxError) else None
        said = f"line {line}: {one_line(problem, named=True)}" if line else located(problem)
        raise wrong("model", f"{name}: {said}") from problem
    found = getattr(module, function, None)
    if not callable(found):
        raise wrong("model", f"{name}: has no function {function}")
    checked: Callable[[Any], Any] = found
    return checked


@contextmanager
def in_own_code() -> Iterator[None]:
    """Runs a person's own code: an exception in it becomes a `NetworkError` with its line.

    Exhausted memory, and what else happens while a program runs, stays as it is.
    """
    try:
        yield
    except NetworkError as problem:
        place = _place(problem)
        if problem.traceback or not place:
            raise
        whole = whole_traceback(problem)
        raise NetworkError(f"{place}{problem}", whole) from (problem.__cause__ or problem)
    except (JaxmnistError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except BaseException as problem:
        if _is_ctrl_c(problem):
            raise
        known = _remedy(problem)
        line = f"{located(problem)}; {known}" if known else located(problem)
        raise NetworkError(line, whole_traceback(problem)) from problem


@contextmanager
def only_exceptions() -> Iterator[None]:
    """Runs a person's own code where its exceptions are looked at: others become `NetworkError`s.

    Such as SystemExit, which nothing would hold up on its way.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as problem:
        if _is_ctrl_c(problem):
            raise
        raise NetworkError(located(problem), whole_traceback(problem)) from problem


def _is_ctrl_c(problem: BaseException) -> bool:
    """Whether a person may have stopped the program; their code may raise the same itself."""
    return isinstance(problem, KeyboardInterrupt) and may_interrupt()


def located(problem: BaseException) -> str:
    """An exception as one line that begins with the place in a person's own code."""
    return _place(problem) + one_line(problem, named=True)


def _place(problem: BaseException) -> str:
    """The last line of a person's own code before an exception was raised; '' if there is none."""
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if not _is_installed(Path(frame.filename))]
    # The standard library makes some code from text, such as the constructors of dataclasses.
    own = [frame for frame in own if frame.filename != "<string>"] or own
    if not own:
        return ""
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name}: "


def _remedy(problem: BaseException) -> str:
    """What to do about an exception of a known kind; nothing about others."""
    if isinstance(problem, NameError) and "unbound axis name" in one_line(problem):
        return (
            "each trial trains on one device, without named axes: leave axis_name out, in"
            " BatchNorm too"
        )
    return ""


def own_modules(function: Callable[..., Any]) -> list[ModuleType]:
    """The loaded modules that a person wrote: that of a function, and those in its folder.

    Empty if the function belongs to an installed package. An environment may lie in the person's
    folder, and this package's sources too: what is installed is not theirs.
    """
    module = sys.modules.get(getattr(function, "__module__", ""))
    if module is None or not (file := getattr(module, "__file__", None)):
        return []
    folder = Path(file).parent
    return [
        other
        for name, other in list(sys.modules.items())
        if name != "__main__"
        and (place := getattr(other, "__file__", None))
        and folder in Path(place).parents
        and not _is_installed(Path(place))
    ]


def _is_installed(file: Path) -> bool:
    """Whether a module's file belongs to Python, to an installed package, or to this one."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = Path(__file__).parents[1]
    within = any(file.is_relative_to(each) for each in (*installed, ours))
    return within or bool({"site-packages", "dist-packages"} & {*file.parts})


# --- The interface ---

# Hyperparameters of training that are arguments of a compiled program, not constants in it.
NUMBERS = tuple(name for name, item in SETTINGS.items() if item.shares_program)
# Those of them of which a program contains whether they are 0, as it then does without.
ZERO_IS_NONE = tuple(name for name in NUMBERS if SETTINGS[name].shares_program == "above 0")
# A tree of named arrays: {"dense": {"kernel": …, "bias": …}}.
Parameters = Mapping[str, Any]
# Maps the indices of a block's images, int32[B], to the images, float or uint8[B, H, W, C].
Images = Callable[[jax.Array], jax.Array]
# Maps logits, float[B, classes], and image indices, int32[B], to the block's share of the loss and
# a tree of sums.
Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class DataSpec:
    """The properties of a dataset that a network depends on.

    image_shape: (H, W, C). scale: the number that pixels are divided by; see `Dataset`.
    images, epochs, batch_size: how many training images there are, and how trials train on them;
      no images if the network isn't trained.
    """

    image_shape: tuple[int, int, int]
    classes: int
    scale: float = 255.0
    images: int = 0
    epochs: int = 0
    batch_size: int = 1

    @classmethod
    def of(cls, dataset: Dataset, settings: TrainingSettings) -> DataSpec:
        """The specification of a dataset that is trained on as `settings` say."""
        return cls(
            dataset.image_shape,
            dataset.classes,
            dataset.scale,
            len(dataset.y_train),
            settings.epochs,
            settings.batch_size,
        )

    @property
    def length(self) -> tuple[int, int, int]:
        """What the number of steps follows from: `images`, `epochs` and `batch_size`."""
        return self.images, self.epochs, self.batch_size

    def steps(self, hyperparameters: Mapping[str, Any]) -> int:
        """The number of steps of a training, with the batch size of `hyperparameters`, if any."""
        size = min(hyperparameters.get("batch_size", self.batch_size), self.images)
        return self.epochs * -(-self.images // size) if self.images else 1


class Outputs(NamedTuple):
    """The outputs of a network for N images.

    logits: float[N, classes].
    features: float[N, D], the output of the flatten layer.

    The compiler removes the computation of whichever is not used.
    """

    logits: jax.Array
    features: jax.Array


class StepInputs(NamedTuple):
    """What a training step has beside parameters and images.

    collections: of the network, before the step.
    key: of the step, for all that is random in it: see `stream_key`.
    numbers: those of `Network.numbers`, float[].
    """

    collections: Any
    key: jax.Array
    numbers: Mapping[str, jax.Array]


def a_key(seed: int = 0) -> jax.Array:
    """A random key; its kind is named, so that no setting of JAX changes what is drawn."""
    return jax.random.key(seed, impl="threefry2x32")


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """The key of the random stream of this name, from the key of a step."""
    # A checksum is the same number in every process.
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


class Model(ABC):
    """A network of one configuration, as pure functions of its parameters."""

    @abstractmethod
    def outputs(
        self, parameters: Parameters, images: jax.Array, collections: Any = None
    ) -> Outputs:
        """Logits and features of images, uint8 or float[N, H, W, C], pixels from 0 to `scale`.

        As in an evaluation: nothing is random, and collections stay as they are.
        """

    def probabilities(
        self, parameters: Parameters, images: jax.Array, collections: Any = None
    ) -> jax.Array:
        """The probability of each class, float32[N, classes], for images as `outputs` takes them.

        N may be symbolic.
        """
        logits = self.outputs(parameters, images, collections).logits
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def gradient(
        self,
        parameters: Parameters,
        images: Images,
        loss: Loss,
        blocks: jax.Array,
        inputs: StepInputs,
    ) -> tuple[Any, Any, Any]:
        """The gradient of a loss that is a sum over images; here for all images at once.

        Args:
          parameters: the weights.
          images: returns the images of a block.
          loss: returns a block's share of the loss, a scalar, and a tree of sums.
          blocks: int32[K, B], the image indices of each of the K blocks; K is 1 unless the
            network's `block_size` divides batches. Some indices may stand for no image.
          inputs: what else the step has.

        Returns:
          The gradient, a tree like `parameters`, the sums over all blocks, and the collections
          after the step.
        """
        batch = blocks.reshape(-1)

        def of_batch(parameters: Parameters) -> tuple[jax.Array, Any]:
            return loss(self.outputs(parameters, images(batch)).logits, batch)

        gradient, sums = jax.grad(of_batch, has_aux=True)(parameters)
        return gradient, sums, inputs.collections


class Network(ABC):
    """A network as a function of its hyperparameters.

    definition: the network's name and hyperparameters, which need no JAX.
    traced: whether its layers are found by tracing it, which takes a part of a second.
    uses_method: whether it computes convolutions by the method that `model` is given.
    """

    definition: Definition
    traced: ClassVar[bool] = False
    uses_method: ClassVar[bool] = False

    @abstractmethod
    def layers(self, hyperparameters: Hyperparameters, data: DataSpec) -> tuple[Layer, ...]:
        """The layer table, in the order in which data passes through the layers."""

    @abstractmethod
    def initial_parameters(
        self, hyperparameters: Hyperparameters, data: DataSpec, *, seed: int, index: int
    ) -> dict[str, Any]:
        """The initial weights of trial `index` with `seed`: arrays in host memory.

        Weights are all that a trained network is kept as: see `split`.
        """

    def split(self, weights: Parameters) -> tuple[Parameters, Any]:
        """Weights as the parameters, which are trained, and the collections beside them."""
        return weights, {}

    def join(self, parameters: Parameters, collections: Any) -> dict[str, Any]:
        """The weights of `split`."""
        return dict(parameters)

    @abstractmethod
    def model(
        self, hyperparameters: Hyperparameters, data: DataSpec, method: Method, precision: str
    ) -> Model:
        """The model of a configuration.

        method: how convolutions are computed. precision: see `TrainingSettings`.
        """

    def shapes(self, hyperparameters: Hyperparameters, data: DataSpec) -> dict[str, Any]:
        """A tree with the shape and dtype of every parameter."""
        initial = self.initial_parameters(hyperparameters, data, seed=0, index=0)
        shapes: dict[str, Any] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), initial
        )
        return shapes

    def feature_count(self, hyperparameters: Hyperparameters, data: DataSpec) -> int:
        """The number of features of an image, D."""
        model = self.model(hyperparameters, data, "convolution", "default")
        image = jax.ShapeDtypeStruct((1, *data.image_shape), np.float32)
        parameters, collections = self.split(self.shapes(hyperparameters, data))
        found = jax.eval_shape(model.outputs, parameters, image, collections)
        return int(found.features.shape[1])

    def decayed(self, hyperparameters: Hyperparameters, data: DataSpec) -> Any:
        """Whether weight decay applies to each parameter, a tree of bools: see `is_kernel`."""
        parameters, _ = self.split(self.shapes(hyperparameters, data))
        return jax.tree_util.tree_map_with_path(is_kernel, parameters)

    def block_size(
        self, hyperparameters: Hyperparameters, data: DataSpec, platform: str, batch_size: int
    ) -> int:
        """The number of images of a batch to compute at a time in training.

        A network may return less than `batch_size` only if its outputs for an image do not depend
        on the other images.
        """
        return batch_size

    def fills_batches(self, hyperparameters: Hyperparameters, data: DataSpec) -> bool:
        """Whether the last batch of an epoch may be filled up with images that don't count."""
        return True

    def own_modules(self) -> list[ModuleType]:
        """The modules that a person wrote for it, which other machines need not have."""
        return []

    def training(
        self, settings: TrainingSettings, hyperparameters: Hyperparameters, data: DataSpec
    ) -> TrainingSettings:
        """How a configuration is trained: its own hyperparameters of training come first."""
        return settings.for_trial(hyperparameters)

    def numbers(self, hyperparameters: Hyperparameters) -> Mapping[str, float]:
        """Numbers of a configuration that are arguments of its program, by name; by default none.

        `Model.gradient` gets them. `program_key` must leave them out, but for which there are.
        """
        return {}

    def program_key(self, hyperparameters: Hyperparameters, data: DataSpec) -> Hashable:
        """What trials must have in common to share a compiled program, once they are padded.

        By default all but the numbers of training, `NUMBERS`; of those in `ZERO_IS_NONE`, whether
        they are above 0.
        """
        return Hyperparameters(
            {
                name: value > 0 if name in ZERO_IS_NONE else value
                for name, value in hyperparameters.items()
                if name not in NUMBERS or name in ZERO_IS_NONE
            }
        )

    def check(self, hyperparameters: Hyperparameters, data: DataSpec) -> None:
        """Raise `NetworkError` if a configuration can't be trained as it is meant."""
        return

    def notes(self, hyperparameters: Hyperparameters, data: DataSpec) -> list[str]:
        """What a user should know of how a configuration will be trained."""
        return []

    def computation(self, hyperparameters: Hyperparameters, data: DataSpec) -> Computation | None:
        """What the network computes, if it isn't this package that says it.

        Raises `NetworkError` if it can't be built.
        """
        return None

    def rounding(self, hyperparameters: Hyperparameters, data: DataSpec) -> float:
        """How far logits that are equal but for rounding may differ, relative to the largest."""
        raise NotImplementedError(f"{self.definition.name} is known by its name")

    def random_weights(self, weights: Parameters) -> dict[str, Any]:
        """Weights with random parameters, the same for equal shapes: no layer is zero."""
        raise NotImplementedError(f"{self.definition.name} is known by its name")

    def logits(
        self,
        hyperparameters: Hyperparameters,
        data: DataSpec,
        weights: Parameters,
        images: np.ndarray,
    ) -> np.ndarray:
        """Logits float32[N, K] of a few images float32[N, H, W, C] from 0 to 1, by these weights.

        Computed on the host.
        """
        raise NotImplementedError(f"{self.definition.name} is known by its name")

    def optimizer(
        self, hyperparameters: Hyperparameters, data: DataSpec
    ) -> optax.GradientTransformation | None:
        """The network's own optimizer; None for that of the settings."""
        return None

    @property
    def multiples(self) -> Mapping[str, tuple[int, ...]]:
        """The multiples to which hyperparameters may be padded, by name; by default none.

        Trials whose padded hyperparameters are equal share compiled programs: `resize` gives their
        weights the same shapes.
        """
        return {}

    def pads(self, hyperparameters: Hyperparameters) -> bool:
        """Whether this configuration may be padded; by default each one may."""
        return True

    def resize(
        self,
        parameters: Parameters,
        hyperparameters: Hyperparameters,
        resized: Hyperparameters,
        data: DataSpec,
    ) -> dict[str, Any]:
        """The parameters of a configuration in the shapes of its padded configuration, or back."""
        raise NotImplementedError(f"{self.definition.name} can't be resized")


def pixels(images: jax.Array, scale: float, precision: str) -> jax.Array:
    """Images scaled to 0–1, in bfloat16 for that precision, else float32 or their float dtype."""
    if precision == "bfloat16":
        dtype = jnp.dtype(jnp.bfloat16)
    else:
        dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
    return images.astype(dtype) / scale


def is_kernel(path: Sequence[Any], array: Any) -> bool:
    """Whether a parameter is neither a bias nor the scale of a normalization.

    These have such a name, or fewer than two dimensions. Weight decay leaves them alone, as is
    usual. See Loshchilov and Hutter, 'Decoupled weight decay regularization', 2019, for the decay.

    Args:
      path: of the parameter, as JAX gives it for a leaf of a tree.
      array: the parameter, or its shape.
    """
    name = str(getattr(path[-1], "key", path[-1])) if path else ""
    return len(array.shape) > 1 and name not in ("bias", "scale")


def by_path(parameters: Parameters, above: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the arrays of a tree with their paths, such as 'dense/kernel'."""
    for name, part in parameters.items():
        if isinstance(part, Mapping):
            yield from by_path(part, f"{above}{name}/")
        else:
            yield f"{above}{name}", part


def from_paths(arrays: Mapping[str, Any], like: Parameters, above: str = "") -> dict[str, Any]:
    """The inverse of `by_path`: a tree like `like`, of these arrays; KeyError if one is missing."""
    return {
        name: from_paths(arrays, part, f"{above}{name}/")
        if isinstance(part, Mapping)
        else arrays[f"{above}{name}"]
        for name, part in like.items()
    }
