"""A run, finished or not, as its directory tells it."""

from __future__ import annotations

import os
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxmnist.config import Hyperparameters, SearchSettings
from jaxmnist.data import Dataset, load_dataset
from jaxmnist.errors import UsageError
from jaxmnist.selection import Ranked, explain, rank
from jaxmnist.store import DamagedFile, RunDirectory, Trial, read_json
from jaxmnist.trained import TrainedModel


class Run:
    """What a search found; the value of `random_search`, or `Run(directory)` of an earlier one.

    >>> run = Run(directory)
    >>> run.best_trial.hyperparameters == run.get_best_hyperparameters(1)[0]
    True
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = RunDirectory(directory)
        self.search = self.directory.read_search()
        known = {item.name for item in fields(SearchSettings)}
        try:
            stored = {k: v for k, v in self.search["settings"].items() if k in known}
            self.settings = SearchSettings(**stored)
            self._validation_images = int(self.search["data"]["validation"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise DamagedFile(f"{directory}/search.json: does not say what was searched") from None

    @cached_property
    def trials(self) -> list[Trial]:
        """The records of all trials, by index."""
        trials = [self.directory.read_trial(index) for index in self.directory.trial_indices()]
        return [trial for trial in trials if trial is not None]

    @cached_property
    def ranked(self) -> list[Ranked]:
        """Completed trials, the winner first, as the run's `--select` ranks them."""
        return rank(
            self.trials, self._validation_images, self.settings.select, self.settings.tolerance
        )

    @property
    def best_trial(self) -> Trial:
        """The winner; `UsageError` where no trial has completed."""
        if not self.ranked:
            raise UsageError(f"{self.directory.path}: has no completed trial")
        return self.ranked[0].trial

    def get_best_hyperparameters(self, n: int = 1) -> list[Hyperparameters]:
        """The hyperparameters of the first n trials, the winner's first."""
        return [entry.trial.hyperparameters for entry in self.ranked[:n]]

    def get_best_models(self, n: int = 1) -> list[TrainedModel]:
        """The first n models, the winner first; `UsageError` where their weights weren't kept."""
        if n > self.settings.keep:
            raise UsageError(
                f"the weights of {self.settings.keep} trials were kept, not of {n}: --keep {n}"
            )
        return [self.load_model(entry.trial) for entry in self.ranked[:n]]

    def load_model(self, trial: Trial) -> TrainedModel:
        """The network of a trial whose weights are kept."""
        return TrainedModel.load(self.directory.weights_path(trial.index), trial.weights_sha256)

    def results_summary(self) -> str:
        """A line for each trial, the winner first, then those that failed."""
        rows = [("trial", "val_accuracy", "largest fall", "seconds", "hyperparameters")]
        for entry in self.ranked:
            trial, numbers = entry.trial, (f"{entry.score:.4f}", f"{entry.fall:.4f}")
            rows.append(
                (str(trial.index), *numbers, f"{trial.seconds:.1f}", str(trial.hyperparameters))
            )
        for trial in self.trials:
            if trial.status != "completed":
                what = f"{trial.hyperparameters}: {trial.error or trial.status}"
                rows.append((str(trial.index), "–", "–", f"{trial.seconds:.1f}", what))
        return "\n".join(f"{a:>5}  {b:>12}  {c:>12}  {d:>7}  {e}" for a, b, c, d, e in rows)

    def why(self) -> str:
        """Why the winner won, what the rule passed over, and what that cost."""
        return explain(self.ranked, self.settings.select)

    @cached_property
    def best_model(self) -> TrainedModel:
        """The winner's network, as best/ keeps it."""
        config = self.result("best/config.json")
        return TrainedModel.load(
            self.directory.best / "model.safetensors", config.get("model_sha256")
        )

    def result(self, name: str) -> dict[str, Any]:
        """What a JSON file of the run says: 'best/test.json', 'svm/mnist/svm.json', …."""
        path = self.directory.path / name
        if not os.path.exists(path):
            raise UsageError(f"{self.directory.path}: has no {name}: its search is not finished")
        return read_json(path)

    def load_dataset(self) -> Dataset:
        """The run's own data, split as it was; `UsageError` if they have changed since."""
        dataset = load_dataset(self.settings)
        if dataset.fingerprint != self.search["identity"]["data"]:
            raise UsageError(
                f"{self.directory.path}: its data are not those of {dataset.name} any more"
            )
        return dataset
