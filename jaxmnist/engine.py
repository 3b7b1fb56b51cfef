"""Where trials run: one a core on a CPU, one after another on an accelerator.

The engine is given trials and gives back what happened to them; nobody else knows of threads,
compiled programs or devices. One bad trial never hurts its neighbours.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from jaxmnist.config import Hyperparameters, TrainingSettings
from jaxmnist.convolution import block_size
from jaxmnist.data import Dataset
from jaxmnist.model import build_model, initial_parameters
from jaxmnist.training import (
    batches,
    epoch_order,
    evaluate,
    start_epoch,
    start_training,
    train_block,
)

# Steps of one call of the compiled program; between calls the host can stop the trial.
STEPS_PER_CALL = 16


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


Event = TrialStarted | EpochFinished | TrialFinished


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
        run_trial: Callable[[int, Hyperparameters, threading.Event], Iterator[Event]],
        trials: list[tuple[int, Hyperparameters]],
        jobs: int,
    ) -> None:
        self._run_trial = run_trial
        self._waiting: queue.SimpleQueue[tuple[int, Hyperparameters]] = queue.SimpleQueue()
        for trial in trials:
            self._waiting.put(trial)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._running = 0
        count = min(jobs, len(trials))
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def start(self) -> None:
        """Let the trials begin."""
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
                for event in self._run_trial(*self._waiting.get_nowait(), self._stop):
                    self._events.put(event)
        except (queue.Empty, _Interrupted):
            pass
        finally:
            self._events.put(None)


@dataclass
class Engine:
    """Trains configurations on one dataset, whose images lie on the device as uint8.

    jobs: trials at once; None for one a core on a CPU, and one on an accelerator.
    """

    dataset: Dataset
    settings: TrainingSettings
    seed: int
    jobs: int | None = None
    platform: str = field(default_factory=jax.default_backend)

    def __post_init__(self) -> None:
        if self.jobs is None:
            self.jobs = cores() if self.platform == "cpu" else 1
        data = self.dataset
        self._train = jax.device_put((data.x_train, data.y_train))
        self._validation = jax.device_put((data.x_validation, data.y_validation))
        # A batch larger than the data is one short batch: its padding need not be computed.
        self._batch_size = min(self.settings.batch_size, len(data.y_train))
        self._block = block_size(self.platform, self._batch_size)
        # Evaluation has no batch size to respect, so that it takes whatever the platform likes.
        size = block_size(self.platform, 1024)
        order = np.arange(len(data.y_validation), dtype=np.int32)
        self._validation_batches = jax.device_put(batches(order, size, size)[:, 0])

    @contextmanager
    def run(self, trials: Iterable[tuple[int, Hyperparameters]]) -> Iterator[Events]:
        """Train trials, given as (index, hyperparameters); a context whose value iterates events.

        Leaving the context early stops the trials that are running at their next pause, and
        waits for them; they have then left nothing behind.
        """
        assert self.jobs is not None
        events = Events(self._trial, list(trials), self.jobs)
        try:
            events.start()
            yield events
        finally:
            events.stop()
            events.join()

    def _trial(
        self, index: int, hyperparameters: Hyperparameters, stop: threading.Event
    ) -> Iterator[Event]:
        """The events of one trial; an exception in it becomes its error."""
        started = time.perf_counter()
        history: list[Metrics] = []
        yield TrialStarted(index)
        weights, parameters, error = None, None, None
        try:
            for metrics, state in self._epochs(index, hyperparameters, stop):
                history.append(metrics)
                weights = state.parameters
                if not metrics.finite:
                    name = "validation loss" if np.isfinite(metrics.loss) else "loss"
                    error = f"the {name} stopped being finite in epoch {len(history)}"
                    break
                yield EpochFinished(index, len(history), metrics, time.perf_counter() - started)
            else:
                parameters = jax.device_get(weights)
        except _Interrupted:
            raise
        except Exception as failure:
            error = " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
        yield TrialFinished(index, tuple(history), parameters, time.perf_counter() - started, error)

    def _epochs(
        self, index: int, hyperparameters: Hyperparameters, stop: threading.Event
    ) -> Iterator[tuple[Metrics, Any]]:
        """Metrics and state after each epoch of a trial; ends after an epoch that diverged."""
        shape, classes = self.dataset.image_shape, self.dataset.classes
        parameters = initial_parameters(
            hyperparameters, shape, classes, seed=self.seed, index=index
        )
        state = jax.jit(start_training, static_argnums=1)(parameters, self.settings)
        images = len(self.dataset.y_train)
        train, evaluate = self._compile(hyperparameters, state)
        for epoch in range(self.settings.epochs):
            order = self._batches(epoch)
            state, loss, steps = start_epoch(state), 0.0, len(order)
            for first in range(0, steps, STEPS_PER_CALL):
                if stop.is_set():
                    raise _Interrupted
                last = min(first + STEPS_PER_CALL, steps)
                state = train(state, *self._train, order, np.int32(first), np.int32(last))
                loss = float(state.loss_sum) / images
                if not np.isfinite(loss):
                    yield Metrics(loss, np.nan, np.nan, np.nan), state
                    return
            sums = evaluate(state.parameters, *self._validation, self._validation_batches)
            validated = len(self.dataset.y_validation)
            metrics = Metrics(
                loss,
                int(state.correct) / images,
                float(sums.loss_sum) / validated,
                int(sums.correct) / validated,
            )
            yield metrics, state

    def _batches(self, epoch: int) -> np.ndarray:
        """The batches of an epoch, the same for all trials: int32[S, K, B]."""
        order = epoch_order(len(self.dataset.y_train), self.seed, epoch)
        return batches(order, self._batch_size, self._block)

    def _compile(self, hyperparameters: Hyperparameters, state: Any) -> tuple[Any, Any]:
        """The programs of a configuration: one that trains some steps, one that evaluates."""
        model = build_model(hyperparameters, self.dataset.classes, self.platform)
        step = np.int32(0)
        train = jax.jit(train_block(model, self.settings), donate_argnums=0)
        validate = jax.jit(evaluate(model))
        return (
            train.lower(state, *self._train, self._batches(0), step, step).compile(),
            validate.lower(state.parameters, *self._validation, self._validation_batches).compile(),
        )
