"""The events that the engine yields; their `index` names the trial, or a rerun of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxmnist.engine.stacking import Stacking
from jaxmnist.engine.training import TrainingState
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.keys import TrialKey
from jaxmnist.runs.trial import Computation, History, Metrics


@dataclass(frozen=True)
class TrialStarted:
    """A trial has begun to compile and train.

    history: the epochs finished before an interruption.
    device: what it trains on, see `devices.device_name`.
    node: the name of the machine, or of the cluster's node.
    """

    index: TrialKey
    hyperparameters: Hyperparameters
    history: History = ()
    device: str = ""
    node: str = ""


@dataclass(frozen=True)
class TrialCompiled:
    """A trial's programs are compiled; its first step follows, or the next one if it was resumed.

    epoch: finished epochs. images: images of the next epoch so far.
    seconds: wall time since the trial began.
    computation: what its network computes, if that is a person's own.
    """

    index: TrialKey
    epoch: int = 0
    images: int = 0
    seconds: float = 0.0
    computation: Computation | None = None


@dataclass(frozen=True)
class StepsFinished:
    """The progress of a trial within an epoch, reported about twice a second.

    epoch: counted from 1. images: images of the epoch so far. accuracy: over these images.
    seconds: wall time since the trial began.
    """

    index: TrialKey
    epoch: int
    images: int
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class EpochFinished:
    """A trial has finished an epoch, counted from 1.

    seconds: wall time since the trial began.
    validation: one bit per validation image, 1 if correctly classified: see `trial.pack_right`.
    """

    index: TrialKey
    epoch: int
    metrics: Metrics
    seconds: float
    validation: bytes = b""


@dataclass(frozen=True)
class TrialFinished:
    """A trial has ended.

    history: its epochs, including one that diverged.
    parameters: its weights, a tree of float32 NumPy arrays; None if it failed.
    seconds: wall time, including compilation.
    error: why it failed, or None.
    diverged: whether it failed because its loss stopped being finite; a retry would fail too.
    refused: whether it failed because its network can't be built or traced; so would a retry.
    traceback: of the exception that it failed with; empty if there was none.
    validation: for each epoch, the bits of the correctly classified validation images, all 0 if
      the epoch was not evaluated.
    """

    index: TrialKey
    history: History
    parameters: dict[str, Any] | None
    seconds: float
    error: str | None = None
    diverged: bool = False
    refused: bool = False
    traceback: str = ""
    validation: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class TrialLost:
    """The process that trained a trial has ended without a word, or its node has.

    node: where it ran.
    node_lost: whether the node is lost: then the trial starts again elsewhere from its last
      checkpoint. Otherwise the trial may have ended the process.
    """

    index: TrialKey
    node: str
    node_lost: bool


@dataclass(frozen=True)
class Checkpoint:
    """The state of a trial between two steps, in host memory, from which it can be resumed.

    state: NumPy arrays in the configuration's own shapes; its sums are those of the epoch so far.
    epoch, step: finished epochs, and finished steps of the next one.
    history: the finished epochs.
    seconds: wall time so far; for a group, divided by the number of its trials.
    validation: for each finished epoch, the bits of the correctly classified validation images.
    """

    index: TrialKey
    state: TrainingState
    epoch: int
    step: int
    history: History
    seconds: float
    validation: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class StackingChosen:
    """The choice of how the trials of this run share programs.

    rates: steps per second, summed over all lanes, of each way that was measured; may be empty.
    """

    stacking: Stacking
    rates: dict[str, float]


TrialEvent = (
    TrialStarted
    | TrialCompiled
    | StepsFinished
    | EpochFinished
    | TrialFinished
    | TrialLost
    | Checkpoint
)
Event = TrialEvent | StackingChosen
