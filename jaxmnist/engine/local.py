"""The engine that trains trials: one per core on a CPU, stacked on an accelerator.

It takes trials and yields events; only this package deals with threads, compiled programs and
devices. A trial that fails doesn't affect the others.
"""

from __future__ import annotations

import operator
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from platform import node
from statistics import mean
from typing import Any

import jax
import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.devices import check_precision, device_name, start_jax
from jaxmnist.engine.events import (
    Checkpoint,
    EpochFinished,
    Event,
    StackingChosen,
    StepsFinished,
    TrialCompiled,
    TrialFinished,
    TrialStarted,
)
from jaxmnist.engine.lanes import (
    Devices,
    Group,
    Packed,
    Packing,
    Stacking,
    round_up,
    with_short_tail,
)
from jaxmnist.engine.programs import COSTS, Builder, Compilers, Programs, multiplications
from jaxmnist.engine.training import TrainingState, Weights, start_epoch, trained_weights
from jaxmnist.errors import NetworkError, one_line, whole_traceback
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.machine import cores
from jaxmnist.models.interface import join_weights
from jaxmnist.models.network import Network
from jaxmnist.runs.trial import Key, Metrics, pack_right
from jaxmnist.settings import TrainingSettings

# --- Threads that run groups of trials, and an iterator over their events ---


class Interrupted(Exception):
    """The engine was asked to stop while a trial was running."""


class Events:
    """An iterator over the events of a run's trials, in the order in which they happen."""

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
        self._over: Callable[[], bool] = lambda: False
        self._room = threading.Semaphore(jobs)  # for checkpoints waiting to be written
        self._failure: BaseException | None = None
        self._running = 0
        count = min(jobs, len(groups))
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def start(self, *events: Event) -> None:
        """Start the trials; the iterator yields `events` first."""
        for event in events:
            self._events.put(event)
        for worker in self._workers:
            self._running += 1
            worker.start()

    def stop(self) -> None:
        """Ask the trials to stop; the events until then can still be iterated over."""
        self._stop.set()

    def end_when(self, over: Callable[[], bool]) -> None:
        """Start no further group of trials once `over()` is true; those that run finish.

        Each worker starts one group in any case, so that a search goes on however short its time.
        """
        self._over = over

    @property
    def stopping(self) -> bool:
        """Whether the trials were asked to stop."""
        return self._stop.is_set()

    def join(self) -> None:
        """Wait for the trials to stop."""
        for worker in self._workers:
            if worker.ident is not None:
                worker.join()

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        event = self.within(None)
        assert event is not None
        return event

    def within(self, seconds: float | None) -> Event | None:
        """The next event, or None if none comes within the seconds; StopIteration at the end."""
        while self._running:
            try:
                event = self._events.get(timeout=seconds)
            except queue.Empty:
                return None
            if isinstance(event, Checkpoint):
                self._room.release()
            if event is not None:
                return event
            self._running -= 1
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                for event in self._run_group(self._waiting.get_nowait(), self._stop):
                    if isinstance(event, Checkpoint):
                        self._wait_for_room()
                    self._events.put(event)
                if self._over():
                    break
        except (queue.Empty, Interrupted):
            pass
        except BaseException as failure:
            # A trial's failure is an event; any other exception is raised in the iterating thread.
            self._failure = failure
        finally:
            self._events.put(None)

    def _wait_for_room(self) -> None:
        """Wait until earlier checkpoints were read, to limit how many of them are in memory."""
        while not self._room.acquire(timeout=0.1):
            if self._stop.is_set():  # the reader may be gone
                return


# --- The engine ---

# Steps in one call of the compiled program; between calls the host can stop the trial. An
# accelerator takes more, because it finishes them so quickly that the host's overhead matters.
CPU_STEPS, STEPS = 16, 64
# A trial's metrics of an epoch, the bits of its validation images, and which loss is not finite.
Judged = tuple[Metrics, bytes, str | None]
TELL_EVERY = 0.5  # seconds


