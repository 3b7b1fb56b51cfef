"""A network of a person's own: what `build_model(hp)` returns, as an engine asks for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any, Literal

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.errors import UsageError, one_line
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method, block_size
from jaxmnist.models.loading import own_modules
from jaxmnist.models.module import PlainModule, check_module
from jaxmnist.models.network import (
    NUMBERS,
    DataSpec,
    Images,
    Loss,
    Model,
    Network,
    Outputs,
    Parameters,
    StepInputs,
    pixels,
)
from jaxmnist.models.optimizers import check_optimizer, with_plain_keys
from jaxmnist.models.questions import Definition, Questions, answers_of
from jaxmnist.models.rewriting import rewritten, with_last_inputs
from jaxmnist.runs.layers import Layer
from jaxmnist.training_settings import OF_OPTIMIZER, TrainingSettings

NAME = "own"  # of the network, in a run's identity
KEPT = 4  # images that stay the same where others of their batch are changed
MOST_BUILT = 64  # configurations that are kept as they were built
# Options of XLA: random initial weights take it 8 times longer with its usual ones.
QUICKLY: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}
# How images of a batch depend on each other in training: not at all; by BatchNorm's statistics,
# which leave out images that don't count; or in another way.
Batching = Literal["independent", "masked", "exact"]


@dataclass(frozen=True, eq=False)
class Built:
    """A configuration as `build_model` returned it.

    optimizer: None for that of the settings.
    """

    plain: PlainModule
    optimizer: optax.GradientTransformation | None

    @cached_property
    def init(self) -> Callable[[jax.Array], dict[str, Any]]:
        """The compiled function of a key that gives the initial variables."""
        return _compiled(self.plain.init, jax.random.key(0, impl="threefry2x32"))

    def variables(self, seed: int, index: int) -> dict[str, Any]:
        """The initial variables of a trial, computed and kept on the host."""
        with jax.default_device(jax.devices("cpu")[0]):
            key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), index)
            found: dict[str, Any] = jax.device_get(self.init(key))
        return found

    @cached_property
    def step(self) -> tuple[Any, Any]:
        """The jaxpr of the module in training on two images, and the shapes of its outputs."""
        image = jax.ShapeDtypeStruct((2, *self.plain.image_shape), np.float32)
        key = jax.random.key(0, impl="threefry2x32")
        return jax.make_jaxpr(self.plain.apply_in_training, return_shape=True)(
            self.plain.shapes, image, key
        )

    @cached_property
    def batching(self) -> Batching:
        """How images of a batch depend on each other in training, tried with some of them."""
        return _try_batching(self)

    @cached_property
    def sha256(self) -> str:
        """A hash of what it computes in training, constants included."""
        traced = [self.step[0]]
        if self.optimizer is not None:
            weights = self.plain.shapes["params"]
            state = jax.eval_shape(self.optimizer.init, weights)
            traced.append(jax.make_jaxpr(self.optimizer.update)(weights, state, weights))
        found = hashlib.sha256()
        for closed in traced:
            # Functions among the equations are printed with their place in memory.
            found.update(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
            for constant in closed.consts:
                found.update(np.ascontiguousarray(jax.device_get(constant)).tobytes())
        return found.hexdigest()


class FlaxNetwork(Network):
    """The network of a `build_model(hp)`.

    Args:
      build_model: of `Questions`; returns a Flax module, or a pair of it and an Optax optimizer.
      name: what to call it in messages.
    """

    traced = True

    def __init__(self, build_model: Callable[[Questions], Any], name: str = "build_model") -> None:
        if not callable(build_model):
            raise UsageError(f"build_model must be a function of hp, not {build_model!r}")
        self.name = name
        self._build_model = build_model
        self.definition = Definition(NAME, self._ask)
        # Trials build in threads of their own: a cache of the standard library bears that.
        self._kept = lru_cache(MOST_BUILT)(self._build_twice)

    def __reduce__(self) -> tuple[type[FlaxNetwork], tuple[Any, ...]]:
        """Another process makes it anew of its function."""
        return FlaxNetwork, (self._build_model, self.name)

    def own_modules(self) -> list[ModuleType]:
        """The module of `build_model`, and those beside it."""
        return own_modules(self._build_model)

    def _call(self, hp: Questions) -> tuple[nn.Module, optax.GradientTransformation | None]:
        """What the function returns, checked."""
        found = self._build_model(hp)
        optimizer = None
        if isinstance(found, tuple):
            if len(found) != 2:
                raise UsageError(
                    f"{self.name} must return a Flax module, or a module and an Optax optimizer,"
                    f" not {len(found)} things"
                )
            found, optimizer = found
            check_optimizer(optimizer)
            optimizer = with_plain_keys(optimizer)
        return check_module(found), optimizer

    def _ask(self, hp: Questions) -> None:
        """Ask for the hyperparameters; a configuration that can't be built fails as a trial."""
        try:
            _, optimizer = self._call(hp)
            if optimizer is None:
                TrainingSettings().for_trial(hp.values)
        except UsageError:
            raise
        except Exception as problem:
            if not hp.asked:  # it fails whatever the hyperparameters are
                raise UsageError(f"{self.name} fails: {one_line(problem, named=True)}") from None

    def built(self, hyperparameters: Hyperparameters, data: DataSpec) -> Built:
        """A configuration, built once and kept.

        Raises `UsageError` if the function asks or returns something else when it is called again.
        """
        return self._kept(hyperparameters, data)

    def _build_twice(self, hyperparameters: Hyperparameters, data: DataSpec) -> Built:
        first, second = (self._build(hyperparameters, data) for _ in range(2))
        if first.sha256 != second.sha256:
            raise UsageError(
                f"{self.name} returns another network when it is called again with the same"
                " hyperparameters"
            )
        return first

    def _build(self, hyperparameters: Hyperparameters, data: DataSpec) -> Built:
        hp = Questions(
            answers_of(hyperparameters), image_shape=data.image_shape, classes=data.classes
        )
        module, optimizer = self._call(hp)
        built = Built(PlainModule(module, data.image_shape), optimizer)
        _, (logits, _) = built.step
        if getattr(logits, "shape", None) != (2, data.classes):
            found = getattr(logits, "shape", type(logits).__name__)
            raise UsageError(
                f"the network must give logits of shape (N, {data.classes}) for N images, and gives"
                f" {found} for two"
            )
        return built

    def layers(self, hyperparameters: Hyperparameters, data: DataSpec) -> tuple[Layer, ...]:
        """The modules that have parameters or no modules within; none if it can't be built."""
        try:
            return _layers(self.built(hyperparameters, data).plain)
        except Exception:  # its trial fails, and says why
            return ()

    def initial_parameters(
        self, hyperparameters: Hyperparameters, data: DataSpec, *, seed: int, index: int
    ) -> dict[str, Any]:
        """The module's own initial variables, with a key from (seed, index)."""
        return self.built(hyperparameters, data).variables(seed, index)

    def shapes(self, hyperparameters: Hyperparameters, data: DataSpec) -> dict[str, Any]:
        """A tree with the shape and dtype of every variable."""
        return self.built(hyperparameters, data).plain.shapes

    def split(self, weights: Parameters) -> tuple[Parameters, Any]:
        """Flax's variables as the parameters and the other collections."""
        return weights["params"], {name: weights[name] for name in weights if name != "params"}

    def join(self, parameters: Parameters, collections: Any) -> dict[str, Any]:
        """Flax's variables."""
        return {"params": parameters, **collections}

    def model(
        self, hyperparameters: Hyperparameters, data: DataSpec, method: Method, precision: str
    ) -> FlaxModel:
        """The model of a configuration."""
        built = self.built(hyperparameters, data)
        batching = self.batching(hyperparameters, data)
        return FlaxModel(built.plain, batching, method == "tiles", precision, data.scale)

    def block_size(
        self, hyperparameters: Hyperparameters, data: DataSpec, platform: str, batch_size: int
    ) -> int:
        """A CPU's blocks where images don't depend on each other, else the whole batch."""
        if self.batching(hyperparameters, data) == "independent":
            return block_size(platform, batch_size)
        return batch_size

    def fills_batches(self, hyperparameters: Hyperparameters, data: DataSpec) -> bool:
        """Whether images that don't count change nothing, tried by number."""
        return self.batching(hyperparameters, data) != "exact"

    def predicts_alone(self, hyperparameters: Hyperparameters, data: DataSpec) -> bool:
        """Tried with some images; True if it can't be built, as its trial says why."""
        try:
            built = self.built(hyperparameters, data)
            variables = built.variables(0, 0)
            images, others = _images_and_others(built.plain)
            with jax.default_device(jax.devices("cpu")[0]):
                run = _compiled(built.plain.apply_in_evaluation, variables, images)
                (logits, _), (changed, _) = run(variables, images), run(variables, others)
        except Exception:
            return True
        return _close(logits[:KEPT], changed[:KEPT])

    def optimizer(
        self, hyperparameters: Hyperparameters, data: DataSpec
    ) -> optax.GradientTransformation | None:
        """What was returned beside the module."""
        return self.built(hyperparameters, data).optimizer

    def training(
        self, settings: TrainingSettings, hyperparameters: Hyperparameters, data: DataSpec
    ) -> TrainingSettings:
        """An optimizer of its own has its numbers in it, whatever else the network asks for."""
        if self.optimizer(hyperparameters, data) is None:
            return settings.for_trial(hyperparameters)
        return settings.for_trial(
            {name: value for name, value in hyperparameters.items() if name not in OF_OPTIMIZER}
        )

    def computation(self, hyperparameters: Hyperparameters, data: DataSpec) -> str | None:
        """The versions of JAX and Flax, and a hash of the jaxpr in training; None if it fails."""
        try:
            found = self.built(hyperparameters, data).sha256
        except Exception:  # its trial says why
            return None
        return f"jax {jax.__version__}, flax {flax.__version__}: {found}"

    def program_key(self, hyperparameters: Hyperparameters, data: DataSpec) -> Hashable:
        """The hyperparameters, but for the numbers of training that the module doesn't use."""
        without = super().program_key(hyperparameters, data)
        if without == hyperparameters:
            return hyperparameters
        try:
            other = hyperparameters.replace(
                **{name: 0.5 for name in NUMBERS if name in hyperparameters}
            )
            ours, theirs = (self._build(h, data) for h in (hyperparameters, other))
        except Exception:
            return hyperparameters
        same = ours.optimizer is None and ours.sha256 == theirs.sha256
        return without if same else hyperparameters

    def batching(self, hyperparameters: Hyperparameters, data: DataSpec) -> Batching:
        """How images of a batch depend on each other in training, tried with some of them.

        What is found counts for this configuration alone: another one may normalise over another
        axis.
        """
        return self.built(hyperparameters, data).batching


