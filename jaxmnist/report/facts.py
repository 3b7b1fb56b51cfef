"""What a report knows of a run: readable files, the table of trials, how to repeat it; as HTML."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Any, TypeVar
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import JaxmnistError, one_line
from jaxmnist.files import DamagedFile, MissingFile
from jaxmnist.hyperparameters import text
from jaxmnist.models.space import SpaceDescription
from jaxmnist.models.study import DEFINITION
from jaxmnist.report.sentences import count
from jaxmnist.results.confusion import shortened
from jaxmnist.results.evaluation import kept_look
from jaxmnist.results.run import Run
from jaxmnist.results.selection import Ranked, p_value, signed
from jaxmnist.results.table import Table, accuracy, column_of, duration
from jaxmnist.runs.records import File, ModelReport, Search, SvmReport
from jaxmnist.runs.trial import Trial
from jaxmnist.settings import IN_MEMORY, SETTINGS, SearchSettings, flag

# --- What a report knows of a run: the content of readable files, and notes about the others ---

T = TypeVar("T")


def plainly(problem: Exception) -> str:
    """An exception as one line of a note, with its type unless it is one of jaxmnist's."""
    return one_line(problem, named=not isinstance(problem, JaxmnistError))


class Facts:
    """The current state of a run.

    Args:
      run: the run, finished or not.

    Attributes:
      run: the same run without the records that can't be read.
      trials: the trials whose records can be read, with the hyperparameters that vary.
      ranked: the completed trials, the winner first.
      notes: for each section of the page, what could not be read or made.
    """

    def __init__(self, run: Run) -> None:
        self.run = run.skipping_damaged()
        self.notes: dict[str, list[str]] = {}
        self.trials: list[Trial] = [
            replace(trial, hyperparameters=self.space.shown(trial.hyperparameters))
            for trial in self.run.trials
        ]
        self.ranked: list[Ranked] = self.run.ranking.ranked
        for problem in self.run.damaged:
            self.note("run", f"a trial is left out: {problem}")

    def note(self, section: str, text: str) -> None:
        """Add a note to a section of the page."""
        self.notes.setdefault(section, []).append(text)

    def attempt(self, section: str, make: Callable[..., T], *arguments: Any) -> T | None:
        """What `make` returns; if it fails, None, and the section gets a note.

        No exception may escape from here: a damaged run gets a page with parts missing.
        """
        try:
            return make(*arguments)
        except Exception as problem:
            self.note(section, plainly(problem))
            return None

    @property
    def validation_images(self) -> int:
        """The number of images that scores are measured on."""
        return self.run.validation_images

    @property
    def winner(self) -> Trial | None:
        """The trial that wins, if one has completed; of a finalist the trial, not its reruns."""
        if not self.ranked:
            return None
        index = self.run.best_trial.index
        return next(entry.trial for entry in self.ranked if entry.trial.index == index)

    @property
    def scores(self) -> list[float]:
        """The scores of the completed trials, in the order of their indices."""
        return [trial.score for trial in self.trials if trial.score is not None]

    @property
    def space(self) -> SpaceDescription:
        """The search space."""
        return self.run.space

    @property
    def budget(self) -> int:
        """The number of trials to run: `max_trials`, or the space's size if it is smaller."""
        wanted = self.run.settings.selection.max_trials
        return wanted if self.space.size is None else min(wanted, self.space.size)

    def count(self, status: str) -> int:
        """How many trials have this status."""
        return sum(trial.status == status for trial in self.trials)

    @cached_property
    def tested(self) -> ModelReport | None:
        """The content of best/test.json if it belongs to the current winner, else None.

        If it can't be read, the section gets a note.
        """
        return self.attempt("test", self._test)

    def _test(self) -> ModelReport | None:
        try:
            return kept_look(self.run) if self.ranked else None
        except MissingFile as problem:
            if problem.path != self.run.store.file(File.TEST):
                raise
            return None

    def svm(self) -> SvmReport | None:
        """The content of svm.json for the run's own data, if it belongs to the current winner."""
        final = self.run.ranking.final if self.ranked else None
        identity = self.run.store.search.identity
        for place in self.run.store.svm_places():
            try:
                report = self.run.store.read(SvmReport, place)
            except DamagedFile as problem:
                self.note("test", str(problem))
                continue
            own = final and report.model_sha256 == final.weights_sha256
            if own and report.data == identity["data"]:
                return report
        return None

    def dataset(self) -> Dataset:
        """The run's own dataset; `UsageError` if it has changed since."""
        return self.run.load_dataset()

    def state(self, running: bool) -> dict[str, str]:
        """The state of the search: one word for it, and a sentence."""
        budget = self.budget
        done = sum(t.status in ("completed", "failed") and t.index < budget for t in self.trials)
        if running:
            sentence = f"{done} of {count(budget, 'trial')} are done; this page reloads itself."
            return {"word": "running", "sentence": sentence}
        if not self.trials:
            return {"word": "started", "sentence": "No trial has begun yet."}
        running_still = any(trial.status == "running" for trial in self.trials)
        if done < budget and (self.tested is None or running_still):
            left = (
                f"{done} of {count(budget, 'trial')} are done. The same command goes on from here."
            )
            return {"word": "unfinished", "sentence": left}
        if not self.ranked:
            return {"word": "failed", "sentence": "Every trial failed, so there is no winner."}
        if self.tested is None:
            sentence = "All trials are done; the winner has not been tested yet."
            if "test" in self.notes:
                sentence = "All trials are done; the results on the test set can't be read."
            return {"word": "untested", "sentence": sentence}
        failed = self.count("failed")
        sentences = [f"{count(failed, 'trial')} failed."] if failed else []
        if done < budget:  # its time was over, or no further configuration could be drawn
            trials = count(budget, "trial")
            sentences.append(f"{trials} were asked for; the same command goes on from here.")
        return {"word": "finished", "sentence": " ".join(sentences)}

    @property
    def place_by_score(self) -> str | None:
        """The winner's place among the scores as a sentence; None without a winner."""
        winner = self.winner
        if winner is None or winner.score is None:
            return None
        place = 1 + sum(score > winner.score for score in self.scores)
        return f"By score alone the winner is number {place} of {len(self.scores)}."


