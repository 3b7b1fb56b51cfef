"""Tables with columns by name; that of a run's trials is shown by console, page, CSV and pandas."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from rich.cells import cell_len

from jaxmnist.errors import UsageError, printable
from jaxmnist.hyperparameters import Hyperparameters, text
from jaxmnist.models.space import SpaceDescription
from jaxmnist.results.ranking import Finalist, Ranking
from jaxmnist.runs.trial import METRICS, Trial

# --- How values are shown ---

MISSING = "–"


def accuracy(value: float | None) -> str:
    """An accuracy with four decimals; a dash if there is none."""
    return MISSING if value is None or not isfinite(value) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds as readable text: 8.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def with_commas(number: int) -> str:
    """A whole number with its thousands apart: 1,021,562."""
    return f"{number:,}"


# --- Tables ---

INT_OR_NONE = {int, type(None)}


class Laid(str):
    """Text that is laid out, such as a table: its lines stay as they are on a narrow terminal."""

    __slots__ = ()


@dataclass(frozen=True)
class Column:
    """A column of a table.

    values: numbers in full precision, or texts; None where there is none.
    texts: how these are shown.
    """

    values: tuple[Any, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, values: Iterable[Any], show: Callable[[Any], str] = text) -> Column:
        """A column whose values are shown by `show`, and by a dash where there is none."""
        kept = tuple(values)
        texts = (MISSING if value is None else printable(show(value)) for value in kept)
        return cls(kept, tuple(texts))

    @classmethod
    def asked(cls, name: str, configurations: Iterable[Hyperparameters | None]) -> Column:
        """What configurations have of a hyperparameter, whose value may be None too."""
        kept = [{} if each is None else each for each in configurations]
        texts = (printable(text(each[name])) if name in each else MISSING for each in kept)
        return cls(tuple(each.get(name) for each in kept), tuple(texts))

    @property
    def holds_text(self) -> bool:
        """Whether it has texts; else it has numbers."""
        return any(isinstance(value, str) for value in self.values)


@dataclass(frozen=True)
class Table:
    """Columns of one length by their names, which are the headings.

    >>> print(Table({"trial": Column.of([0, 11]), "node": Column.of(["left", None])}))
    trial  node
        0  left
       11  –
    """

    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).values) if self.columns else 0

    def only(self, heads: Mapping[str, str]) -> Table:
        """The columns named by the keys, with the values as their headings."""
        return Table({head: self.columns[name] for name, head in heads.items()})

    def first(self, rows: int) -> Table:
        """The first rows."""
        return Table(
            {name: Column(c.values[:rows], c.texts[:rows]) for name, c in self.columns.items()}
        )

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The values, row by row."""
        return list(zip(*(column.values for column in self.columns.values()), strict=True))

    @property
    def texts(self) -> list[tuple[str, ...]]:
        """What is shown, row by row."""
        return list(zip(*(column.texts for column in self.columns.values()), strict=True))

    @property
    def cells(self) -> list[list[tuple[str, Any]]]:
        """For HTML: of each cell what is shown, and its number, None for text."""
        return [
            [
                (shown, value if isinstance(value, int | float) else None)
                for shown, value in zip(*row, strict=True)
            ]
            for row in zip(self.texts, self.rows, strict=True)
        ]

    def __str__(self) -> Laid:
        left = [place for place, c in enumerate(self.columns.values()) if c.holds_text]
        return aligned([tuple(self.columns), *self.texts], left)

    def as_csv(self) -> str:
        """As CSV. Text that a spreadsheet would take for a formula begins with an apostrophe."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        for line in (tuple(self.columns), *self.rows):
            writer.writerow(map(_safe, line))
        return buffer.getvalue()

    def to_pandas(self) -> Any:
        """As a `pandas.DataFrame`, with <NA> where a whole number is missing.

        Raises `UsageError` unless pandas is installed.
        """
        try:
            import pandas as pd  # only those who ask for it need it
        except ImportError:
            raise UsageError("a DataFrame needs pandas: python -m pip install pandas") from None
        frame = pd.DataFrame({name: list(column.values) for name, column in self.columns.items()})
        gaps = {name for name, c in self.columns.items() if {*map(type, c.values)} == INT_OR_NONE}
        return frame.astype(dict.fromkeys(gaps, "Int64"))


def _safe(value: Any) -> Any:
    """A value that a spreadsheet takes for a number or for text."""
    if isinstance(value, bool | tuple):
        return text(value)
    begins = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if begins else value


def aligned(rows: Sequence[Sequence[str]], left: Collection[int] = (), gap: int = 2) -> Laid:
    """Rows of texts as lines in columns, `gap` spaces apart; a row without texts is an empty line.

    left: the columns whose texts begin at their left; those of others end at their right.
    """
    rows = [[printable(shown) for shown in row] for row in rows]
    columns = range(max(map(len, rows), default=0))
    widths = [max(cell_len(row[c]) for row in rows if len(row) > c) for c in columns]

    def cell(shown: str, c: int) -> str:
        room = " " * (widths[c] - cell_len(shown))
        return shown + room if c in left else room + shown

    lines = ((" " * gap).join(cell(shown, c) for c, shown in enumerate(row)) for row in rows)
    return Laid("\n".join(line.rstrip() for line in lines))


# --- The trials of a run ---

# The names and headings of columns that every run has, here and in a comparison of runs.
TAKEN = {"trial", "rank", "status", *METRICS, "score", "largest_fall", "largest fall", "parameters"}
TAKEN |= {"seconds", "time", "device", "node", "error", "hyperparameters"}
TAKEN |= {"run", "test", "corrected", "validation", "svm", "trials", "failed"}


def trials_table(ranking: Ranking, space: SpaceDescription, running: bool | None = None) -> Table:
    """A row for each trial: as they rank, then those that have not completed.

    Its columns are trial, rank, status, a column for each hyperparameter of the space, the last
    epoch's metrics, score, largest_fall, parameters, seconds, device, node and error. A
    hyperparameter of such a name has the column 'hp.NAME'.

    running: whether the search runs, if that is known: a trial that began in one that doesn't is
    shown as interrupted.
    """
    entries = {entry.trial.index: entry for entry in ranking.ranked}
    places = {index: place for place, index in enumerate(entries, 1)}
    last = len(places) + 1
    trials = sorted(ranking.trials, key=lambda trial: places.get(trial.index, last))
    ranked = [entries.get(trial.index) for trial in trials]

    def word(trial: Trial) -> str:
        """What stands in place of the score of a trial that has not completed."""
        return "interrupted" if trial.status == "running" and running is False else trial.status

    scores = tuple(entry and entry.score for entry in ranked)
    before = {
        "trial": Column.of(trial.index for trial in trials),
        "rank": Column.of(places.get(trial.index) for trial in trials),
        "status": Column.of(trial.status for trial in trials),
    }
    after = {
        name: Column.of(
            (trial.metric(name)[-1] if trial.history else None for trial in trials), accuracy
        )
        for name in METRICS
    }
    after["score"] = Column(
        scores,
        tuple(
            word(trial) if entry is None else accuracy(entry.score)
            for trial, entry in zip(trials, ranked, strict=True)
        ),
    )
    after["largest_fall"] = Column(
        tuple(entry and entry.fall for entry in ranked),
        tuple(MISSING if entry is None else ranking.rule.cell(entry) for entry in ranked),
    )
    after["parameters"] = Column.of((trial.parameters for trial in trials), with_commas)
    after["seconds"] = Column.of((trial.seconds for trial in trials), duration)
    for name in ("device", "node", "error"):
        after[name] = Column.of(getattr(trial, name) for trial in trials)
    given = [trial.hyperparameters for trial in trials]
    asked = {column_of(name): Column.asked(name, given) for name in space.parameters}
    return Table({**before, **asked, **after})


def column_of(hyperparameter: str) -> str:
    """The name of a hyperparameter's column beside those that every run has.

    The page's filter doesn't tell capital letters from small ones.
    """
    name = hyperparameter.lower()
    return f"hp.{hyperparameter}" if name in TAKEN or name.startswith("hp.") else hyperparameter


def shown_configurations(trials: Sequence[Trial], space: SpaceDescription) -> Column:
    """What varies in each trial's configuration, as one text; and why a trial failed."""
    return Column.of(
        f"{space.shown(trial.hyperparameters)}" + (f": {trial.error}" if trial.error else "")
        for trial in trials
    )


