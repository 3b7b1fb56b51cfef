"""Compiled programs of a network's configurations on a platform's devices, and which to share."""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import Checkpoint
from jaxmnist.engine.lanes import (
    Devices,
    Group,
    Packing,
    Stacking,
    candidates,
    group_trials,
    lone_ways,
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
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import block_size
from jaxmnist.models.network import DataSpec, Network, in_own_code
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

    def settings_of(self, hyperparameters: Hyperparameters) -> TrainingSettings:
        """How a configuration is trained."""
        settings = self.network.training(self.settings, hyperparameters, self.data)
        # A batch larger than the data is one short batch; no need to compute its padding.
        return replace(settings, batch_size=min(settings.batch_size, len(self.dataset.y_train)))

    def batches_of(self, group: Group, epoch: int) -> np.ndarray:
        """The batches of an epoch, the same for all trials of a group: int32[S, K, B]."""
        seed = order_seed(self.seed, group.trials[0][0])
        order = epoch_order(len(self.dataset.y_train), seed, epoch)
        size = self.settings_of(group.widest).batch_size
        block = self.network.block_size(group.widest, self.data, self.platform, size)
        return batches(order, size, block)

    def packing_of(self, hyperparameters: Hyperparameters) -> Packing | None:
        """How the weights of a configuration are packed while it trains, on a CPU.

        Not with a network's own optimizer, which need not compute elementwise.
        """
        if self.platform != "cpu" or self.network.optimizer(hyperparameters, self.data):
            return None
        shapes = self.network.shapes(hyperparameters, self.data)
        decayed = self.network.decayed(hyperparameters, self.data)
        return Packing.of(self.network.split(shapes)[0], decayed)

    def groups(
        self,
        trials: Iterable[tuple[Key, Hyperparameters]],
        stacking: Stacking,
        positions: Mapping[Key, Hashable] | None = None,
        *,
        consecutive: bool = False,
    ) -> list[Group]:
        """The trials in groups that can share a program: see `group_trials`."""
        return group_trials(
            trials,
            stacking,
            self.devices.count,
            positions,
            lambda hyperparameters: self.network.program_key(hyperparameters, self.data),
            self.network.pads,
            consecutive,
        )

    def resized(self, tree: Any, hyperparameters: Hyperparameters, resized: Hyperparameters) -> Any:
        """A tree of a configuration's weights or moments, resized to the shapes of another one."""
        if hyperparameters == resized or not self.network.multiples:
            return tree
        if isinstance(tree, TrainingState):
            return tree._replace(
                parameters=self.resized(tree.parameters, hyperparameters, resized),
                optimizer_state=self.resized(tree.optimizer_state, hyperparameters, resized),
            )

        def resize(part: Any) -> Any:
            if not isinstance(part, dict):
                return part  # a count or a sum, which has no shape to resize
            return self.network.resize(part, hyperparameters, resized, self.data)

        return jax.tree.map(resize, tree, is_leaf=lambda part: isinstance(part, dict))

    def start(self, group: Group, checkpoints: Mapping[Key, Checkpoint]) -> TrainingState:
        """The state of a group before its next step; idle lanes repeat the last trial."""
        states: list[TrainingState] = []
        packing = self.packing_of(group.widest)
        for index, hyperparameters in group.trials:
            settings = self.settings_of(hyperparameters)
            seeds = {"seed": weights_seed(self.seed, index), "index": index.index}
            if index in checkpoints:
                state = checkpoints[index].state
                # A checkpoint has no constants: they follow from the trial.
                numbers = self.network.numbers(hyperparameters)
                constants = constants_of(settings, **seeds, numbers=numbers)
                state = state._replace(constants=constants)
            else:
                weights = self.network.initial_parameters(hyperparameters, self.data, **seeds)
                state = first_state(
                    self.network,
                    hyperparameters,
                    self.data,
                    settings,
                    weights,
                    **seeds,
                    computed=True,
                )
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
                with in_own_code() if self.network.traced else nullcontext():
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
        by_lane, method = self.devices.by_lane, stacking.method(self.platform)
        shapes = self.network.shapes(group.widest, self.data)
        settings, images = self.settings_of(group.widest), len(self.dataset.y_train)
        first = first_state(self.network, group.widest, self.data, settings, shapes)
        packing = self.packing_of(group.widest)

        def stacked(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((group.lanes, *x.shape), x.dtype, sharding=by_lane),
                tree,
            )

        state = stacked(jax.eval_shape(packing.packed, first) if packing else first)
        judging, precision = stacking.evaluation_method(self.platform), self.settings.precision
        model = self.network.model(group.widest, self.data, method, precision)
        evaluated = self.network.model(group.widest, self.data, judging, precision)
        step = np.int32(0)
        fills = self.network.fills_batches(group.widest, self.data)
        tail = 0 if fills else images % settings.batch_size
        own = self.network.optimizer(group.widest, self.data)
        decayed = self.network.decayed(group.widest, self.data)
        train = train_block(model, settings, own, tail, packing, decayed)
        if not stacking.alone:
            train = frozen_where_diverged(train)
        train = jax.jit(self.devices.spread(train, stacking, shared=6), donate_argnums=0)
        validate = jax.jit(self.devices.spread(evaluate(evaluated), stacking, shared=3))
        arguments = (state, *self.train, self.batches_of(group, 0), step, step, step)
        weights = stacked((first.parameters, first.collections))
        return (train, arguments), (validate, (weights, *self.evaluated))


# --- Estimates of the time that compiling and training take ---


@dataclass(frozen=True)
class Costs:
    """Seconds, as linear functions of a network's layers.

    A training step of B images takes step + B · (value · the number of outputs of all layers +
    multiplication · the multiplications of a forward pass). The programs for training and
    evaluation take compiling + compiling_more · the multiplications seconds of a core.
    """

    step: float
    value: float
    multiplication: float
    compiling: float
    compiling_more: float = 0.0

    def step_seconds(self, layers: Sequence[Layer], batch_size: int) -> float:
        """The seconds of a training step."""
        values = sum(math.prod(layer.output_shape) for layer in layers)
        per_image = self.value * values + self.multiplication * multiplications(layers)
        return self.step + batch_size * per_image

    def compile_seconds(self, layers: Sequence[Layer]) -> float:
        """The core-seconds of compiling the programs for training and evaluation."""
        return self.compiling + self.compiling_more * multiplications(layers)


# By platform and way of training one trial after another. TPU: fitted to the cycles that the
# compiler expects of a v5e at 1.5 GHz (within 28 %), and to its seconds on a slow core
# (experiments/tpu_compiler.py). GPU: steps and compiling of one search of the whole space on an
# H200 (experiments/README.md), with its choosing of kernels by running them; without, the compiler
# takes a quarter to a fifth (experiments/gpu_compiler.py). CPU: two cores with AVX-512.
COSTS = {
    "tpu": {
        "alone": Costs(0.0, 2.2e-11, 3.3e-14, 36.0),
        "corners": Costs(4e-5, 2.7e-12, 3.4e-14, 23.0, 2.5e-6),
    },
    "gpu": {"alone": Costs(2e-4, 4e-12, 1e-13, 10.0)},
    "cpu": {"alone": Costs(5e-4, 2e-9, 6e-11, 3.0)},
}


def multiplications(layers: Sequence[Layer]) -> int:
    """About how many multiplications a forward pass of one image has.

    Each parameter of a layer is used once at each place of its output.
    """
    return sum(layer.parameters * math.prod(layer.output_shape[:-1]) for layer in layers)


# --- The padding that makes a search fastest ---

# Of the time that trials take one after another, what stacking them saved at best, where measured:
# on an H200, 4345 steps a second in place of 2730.
SAVED_BY_STACKING = 0.37


def paddings(multiples: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """All paddings that combine one multiple of each hyperparameter; the last has the largest."""
    names = sorted(multiples)
    combined = product(*(sorted(multiples[name]) for name in names))
    return [dict(zip(names, each, strict=True)) for each in combined]


def seconds(
    groups: Iterable[Group],
    costs: Costs,
    layers_of: Callable[[Hyperparameters], Sequence[Layer]],
    steps_of: Callable[[Group], int],
    batch_size: int,
    cores: int,
) -> tuple[float, float]:
    """The estimated seconds of training and of compiling.

    Args:
      groups: of trials that train together, one group after another, a trial on each device.
      costs: of the platform.
      layers_of: the layers of a configuration.
      steps_of: the steps that a group still has to train.
      batch_size: images of a step.
      cores: of the host, which compile all programs at once.
    """
    training, programs = 0.0, dict[Any, float]()
    for group in groups:
        layers = layers_of(group.widest)
        training += steps_of(group) * costs.step_seconds(layers, batch_size)
        programs[group.program] = costs.compile_seconds(layers)
    longest = max(programs.values(), default=0.0)
    return training, max(sum(programs.values()) / cores, longest)


def cheapest(
    choices: Sequence[Stacking], seconds_of: Callable[[Stacking], tuple[float, float]]
) -> Stacking:
    """The stacking with the least seconds of training and compiling together."""
    return min(choices, key=lambda stacking: sum(seconds_of(stacking)))


def pays(training: float, compiling: float, ways: int) -> bool:
    """Whether measuring `ways` of stacking costs less than the best of them can save.

    training, compiling: the estimated seconds of training one trial after another, and of compiling
      one program.
    """
    return ways * compiling < SAVED_BY_STACKING * training


def ways_of(
    builder: Builder,
    trials: list[tuple[Key, Hyperparameters]],
    lanes: int | None,
    host_cores: int,
    *,
    consecutive: bool = False,
) -> tuple[list[Stacking], Group]:
    """The stackings to choose from for these trials, and the group that measures them.

    Padding and the way of training one trial after another are those with which compiling and
    training are estimated to take least time, on `host_cores` cores. There is only one stacking
    where measuring others wouldn't pay.
    """
    devices, costs = builder.devices.count, COSTS.get(builder.platform, COSTS["gpu"])
    layers = lru_cache(None)(lambda h: builder.network.layers(h, builder.data))
    choices = [
        Stacking(way, devices, padding)
        for way in lone_ways(builder.platform, builder.network.uses_method)
        for padding in paddings(builder.network.multiples)
    ]

    def steps(group: Group) -> int:
        batch_size = builder.settings_of(group.widest).batch_size
        return builder.settings.epochs * -(-len(builder.dataset.y_train) // batch_size)

    def seconds_of(alone: Stacking) -> tuple[float, float]:
        groups = builder.groups(trials, alone, consecutive=consecutive)
        size = builder.settings.batch_size
        return seconds(groups, costs[alone.way], layers, steps, size, host_cores)

    alone = cheapest(choices, seconds_of)
    together = builder.groups(trials, replace(alone, way="map", lanes=len(trials)))
    largest = max(together, key=lambda group: len(group.trials))
    ways = candidates(builder.platform, alone, len(largest.trials), lanes)
    compiling = costs[alone.way].compile_seconds(layers(largest.widest))
    if lanes is None and not pays(seconds_of(alone)[0], compiling, len(ways)):
        ways = ways[:1]
    return ways, largest
