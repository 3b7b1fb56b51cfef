"""The table of all trials: its rows for the page, and the same as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from jaxmnist.hyperparameters import text
from jaxmnist.report.facts import Facts
from jaxmnist.report.nodes import several
from jaxmnist.report.words import accuracy, duration
from jaxmnist.runs.trial import METRICS, Trial

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """A cell of the table.

    shown: its text.
    value: the number that it is sorted by; None where that is its text.
    """

    shown: str
    value: float | None = None

    @property
    def raw(self) -> str | float:
        """What stands in CSV: the number in full precision, or the text."""
        return self.shown if self.value is None else self.value


@dataclass(frozen=True)
class Row:
    """A trial in the table.

    index: of the trial.
    kind: 'won', or its status.
    cells: beside the index.
    """

    index: int
    kind: str
    cells: tuple[Cell, ...]


def heads(facts: Facts) -> list[str]:
    """The headings of the columns beside the index."""
    where = ["node"] if several(facts.run.trials) else []
    return [*facts.space.varied, "accuracy", facts.run.rule.column, "parameters", "time", *where]


def rows(facts: Facts, running: bool) -> list[Row]:
    """The trials as they rank, then those that have not completed.

    running: whether the search runs; a trial that began in one that does not was interrupted.
    """
    found = []
    winner = facts.winner.index if facts.winner else None
    for entry in facts.ranked:
        shown = facts.run.rule.cell(entry)
        scores = (Cell(accuracy(entry.score), entry.score), Cell(shown, entry.fall))
        kind = "won" if entry.trial.index == winner else "completed"
        found.append(_row(facts, entry.trial, kind, scores))
    for trial in facts.trials:
        if trial.status != "completed":
            status = "interrupted" if trial.status == "running" and not running else trial.status
            found.append(_row(facts, trial, trial.status, (Cell(status), Cell(MISSING))))
    return found


def _row(facts: Facts, trial: Trial, kind: str, scores: tuple[Cell, ...]) -> Row:
    given = trial.hyperparameters
    values = [Cell(text(given[n]) if n in given else MISSING) for n in facts.space.varied]
    costs = (
        Cell(f"{trial.parameters:,}", trial.parameters),
        Cell(duration(trial.seconds), trial.seconds),
    )
    where = [Cell(trial.node or MISSING)] if several(facts.run.trials) else []
    return Row(trial.index, kind, (*values, *scores, *costs, *where))


def as_csv(facts: Facts) -> str:
    """All trials as CSV, in the order of the table, with all hyperparameters and metrics.

    Numbers are in full precision.
    """
    names = list(facts.space.parameters)
    order = {entry.trial.index: place for place, entry in enumerate(facts.ranked, 1)}
    falls = {entry.trial.index: entry.fall for entry in facts.ranked}
    trials = sorted(facts.run.trials, key=lambda t: order.get(t.index, len(order) + 1))
    lines: list[list[Any]] = []
    for trial in trials:
        given = trial.hyperparameters
        last = [trial.metric(name)[-1] if trial.history else None for name in METRICS]
        values = [given.get(name) for name in names]
        place, fall = order.get(trial.index), falls.get(trial.index)
        rest = (fall, trial.parameters, trial.seconds, trial.device, trial.node, trial.error)
        lines.append([trial.index, place, trial.status, *values, *last, *rest])
    head = ["trial", "rank", "status", *names, *METRICS]
    head += ["largest_fall", "parameters", "seconds", "device", "node", "error"]
    return csv_of(head, lines)


def csv_of(head: Sequence[Any], lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV. Text that a spreadsheet would take for a formula begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in (head, *lines):
        writer.writerow(map(_safe, line))
    return buffer.getvalue()


def _safe(value: Any) -> Any:
    """A value that a spreadsheet takes for a number or for text."""
    if isinstance(value, bool | tuple):
        return text(value)
    begins = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if begins else value


def data_url(content: str) -> str:
    """A CSV file as a URL that holds it, so that a page without a server can offer it."""
    return f"data:text/csv;charset=utf-8,{quote(content, safe='')}"
