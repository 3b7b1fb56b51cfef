"""A search on a console: a plain line for each thing that happens, which greps well.

`open_console` chooses it where nobody looks on as the search runs: in a pipe, a file, a log.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxmnist.config import Hyperparameters
from jaxmnist.engine import (
    EpochFinished,
    Event,
    StackingChosen,
    TrialCompiled,
    TrialFinished,
    TrialStarted,
)
from jaxmnist.errors import printable
from jaxmnist.report.words import duration

if TYPE_CHECKING:
    from jaxmnist.run import Run


@dataclass
class Progress:
    """How far a search is; what a person wants to know of it while it runs.

    draws: the hyperparameters of each trial of the budget.
    done: how many trials have ended.
    best: index and score of the best so far.
    running: of each running trial, its last epoch; `rates` its images a second in that one.
    compiled: the running trials whose programs are there.
    """

    draws: Mapping[int, Hyperparameters]
    epochs: int
    images: int
    done: int = 0
    best: tuple[int, float] | None = None
    running: dict[int, EpochFinished | None] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    compiled: set[int] = field(default_factory=set)
    _began: float = field(default_factory=time.perf_counter)
    _before: int = 0

    def __post_init__(self) -> None:
        self._before = self.done

    def update(self, event: TrialStarted | TrialCompiled | EpochFinished | TrialFinished) -> None:
        """Take in what happened to a trial."""
        index = event.index
        if isinstance(event, TrialStarted):
            self.running[index] = None
            self.compiled.discard(index)
        elif isinstance(event, TrialCompiled):
            self.compiled.add(index)
        elif isinstance(event, EpochFinished):
            before = self.running.get(index)
            seconds = event.seconds - (before.seconds if before else 0.0)
            self.rates[index] = self.images / max(seconds, 1e-9)
            self.running[index] = event
        else:
            self.running.pop(index, None)
            self.done = min(self.done + 1, len(self.draws))
            score = event.history[-1].val_accuracy if event.error is None else 0.0
            if event.error is None and (self.best is None or score > self.best[1]):
                self.best = index, score

    @property
    def share(self) -> float:
        """How much of the training that there was to do is done, from 0 to 1."""
        epochs = sum(event.epoch for event in list(self.running.values()) if event)
        work = self.epochs * max(1, len(self.draws) - self._before)
        return min(1.0, (self.epochs * (self.done - self._before) + epochs) / work)

    def left(self) -> str:
        """The time left, as far as the time taken tells."""
        share = self.share
        if share <= 0:
            return "time left not known yet"
        passed = time.perf_counter() - self._began
        return f"about {duration(passed * (1 - share) / share)} left"

    def __str__(self) -> str:
        best = f", best so far {self.best[1]:.4f} (trial {self.best[0]})" if self.best else ""
        return f"{self.done} of {len(self.draws)} trials{best}, {self.left()}"


class Console:
    """Prints what happens; `quiet` leaves all but results out."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._started = time.perf_counter()
        self._stages = [("data", self._started)]
        self.progress: Progress | None = None

    def stage(self, name: str) -> None:
        """Begin a stage of the run; the one before it ends."""
        self._stages.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """The wall time of each stage so far."""
        ends = [*(began for _, began in self._stages[1:]), time.perf_counter()]
        return {name: end - began for (name, began), end in zip(self._stages, ends, strict=True)}

    def times(self) -> str:
        """The wall time of each stage, and of all."""
        parts = [f"{name} {value:.1f} s" for name, value in self.seconds().items()]
        return f"{', '.join(parts)}; {time.perf_counter() - self._started:.1f} s in all"

    def begin(self, progress: Progress) -> None:
        """Training begins; events keep `progress` up to date from now on."""
        self.progress = progress

    def close(self) -> None:
        """Nothing more happens to trials."""

    def note(self, line: str) -> None:
        """Say something on the way."""
        if not self.quiet:
            print(printable(line), flush=True)

    def warn(self, line: str) -> None:
        """Say what went wrong but does not end the search, even if quiet."""
        if sys.stderr is not None:
            with suppress(OSError):  # nobody can see it
                print(f"jaxmnist: {printable(line)}", file=sys.stderr, flush=True)

    def result(self, text: str) -> None:
        """Say what was asked for."""
        print(text, flush=True)

    def results(self, run: Run) -> None:
        """Say how the trials rank, and why the first one won."""
        self.result(f"\n{run.results_summary()}\n\n{run.why()}")

    def event(self, event: Event) -> None:
        """Say what happened to a trial."""
        assert self.progress is not None
        if isinstance(event, StackingChosen):
            measured = ", ".join(f"{way}: {rate:.0f}" for way, rate in event.rates.items())
            self.note(
                f"training {event.stacking}" + (f" (steps/s: {measured})" if measured else "")
            )
            return
        self.progress.update(event)
        if not isinstance(event, TrialCompiled):
            self.show(event, self.progress)

    def show(self, event: TrialStarted | EpochFinished | TrialFinished, progress: Progress) -> None:
        """Show a trial's event, which `progress` has taken in."""
        index = event.index
        clock = f"[{time.perf_counter() - self._started:6.1f} s] trial {index}"
        if isinstance(event, TrialStarted):
            self.note(f"{clock}: {progress.draws[index]}: compiling and training")
        elif isinstance(event, EpochFinished):
            m = event.metrics
            self.note(
                f"{clock} epoch {event.epoch}/{progress.epochs}: loss {m.loss:.4f} accuracy"
                f" {m.accuracy:.4f} val_loss {m.val_loss:.4f} val_accuracy {m.val_accuracy:.4f}"
                f" {progress.rates[index]:.0f} images/s"
            )
        elif event.error is None:
            score = event.history[-1].val_accuracy
            self.note(f"{clock}: completed in {event.seconds:.1f} s, score {score:.4f}; {progress}")
        else:
            self.note(f"{clock}: failed after {event.seconds:.1f} s: {event.error}; {progress}")


def open_console(quiet: bool = False) -> Console:
    """The console for where the output goes: a terminal, a notebook, or anything else."""
    if not quiet:
        from jaxmnist.report.display import Display, can_display

        if can_display():
            return Display()
    return Console(quiet)
