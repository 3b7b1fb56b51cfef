"""Compiled programs of a network's configurations on a platform's devices, and which to share."""

from __future__ import annotations

import ctypes
import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import jax
import jax.export  # `import jax` alone does not import it
import numpy as np
from jax.extend import core

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.devices import start_jax
from jaxmnist.engine.events import Checkpoint
from jaxmnist.engine.lanes import (
    Devices,
    Group,
    Packing,
    Stacking,
    choose,
    group_trials,
)
from jaxmnist.engine.training import (
    TrainingState,
    batches,
    constants_of,
    epoch_order,
    evaluate,
    first_state,
    frozen_where_diverged,
    order_seed,
    train_block,
    weights_seed,
)
from jaxmnist.errors import UsageError, one_line
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import block_size, usual_method
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import BoundNetwork, Network
from jaxmnist.models.own_code import in_own_code
from jaxmnist.models.rewriting import with_pooling_by_axis
from jaxmnist.runs.trial import Key, Layer
from jaxmnist.settings import TrainingSettings

# --- Compiled programs, kept while a group needs them, and compiled ahead if that is faster ---

TIDY_EVERY = 8  # dropped pairs of programs between two releases of memory


class Pair(NamedTuple):
    """The programs of a group: one trains all its lanes for some steps, one evaluates them."""

    train: jax.stages.Compiled
    evaluate: jax.stages.Compiled


Compiler = Callable[[], jax.stages.Compiled]
Compilers = tuple[Compiler, Compiler]
Half = Future[jax.stages.Compiled]


class Programs:
    """The programs of groups of trials; groups of the same shape share them.

    Args:
      build: returns the two functions that compile the programs of a group.
      groups: the groups that will request their programs, in this order.
      ahead: the number of threads that compile programs before they are requested, in the order of
        the groups. With zero, the thread that requests a program compiles it, which is best if
        compiling competes with training for cores.

    Attributes:
      compiled: the number of pairs compiled so far.
    """

    def __init__(
        self, build: Callable[[Group], Compilers], groups: Iterable[Group], ahead: int
    ) -> None:
        self.compiled = 0
        self._dropped = 0
        self._build = build
        self._lock = threading.Lock()
        self._pairs: dict[tuple[Any, ...], tuple[Half, Half]] = {}
        groups = list(groups)
        self._waiting = Counter(group.program for group in groups)
        self._threads = ThreadPoolExecutor(ahead, "compile") if ahead else None
        if self._threads:
            for group in groups:
                if group.program not in self._pairs:
                    submit = self._threads.submit
                    self._pairs[group.program] = (
                        submit(self._compile, group, 0),
                        submit(self._compile, group, 1),
                    )
                    self.compiled += 1

    def get(self, group: Group) -> Pair:
        """The programs of a group; the first caller compiles them, the others wait."""
        with self._lock:
            pair = self._pairs.get(group.program)
            mine = pair is None
            if pair is None:
                pair = self._pairs[group.program] = Future(), Future()
                self.compiled += 1
        if mine:
            for i, half in enumerate(pair):
                try:
                    half.set_result(self._compile(group, i))
                except BaseException as failure:
                    half.set_exception(failure)
        return Pair(*(half.result() for half in pair))

    def release(self, group: Group) -> None:
        """Drop a group's programs unless another group still needs them."""
        with self._lock:
            self._waiting[group.program] -= 1
            if self._waiting[group.program] > 0:
                return
            self._pairs.pop(group.program, None)
            self._dropped += 1
            tidy = self._dropped % TIDY_EVERY == 0
        if tidy:
            _give_back_memory()

    def close(self) -> None:
        """Cancel compilations that have not begun, and wait for the others."""
        if self._threads:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _compile(self, group: Group, i: int) -> jax.stages.Compiled:
        # Building is done here, so that an error in it also counts as an error of the group.
        return self._build(group)[i]()


def _give_back_memory() -> None:
    """Release memory that dropped programs still occupy.

    JAX caches traced functions, about 1 MB per program; the C library retains memory that the
    compiler freed, about 20 MB per program.
    """
    jax.clear_caches()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
        if trim is not None:
            trim(0)


# --- The programs and states of a network's configurations on a platform's devices ---

