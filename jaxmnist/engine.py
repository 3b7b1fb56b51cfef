"""Where trials run: one a core on a CPU, stacked on an accelerator.

The engine is given trials and gives back what happened to them; nobody else knows of threads,
compiled programs or devices. One bad trial never hurts its neighbours.
"""

from __future__ import annotations

import operator
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmnist.config import Hyperparameters, TrainingSettings
from jaxmnist.convolution import block_size
from jaxmnist.data import Dataset
from jaxmnist.errors import UsageError
from jaxmnist.lanes import Devices, Group, Stacking, group_trials, round_up
from jaxmnist.model import (
    build_model,
    initial_parameters,
    parameter_shapes,
    resize_parameters,
)
from jaxmnist.programs import Pair, Programs
from jaxmnist.stacking import WIDTHS, candidates, choose
from jaxmnist.training import (
    TrainingState,
    batches,
    epoch_order,
    evaluate,
    frozen_where_diverged,
    start_epoch,
    start_training,
    train_block,
)

# Steps of one call of the compiled program; between calls the host can stop the trial. An
# accelerator has done its steps so soon that the host's part would show.
STEPS_PER_CALL = {"cpu": 16, "gpu": 64, "tpu": 64}
# On a CPU the work is in matrix products that are compiled already: optimising the rest further
# makes it no faster, and takes the cores from training. (Level 0 trains four times slower.)
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclass(frozen=True)
class Metrics:
    """One epoch of a trial: mean cross-entropy and accuracy over training and validation images."""

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float

    @property
    def finite(self) -> bool:
        """Whether both losses are numbers."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.val_loss))


@dataclass(frozen=True)
class TrialStarted:
    """A trial has begun to compile and train."""

    index: int


@dataclass(frozen=True)
class TrialCompiled:
    """A trial's programs are there: its first step follows."""

    index: int


@dataclass(frozen=True)
class EpochFinished:
    """A trial has finished an epoch, counted from 1; `seconds` since the trial began."""

    index: int
    epoch: int
    metrics: Metrics
    seconds: float


@dataclass(frozen=True)
class TrialFinished:
    """A trial has ended.

    history: its epochs, the one that diverged included.
    parameters: its weights, float32 NumPy arrays; None where it failed.
    seconds: wall time, compiling included.
    error: why it failed, or None.
    """

    index: int
    history: tuple[Metrics, ...]
    parameters: dict[str, dict[str, np.ndarray]] | None
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class StackingChosen:
    """How the trials of this run share programs, from now on.

    rates: steps a second, all lanes counted, of the ways that were measured; empty where none was.
    """

    stacking: Stacking
    rates: dict[str, float]


Event = TrialStarted | TrialCompiled | EpochFinished | TrialFinished | StackingChosen


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Interrupted(Exception):
    """The engine was asked to stop while a trial was running."""


class Events:
    """What happens to the trials of a run, in the order that it happens: an iterator."""

    def __init__(
        self,
        run_group: Callable[[Group, threading.Event], Iterator[Event]],
        groups: list[Group],
        jobs: int,
    ) -> None:
        self._run_group = run_group
        self._waiting: queue.SimpleQueue[Group] = queue.SimpleQueue()
        for group in groups:
            self._waiting.put(group)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._running = 0
        count = min(jobs, len(groups))
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def start(self, *events: Event) -> None:
        """Let the trials begin, after `events`."""
        for event in events:
            self._events.put(event)
        for worker in self._workers:
            self._running += 1
            worker.start()

    def stop(self) -> None:
        """Ask the trials to stop; what happens before they do can still be iterated."""
        self._stop.set()

    def join(self) -> None:
        """Wait for the trials to stop."""
        for worker in self._workers:
            if worker.ident is not None:
                worker.join()

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        while self._running:
            event = self._events.get()
            if event is not None:
                return event
            self._running -= 1
        raise StopIteration

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                for event in self._run_group(self._waiting.get_nowait(), self._stop):
                    self._events.put(event)
        except (queue.Empty, _Interrupted):
            pass
        finally:
            self._events.put(None)