def _compiled(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """`function` compiled on the host for these arguments, in a fraction of the usual time.

    It is called once or twice: how fast it runs doesn't matter.
    """
    found: Callable[..., Any] = jax.jit(function).lower(*arguments).compile(QUICKLY)
    return found


def _images_and_others(plain: PlainModule) -> np.ndarray:
    """Two batches of random images, the first `KEPT` of which are the same: float32[2, N, …]."""
    both = np.random.default_rng(0).random((2, 2 * KEPT, *plain.image_shape), np.float32)
    both[1, :KEPT] = both[0, :KEPT]
    return both


def _close(a: jax.Array, b: jax.Array) -> bool:
    """Whether two arrays are equal within rounding."""
    return bool(np.allclose(a, b, rtol=1e-4, atol=1e-5))


def _try_batching(built: Built) -> Batching:
    """Change images that don't count; see whether that changes anything of the others."""
    variables = built.variables(0, 0)
    images, others = _images_and_others(built.plain)
    present = np.arange(len(images)) < KEPT
    stateful = len(variables) > 1
    with jax.default_device(jax.devices("cpu")[0]):
        key = jax.random.key(0, impl="threefry2x32")
        run = _compiled(
            lambda variables, images: built.plain.apply_in_training(
                variables, images, key, jnp.asarray(present) if stateful else None
            ),
            variables,
            images,
        )
        (logits, state), (changed, changed_state) = run(variables, images), run(variables, others)
    same = _close(logits[:KEPT], changed[:KEPT]) and all(
        map(_close, jax.tree.leaves(state), jax.tree.leaves(changed_state))
    )
    if not same:
        return "exact"
    return "masked" if stateful else "independent"


@dataclass(frozen=True, eq=False)
class FlaxModel(Model):
    """The pure functions of a module.

    rewrite: compute convolutions and pooling from slices, as is best on a CPU.
    precision: see `TrainingSettings`. scale: what pixels are divided by; see `Dataset`.
    """

    plain: PlainModule
    batching: Batching
    rewrite: bool
    precision: str
    scale: float

    def outputs(
        self, parameters: Parameters, images: jax.Array, collections: Any = None
    ) -> Outputs:
        """Logits and features: what is sown as features, else what goes into the last Dense."""
        run = with_last_inputs(self.plain.apply_in_evaluation, rewrite=self.rewrite)
        variables = self._cast({"params": parameters, **(collections or {})})
        with self._matmul_precision():
            (logits, sown), inputs = run(variables, self._pixels(images))
        features = inputs if sown is None else sown
        flat = features.reshape(images.shape[0], -1)  # which may be symbolic
        return Outputs(self._float(logits), self._float(flat))

    def gradient(
        self,
        parameters: Parameters,
        images: Images,
        loss: Loss,
        blocks: jax.Array,
        inputs: StepInputs,
    ) -> tuple[Any, Any, Any]:
        """The gradient; block by block where images don't depend on each other."""

        def of_block(
            parameters: Parameters, block: jax.Array, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            """A block's share of the loss; its sums, and the collections afterwards."""
            present = block >= 0 if self.batching == "masked" else None

            def apply(variables: Any, images: jax.Array) -> Any:
                return self.plain.apply_in_training(variables, images, key, present)

            run = rewritten(apply) if self.rewrite else apply
            variables = self._cast({"params": parameters, **inputs.collections})
            logits, collections = run(variables, self._pixels(images(block)))
            value, sums = loss(self._float(logits), block)
            like = inputs.collections
            kept = jax.tree.map(lambda x, old: x.astype(old.dtype), collections, like)
            return value, (sums, kept)

        differentiate = jax.grad(of_block, has_aux=True)
        with self._matmul_precision():
            if len(blocks) == 1:
                gradient, (sums, collections) = differentiate(parameters, blocks[0], inputs.key)
                return gradient, sums, collections

            def add_block(total: Any, item: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
                block, number = item
                key = jax.random.fold_in(inputs.key, number)
                gradient, (sums, _) = differentiate(parameters, block, key)
                return jax.tree.map(jnp.add, total, gradient), sums

            nothing = jax.tree.map(jnp.zeros_like, parameters)
            numbers = jnp.arange(len(blocks))
            gradient, sums = jax.lax.scan(add_block, nothing, (blocks, numbers))
        total = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)
        return gradient, total, inputs.collections

    def _pixels(self, images: jax.Array) -> jax.Array:
        return pixels(images, self.scale, self.precision)

    def _cast(self, variables: Any) -> Any:
        if self.precision != "bfloat16":
            return variables
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, variables
        )

    def _float(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x

    def _matmul_precision(self) -> Any:
        return jax.default_matmul_precision("highest" if self.precision == "highest" else "default")


def _layers(plain: PlainModule) -> tuple[Layer, ...]:
    """The table of a module's layers, in the order in which they are called."""
    rows: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}
    parents: set[tuple[str, ...]] = set()

    def note(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        value = method(*arguments, **keywords)
        path = tuple(context.module.path)
        if context.method_name == "__call__" and hasattr(value, "shape"):
            rows.pop(path, None)
            rows[path] = type(context.module).__name__, tuple(value.shape[1:])
            parents.update(path[:length] for length in range(len(path)))
        return value

    with nn.intercept_methods(note):
        image = jax.ShapeDtypeStruct((1, *plain.image_shape), np.float32)
        jax.eval_shape(plain.apply_in_evaluation, plain.shapes, image)
    counts: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(plain.shapes["params"])[0]:
        names = tuple(str(getattr(key, "key", key)) for key in path)
        owner = max((row for row in rows if names[: len(row)] == row), key=len, default=())
        counts[owner] = counts.get(owner, 0) + int(np.prod(leaf.shape))
    shown = [path for path in rows if path not in parents or counts.get(path)]
    return tuple(
        Layer("/".join(path) or "network", rows[path][0], rows[path][1], counts.get(path, 0))
        for path in shown
    )