Arguments = tuple[Any, ...]
# On a CPU, most of the work is in precompiled matrix products: optimizing the rest further doesn't
# make training faster, but compiling competes with it for cores. (Level 0 is four times slower.)
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclass
class Builder:
    """Makes what trains a network's configurations on one dataset, whose images are on the devices.

    train: the training images and labels on the devices.
    evaluated: images, labels and batches of an evaluation: the validation images, or else some
      training images.
    data: the dataset's properties that the network depends on.
    """

    network: Network
    dataset: Dataset
    settings: TrainingSettings
    seed: int
    platform: str
    devices: Devices

    def __post_init__(self) -> None:
        dataset, everywhere = self.dataset, self.devices.everywhere
        self.data = DataSpec.of(dataset, self.settings)
        self.train = jax.device_put((dataset.x_train, dataset.y_train), everywhere)
        # Evaluation doesn't depend on a batch size, so it uses the platform's preferred one.
        size, validated = block_size(self.platform, 1024), len(dataset.y_validation)
        images = (dataset.x_validation, dataset.y_validation) if validated else self.train
        order = np.arange(validated or min(size, len(dataset.y_train)), dtype=np.int32)
        evaluated = (*images, batches(order, size, size)[:, 0])
        self.evaluated = jax.device_put(evaluated, everywhere)
        # Kept, as a network that is bound is not kept for ever.
        self.key_of = cache(lambda hyperparameters: self.bind(hyperparameters).program_key)

    def bind(self, hyperparameters: Hyperparameters) -> BoundNetwork:
        """The network of a configuration, for the dataset."""
        return self.network.bind(hyperparameters, self.data)

    def settings_of(self, hyperparameters: Hyperparameters) -> TrainingSettings:
        """How a configuration is trained."""
        settings = self.bind(hyperparameters).training(self.settings)
        # A batch larger than the data is one short batch; no need to compute its padding.
        return replace(settings, batch_size=min(settings.batch_size, len(self.dataset.y_train)))

    def batches_of(self, group: Group, epoch: int) -> np.ndarray:
        """The batches of an epoch, the same for all trials of a group: int32[S, K, B]."""
        seed = order_seed(self.seed, group.trials[0][0])
        order = epoch_order(len(self.dataset.y_train), seed, epoch)
        size = self.settings_of(group.widest).batch_size
        block = self.bind(group.widest).block_size(self.platform, size)
        return batches(order, size, block)

    def packing_of(self, hyperparameters: Hyperparameters) -> Packing | None:
        """How the weights of a configuration are packed while it trains, on a CPU.

        Not with a network's own optimizer, which need not compute elementwise.
        """
        bound = self.bind(hyperparameters)
        if self.platform != "cpu" or bound.optimizer:
            return None
        return Packing.of(bound.shapes["params"], bound.decayed)

    def groups(
        self,
        trials: Iterable[tuple[Key, Hyperparameters]],
        stacking: Stacking,
        positions: Mapping[Key, Hashable] | None = None,
        *,
        consecutive: bool = False,
    ) -> list[Group]:
        """The trials in groups that can share a program: see `group_trials`."""
        known = self.network.known
        return group_trials(
            trials,
            stacking,
            self.devices.count,
            positions,
            self.key_of,
            known.pads if known else lambda hyperparameters: False,
            consecutive,
        )

    def resized(self, tree: Any, hyperparameters: Hyperparameters, resized: Hyperparameters) -> Any:
        """A tree of a configuration's weights or moments, resized to the shapes of another one."""
        known = self.network.known
        if hyperparameters == resized or not known:
            return tree
        if isinstance(tree, TrainingState):
            return tree._replace(
                parameters=self.resized(tree.parameters, hyperparameters, resized),
                optimizer_state=self.resized(tree.optimizer_state, hyperparameters, resized),
            )

        shapes = self.bind(resized).shapes["params"]

        def resize(part: Any) -> Any:
            if not isinstance(part, dict):
                return part  # a count or a sum, which has no shape to resize
            return known.resize(part, shapes, hyperparameters, resized)

        return jax.tree.map(resize, tree, is_leaf=lambda part: isinstance(part, dict))

    def start(self, group: Group, checkpoints: Mapping[Key, Checkpoint]) -> TrainingState:
        """The state of a group before its next step; idle lanes repeat the last trial."""
        states: list[TrainingState] = []
        packing = self.packing_of(group.widest)
        for index, hyperparameters in group.trials:
            bound, settings = self.bind(hyperparameters), self.settings_of(hyperparameters)
            seeds = {"seed": weights_seed(self.seed, index), "index": index.index}
            if index in checkpoints:
                state = checkpoints[index].state
                # A checkpoint has no constants: they follow from the trial.
                state = state._replace(constants=constants_of(settings, **seeds))
            else:
                weights = bound.initial_weights(**seeds)
                state = first_state(bound, settings, weights, **seeds, computed=True)
            state = self.resized(state, hyperparameters, group.widest)
            states.append(packing.packed(state) if packing else state)
        states += states[-1:] * (group.lanes - len(states))
        stack = jax.tree.map(lambda *arrays: np.stack(arrays), *states)
        return cast(TrainingState, jax.device_put(stack, self.devices.by_lane))

    def compilers(self, group: Group, stacking: Stacking) -> Compilers:
        """The functions that compile the training and the evaluation program of a group."""
        options = COMPILER_OPTIONS if self.platform == "cpu" else None

        def compiler(function: Any, arguments: Arguments) -> Callable[[], jax.stages.Compiled]:
            def compiled() -> jax.stages.Compiled:
                with in_own_code():
                    lowered = function.lower(*arguments)
                program: jax.stages.Compiled = lowered.compile(options)
                return program

            return compiled

        train, validate = self.functions(group, stacking)
        return compiler(*train), compiler(*validate)

    def functions(
        self, group: Group, stacking: Stacking
    ) -> tuple[tuple[Any, Arguments], tuple[Any, Arguments]]:
        """The jitted training and evaluation functions of a group, with arguments to lower them."""
        by_lane, bound = self.devices.by_lane, self.bind(group.widest)
        settings, images = self.settings_of(group.widest), len(self.dataset.y_train)
        first = first_state(bound, settings, bound.shapes)
        packing = self.packing_of(group.widest)

        def stacked(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((group.lanes, *x.shape), x.dtype, sharding=by_lane),
                tree,
            )

        state = stacked(jax.eval_shape(packing.packed, first) if packing else first)
        precision, step = self.settings.precision, np.int32(0)
        model = bound.model(stacking.method(self.platform), precision)
        evaluated = bound.model(usual_method(self.platform), precision)
        tail = 0 if bound.fills_batches else images % settings.batch_size
        train = train_block(model, settings, bound.optimizer, tail, packing, bound.decayed)
        if not stacking.alone:
            train = frozen_where_diverged(train)
        train = jax.jit(self.devices.spread(train, stacking, shared=6), donate_argnums=0)
        validate = jax.jit(self.devices.spread(evaluate(evaluated), stacking, shared=3))
        arguments = (state, *self.train, self.batches_of(group, 0), step, step, step)
        weights = stacked((first.parameters, first.collections))
        return (train, arguments), (validate, (weights, *self.evaluated))

    def stacking(
        self,
        trials: list[tuple[Key, Hyperparameters]],
        lanes: int | None,
        host_cores: int,
        *,
        consecutive: bool = False,
    ) -> Stacking:
        """How these trials share programs: see `lanes.choose`."""

        def groups(stacking: Stacking) -> list[Group]:
            return self.groups(trials, stacking, consecutive=consecutive)

        known = self.network.known
        paddings = known.paddings if known else ()
        count = self.devices.count
        return choose(self.platform, count, len(trials), lanes, paddings, groups, host_cores)