@dataclass
class _Lanes:
    """The state of a group of trials during training.

    epoch, step: finished epochs, and finished steps of the next one.
    histories, validation, errors: for each trial, its finished epochs, the bits of the correctly
      classified validation images after each of them, and why it failed.
    before: wall time of earlier sessions, in seconds.
    packing: how the state's parameters and moments are packed; None if they are not.
    told, kept: when their progress was last reported, and when their state was last checkpointed.
    """

    group: Group
    state: TrainingState
    epoch: int
    step: int
    histories: list[list[Metrics]]
    validation: list[list[bytes]]
    before: float
    packing: Packing | None

    def __post_init__(self) -> None:
        self.trials = self.group.trials
        self.errors: list[str | None] = [None for _ in self.trials]
        self._started = self.told = self.kept = time.perf_counter()

    @property
    def live(self) -> np.ndarray:
        """Whether each trial has not failed: bool[trials]."""
        return np.array([error is None for error in self.errors])

    @property
    def loss_sum(self) -> np.ndarray:
        """The summed cross-entropy of each trial in this epoch so far: float64[trials]."""
        return np.asarray(self.state.loss_sum, np.float64)[: len(self.trials)]

    @property
    def weights(self) -> Weights:
        """Parameters and collections, unpacked: here, as a program would have to compile that."""
        parameters, collections = trained_weights(self.state)
        if self.packing:
            assert isinstance(parameters, Packed)
            parameters = parameters._replace(vector=np.asarray(parameters.vector))
            parameters = self.packing.unpack(parameters)
        return parameters, collections

    @property
    def seconds(self) -> float:
        """Wall time so far, including earlier sessions."""
        return self.before + time.perf_counter() - self._started


