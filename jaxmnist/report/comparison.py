"""The page of several runs: what differs between them, and paired tests of their winners."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.files import read_bytes, write_bytes
from jaxmnist.hyperparameters import text
from jaxmnist.report.curves import Line, draw_lines
from jaxmnist.report.drawing import MOST_LABELS, Figure
from jaxmnist.report.facts import MARK, Facts, data_url, render
from jaxmnist.report.figures import Group, by_row, how_to_read
from jaxmnist.results.comparisons import Predictions, compare_models, tested_models
from jaxmnist.results.confusion import Evaluation, beside_constant, shortened
from jaxmnist.results.evaluation import describe_looks, looks_of
from jaxmnist.results.run import Run
from jaxmnist.results.table import (
    MISSING,
    Column,
    Table,
    accuracy,
    column_of,
    duration,
    with_commas,
)
from jaxmnist.runs.records import File, Pair

# --- The comparison ---

# Settings that say where a run lies and how it is shown, and don't change its results.
LEFT_OUT = (
    "directory",
    "project_name",
    "overwrite",
    "quiet",
    "cache",
    "report",
    "tensorboard",
    "ranges",
    "checkpoint_every",
)


@dataclass(frozen=True)
class Family:
    """Runs whose winners were tested on the same images.

    runs: their names.
    images: number of test images.
    pairs: McNemar's test of each pair of winners, as one family; see `compare_models`. None
      for one run alone, and without the true classes.
    problem: why there are none, although there are several runs.
    """

    runs: tuple[str, ...]
    images: int
    pairs: tuple[Pair, ...] = ()
    problem: str | None = None


def families(runs: Mapping[str, Run]) -> list[Family]:
    """The runs with a tested winner, by the test images; their winners are compared in pairs.

    The stored predictions are compared: the test set is not evaluated.

    Args:
      runs: by their names; of records that can't be read, each leaves out the damaged ones.
    """
    groups: dict[str, dict[str, Predictions]] = defaultdict(dict)
    for name, run in runs.items():
        found = tested_models(run.store, run.ranking.ranked, run.ranking.tested_sha256).get(
            "network"
        )
        if found is not None:
            groups[run.store.test_sha256][name] = found
    return [_family({name: runs[name] for name in members}, members) for members in groups.values()]


def _family(runs: Mapping[str, Run], members: Mapping[str, Predictions]) -> Family:
    names, first = tuple(runs), next(iter(runs.values()))
    images = first.store.search.data.test
    if len(names) == 1:
        return Family(names, images)
    try:
        truth = _true_labels(list(runs.values()))
        right = {
            name: labels_of(run)[members[name].classes()] == truth for name, run in runs.items()
        }
    except JaxmnistError as problem:
        return Family(names, images, problem=str(problem))
    return Family(names, images, compare_models(right))


def labels_of(run: Run) -> np.ndarray:
    """The label of each class of a run, int64[K]: classes are numbered anew in each run."""
    return np.asarray(run.store.search.data.labels, np.int64)


def _true_labels(runs: Sequence[Run]) -> np.ndarray:
    """The labels of the test images that runs share, from the data of the first that has them."""
    problems = []
    for run in runs:
        try:
            data: Dataset = run.load_dataset()
        except JaxmnistError as problem:
            problems.append(problem)
            continue
        labels: np.ndarray = np.asarray(data.labels, np.int64)[data.y_test]
        return labels
    raise problems[0]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each run directory: its folder's, or with folders above where equal."""
    whole = [path.absolute() for path in paths]
    most = max(len(path.parts) for path in whole)
    for parts in range(1, most + 1):
        names = [str(Path(*path.parts[-parts:])) for path in whole]
        if len(set(names)) == len(names):
            break
    return names


def described(run: Run) -> dict[str, str]:
    """What a run was given, as text by name: data, settings, ranges, versions and device."""
    search = run.store.search
    data, session = search.data, search.sessions[-1]
    settings = {name: v for name, v in run.settings.to_json().items() if name not in LEFT_OUT}
    found: dict[str, Any] = {"data": data.name}
    found |= {
        f"{part} images": f"{getattr(data, part):,}" for part in ("train", "validation", "test")
    }
    found |= {"test images' SHA-256": data.test_sha256[:12]}
    found |= {**settings, "network": search.identity["network"], **search.identity["space"]}
    found |= {name: session.versions.get(name, MISSING) for name in ("jaxmnist", "jax")}
    found |= {"device": session.device["kind"]}
    return {name: "default" if value is None else text(value) for name, value in found.items()}