# --- How long training takes, about ---


@dataclass(frozen=True)
class Costs:
    """Seconds of a training step, as a linear function of a network's layers.

    A step of B images takes step + B · (value · the number of outputs of all layers +
    multiplication · the multiplications of a forward pass).
    """

    step: float
    value: float
    multiplication: float

    def step_seconds(self, layers: Sequence[Layer], batch_size: int) -> float:
        """The seconds of a training step."""
        values = sum(math.prod(layer.output_shape) for layer in layers)
        per_image = self.value * values + self.multiplication * multiplications(layers)
        return self.step + batch_size * per_image


# By platform. TPU: fitted to the cycles that the compiler expects of a v5e at 1.5 GHz (within 28 %;
# experiments/tpu_compiler.py). GPU: an H200. CPU: two cores with AVX-512.
COSTS = {
    "tpu": Costs(0.0, 2.2e-11, 3.3e-14),
    "gpu": Costs(2e-4, 4e-12, 1e-13),
    "cpu": Costs(5e-4, 2e-9, 6e-11),
}


def multiplications(layers: Sequence[Layer]) -> int:
    """About how many multiplications a forward pass of one image has.

    Each parameter of a layer is used once at each place of its output.
    """
    return sum(layer.parameters * math.prod(layer.output_shape[:-1]) for layer in layers)