@dataclass
class Engine:
    """Trains configurations of a network on one dataset, whose images are on the device.

    The dataset may have no validation images; then validation metrics are NaN, and bits empty, and
    the loss after each epoch is computed on some training images, only to see that it is finite.

    jobs: groups of trials that run at once; None for one per core on a CPU, one on an accelerator.
    lanes: trials in one program; None for the usual number (on a CPU: one).
    stacking: how the trials of a resumed run share programs; None for a new run.
    checkpoint_every: seconds between a trial's checkpoints; None for no checkpoints.
    consecutive: start trials in the order in which they are given; fewer can share a program.
    compiled: the number of pairs of programs, for training and evaluation, compiled so far.
    """

    network: Network
    dataset: Dataset
    settings: TrainingSettings
    seed: int
    jobs: int | None = None
    lanes: int | None = None
    stacking: Stacking | None = None
    checkpoint_every: float | None = None
    consecutive: bool = False
    platform: str = field(default_factory=start_jax)
    compiled: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        check_precision(self.settings.precision, self.platform)
        if self.jobs is None:
            self.jobs = cores() if self.platform == "cpu" else 1
        if self.lanes is None and self.platform == "cpu":
            # Unpadded and alone in its program, so that a trial's results don't depend, to the
            # bit, on the trials that run beside it.
            self.stacking = Stacking()
            devices = Devices(jax.local_devices()[:1])
        else:
            devices = Devices(jax.local_devices())
        if self.lanes is not None and self.stacking is not None:
            wanted = round_up(self.lanes, devices.count)
            self.stacking = self.stacking if self.stacking.lanes == wanted else None
        self.builder = Builder(
            self.network, self.dataset, self.settings, self.seed, self.platform, devices
        )
        self._validated = len(self.dataset.y_validation)
        self._steps = CPU_STEPS if self.platform == "cpu" else STEPS

    @contextmanager
    def run(
        self,
        trials: Iterable[tuple[Key, Hyperparameters]],
        checkpoints: Mapping[Key, Checkpoint] | None = None,
    ) -> Iterator[Events]:
        """Train trials, given as (key, hyperparameters); the context's value iterates events.

        Trials that have a checkpoint resume from it. Leaving the context early stops the running
        trials at their next pause and waits for their threads to end.
        """
        assert self.jobs is not None
        trials, checkpoints = list(trials), dict(checkpoints or {})
        before: list[Event] = []
        if self.stacking is None:
            self.stacking = self.builder.stacking(
                trials, self.lanes, cores(), consecutive=self.consecutive
            )
            before = [StackingChosen(self.stacking)]
        positions = {key: (found.epoch, found.step) for key, found in checkpoints.items()}
        groups = self.builder.groups(trials, self.stacking, positions, consecutive=self.consecutive)

        def work(group: Group) -> float:
            key, hyperparameters = group.trials[0]
            left = self.settings.epochs - (positions[key][0] if key in positions else 0)
            return left * multiplications(self.builder.bind(hyperparameters).layers)

        if not self.consecutive:
            groups = with_short_tail(groups, self.jobs, work)
        device = device_name()
        # Compile ahead only on the host of an accelerator: on a CPU, the cores are busy training.
        programs = Programs(self.compilers, groups, 0 if self.platform == "cpu" else cores())

        def run_group(group: Group, stop: threading.Event) -> Iterator[Event]:
            # Take the group's checkpoints out of the mapping, to free their memory when it ends.
            own = {i: checkpoints.pop(i) for i, _ in group.trials if i in checkpoints}
            for key, hyperparameters in group.trials:
                history = own[key].history if key in own else ()
                yield TrialStarted(key, hyperparameters, history, device, node())
            yield from self._attempt(group, own, programs, stop)

        events = Events(run_group, groups, self.jobs)
        try:
            events.start(*before)
            yield events
        finally:
            events.stop()
            programs.close()
            events.join()
            self.compiled += programs.compiled

    def _attempt(
        self,
        group: Group,
        checkpoints: Mapping[Key, Checkpoint],
        programs: Programs,
        stop: threading.Event,
    ) -> Iterator[Event]:
        """The events after the start; if a group fails, its two halves are tried separately."""
        started = time.perf_counter()
        try:
            yield from self._train_group(group, checkpoints, programs, stop)
            return
        except (Interrupted, CancelledError):
            raise Interrupted from None
        except NetworkError as failure:
            error, refused, whole = str(failure), True, failure.traceback
        except Exception as failure:
            error, refused = one_line(failure, named=True), False
            whole = whole_traceback(failure)
        finally:
            programs.release(group)
        if len(group.trials) == 1:
            key, seconds = group.trials[0][0], time.perf_counter() - started
            yield TrialFinished(key, (), None, seconds, error, refused=refused, traceback=whole)
            return
        # Memory ran out, or one of the trials raises: the others must not fail with it.
        for half in group.halves(self.builder.devices.count):
            yield from self._attempt(half, checkpoints, programs, stop)

    def _train_group(
        self,
        group: Group,
        checkpoints: Mapping[Key, Checkpoint],
        programs: Programs,
        stop: threading.Event,
    ) -> Iterator[Event]:
        """Train a group; all its trials finish together, including those that diverged."""
        lanes = self._start(group, checkpoints)
        train, evaluate = programs.get(group)
        for key, hyperparameters in group.trials:
            computation = self.builder.bind(hyperparameters).computation
            images = self._images(lanes)
            yield TrialCompiled(key, lanes.epoch, images, lanes.seconds, computation)
        while lanes.epoch < self.settings.epochs and lanes.live.any():
            order = self.builder.batches_of(lanes.group, lanes.epoch)
            before = np.int32(lanes.epoch * len(order))
            while lanes.step < len(order) and np.isfinite(lanes.loss_sum[lanes.live]).any():
                if stop.is_set():
                    yield from self._checkpoints(lanes)
                    raise Interrupted
                last = min(lanes.step + self._steps, len(order))
                steps = np.int32(lanes.step), np.int32(last), before
                lanes.state = train(lanes.state, *self.builder.train, order, *steps)
                lanes.step = last
                yield from self._pause(lanes)
            yield from self._end_epoch(lanes, evaluate)
        yield from self._finish(lanes)

    def _pause(self, lanes: _Lanes) -> Iterator[Event]:
        """Between two calls of the program, report progress and yield checkpoints at intervals."""
        now = time.perf_counter()
        if now - lanes.told >= TELL_EVERY:
            lanes.told = now
            images = self._images(lanes)
            correct = np.asarray(lanes.state.correct)
            for lane in np.flatnonzero(lanes.live):
                key, accuracy = lanes.trials[lane][0], int(correct[lane]) / images
                yield StepsFinished(key, lanes.epoch + 1, images, accuracy, lanes.seconds)
        if self.checkpoint_every is not None and now - lanes.kept >= self.checkpoint_every:
            lanes.kept = now
            yield from self._checkpoints(lanes)

    def _images(self, lanes: _Lanes) -> int:
        """The number of training images of the epoch so far."""
        batch_size = self.builder.settings_of(lanes.group.widest).batch_size
        return min(lanes.step * batch_size, len(self.dataset.y_train))

    def _checkpoints(self, lanes: _Lanes) -> Iterator[Event]:
        """The checkpoints of all trials that have not failed."""
        state, packing = jax.device_get(lanes.state), lanes.packing
        for lane in np.flatnonzero(lanes.live):
            key, hyperparameters = lanes.trials[lane]
            one = jax.tree.map(operator.itemgetter(lane), state)
            one = packing.unpacked(one) if packing else one
            yield Checkpoint(
                key,
                self.builder.resized(one, lanes.group.widest, hyperparameters),
                lanes.epoch,
                lanes.step,
                tuple(lanes.histories[lane]),
                lanes.seconds / len(lanes.trials),
                tuple(lanes.validation[lane]),
            )

    def _end_epoch(self, lanes: _Lanes, evaluate: Callable[..., Any]) -> Iterator[Event]:
        """Evaluate the trials whose loss is finite, and set the state for the next epoch."""
        found = self._metrics(lanes, evaluate)
        lanes.state, lanes.step = start_epoch(lanes.state), 0
        lanes.epoch += 1
        for lane in np.flatnonzero(lanes.live):
            metrics, right, wrong = found[lane]
            lanes.histories[lane].append(metrics)
            lanes.validation[lane].append(right)
            if wrong is None:
                key = lanes.trials[lane][0]
                yield EpochFinished(key, lanes.epoch, metrics, lanes.seconds, right)
            else:
                lanes.errors[lane] = f"the {wrong} stopped being finite in epoch {lanes.epoch}"

    def _finish(self, lanes: _Lanes) -> Iterator[Event]:
        """Yield the results of the trials."""
        weights = jax.device_get(lanes.weights)
        seconds = lanes.seconds / len(lanes.trials)
        for lane, (key, hyperparameters) in enumerate(lanes.trials):
            parameters, error = None, lanes.errors[lane]
            if error is None:
                trained, collections = jax.tree.map(operator.itemgetter(lane), weights)
                trained = self.builder.resized(trained, lanes.group.widest, hyperparameters)
                parameters = join_weights(trained, collections)
            yield TrialFinished(
                key,
                tuple(lanes.histories[lane]),
                parameters,
                seconds,
                error,
                diverged=error is not None,
                validation=tuple(lanes.validation[lane]),
            )

    def _metrics(self, lanes: _Lanes, evaluate: Callable[..., Any]) -> list[Judged]:
        """How each trial is judged after the epoch.

        A bit is 1 if the image is correctly classified. A trial whose training loss is not finite
        is not evaluated; all its bits are 0. Without validation images their metrics are NaN.
        """
        images, validated, loss_sum = len(self.dataset.y_train), self._validated, lanes.loss_sum
        none_right = pack_right(np.zeros(validated, bool))
        unknown: list[Judged] = [
            (Metrics(float(loss) / images, np.nan, np.nan, np.nan), none_right, "loss")
            for loss in loss_sum
        ]
        if not np.isfinite(loss_sum).any():
            return unknown
        correct = np.asarray(lanes.state.correct)
        found = jax.device_get(evaluate(lanes.weights, *self.builder.evaluated))
        # The batches contain the images in order, followed by padding.
        right = found.right.reshape(len(found.right), -1)[:, :validated]

        def judged(lane: int) -> Judged:
            training = float(loss_sum[lane]) / images, int(correct[lane]) / images
            loss, finite = float(found.loss_sum[lane]), bool(np.isfinite(found.loss_sum[lane]))
            if not validated:
                wrong = None if finite else "loss after the last step"
                return Metrics(*training, np.nan, np.nan), none_right, wrong
            metrics = Metrics(*training, loss / validated, int(right[lane].sum()) / validated)
            return metrics, pack_right(right[lane]), None if finite else "validation loss"

        sound = np.isfinite(loss_sum)
        return [judged(lane) if sound[lane] else unknown[lane] for lane in range(len(loss_sum))]

    def _start(self, group: Group, checkpoints: Mapping[Key, Checkpoint]) -> _Lanes:
        """A group before its next step."""
        found = [checkpoints.get(key) for key, _ in group.trials]
        return _Lanes(
            group,
            self.builder.start(group, checkpoints),
            epoch=found[0].epoch if found[0] else 0,
            step=found[0].step if found[0] else 0,
            histories=[list(before.history) if before else [] for before in found],
            validation=[list(before.validation) if before else [] for before in found],
            before=sum(before.seconds if before else 0.0 for before in found),
            packing=self.builder.packing_of(group.widest),
        )

    def compilers(self, group: Group) -> Compilers:
        """The functions that compile the training and the evaluation program of a group."""
        assert self.stacking is not None
        return self.builder.compilers(group, self.stacking)


