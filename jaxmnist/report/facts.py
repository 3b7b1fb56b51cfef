"""What a report knows of a run: the content of readable files, and notes about the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import JaxmnistError, UsageError, one_line
from jaxmnist.models.space import SpaceDescription
from jaxmnist.report.words import count
from jaxmnist.results.evaluation import kept_look
from jaxmnist.results.run import Run
from jaxmnist.results.selection import Ranked
from jaxmnist.runs.trial import History, Trial
from jaxmnist.whole_files import DamagedFile, MissingFile, fits, read_json

T = TypeVar("T")
COUNTS = dict.fromkeys(("train", "validation", "test"), int)
SEARCH_SHAPE = {
    "machine": dict,
    "data": {
        "name": str,
        **COUNTS,
        "image_shape": [int],
        "labels": [int],
        "class_names": [str],
    },
}


def plainly(problem: Exception) -> str:
    """An exception as one line of a note, with its type unless it is one of jaxmnist's."""
    return one_line(problem, named=not isinstance(problem, JaxmnistError))


class Facts:
    """The current state of a run.

    Args:
      run: the run, finished or not.
      running: the histories so far of running trials, which aren't in their records yet.

    Attributes:
      run: the same run without the records that can't be read.
      trials: the trials whose records can be read, with the hyperparameters that vary.
      ranked: the completed trials, the winner first.
      notes: for each section of the page, what could not be read or made.
    """

    def __init__(self, run: Run, running: Mapping[int, History] | None = None) -> None:
        self.run = run.skipping_damaged()
        self.notes: dict[str, list[str]] = {}
        if not fits(self.run.search, SEARCH_SHAPE) or not fits(
            self.run.search.get("machine"), dict
        ):
            raise UsageError(f"{run.directory.path}/search.json: lacks what the page needs")
        histories = running or {}
        self.trials: list[Trial] = [
            replace(
                trial,
                hyperparameters=self.space.shown(trial.hyperparameters),
                history=histories.get(trial.index, trial.history)
                if trial.status == "running"
                else trial.history,
            )
            for trial in self.run.trials
        ]
        self.ranked: list[Ranked] = self.run.ranked
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
        wanted = self.run.settings.max_trials
        return wanted if self.space.size is None else min(wanted, self.space.size)

    def count(self, status: str) -> int:
        """How many trials have this status."""
        return sum(trial.status == status for trial in self.trials)

    @cached_property
    def tested(self) -> dict[str, Any] | None:
        """The content of best/test.json if it belongs to the current winner, else None.

        If it can't be read, the section gets a note.
        """
        return self.attempt("test", self._test)

    def _test(self) -> dict[str, Any] | None:
        try:
            return kept_look(self.run) if self.ranked else None
        except MissingFile as problem:
            if problem.path != self.run.directory.test_path:
                raise
            return None

    def svm(self) -> dict[str, Any] | None:
        """The content of svm.json for the run's own data, if it belongs to the current winner."""
        final = self.run.final_trial if self.ranked else None
        identity = self.run.search["identity"]
        for path in self.run.directory.svm_paths():
            try:
                content = read_json(path)
            except DamagedFile as problem:
                self.note("test", str(problem))
                continue
            own = final and content.get("model_sha256") == final.weights_sha256
            if own and content.get("data") == identity["data"]:
                return content
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