def epochs_table(trials: Sequence[Trial]) -> Table:
    """A row for each epoch of each trial, running ones too: trial, epoch and the four metrics."""
    epochs = [
        (trial.index, epoch, *(getattr(metrics, name) for name in METRICS))
        for trial in trials
        for epoch, metrics in enumerate(trial.history, 1)
    ]
    names = ("trial", "epoch", *METRICS)
    return Table(
        {name: Column.of(row[place] for row in epochs) for place, name in enumerate(names)}
    )


def finalists_table(finalists: Sequence[Finalist]) -> Table:
    """A row for each finalist, the chosen one first, with the scores of its reruns."""
    known = [each if each.reruns else None for each in finalists]
    intervals = (each and "{:.4f} to {:.4f}".format(*each.interval) for each in known)
    scores = ([*map(accuracy, each.scores), *["failed"] * each.failed] for each in finalists)
    spread = (each.deviation if len(each.reruns) > 1 else None for each in finalists)
    return Table(
        {
            "trial": Column.of(each.trial.index for each in finalists),
            "mean": Column.of((each and each.mean for each in known), accuracy),
            "deviation": Column.of(spread, accuracy),
            "95 % interval": Column.of(intervals),
            "reruns": Column.of(map(" ".join, scores)),
        }
    )