def differing(runs: Sequence[Run]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What differs between runs, by name with the text of each run; and what is the same."""
    each = [described(run) for run in runs]
    names = dict.fromkeys(name for found in each for name in found)
    rows = {name: [found.get(name, MISSING) for found in each] for name in names}
    different = {name: row for name, row in rows.items() if len(set(row)) > 1}
    return different, {name: row[0] for name, row in rows.items() if name not in different}


# --- The page ---

NAME = 14  # columns of a run's name beside a line


@dataclass(frozen=True)
class Entry:
    """A run of the comparison.

    name: its short name, which no other one has.
    page: the URL of its own page, relative to the comparison; None if it has none.
    """

    name: str
    facts: Facts
    page: str | None

    @property
    def run(self) -> Run:
        """The run without the records that can't be read."""
        return self.facts.run


def write_comparison(paths: Sequence[str], output: Path) -> Path:
    """Write the page that compares runs; the test set is not evaluated.

    Args:
      paths: two or more run directories.
      output: the file to write; one that exists is replaced only if it is such a page.

    Raises:
      UsageError: a run is given twice or can't be read, or another file is in the way.
    """
    check_replaceable(output)
    runs = [Run(path) for path in paths]
    folders = [run.store.path.resolve() for run in runs]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise UsageError(f"{path}: is given twice; each run is compared once")
    write_bytes(output, make_comparison(runs, output.parent).encode())
    return output


def check_replaceable(output: Path) -> None:
    """Raise `UsageError` if a file that is not a page of jaxmnist is where one is to be written."""
    if os.path.lexists(output) and MARK not in read_bytes(output)[:4096]:
        raise UsageError(
            f"{output}: exists and is not a page of jaxmnist: name another file with --output"
        )


def make_comparison(runs: Sequence[Run], folder: Path) -> str:
    """The page as HTML text.

    Args:
      runs: two or more, of different directories.
      folder: where the page will be, from which it refers to the runs' own pages.
    """
    names = names_of([run.store.path for run in runs])
    entries = [
        Entry(name, Facts(run), _page_of(run, folder))
        for name, run in zip(names, runs, strict=True)
    ]
    notes: dict[str, list[str]] = {}
    results = _results(entries)
    families = _families(entries, notes)
    different, same = differing([entry.run for entry in entries])
    winners = _winners(entries)
    looks = [_looks(entries, family) for family in families]
    for entry in entries:  # last, as making the parts above has added to them
        kept = [f"{entry.name}: {note}" for found in entry.facts.notes.values() for note in found]
        notes.setdefault("runs", []).extend(kept)
    return render(
        "comparison.html",
        reload=None,
        names=names,
        pages=[entry.page for entry in entries],
        results=results,
        winners=winners,
        csv=data_url(Table({**results.columns, **winners.columns}).as_csv()),
        families=families,
        looks=looks,
        about=_about_images(entries),
        constant=[
            f"{entry.name}: {sentence}"
            for entry in entries
            if entry.facts.tested
            for sentence in beside_constant(Evaluation.of(entry.facts.tested))
        ],
        curves=_curves(entries),
        scores=_scores(entries),
        different=different,
        same=list(same.items()),
        notes=notes,
    )


def _page_of(run: Run, folder: Path) -> str | None:
    """The URL of a run's own page, relative to a folder."""
    path = run.store.file(File.PAGE)
    return quote(os.path.relpath(path, folder)) if path.is_file() else None


def _results(entries: Sequence[Entry]) -> Table:
    """The table of results, a row for each run."""
    found = [
        entry.facts.attempt("winner", lambda: entry.run.ranking.corrected)  # noqa: B023
        if entry.facts.winner
        else None
        for entry in entries
    ]
    svms = [entry.facts.attempt("test", entry.facts.svm) for entry in entries]
    tests = [entry.facts.tested for entry in entries]
    raw = [
        each.raw if each else entry.facts.winner and entry.facts.winner.score
        for each, entry in zip(found, entries, strict=True)
    ]
    intervals = (test and "{:.4f}–{:.4f}".format(*test.confidence_interval) for test in tests)
    seconds = (sum(trial.seconds for trial in entry.facts.trials) for entry in entries)
    return Table(
        {
            "run": Column.of(entry.name for entry in entries),
            "test": Column.of((test and test.accuracy for test in tests), accuracy),
            "95 % interval": Column.of(intervals),
            "corrected": Column.of((each and each.score for each in found), accuracy),
            "validation": Column.of(raw, accuracy),
            "SVM": Column.of((svm and svm.accuracy for svm in svms), accuracy),
            "trials": Column.of(entry.facts.count("completed") for entry in entries),
            "failed": Column.of(entry.facts.count("failed") for entry in entries),
            "time": Column.of(seconds, duration),
        }
    )


def _winners(entries: Sequence[Entry]) -> Table:
    """The table of winners, with what varies in any run, and a row for each run."""
    names = list(dict.fromkeys(name for entry in entries for name in entry.facts.space.varied))
    # Their records' whole configurations, as what varies in one run may be fixed in another.
    winners = [
        winner and next(t for t in entry.run.trials if t.index == winner.index)
        for entry in entries
        for winner in (entry.facts.winner,)
    ]
    given = [None if winner is None else winner.hyperparameters for winner in winners]
    asked = {column_of(name): Column.asked(name, given) for name in names}
    return Table(
        {
            "run": Column.of(entry.name for entry in entries),
            "trial": Column.of(winner and winner.index for winner in winners),
            **asked,
            "parameters": Column.of((w and w.parameters for w in winners), with_commas),
        }
    )


def _families(entries: Sequence[Entry], notes: dict[str, list[str]]) -> list[Family]:
    """The tested runs by their test images; none, and a note, if they can't be read."""
    try:
        return families({entry.name: entry.run for entry in entries})
    except UsageError as problem:
        notes.setdefault("test", []).append(str(problem))
        return []


def _looks(entries: Sequence[Entry], family: Family) -> str | None:
    """How often the test set of a family was evaluated, by these and all runs of their folders."""
    first = next(entry for entry in entries if entry.name == family.runs[0])
    test_sha256 = first.run.store.test_sha256
    runs = {
        entry.name: entry.run.store
        for entry in entries  # also one whose winner is not tested yet: an earlier one may be
        if entry.run.store.test_sha256 == test_sha256
    }
    return first.facts.attempt("test", lambda: describe_looks(looks_of(runs, test_sha256), *runs))


def _about_images(entries: Sequence[Entry]) -> str:
    """Whether the validation accuracies were measured on the same images."""
    found = {entry.facts.winner.validation_data_sha256 for entry in entries if entry.facts.winner}
    if len(found) == 1 and None not in found:
        return "All runs have the same validation images."
    return (
        "Not all runs have the same validation images, so differences between their validation"
        " accuracies are partly due to the images."
    )


def _most_images(entries: Sequence[Entry]) -> int:
    return max(entry.facts.validation_images for entry in entries)


def _curves(entries: Sequence[Entry]) -> Figure | None:
    """The validation accuracy of each run's winner by epoch; None without a winner."""
    lines = []
    for k, entry in enumerate(entries):
        winner = entry.facts.winner
        if winner is not None:
            label = shortened(entry.name, NAME)
            tooltip = f"{entry.name}, trial {winner.index}: {winner.hyperparameters}"
            lines.append(Line(winner, label, tooltip, f"class-{k % 10}", front=True))
    if not lines:
        return None
    caption = "Each line is the winner of a run, as trained during the search."
    if len(lines) > MOST_LABELS:
        caption += f" Only the first {MOST_LABELS} of {len(lines)} runs are labelled."
    alternative = "; ".join(
        f"{line.tooltip}: {', '.join(f'{v:.4f}' for v in line.trial.metric('val_accuracy'))}"
        for line in lines
    )
    return draw_lines(
        "curves",
        "Validation accuracy of the winners",
        caption,
        f"{alternative}.",
        lines,
        "val_accuracy",
        _most_images(entries),
        head="run",
    )


def _scores(entries: Sequence[Entry]) -> Figure | None:
    """The scores of all trials, a row for each run; None without a completed trial."""
    groups = [
        Group(
            entry.name,
            [trial for trial in entry.facts.trials if trial.score is not None],
            entry.facts.winner.index if entry.facts.winner else None,
        )
        for entry in entries
    ]
    if not any(group.trials for group in groups):
        return None
    images = _most_images(entries)
    return by_row("scores", "Scores of all trials", groups, images, how_to_read("a run's"))
