"""A run, finished or not, read back from its directory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from jaxmnist.data.dataset import Dataset, dataset_in_memory, load_dataset
from jaxmnist.data.download import check_downloaded
from jaxmnist.engine.devices import set_pool_size
from jaxmnist.errors import SettingError, UsageError
from jaxmnist.files import DamagedFile, MissingFile, from_json, read_record
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.space import SpaceDescription
from jaxmnist.results import comparisons
from jaxmnist.results.ranking import Ranking
from jaxmnist.results.table import (
    Table,
    aligned,
    epochs_table,
    finalists_table,
    shown_configurations,
    trials_table,
)
from jaxmnist.runs.records import Comparisons, EnsembleReport, File, Winner
from jaxmnist.runs.store import Store, continue_run
from jaxmnist.runs.trial import REFIT, Key, Trial, agree
from jaxmnist.settings import SearchSettings, checked, whole

if TYPE_CHECKING:
    from jaxmnist.models.network import Network
    from jaxmnist.results.trained import Ensemble, TrainedModel

logger = logging.getLogger("jaxmnist")
R = TypeVar("R")  # the type of a record
MENDS = "repeat the search's command, which sets the file aside and recreates it"


class Run:
    """The results of a search: returned by `random_search`, or `Run(directory)` for an earlier one.

    Args:
      directory: path of the run directory, or an open `Store`.
      network: the network whose configurations were trained, or its function `build_model`; may
        be left out if it is the study's, and without it a network of one's own can't be used, but
        its results be read.
      skip_damaged: leave out records that can't be read, and list them in `damaged`.
      checked: `network` was compared already, by its search.

    Raises:
      UsageError: the directory isn't a run, or a network of one's own isn't the one that was
        trained: another space, or other initial weights, training or evaluation of the winner.

    >>> run = Run(directory)
    >>> run.best_trial.hyperparameters == run.get_best_hyperparameters(1)[0]
    True
    """

    def __init__(
        self,
        directory: Path | str | Store,
        network: Network | Callable[[Any], Any] | None = None,
        skip_damaged: bool = False,
        *,
        checked: bool = False,
    ) -> None:
        self._network = _network_of(network)
        self._noted = checked  # that versions differ: the search says it
        self._skip_damaged = skip_damaged
        self._unreadable: dict[Key, str] = {}
        try:
            if not isinstance(directory, Store):
                directory = Store.open(directory)
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None
        self.store = directory
        search = self.store.search
        self.validation_images = search.data.validation
        try:
            self.settings = SearchSettings.from_json(search.settings, search.given)
            self.space = from_json(SpaceDescription, search.space)
        except (TypeError, ValueError, KeyError, AttributeError):
            path = self.store.path / "search.json"
            raise DamagedFile(path, "lacks what was searched") from None
        if self._network is not None and not checked:
            self._check_network()

    def _check_network(self) -> None:
        """Raise `UsageError` if the network has another space, or isn't the winner's."""
        # Imported here: JAX takes a second.
        from jaxmnist.results.matching import check_space

        check_space(self.store, self.settings, self.network)
        if not self.network.known and (
            trial := self._in_best() or next(iter(self.ranking.best), None)
        ):
            self._check_trial(trial)

    def _check_trial(self, trial: Trial) -> None:
        """Raise `UsageError` unless the network is the one that a trial was trained with."""
        from jaxmnist.results.matching import check_trial, data_of

        data = data_of(self.store, self.settings.training, refit=trial.rerun == REFIT)
        note = check_trial(self.store, trial, self.network, self.settings.space.seed, data)
        if note and not self._noted:
            logger.info(note)
            self._noted = True

    def _in_best(self) -> Trial | None:
        """The record of the network that lies in best/; None if there is none."""
        try:
            kept = read_record(self.store.file(File.WINNER), Winner)
            rerun = REFIT if kept.refit else kept.rerun
            return self.store.read_trial(Key(kept.trial, rerun))
        except DamagedFile:  # reported where the record is needed
            return None

    @cached_property
    def ranking(self) -> Ranking:
        """The ranking of the trials, from their records."""
        trials = self._readable(self.store.trial_keys())
        reruns = self._readable(self.store.reruns(), later=True)
        return Ranking(
            list(trials.values()),
            reruns,
            self.settings,
            self.validation_images,
            str(self.store.path),
            {} if self._skip_damaged else self._unreadable,
        )

    @property
    def trials(self) -> Sequence[Trial]:
        """The records of all trials, by index."""
        return self.ranking.trials

    @property
    def reruns(self) -> list[Trial]:
        """The records of all reruns and refits, also of those that the settings don't ask for.

        Damaged ones are left out: those that are asked for are made again elsewhere.
        """
        return list(self.ranking.reruns.values())

    @property
    def damaged(self) -> list[str]:
        """What is wrong with each record that was left out."""
        _ = self.ranking
        return list(self._unreadable.values())

    def _readable(self, keys: Sequence[Key], later: bool = False) -> dict[Key, Trial]:
        """The records of trials; problems with unreadable ones go into `_unreadable`.

        later: whether an unreadable record is an error only where it is needed.
        """
        found = {}
        for key in keys:
            try:
                if trial := self._read(key):
                    found[key] = trial
            except DamagedFile as problem:
                if not (self._skip_damaged or later):
                    raise UsageError(f"{problem}; {MENDS}") from None
                self._unreadable[key] = (
                    str(problem) if self._skip_damaged else f"{problem}; {MENDS}"
                )
        return found

    def _read(self, key: Key) -> Trial | None:
        """The record of a trial; `DamagedFile` if it isn't one of this run's completed trials."""
        trial = self.store.read_trial(key)
        if trial is None or trial.status != "completed":
            return trial
        path = self.store.file(File.TRIAL, key)
        if len(trial.history) != self.settings.training.epochs:
            raise DamagedFile(path, f"does not have {self.settings.training.epochs} epochs")
        images = 0 if trial.rerun == REFIT else self.validation_images
        if not agree(trial.history, trial.validation, images):
            raise DamagedFile(path, "its validation accuracies do not match validation.npy")
        return trial

    def skipping_damaged(self) -> Run:
        """The same run without the records that can't be read."""
        return Run(self.store, self._network, skip_damaged=True, checked=True)

    @property
    def network(self) -> Network:
        """The network that was trained; `UsageError` if it isn't the study's and wasn't given."""
        name = self.store.search.identity["network"]
        if self._network is not None:
            return self._network
        # Imported here: JAX takes a second, in which a command would have no signal handlers yet.
        from jaxmnist.models.network import STUDY

        if name != STUDY.definition.name:
            raise UsageError(
                f"{self.store.path}: its network is not jaxmnist's own: to use its weights give"
                " --model FILE, or build_model in Python"
            )
        return STUDY

    @property
    def best_trial(self) -> Trial:
        """The winner; `UsageError` if no trial has completed.

        With finalists it is the first rerun of the chosen one, whose network is tested.
        """
        return self.ranking.winner

    def get_best_hyperparameters(self, n: int = 1) -> list[Hyperparameters]:
        """The hyperparameters of the first n trials, the winner's first."""
        n = checked("n", n, whole(1))
        return [trial.hyperparameters for trial in self.ranking.best[:n]]

    def get_best_models(self, n: int = 1) -> list[TrainedModel]:
        """The first n models, the winner first; `UsageError` if their weights weren't kept.

        A refitted winner is the refitted network.
        """
        n = checked("n", n, whole(1))
        kept = self.settings.output.keep
        assert kept is not None  # where none was given, the settings have filled it in
        if n > kept:
            raise UsageError(
                f"weights of {kept} trials were kept, not of {n}; search with keep={n} to keep them"
            )
        models = [self.load_model(trial) for trial in self.ranking.best[:n]]
        return [self.best_model, *models[1:]] if self.settings.selection.refit else models

    def load_model(self, trial: Trial) -> TrainedModel:
        """The network of a trial whose weights are kept."""
        self._check_trial(trial)
        return self._load(self.store.file(File.WEIGHTS, trial.key), trial.weights_sha256)

    @cached_property
    def table(self) -> Table:
        """The table of trials: see `table.trials_table`."""
        return trials_table(self.ranking, self.space)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with a row for each trial: as they rank, then the others.

        Its columns are trial, rank, status, one for each hyperparameter, the last epoch's loss,
        accuracy, val_loss and val_accuracy, score, largest_fall, parameters, seconds, device, node
        and error. A hyperparameter called as one of these has the column 'hp.NAME'.
        """
        return self.table.to_pandas()

    def history(self) -> Any:
        """A `pandas.DataFrame` with a row for each epoch of each trial, running ones too.

        Its columns are trial, epoch, loss, accuracy, val_loss and val_accuracy.
        """
        return epochs_table(self.trials).to_pandas()

    def results_table(self) -> Table:
        """What a terminal shows of the trials: as they rank, those that failed last."""
        fall = self.ranking.rule.column
        heads = {"trial": "trial", "score": "val_accuracy", "largest_fall": fall, "seconds": "time"}
        shown = self.table.only(heads)
        by_index = {trial.index: trial for trial in self.trials}
        trials = [by_index[index] for index in shown.columns["trial"].values]
        configurations = shown_configurations(trials, self.space)
        return Table({**shown.columns, "hyperparameters": configurations})

    def results_summary(self) -> str:
        """A line for each trial in the order of the ranking, then those that failed.

        Then why the winner won, its score corrected for having been selected, and the trials that
        are statistically tied with it, or the finalists; the ensemble, and paired comparisons of
        what was tested.
        """
        ranking = self.ranking
        lines = [str(self.results_table())]
        if ranking.ranked:
            lines += ["", ranking.why()]
            lines += [f"\n{finalists_table(ranking.finals)}\n"] if ranking.finals else []
            lines += [ranking.about_score()]
            found = self.kept_ensemble()
            lines += [comparisons.describe_ensemble(found)] if found else []
            lines += comparisons.describe_comparisons(self.kept_comparisons())
        return "\n".join(lines)

    def kept_ensemble(self) -> EnsembleReport | None:
        """The content of best/ensemble/ensemble.json; None unless it is of the first trials."""
        return comparisons.kept_ensemble(self.store, self.ranking.ranked)

    def kept_comparisons(self) -> Comparisons | None:
        """The content of best/comparisons.json; None unless it is of the present models."""
        return comparisons.kept_comparisons(
            self.store, self.ranking.ranked, self.ranking.tested_sha256
        )

    def search_space_summary(self) -> str:
        """A line for each hyperparameter with its range, and the number of configurations."""
        ranges = aligned(list(self.space.ranges().items()), left=(0, 1))
        return f"{self.space.size_text} configurations\n{ranges}".rstrip()

    @cached_property
    def best_model(self) -> TrainedModel:
        """The winner's trained network, loaded from best/."""
        kept = self.result("best/config.json", Winner)
        if trial := self._in_best():
            self._check_trial(trial)
        return self._load(self.store.file(File.MODEL), kept.model_sha256)

    @cached_property
    def ensemble(self) -> Ensemble:
        """The first trials' networks, which predict by the mean of their probabilities.

        Raises `UsageError` if the search tested no ensemble, or other trials are the first now.
        """
        content = self.kept_ensemble()
        if content is None:
            raise UsageError(
                f"{self.store.path}: has no ensemble of its first trials: repeat its search"
                " with --ensemble K, in Python ensemble=K, to test one"
            )
        count, kept = len(content.members), self.settings.output.keep
        if kept is not None and count > kept:
            raise UsageError(
                f"{self.store.path}: weights of {kept} trials were kept, not of the ensemble's"
                f" {count}: repeat its search with --ensemble {count}, in Python ensemble={count}"
            )
        return self.ensemble_of(comparisons.first_members(self.ranking.ranked, count))

    def ensemble_of(self, trials: Sequence[Trial]) -> Ensemble:
        """The networks of trials whose weights are kept as one ensemble."""
        # Imported here: JAX takes a second, in which a command would have no signal handlers yet.
        from jaxmnist.results.trained import Ensemble, Origin

        # A store for reading alone: an ensemble outlives the lock of a run that is written.
        place = self.store.for_reading()
        identity = comparisons.members_identity([trial.weights_sha256 for trial in trials])
        return Ensemble(
            tuple(map(self.load_model, trials)),
            tuple(trial.index for trial in trials),
            Origin(place, identity, place.file(File.ENSEMBLE)),
        )

    def winner(self) -> Winner:
        """The content of best/config.json; `UsageError` unless it is the winner of these trials."""
        kept = self.result("best/config.json", Winner)
        final = self.ranking.final
        if final is None or kept.model_sha256 != final.weights_sha256:
            raise UsageError(
                f"{self.store.path}: best/ holds an earlier winner, as its search is not"
                " finished; the search's own command goes on"
            )
        return kept

    def result(self, name: str, kind: type[R]) -> R:
        """Read a file of results, such as 'svm/mnist/svm.json', as a record of `runs.records`."""
        *folders, file = name.split("/")
        try:
            return read_record(self.store.folder(*folders) / file, kind)
        except MissingFile:
            raise UsageError(
                f"{self.store.path}: has no {name}: its search is not finished"
            ) from None
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None

    def load_dataset(self, data_dir: str | None = None, data: Any = None) -> Dataset:
        """The run's own dataset, split as in the search.

        Args:
          data_dir: where the data lie now, if not where they were.
          data: the arrays, if they lie nowhere; see `random_search`.

        Raises:
          UsageError: the data are not on this machine, or have changed since.
        """
        wanted, seed = self.settings.data, self.settings.space.seed
        if data_dir is not None:
            wanted = replace(wanted, dataset=wanted.dataset_name, data_dir=data_dir)
        elif data is None and self.store.search.data.in_memory:
            raise SettingError(
                "{path}: its data were arrays in memory: give them again as data=, or where they"
                " lie by {data_dir}",
                path=self.store.path,
            )
        elif data is None and wanted.data_dir and not os.path.exists(wanted.data_dir):
            raise SettingError(
                "{path}: its data are not at {place} any more; name their place with {data_dir}",
                path=self.store.path,
                place=wanted.data_dir,
            )
        if data is None and wanted.data_dir is None:
            check_downloaded(wanted.dataset)  # a run of somebody else downloads nothing
        dataset = (
            load_dataset(wanted, seed) if data is None else dataset_in_memory(data, wanted, seed)
        )
        if dataset.fingerprint != self.store.search.identity["data"]:
            raise UsageError(
                f"{self.store.path}: the data of {dataset.name} have changed: they"
                " are not those of the search"
            )
        return dataset

    def _load(self, path: Path, sha256: str | None) -> TrainedModel:
        # Imported here: JAX takes a second, in which a command would have no signal handlers yet.
        from jaxmnist.results.trained import Origin, TrainedModel

        if sha256 is None:
            raise UsageError(f"{path}: its trial's record doesn't name its SHA-256; {MENDS}")
        try:
            model = TrainedModel.load(path, sha256, self.network)
        except DamagedFile as problem:
            raise UsageError(f"{problem}; {MENDS}") from None
        # A store for reading alone: a model outlives the lock of a run that is written.
        return replace(model, origin=Origin(self.store.for_reading(), sha256))


def _network_of(given: Network | Callable[[Any], Any] | None) -> Network | None:
    """A network as it is, and a function as the network that it builds."""
    if given is None:
        return None
    # Imported here: JAX and Flax take a second.
    from jaxmnist.models.network import Network

    return given if isinstance(given, Network) else Network(given)


@contextmanager
def locked_run(
    directory: str,
    network: Network | None = None,
) -> Iterator[Run]:
    """Open an existing run and hold its lock; its files are read under the lock."""
    if threads := Store.open(directory).search.threads:
        set_pool_size(threads)
    with continue_run(directory) as opened:
        yield Run(opened, network)