@dataclass
class Engine:
    """Trains configurations on one dataset, whose images lie on the device as uint8.

    jobs: groups of trials at once; None for one a core on a CPU, and one on an accelerator.
    lanes: trials in one program; None to measure what is best (on a CPU: one).
    stacking: how trials shared programs when this run began; None where it begins now.
    memory: folder that remembers what was measured; None to remember nothing.
    compiled: how many pairs of programs, to train and to evaluate, were compiled so far.
    """

    dataset: Dataset
    settings: TrainingSettings
    seed: int
    jobs: int | None = None
    lanes: int | None = None
    stacking: Stacking | None = None
    memory: Path | None = None
    platform: str = field(default_factory=jax.default_backend)
    compiled: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.platform == "cpu" and self.settings.precision == "bfloat16":
            raise UsageError("--precision bfloat16 is for GPUs and TPUs, and this is a CPU")
        if self.jobs is None:
            self.jobs = cores() if self.platform == "cpu" else 1
        if self.lanes is None and self.platform == "cpu":
            # Bit for bit the same whatever runs beside it: unpadded, alone in its program.
            self.stacking = Stacking()
            self._devices = Devices(jax.local_devices()[:1])
        else:
            self._devices = Devices(jax.local_devices())
        if self.lanes is not None and self.stacking is not None:
            wanted = round_up(self.lanes, self._devices.count)
            self.stacking = self.stacking if self.stacking.lanes == wanted else None
        data, everywhere = self.dataset, self._devices.everywhere
        self._train = jax.device_put((data.x_train, data.y_train), everywhere)
        # A batch larger than the data is one short batch: its padding need not be computed.
        self._batch_size = min(self.settings.batch_size, len(data.y_train))
        self._block = block_size(self.platform, self._batch_size)
        # Evaluation has no batch size to respect, so that it takes whatever the platform likes.
        size = block_size(self.platform, 1024)
        order = np.arange(len(data.y_validation), dtype=np.int32)
        validation = (data.x_validation, data.y_validation, batches(order, size, size)[:, 0])
        self._validation = jax.device_put(validation, everywhere)

    @contextmanager
    def run(self, trials: Iterable[tuple[int, Hyperparameters]]) -> Iterator[Events]:
        """Train trials, given as (index, hyperparameters); a context whose value iterates events.

        Leaving the context early stops the trials that are running at their next pause, and
        waits for them; they have then left nothing behind.
        """
        assert self.jobs is not None
        trials = list(trials)
        before = self._choose(trials) if self.stacking is None else []
        assert self.stacking is not None
        groups = group_trials(trials, self.stacking, self._devices.count)
        # A CPU's cores are busy training; the host of an accelerator has nothing else to do.
        programs = Programs(self._build, groups, 0 if self.platform == "cpu" else cores())
        events = Events(lambda group, stop: self._group(group, programs, stop), groups, self.jobs)
        try:
            events.start(*before)
            yield events
        finally:
            events.stop()
            programs.close()
            events.join()
            self.compiled += programs.compiled

    def _choose(self, trials: list[tuple[int, Hyperparameters]]) -> list[Event]:
        """Settle how trials are stacked; what there is to tell about it."""
        devices = self._devices.count
        widths = WIDTHS[self.platform]
        largest = max(
            group_trials(trials, Stacking("map", len(trials), *widths), devices),
            key=lambda group: len(group.trials),
        )
        ways = candidates(self.platform, devices, len(largest.trials), self.lanes)
        kind = f"{devices} × {jax.local_devices()[0].device_kind}, jax {jax.__version__}"
        description = f"{kind}, {self.settings.precision}, images {self.dataset.image_shape}"

        def measure(way: Stacking) -> float:
            self.stacking = way
            return self._rate(Group(largest.widest, largest.trials[: way.lanes], way.lanes))

        self.stacking, rates = choose(ways, measure, self.memory, description)
        return [StackingChosen(self.stacking, rates)]

    def _group(self, group: Group, programs: Programs, stop: threading.Event) -> Iterator[Event]:
        """The events of trials that train at once."""
        for index, _ in group.trials:
            yield TrialStarted(index)
        yield from self._attempt(group, programs, stop)

    def _attempt(self, group: Group, programs: Programs, stop: threading.Event) -> Iterator[Event]:
        """The events after the start; what goes wrong in a group is tried again in halves."""
        started = time.perf_counter()
        try:
            yield from self._train_lanes(group, programs, stop)
            return
        except (_Interrupted, CancelledError):
            raise _Interrupted from None
        except Exception as failure:
            error = " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
        finally:
            programs.release(group)
        if len(group.trials) == 1:
            index = group.trials[0][0]
            yield TrialFinished(index, (), None, time.perf_counter() - started, error)
            return
        # Memory ran out, or one of them is bad: the others shall not suffer for it.
        for half in group.halves(self._devices.count):
            yield from self._attempt(half, programs, stop)

    def _train_lanes(
        self, group: Group, programs: Programs, stop: threading.Event
    ) -> Iterator[Event]:
        """Train a group; its trials finish together, those that diverged too."""
        started = time.perf_counter()
        state = self._start(group)
        train, evaluate = programs.get(group)
        for index, _ in group.trials:
            yield TrialCompiled(index)
        trials, steps_per_call = group.trials, STEPS_PER_CALL[self.platform]
        histories: list[list[Metrics]] = [[] for _ in trials]
        errors: list[str | None] = [None for _ in trials]
        for epoch in range(self.settings.epochs):
            live = np.array([error is None for error in errors])
            order = self._batches(epoch)
            state, loss = start_epoch(state), np.zeros(len(trials))
            for first in range(0, len(order), steps_per_call):
                if stop.is_set():
                    raise _Interrupted
                last = np.int32(min(first + steps_per_call, len(order)))
                state = train(state, *self._train, order, np.int32(first), last)
                loss = np.asarray(state.loss_sum, np.float64)[: len(trials)]
                if not np.isfinite(loss[live]).any():
                    break
            found = self._metrics(state, loss, evaluate)
            for lane in np.flatnonzero(live):
                metrics = found[lane]
                histories[lane].append(metrics)
                if metrics.finite:
                    seconds = time.perf_counter() - started
                    yield EpochFinished(trials[lane][0], epoch + 1, metrics, seconds)
                else:
                    name = "validation loss" if np.isfinite(metrics.loss) else "loss"
                    errors[lane] = f"the {name} stopped being finite in epoch {epoch + 1}"
            if all(errors):
                break
        weights = jax.device_get(state.parameters)
        seconds = (time.perf_counter() - started) / len(trials)
        for i, (index, hyperparameters) in enumerate(trials):
            parameters = None
            if errors[i] is None:
                padded = jax.tree.map(operator.itemgetter(i), weights)
                parameters = resize_parameters(
                    padded, group.widest, hyperparameters, *self._kind_of_images
                )
            yield TrialFinished(index, tuple(histories[i]), parameters, seconds, errors[i])

    def _metrics(
        self, state: TrainingState, loss_sum: np.ndarray, evaluate: Callable[..., Any]
    ) -> list[Metrics]:
        """An epoch's metrics of each trial of a group."""
        images, validated = len(self.dataset.y_train), len(self.dataset.y_validation)
        if not np.isfinite(loss_sum).any():
            return [Metrics(loss / images, np.nan, np.nan, np.nan) for loss in loss_sum]
        sums = evaluate(state.parameters, *self._validation)
        columns = (
            loss_sum / images,
            np.asarray(state.correct) / images,
            np.asarray(sums.loss_sum, np.float64) / validated,
            np.asarray(sums.correct) / validated,
        )
        rows = [tuple(map(float, row)) for row in zip(*columns, strict=False)]
        return [
            Metrics(*row) if np.isfinite(row[0]) else Metrics(row[0], np.nan, np.nan, np.nan)
            for row in rows
        ]

    @property
    def _kind_of_images(self) -> tuple[tuple[int, int, int], int]:
        """Shape of one image, and the number of classes."""
        return self.dataset.image_shape, self.dataset.classes

    def _start(self, group: Group) -> TrainingState:
        """The state of all lanes before the first step; idle ones repeat the last trial."""
        lanes = []
        for index, hyperparameters in group.trials:
            parameters = initial_parameters(
                hyperparameters, *self._kind_of_images, seed=self.seed, index=index
            )
            lanes.append(
                resize_parameters(parameters, hyperparameters, group.widest, *self._kind_of_images)
            )
        lanes += lanes[-1:] * (group.lanes - len(lanes))
        parameters = jax.tree.map(lambda *arrays: np.stack(arrays), *lanes)
        first = start_training(lanes[0], self.settings)
        zeros = jax.tree.map(lambda x: np.zeros((group.lanes, *x.shape), x.dtype), first[1:])
        return jax.device_put(TrainingState(parameters, *zeros), self._devices.by_lane)

    def _batches(self, epoch: int) -> np.ndarray:
        """The batches of an epoch, the same for all trials: int32[S, K, B]."""
        order = epoch_order(len(self.dataset.y_train), self.seed, epoch)
        return batches(order, self._batch_size, self._block)

    def _build(self, group: Group) -> Pair:
        """Compile the programs of a group."""
        (train, arguments), (validate, others) = self.functions(group)
        options = COMPILER_OPTIONS if self.platform == "cpu" else None
        return Pair(
            train.lower(*arguments).compile(options), validate.lower(*others).compile(options)
        )

    def functions(self, group: Group) -> tuple[tuple[Any, tuple], tuple[Any, tuple]]:
        """What trains a group and what evaluates it, jitted, each with its arguments' shapes."""
        assert self.stacking is not None
        arrays, by_lane = jax.ShapeDtypeStruct, self._devices.by_lane
        parameters = jax.tree.map(
            lambda shape: arrays(shape, np.float32),
            parameter_shapes(group.widest, *self._kind_of_images),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        state = jax.tree.map(
            lambda x: arrays((group.lanes, *x.shape), x.dtype, sharding=by_lane),
            start_training(parameters, self.settings),
        )
        model = build_model(
            group.widest,
            self.dataset.classes,
            self.stacking.method(self.platform),
            self.settings.precision,
        )
        loop, step = self.stacking.loop, np.int32(0)
        train = train_block(model, self.settings)
        if loop != "alone":
            train = frozen_where_diverged(train)
        train = jax.jit(self._devices.spread(train, loop, shared=5), donate_argnums=0)
        validate = jax.jit(self._devices.spread(evaluate(model), loop, shared=3))
        arguments = (state, *self._train, self._batches(0), step, step)
        return (train, arguments), (validate, (state.parameters, *self._validation))

    def _rate(self, group: Group) -> float:
        """Steps a second of all lanes together, compiling not counted."""
        train, _ = self._build(group)
        state, order = self._start(group), self._batches(0)
        last = np.int32(min(STEPS_PER_CALL[self.platform], len(order)))
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            state = train(state, *self._train, order, np.int32(0), last)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - began)
        return len(group.trials) * int(last) / min(seconds[1:])
