"""A run, finished or not, read back from its directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmnist.data.dataset import Dataset, load_dataset
from jaxmnist.engine.devices import set_pool_size
from jaxmnist.errors import UsageError, printable
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.space import SpaceDescription
from jaxmnist.results.selection import Ranked, Rule, rule_of
from jaxmnist.runs.directory import RunDirectory, threads_of
from jaxmnist.runs.trial import Trial
from jaxmnist.runs.writing import WritableRunDirectory, continue_run
from jaxmnist.settings import SearchSettings
from jaxmnist.whole_files import DamagedFile, MissingFile, fits, read_json

if TYPE_CHECKING:
    from jaxmnist.models.network import Network
    from jaxmnist.results.trained import TrainedModel

SEARCH_SHAPE = {
    "settings": dict,
    "data": {"validation": int},
    "identity": {"data": str, "network": str},
    "space": dict,
}
CONFIG_SHAPE = {"trial": int, "score": float, "model_sha256": str}  # what best/config.json says
MENDS = "the search's own command sets it aside and makes it again"


class Run:
    """What a search found; the value of `random_search`, or `Run(directory)` of an earlier one.

    Args:
      directory: the run directory: its path, or the directory as somebody has opened it.
      network: whose configurations were trained; by default the study's, where it is that one.
      skip_damaged: leave records out that can't be read, and name them in `damaged`.

    >>> run = Run(directory)
    >>> run.best_trial.hyperparameters == run.get_best_hyperparameters(1)[0]
    True
    """

    def __init__(
        self,
        directory: Path | str | RunDirectory,
        network: Network | None = None,
        skip_damaged: bool = False,
    ) -> None:
        self._network = network
        self._skip_damaged = skip_damaged
        try:
            if not isinstance(directory, RunDirectory):
                directory = RunDirectory.open(directory)
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None
        self.directory = directory
        self.search = directory.search
        known = {item.name for item in fields(SearchSettings)}
        try:
            if not fits(self.search, SEARCH_SHAPE):
                raise ValueError
            stored = {k: v for k, v in self.search["settings"].items() if k in known}
            self.settings = SearchSettings(**stored)
            self.space = SpaceDescription.from_json(self.search["space"])
            self.validation_images: int = self.search["data"]["validation"]
            if self.validation_images < 1:
                raise ValueError
        except (TypeError, ValueError, KeyError, AttributeError):
            path = self.directory.path / "search.json"
            raise DamagedFile(path, "lacks what was searched") from None

    @property
    def trials(self) -> list[Trial]:
        """The records of all trials, by index."""
        return self._records[0]

    @property
    def damaged(self) -> list[str]:
        """What is wrong with the records that were left out."""
        return self._records[1]

    @cached_property
    def _records(self) -> tuple[list[Trial], list[str]]:
        trials, damaged = [], []
        for index in self.directory.trial_indices():
            try:
                trial = self.directory.read_trial(index)
            except DamagedFile as problem:
                if not self._skip_damaged:
                    raise UsageError(f"{problem}; {MENDS}") from None
                damaged.append(str(problem))
                continue
            trials += [] if trial is None else [trial]
        return trials, damaged

    @cached_property
    def ranked(self) -> list[Ranked]:
        """Completed trials, the winner first, as the run's `--select` ranks them."""
        return self.rule.rank(self.trials)

    @property
    def rule(self) -> Rule:
        """How the run's settings rank trials."""
        settings = self.settings
        return rule_of(settings.select, self.validation_images, settings.tolerance)

    def skipping_damaged(self) -> Run:
        """The same run without the records that can't be read."""
        return Run(self.directory, self._network, skip_damaged=True)

    @property
    def network(self) -> Network:
        """The network whose configurations were trained; `UsageError` if it has to be given."""
        name = self.search["identity"]["network"]
        if self._network is not None:
            return self._network
        # JAX takes a second to import; until then a signal would meet no handler of a command.
        from jaxmnist.models.study.network import STUDY

        if name != STUDY.definition.name:
            raise UsageError(
                f"{self.directory.path}: its weights are of the network {name!r}, which has to be"
                " given to read them"
            )
        return STUDY

    @property
    def files(self) -> WritableRunDirectory:
        """The run directory for writing; `UsageError` where the run was opened for reading."""
        if not isinstance(self.directory, WritableRunDirectory):
            raise UsageError(f"{self.directory.path}: was opened for reading")
        return self.directory

    @property
    def best_trial(self) -> Trial:
        """The winner; `UsageError` where no trial has completed."""
        return self._completed()[0].trial

    def _completed(self) -> list[Ranked]:
        if not self.ranked:
            raise UsageError(f"{self.directory.path}: has no completed trial")
        return self.ranked

    def get_best_hyperparameters(self, n: int = 1) -> list[Hyperparameters]:
        """The hyperparameters of the first n trials, the winner's first."""
        return [entry.trial.hyperparameters for entry in self.ranked[:n]]

    def get_best_models(self, n: int = 1) -> list[TrainedModel]:
        """The first n models, the winner first; `UsageError` where their weights weren't kept."""
        if n > self.settings.keep:
            raise UsageError(
                f"weights of {self.settings.keep} trials were kept, not of {n}: keep={n} keeps them"
            )
        return [self.load_model(entry.trial) for entry in self.ranked[:n]]

    def load_model(self, trial: Trial) -> TrainedModel:
        """The network of a trial whose weights are kept."""
        return self._load(self.directory.weights_path(trial.index), trial.weights_sha256)

    def results_table(self) -> list[tuple[str, ...]]:
        """The head of the table of trials, and its rows: the winner first, the failed ones last."""
        head = ("trial", "val_accuracy", self.rule.column, "seconds", "hyperparameters")
        rows = [
            (
                str(entry.trial.index),
                f"{entry.score:.4f}",
                self.rule.cell(entry),
                f"{entry.trial.seconds:.1f}",
                str(entry.trial.hyperparameters),
            )
            for entry in self.ranked
        ]
        for trial in self.trials:
            if trial.status != "completed":
                what = f"{trial.hyperparameters}: {printable(trial.error or trial.status)}"
                rows.append((str(trial.index), "–", "–", f"{trial.seconds:.1f}", what))
        return [head, *rows]

    def results_summary(self) -> str:
        """A line for each trial, the winner first, then those that failed."""
        return "\n".join(
            f"{a:>5}  {b:>12}  {c:>14}  {d:>7}  {e}" for a, b, c, d, e in self.results_table()
        )

    def search_space_summary(self) -> str:
        """A line for each hyperparameter with its range, and the number of configurations."""
        ranges = self.space.ranges()
        width = max(map(len, ranges), default=0)
        lines = [f"{name:{width}}  {values}" for name, values in ranges.items()]
        return "\n".join([f"{self.space.size_text} configurations", *lines])

    def why(self) -> str:
        """Why the winner won, what the rule passed over, and what that cost.

        Raises `UsageError` where no trial has completed.
        """
        return self.rule.reason(self._completed())

    @cached_property
    def best_model(self) -> TrainedModel:
        """The winner's network, as best/ keeps it."""
        config = self.result("best/config.json", CONFIG_SHAPE)
        return self._load(self.directory.model_path, config["model_sha256"])

    def result(self, name: str, shape: Any = None) -> dict[str, Any]:
        """What a JSON file of the run says: 'best/test.json', 'svm/mnist/svm.json', ….

        `shape` is what it must say, as `whole_files.fits` knows it.
        """
        *folders, file = name.split("/")
        try:
            return read_json(self.directory.folder(*folders) / file, shape)
        except MissingFile:
            raise UsageError(
                f"{self.directory.path}: has no {name}: its search is not finished"
            ) from None
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None

    def load_dataset(self) -> Dataset:
        """The run's own data, split as it was; `UsageError` if they have changed since."""
        dataset = load_dataset(self.settings)
        if dataset.fingerprint != self.search["identity"]["data"]:
            raise UsageError(
                f"{self.directory.path}: its data are not those of {dataset.name} any more"
            )
        return dataset

    def _load(self, path: Path, sha256: str | None) -> TrainedModel:
        # JAX takes a second to import; until then a signal would meet no handler of a command.
        from jaxmnist.results.trained import TrainedModel

        if sha256 is None:
            raise UsageError(f"{path}: its trial's record doesn't name its SHA-256; {MENDS}")
        try:
            return TrainedModel.load(path, sha256, self.network)
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None


@contextmanager
def locked_run(
    directory: str,
    network: Network | None = None,
) -> Iterator[Run]:
    """A run that is there already, held for this process; what it says is read under the lock."""
    if threads := threads_of(RunDirectory.open(directory).search):
        set_pool_size(threads)
    with continue_run(directory) as opened:
        yield Run(opened, network)
