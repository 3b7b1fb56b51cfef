"""The events that an engine yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxmnist.engine.stacking import Stacking
from jaxmnist.engine.training import TrainingState
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.trial import History, Metrics


@dataclass(frozen=True)
class TrialStarted:
    """A trial has begun to compile and train.

    history: the epochs that it had finished before it was interrupted.
    """

    index: int
    hyperparameters: Hyperparameters
    history: History = ()


@dataclass(frozen=True)
class TrialCompiled:
    """A trial's programs are there: its first step follows, or the next one where it goes on.

    epoch: finished epochs. images: of the next one, so far. seconds: since the trial began.
    """

    index: int
    epoch: int = 0
    images: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class StepsFinished:
    """Where a trial is within an epoch, about twice a second.

    epoch: counted from 1. images: of the epoch, so far; accuracy is theirs.
    seconds: since the trial began.
    """

    index: int
    epoch: int
    images: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class EpochFinished:
    """A trial has finished an epoch, counted from 1.

    seconds: since the trial began.
    validation: which validation images are right, a bit each: see `record.pack_right`.
    """

    index: int
    epoch: int
    metrics: Metrics
    seconds: float
    validation: bytes = b""


@dataclass(frozen=True)
class TrialFinished:
    """A trial has ended.

    history: its epochs, the one that diverged included.
    parameters: its weights, a tree of float32 NumPy arrays; None where it failed.
    seconds: wall time, compiling included.
    error: why it failed, or None.
    diverged: whether it failed because its loss stopped being finite, which it would do again.
    validation: of each epoch, which validation images are right; none where it wasn't evaluated.
    """

    index: int
    history: History
    parameters: dict[str, Any] | None
    seconds: float
    error: str | None = None
    diverged: bool = False
    validation: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Checkpoint:
    """A trial between two steps, in the host's memory: what it takes to go on from there.

    state: in the configuration's own shapes, NumPy arrays; its sums are those of the epoch so far.
    epoch, step: finished epochs, and finished steps of the next one.
    history: the finished epochs.
    seconds: wall time so far; of a stack, divided by its trials.
    validation: of each finished epoch, which validation images are right.
    """

    index: int
    state: TrainingState
    epoch: int
    step: int
    history: History
    seconds: float
    validation: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class StackingChosen:
    """How the trials of this run share programs, from now on.

    rates: steps a second, all lanes counted, of the ways that were measured; empty where none was.
    """

    stacking: Stacking
    rates: dict[str, float]


TrialEvent = (
    TrialStarted | TrialCompiled | StepsFinished | EpochFinished | TrialFinished | Checkpoint
)
Event = TrialEvent | StackingChosen
