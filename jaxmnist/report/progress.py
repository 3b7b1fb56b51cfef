"""The progress of a search, as the console shows it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import isfinite

from jaxmnist.engine.events import (
    EpochFinished,
    StepsFinished,
    TrialCompiled,
    TrialEvent,
    TrialFinished,
    TrialLost,
    TrialStarted,
)
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.report.words import duration
from jaxmnist.results.selection import Rule, Standing
from jaxmnist.runs.keys import Rerun, TrialKey


def stopping(running: int) -> str:
    """What is said when a signal has asked a search to stop."""
    trials = "trial" if running == 1 else "trials"
    saving = f": saving {running} running {trials}" if running else ""
    return f"stopping{saving} … (a second Ctrl-C doesn't wait)"


@dataclass
class Running:
    """The state of a running trial, from its events.

    node: the machine that it runs on.
    compiled: whether its programs are compiled.
    epochs: number of finished epochs.
    share: finished fraction of the next epoch, from 0 to 1.
    accuracy: training accuracy of that part, or of the last epoch.
    val_accuracy: validation accuracy after the last epoch.
    rate: training images per second in the latest epoch.
    since: where `rate` starts: images of the epoch, and seconds since the trial began.
    """

    node: str = ""
    compiled: bool = False
    epochs: int = 0
    share: float = 0.0
    accuracy: float | None = None
    val_accuracy: float | None = None
    rate: float | None = None
    since: tuple[int, float] = (0, 0.0)

    def clock(self, images: int, seconds: float) -> None:
        """Set `rate`, with `images` of the epoch done `seconds` after the trial began."""
        self.rate = (images - self.since[0]) / max(seconds - self.since[1], 1e-9)


@dataclass
class Progress:
    """The progress of a search.

    budget: number of trials to run, with the reruns that were added to them.
    epochs, images: epochs of a trial, and training images of an epoch.
    rule: the rule that ranks completed trials.
    ended: the trials and reruns that have ended.
    completed: the standings of the completed trials, by index; reruns are ranked apart.
    running: the running trials and reruns.
    configurations: hyperparameters of each trial that has begun, as `shown` gives them.
    shown: what to show of a configuration.
    seconds: time after which no further trial starts; None for no limit.
    cluster: whether trials run on several machines.
    clock: the time now, in seconds.
    """

    budget: int
    epochs: int
    images: int
    rule: Rule
    ended: set[TrialKey] = field(default_factory=set)
    completed: dict[TrialKey, Standing] = field(default_factory=dict)
    running: dict[TrialKey, Running] = field(default_factory=dict)
    configurations: dict[TrialKey, Hyperparameters] = field(default_factory=dict)
    shown: Callable[[Hyperparameters], Hyperparameters] = lambda hyperparameters: hyperparameters
    seconds: float | None = None
    cluster: bool = False
    clock: Callable[[], float] = time.perf_counter
    reruns: bool = field(default=False, init=False)
    stopping: bool = field(default=False, init=False)  # whether a signal has asked for it
    _began: float = 0.0
    _before: float = 0.0  # epochs of earlier sessions
    _lost: set[TrialKey] = field(default_factory=set)  # trials that will start again
    _trials_of: Counter[str] = field(default_factory=Counter)  # that ended, by node

    def __post_init__(self) -> None:
        self._before = self.epochs * len(self.ended)
        self._began = self.clock()

    def add(self, further: Collection[TrialKey], ended: Collection[TrialKey], images: int) -> None:
        """Add reruns, when all trials that are to run have ended.

        Args:
          further: the reruns.
          ended: those that have ended in an earlier session.
          images: their training images of an epoch.
        """
        self.budget = len(self.ended) + len(further)
        self.images = images
        self.reruns = True
        self.ended.update(ended)
        self._before += self.epochs * len(ended)

    def update(self, event: TrialEvent) -> None:
        """Update from an event of a trial."""
        index = event.index
        if isinstance(event, TrialStarted):
            last = event.history[-1] if event.history else None
            self.configurations[index] = self.shown(event.hyperparameters)
            self.running[index] = Running(
                event.node,
                epochs=len(event.history),
                accuracy=last.accuracy if last else None,
                val_accuracy=last.val_accuracy if last and isfinite(last.val_accuracy) else None,
            )
            # A trial that ended may be tried again. Epochs of a lost one are of this session.
            if index not in self._lost:
                self._before += len(event.history)
            self._lost.discard(index)
            self._before -= self.epochs * (index in self.ended)
            self.ended.discard(index)
        elif isinstance(event, TrialFinished):
            if running := self.running.pop(index, None):
                self._trials_of[running.node] += 1
            self.ended.add(index)
            if event.error is None and not isinstance(index, Rerun):
                self.completed[index] = self.rule.standing(index, event.validation)
        elif isinstance(event, TrialLost):
            self.running.pop(index, None)
            self._lost.add(index)
        else:
            self._update_running(self.running[index], event)

    def _update_running(self, trial: Running, event: TrialEvent) -> None:
        """Update a running trial from one of its events."""
        if isinstance(event, TrialCompiled):
            trial.share = event.images / self.images
            # An earlier session did this part. It counts once, though after a failure half of a
            # group is compiled again.
            self._before += 0 if trial.compiled else trial.share
            trial.compiled, trial.epochs = True, event.epoch
            trial.since = event.images, event.seconds
        elif isinstance(event, StepsFinished):
            trial.share = event.images / self.images
            trial.accuracy = event.accuracy
            trial.clock(event.images, event.seconds)
        elif isinstance(event, EpochFinished):
            trial.epochs, trial.share = event.epoch, 0.0
            trial.accuracy = event.metrics.accuracy
            known = isfinite(event.metrics.val_accuracy)  # a refit has no validation images
            trial.val_accuracy = event.metrics.val_accuracy if known else None
            trial.clock(self.images, event.seconds)
            trial.since = 0, event.seconds

    @property
    def share(self) -> float:
        """The finished fraction of this session's training, or of its time, from 0 to 1."""
        running = sum(trial.epochs + trial.share for trial in list(self.running.values()))
        done = self.epochs * len(self.ended) + running - self._before
        trained = done / max(1, self.epochs * self.budget - self._before)
        passed = (
            (self.clock() - self._began) / self.seconds if self.seconds and not self.reruns else 0.0
        )
        return min(1.0, max(0.0, trained, passed))

    def left(self) -> str:
        """The time left, extrapolated from the time taken, as text; with a limit, the time."""
        passed = self.clock() - self._began
        if self.seconds is not None and not self.reruns:
            rest = ", running trials finish" if passed >= self.seconds and self.running else ""
            return f"{duration(passed)} of {duration(self.seconds)}{rest}"
        share = self.share
        if share >= 1:
            return "all done"
        if share <= 0:
            return "time left not known yet"
        return f"about {duration(passed * (1 - share) / share)} left"

    @property
    def best(self) -> tuple[int, float] | None:
        """Index and score of the trial that would win now."""
        completed = list(self.completed.values())  # the display reads it in a thread of its own
        if not completed:
            return None
        first = min(completed)
        return first.index, first.score

    @property
    def nodes(self) -> str:
        """How many trials each node has trained in this session, as text."""
        counts = list(self._trials_of.items())
        return ", ".join(f"{node} {trials}" for node, trials in sorted(counts))

    def __str__(self) -> str:
        if self.stopping:
            return stopping(len(self.running))
        best = f", best so far {self.best[1]:.4f} (trial {self.best[0]})" if self.best else ""
        what = "trials and reruns" if self.reruns else "trials"
        return f"{len(self.ended)} of {self.budget} {what}{best}, {self.left()}"
