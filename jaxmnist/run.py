"""A run, finished or not, as its directory tells it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmnist.atomic import DamagedFile, MissingFile, fits, read_json
from jaxmnist.config import Hyperparameters, SearchSettings
from jaxmnist.data import Dataset, load_dataset
from jaxmnist.devices import set_pool_size
from jaxmnist.errors import UsageError, printable
from jaxmnist.record import Trial
from jaxmnist.selection import Ranked, explain, rank
from jaxmnist.store import RunDirectory, threads_of

if TYPE_CHECKING:
    from jaxmnist.trained import TrainedModel

SEARCHED = {"settings": dict, "data": {"validation": int}, "identity": {"data": str}}
CONFIG = {"trial": int, "score": float, "model_sha256": str}  # what best/config.json says
MENDS = "the search's own command sets it aside and makes it again"


class Run:
    """What a search found; the value of `random_search`, or `Run(directory)` of an earlier one.

    >>> run = Run(directory)
    >>> run.best_trial.hyperparameters == run.get_best_hyperparameters(1)[0]
    True
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = RunDirectory(directory)
        try:
            self.search = self.directory.read_search()
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None
        known = {item.name for item in fields(SearchSettings)}
        try:
            if not fits(self.search, SEARCHED):
                raise ValueError
            stored = {k: v for k, v in self.search["settings"].items() if k in known}
            self.settings = SearchSettings(**stored)
            self._validation_images = self.search["data"]["validation"]
            if self._validation_images < 1:
                raise ValueError
        except (TypeError, ValueError):
            path = self.directory.path / "search.json"
            raise DamagedFile(path, "does not say what was searched") from None

    @cached_property
    def trials(self) -> list[Trial]:
        """The records of all trials, by index."""
        try:
            trials = [self.directory.read_trial(index) for index in self.directory.trial_indices()]
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None
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
                f"the weights of {self.settings.keep} trials were kept, not of {n}: --keep {n}"
            )
        return [self.load_model(entry.trial) for entry in self.ranked[:n]]

    def load_model(self, trial: Trial) -> TrainedModel:
        """The network of a trial whose weights are kept."""
        return _load(self.directory.weights_path(trial.index), trial.weights_sha256)

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
                what = f"{trial.hyperparameters}: {printable(trial.error or trial.status)}"
                rows.append((str(trial.index), "–", "–", f"{trial.seconds:.1f}", what))
        return "\n".join(f"{a:>5}  {b:>12}  {c:>12}  {d:>7}  {e}" for a, b, c, d, e in rows)

    def why(self) -> str:
        """Why the winner won, what the rule passed over, and what that cost.

        Raises `UsageError` where no trial has completed.
        """
        return explain(self._completed(), self.settings.select)

    @cached_property
    def best_model(self) -> TrainedModel:
        """The winner's network, as best/ keeps it."""
        config = self.result("best/config.json", CONFIG)
        return _load(self.directory.best / "model.safetensors", config["model_sha256"])

    def result(self, name: str, shape: Any = None) -> dict[str, Any]:
        """What a JSON file of the run says: 'best/test.json', 'svm/mnist/svm.json', ….

        `shape` is what it must say, as `atomic.fits` knows it.
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


def _load(path: Path, sha256: str | None) -> TrainedModel:
    # JAX takes a second to import; until then a signal would meet no handler of a command.
    from jaxmnist.trained import TrainedModel

    if sha256 is None:
        raise UsageError(f"{path}: its trial's record doesn't name its SHA-256; {MENDS}")
    try:
        return TrainedModel.load(path, sha256)
    except DamagedFile as problem:
        raise UsageError(f"{problem}; {MENDS}") from None


@contextmanager
def locked_run(directory: str, say: Callable[[str], None] = lambda line: None) -> Iterator[Run]:
    """A run that is there already, held for this process; what it says is read under the lock."""
    found = RunDirectory(directory)
    search = found.read_search()  # a folder that is no run gets no lock
    if threads := threads_of(search):
        set_pool_size(threads)
    with found.locked(say):
        run = Run(directory)
        run.directory = found
        yield run
