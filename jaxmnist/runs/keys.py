"""What names a training: a trial's index, or one of its reruns."""

from __future__ import annotations

from dataclasses import dataclass

REFIT = 0  # the number of a refit


@dataclass(frozen=True, order=True)
class Rerun:
    """A training of trial `index` again, with fresh weights and another order of images.

    number: from 1; `REFIT` for the refit, which trains on the validation images too.
    """

    index: int
    number: int

    @property
    def refit(self) -> bool:
        """Whether it trains on training and validation images together."""
        return self.number == REFIT

    def __str__(self) -> str:
        return f"{self.index} ({'refit' if self.refit else f'rerun {self.number}'})"


# A trial is named by its index alone.
TrialKey = int | Rerun


def index_of(key: TrialKey) -> int:
    """Return the index of the trial."""
    return key.index if isinstance(key, Rerun) else key


def number_of(key: TrialKey) -> int | None:
    """Return the number of the rerun; None for the trial itself."""
    return key.number if isinstance(key, Rerun) else None


def in_order(key: TrialKey) -> tuple[int, int]:
    """Return what keys are sorted by: the index; a trial precedes its refit and its reruns."""
    number = number_of(key)
    return index_of(key), -1 if number is None else number