# --- A function of images for other programs: StableHLO, or ONNX by jax2onnx ---

# Images, dtype[N, H, W, C] for any N, to their probabilities, float32[N, K].
Function = Callable[[jax.Array], jax.Array]
PLATFORMS = ("cpu", "cuda", "tpu")  # that StableHLO is made for
TOLERANCE = 1e-4  # by which probabilities of an ONNX model may differ
CHATTY = "onnx_ir"  # the logger that warns of shapes that no runtime needs


def stablehlo(function: Function, examples: np.ndarray) -> bytes:
    """A function as `jax.export.deserialize` reads it, to be called on each of `PLATFORMS`.

    Args:
      function: pure; its constants become part of the result.
      examples: images [N, H, W, C], of which only the shape (H, W, C) and the dtype count.

    Raises:
      UsageError: it can't be traced for a number of images that is left open.
    """
    start_jax()

    def make() -> jax.export.Exported:
        return jax.export.export(jax.jit(function), platforms=PLATFORMS)(_any_number(examples))

    return bytes(_tried(make).serialize())


def check_onnx() -> None:
    """Raise `UsageError` unless jax2onnx is installed."""
    if find_spec("jax2onnx") is None:
        raise UsageError(
            "exporting to .onnx needs jax2onnx: python -m pip install jax2onnx; or export to"
            " .stablehlo, which needs nothing more"
        )


def onnx(function: Function, examples: np.ndarray) -> bytes:
    """An ONNX model with the input `images` and the output `probabilities`.

    Args:
      function: see `stablehlo`.
      examples: images [N, H, W, C], for which ONNX Runtime must give what the function gives.

    Raises:
      UsageError: jax2onnx is missing or can't convert the function, or what it gives is wrong.
    """
    check_onnx()
    start_jax()
    # Imported here: it takes seconds, and is installed only where it is wanted.
    import jax2onnx

    def make() -> Any:
        """The ONNX model of the function, for any number of images."""
        images = _any_number(examples)
        # Traced before jax2onnx replaces functions of JAX and Flax by its own, which don't take all
        # of their arguments; its max-pooling is over four axes, which ONNX Runtime doesn't do.
        plain = with_pooling_by_axis(function)
        traced = core.jaxpr_as_fun(jax.make_jaxpr(plain)(images))
        model = jax2onnx.to_onnx(
            lambda images: traced(images)[0],
            inputs=[images],
            model_name="jaxmnist",
            input_names=["images"],
            output_names=["probabilities"],
        )
        # Shapes within, which a runtime derives itself; some of jax2onnx's are wrong.
        del model.graph.value_info[:]
        return model.SerializeToString()

    with _quiet(CHATTY):
        content: bytes = _tried(make)
    _compare(content, function, examples)
    return content


def _any_number(examples: np.ndarray) -> jax.ShapeDtypeStruct:
    """The shape of N such images, N being left open."""
    (count,) = jax.export.symbolic_shape("N")
    return jax.ShapeDtypeStruct((count, *examples.shape[1:]), examples.dtype)


def _tried(make: Callable[[], Any]) -> Any:
    """What `make` returns; an error in it, whose cause is the network, becomes one line."""
    try:
        return make()
    except MemoryError:
        raise
    except Exception as problem:
        raise UsageError(
            "the network can't be exported for any number of images (take that from x.shape[0], as"
            f" in x.reshape(x.shape[0], -1)): {one_line(problem, named=True)}"
        ) from None


def _compare(content: bytes, function: Function, examples: np.ndarray) -> None:
    """Raise `UsageError` unless ONNX Runtime gives a function's values, for one image and for all.

    jax2onnx doesn't say so where a model that it makes is invalid or computes something else.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # an error is raised, and told once
    wanted = "the network can't be exported to .onnx, but to .stablehlo: "
    try:
        session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found = [session.run(None, {"images": part})[0] for part in (examples[:1], examples)]
    except Exception as problem:
        raise UsageError(f"{wanted}{one_line(problem, named=True)}") from None
    with jax.default_device(jax.devices("cpu")[0]):
        expected = np.asarray(jax.jit(function)(examples))
    for values in found:
        if not np.allclose(values, expected[: len(values)], rtol=0, atol=TOLERANCE):
            raise UsageError(f"{wanted}jax2onnx converts it to a model that computes other values")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Leave out what a logger says below an error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