# --- How fast this machine trains a configuration ---

LEAST_SECONDS = 1.0  # of training that is timed, after a first block of steps


@dataclass(frozen=True)
class Pace:
    """The speed of training one configuration while others train beside it.

    hyperparameters: the configuration.
    step: wall seconds of one of its training steps.
    compiling: wall seconds until a trial has its two programs, compiled or read from the cache.
    steps: the steps that were timed.
    together: how many trials trained at once.
    """

    hyperparameters: Hyperparameters
    step: float
    compiling: float
    steps: int
    together: int


def measure(
    engine: Engine,
    hyperparameters: Hyperparameters,
    jobs: int,
    beside: Iterable[Hyperparameters] = (),
) -> Pace:
    """Train a configuration from fresh weights for some steps, as many times at once as a search.

    Args:
      engine: of the search, without `lanes`. Nothing is recorded, and there are no events.
      hyperparameters: the configuration.
      jobs: groups of trials that train at once; a group has a trial on each device.
      beside: other configurations, whose programs the other jobs compile meanwhile.
    """
    devices = engine.builder.devices.count
    stacking = engine.stacking = engine.stacking or Stacking(lanes=devices)

    def group_of(drawn: Hyperparameters) -> Group:
        """A group that trains the configuration on each device."""
        return engine.builder.groups([(Key(lane), drawn) for lane in range(devices)], stacking)[0]

    def programs(drawn: Hyperparameters) -> tuple[jax.stages.Compiled, float]:
        """The training program of a configuration, and the seconds of compiling both."""
        began = time.perf_counter()
        train, _ = [compiler() for compiler in engine.compilers(group_of(drawn))]
        return train, time.perf_counter() - began

    with ThreadPoolExecutor(jobs) as pool:
        own, *others = [pool.submit(programs, each) for each in (hyperparameters, *beside)]
    train = own.result()[0]
    # A configuration that can't be compiled fails as a trial, not here.
    compiling = mean(found.result()[1] for found in (own, *others) if not found.exception())
    group = group_of(hyperparameters)
    order = engine.builder.batches_of(group, 0)
    last = min(CPU_STEPS if engine.platform == "cpu" else STEPS, len(order))
    block = (*engine.builder.train, order, np.int32(0), np.int32(last), np.int32(0))

    def steps(job: int) -> tuple[int, float]:
        """A number of steps, and their seconds."""
        state, done = jax.block_until_ready(train(engine.builder.start(group, {}), *block)), 0
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < LEAST_SECONDS:
            state, done = jax.block_until_ready(train(state, *block)), done + last
        return done, spent

    with ThreadPoolExecutor(jobs) as pool:
        timed = list(pool.map(steps, range(jobs)))
    done = sum(count for count, _ in timed)
    return Pace(
        hyperparameters, sum(spent for _, spent in timed) / done, compiling, done, jobs * devices
    )


def relative(engine: Engine, hyperparameters: Hyperparameters) -> float:
    """About how long a training step of a configuration takes, to be compared with another's.

    The estimate of `programs.Costs`, by the network's multiplications and outputs.
    """
    costs = COSTS.get(engine.platform, COSTS["gpu"])
    layers = engine.builder.bind(hyperparameters).layers
    return costs.step_seconds(layers, engine.builder.settings_of(hyperparameters).batch_size)