# --- Templates filled in as HTML ---

MARK = b'<meta name="generator" content="jaxmnist">'  # in the head of every page


def render(template: str, **variables: Any) -> str:
    """The page of a template in `templates/` as HTML text.

    Text in `variables` is escaped. The page's security policy permits its own script alone, by its
    SHA-256, and no request.
    """
    environment = Environment(
        loader=PackageLoader("jaxmnist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["accuracy"] = accuracy
    environment.filters["duration"] = duration
    environment.filters["p_value"] = p_value
    environment.filters["signed"] = signed
    environment.filters["text"] = text
    environment.filters["shortened"] = shortened
    script = _file("page.js")
    return environment.get_template(template).render(
        style=_file("page.css"),
        script=script,
        script_hash=script_hash(script),
        **variables,
    )


def script_hash(script: str) -> str:
    """The SHA-256 of a script, as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return (resources.files("jaxmnist.report") / "templates" / name).read_text("utf-8")


# --- How to repeat a run ---

Setting = tuple[str, Any]


def repeated(settings: SearchSettings) -> dict[str, Any]:
    """The settings that were given and belong to a repetition elsewhere, and the ranges."""
    given = settings.given.items()
    return {n: v for n, v in given if SETTINGS[n].scope == "search"} | dict(settings.ranges)


def search_command(settings: SearchSettings) -> str:
    """The command line of a search: the flags that were given."""
    parts = ["python", "-m", "jaxmnist.search"]
    for name, value in repeated(settings).items():
        if isinstance(value, bool) and name in SETTINGS:
            parts.append(flag(name) if value else flag("no_" + name))
        else:
            members = value if isinstance(value, list) else [value]
            parts += [flag(name), ",".join(map(text, members))]
    return shlex.join(parts)


def in_python_only(search: Search) -> list[str]:
    """What a run was given that no command line can name, from its search.json."""
    named = search.settings.get("model") is not None
    own = search.identity["network"] != DEFINITION.name and not named
    return ["build_model"] * own + ["data"] * search.data.in_memory


def python_session(settings: SearchSettings, objects: Collection[str] = ()) -> str:
    """The same search as a line of Python.

    Args:
      settings: of the search.
      objects: see `in_python_only`.
    """
    given = ["build_model"] if "build_model" in objects else []
    given += ["data=data"] if "data" in objects else []
    unnamed = "data" in objects and settings.data.dataset == IN_MEMORY
    given += [
        f"{name}={value!r}"
        for name, value in repeated(settings).items()
        if not (name == "dataset" and unnamed)
    ]
    return f"jaxmnist.random_search({', '.join(given)})"


def settings_rows(search: Search) -> tuple[list[Setting], list[Setting]]:
    """The settings of search.json with the ranges that were searched, as rows of two tables.

    Returns those that were given, and those that were not.
    """
    identity, settings = search.identity, dict(search.settings)
    given = {*search.given, *(settings.pop("ranges", None) or {})}
    if identity["network"] != DEFINITION.name:
        given.add("network")
    rows = {**settings, "network": identity["network"], **identity["space"]}
    shown = {name: "default" if value is None else value for name, value in rows.items()}
    changed = [(name, value) for name, value in shown.items() if name in given]
    return changed, [(name, value) for name, value in shown.items() if name not in given]


# --- The nodes of a cluster that have trained trials ---


@dataclass(frozen=True)
class NodeShare:
    """What a node has done for a search.

    devices: what it trained on.
    trials: number of trials and reruns whose last attempt ended there.
    seconds: the sum of their times; trials that run side by side all count.
    share: its fraction of the seconds of all nodes, from 0 to 1.
    """

    node: str
    devices: str
    trials: int
    seconds: float
    share: float


def several_nodes(trials: Sequence[Trial]) -> bool:
    """Whether trials ran on more than one machine."""
    return len({trial.node for trial in trials if trial.node}) > 1


def shares_of(trials: Sequence[Trial]) -> list[NodeShare]:
    """The share of each node, the largest first; trials that still run don't count."""
    ended = [trial for trial in trials if trial.node and trial.status != "running"]
    total = sum(trial.seconds for trial in ended)
    found = []
    for node in dict.fromkeys(str(trial.node) for trial in ended):
        there = [trial for trial in ended if trial.node == node]
        seconds = sum(trial.seconds for trial in there)
        devices = ", ".join(sorted({trial.device for trial in there if trial.device}))
        found.append(NodeShare(node, devices, len(there), seconds, seconds / total if total else 0))
    return sorted(found, key=lambda share: -share.seconds)


# --- The table of all trials, for the page ---


def trial_columns(facts: Facts, table: Table) -> Table:
    """The columns that the page shows: what varies, the score and its fall, and what it cost."""
    varied = map(column_of, facts.space.varied)
    heads = {"trial": "trial", **{name: name for name in varied}, "score": "val_accuracy"}
    heads |= {"largest_fall": facts.run.ranking.rule.column, "parameters": "parameters"}
    heads |= {"seconds": "time"}
    return table.only(heads | ({"node": "node"} if several_nodes(facts.run.trials) else {}))


def data_url(content: str) -> str:
    """A CSV file as a URL that holds it, so that a page without a server can offer it."""
    return f"data:text/csv;charset=utf-8,{quote(content, safe='')}"
