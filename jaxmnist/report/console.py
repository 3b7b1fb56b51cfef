"""A search on a console: a plain line for each thing that happens."""

from __future__ import annotations

import time
from collections.abc import Mapping

from jaxmnist.config import Hyperparameters
from jaxmnist.engine import EpochFinished, Event, TrialFinished, TrialStarted


class Console:
    """Prints what happens; `quiet` leaves all but results out."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._started = time.perf_counter()
        self._stages = [("data", self._started)]

    def stage(self, name: str) -> None:
        """Begin a stage of the run; the one before it ends."""
        self._stages.append((name, time.perf_counter()))

    def times(self) -> str:
        """The wall time of each stage, and of all."""
        ends = [*(began for _, began in self._stages[1:]), time.perf_counter()]
        parts = [
            f"{name} {end - began:.1f} s"
            for (name, began), end in zip(self._stages, ends, strict=True)
        ]
        return f"{', '.join(parts)}; {ends[-1] - self._started:.1f} s in all"

    def note(self, line: str) -> None:
        """Say something on the way."""
        if not self.quiet:
            print(line, flush=True)

    def result(self, text: str) -> None:
        """Say what was asked for."""
        print(text, flush=True)

    def event(self, event: Event, trials: Mapping[int, Hyperparameters], epochs: int) -> None:
        """Say what happened to a trial.

        Args:
          event: from the engine.
          trials: the hyperparameters of each trial that was to be run.
          epochs: of each trial.
        """
        clock = f"[{time.perf_counter() - self._started:6.1f} s] trial {event.index}"
        if isinstance(event, TrialStarted):
            self.note(f"{clock}: {trials[event.index]}: compiling and training")
        elif isinstance(event, EpochFinished):
            m = event.metrics
            self.note(
                f"{clock} epoch {event.epoch}/{epochs}: loss {m.loss:.4f} accuracy {m.accuracy:.4f}"
                f" val_loss {m.val_loss:.4f} val_accuracy {m.val_accuracy:.4f}"
            )
        elif isinstance(event, TrialFinished):
            if event.error is None:
                score = event.history[-1].val_accuracy
                self.note(f"{clock}: completed in {event.seconds:.1f} s, score {score:.4f}")
            else:
                self.note(f"{clock}: failed after {event.seconds:.1f} s: {event.error}")
