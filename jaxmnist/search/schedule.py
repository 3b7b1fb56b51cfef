"""What a search trains: its trials, reruns and refit, which is next, and whose weights to keep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property, partial

from jaxmnist.data.dataset import Dataset, joined
from jaxmnist.engine.events import (
    Checkpoint,
    EpochFinished,
    Event,
    StackingChosen,
    TrialCompiled,
    TrialFinished,
    TrialLost,
    TrialStarted,
    from_arrays,
    rows,
    to_arrays,
)
from jaxmnist.engine.lanes import Stacking
from jaxmnist.errors import EnvironmentFailure, NetworkError, UsageError, wrong
from jaxmnist.files import DamagedFile, MissingFile, array_bytes, read_bytes, sealed_bytes, sha256
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec, Parameters
from jaxmnist.models.network import Network
from jaxmnist.results.matching import SAME, StoredOutputs, check_trial
from jaxmnist.results.ranking import Ranking
from jaxmnist.results.trained import TrainedModel
from jaxmnist.runs.records import File, Sharing
from jaxmnist.runs.store import Store
from jaxmnist.runs.trial import (
    DONE,
    QUEUE,
    Key,
    State,
    Trial,
    agree,
    history_to_json,
    state_of,
)
from jaxmnist.settings import SearchSettings

logger = logging.getLogger("jaxmnist")
OTHERWISE = (
    f"{SAME}; --overwrite starts over, --project-name starts a run beside it (in Python overwrite"
    " and project_name)"
)


class StoredCheckpoints(Mapping[Key, Checkpoint]):
    """The checkpoints of some trials by key, each read from disk when it is asked for.

    Args:
      keys: the trials.
      exists: whether a trial has a checkpoint now.
      read: reads the checkpoint of a trial; None if it is damaged.
    """

    def __init__(
        self,
        keys: Iterable[Key],
        exists: Callable[[Key], bool],
        read: Callable[[Key], Checkpoint | None],
    ) -> None:
        self._keys = dict.fromkeys(keys)
        self._exists = exists
        self._read = read

    def __getitem__(self, key: Key) -> Checkpoint:
        found = self._read(key) if key in self._keys and self._exists(key) else None
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[Key]:
        return (key for key in self._keys if self._exists(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Schedule:
    """The trials, reruns and refit of a search: what is trained next, and all their records.

    The constructor schedules the trials; `add` schedules reruns or the refit afterwards. Both set
    invalid records aside, and record as failed the trials that are given up. `record` writes what
    the engine reports.

    Args:
      store: the run, locked by the caller.
      network: the network whose configurations are trained.
      dataset: the dataset that the trials train on.
      settings: the settings of the search.
      draws: the hyperparameters of each trial of the budget.

    Attributes:
      current: the keys that are scheduled now: of the trials, the reruns or the refit.
      draws: the hyperparameters of everything that was scheduled.

    Raises:
      UsageError: the run has finished trials beyond the budget.
    """

    def __init__(
        self,
        store: Store,
        network: Network,
        dataset: Dataset,
        settings: SearchSettings,
        draws: Mapping[Key, Hyperparameters],
    ) -> None:
        self.draws: dict[Key, Hyperparameters] = {}
        self.current: list[Key] = []
        self._store = store
        self._network = network
        self._dataset = dataset
        self._settings = settings
        self._records: dict[Key, Trial] = {}
        self._running: set[Key] = set()
        self._from: dict[Key, tuple[int, int]] = {}  # epoch and step of the checkpoints
        store.set_aside_misplaced()
        self.add(draws)

    def add(self, draws: Mapping[Key, Hyperparameters]) -> None:
        """Schedule either trials, reruns or a refit, which become `current`."""
        self.draws |= draws
        self.current = list(draws)
        stored = self._stored()
        for key in stored:
            trial = self._store.mended(partial(self._read, key))
            if trial is not None:
                self._records[key] = trial
        self._check_network()
        done = [key for key in stored if self._is_done(key)]
        beyond = [key for key in done if key not in self.draws and key.rerun is None]
        if beyond:
            raise wrong(
                "max_trials",
                f"{len(draws)} is less than the {max(beyond).index + 1} trials that this run has"
                " finished",
            )
        for key in done:
            self._write_given_up(key)
        if done := [key for key in done if key in draws]:
            what = "trials" if self.current[0].rerun is None else f"of {len(draws)}"
            logger.info(f"{len(done)} {what} are already finished")

    @property
    def dataset(self) -> Dataset:
        """The data of `current`: for a refit the training and validation images together."""
        return self._joined if self.current[0].refit else self._dataset

    @cached_property
    def _joined(self) -> Dataset:
        return joined(self._dataset)

    @property
    def _data(self) -> DataSpec:
        return DataSpec.of(self.dataset, self._settings.training)

    @property
    def ranking(self) -> Ranking:
        """The ranking of the records as they are now."""
        return Ranking(
            [self._records[key] for key in sorted(self._records) if key.rerun is None],
            {key: trial for key, trial in self._records.items() if key.rerun is not None},
            self._settings,
            len(self._dataset.y_validation),
            str(self._store.path),
        )

    def trial(self, key: Key) -> Trial:
        """The record of a trial that has begun."""
        return self._records[key]

    @property
    def ended(self) -> list[Key]:
        """Those of `current` that have ended."""
        return [key for key in self.current if self._is_done(key)]

    @property
    def stacking(self) -> Stacking | None:
        """How the trials share programs; None if that was not chosen yet."""
        kept = self._store.search.stacking
        try:
            return None if kept is None else Stacking(**vars(kept))
        except ValueError:  # of another version
            return None

    def state(self, key: Key) -> State:
        """The state of a trial."""
        return state_of(self._records.get(key), self._settings.running.max_retries)

    def pending(self) -> dict[Key, Hyperparameters]:
        """What to train next, in the order of `QUEUE`; empty when all is done."""
        for states in QUEUE:
            found = [key for key in self.current if self.state(key) in states]
            if found:
                alone = states == QUEUE[-1]
                return {key: self.draws[key] for key in (found[:1] if alone else found)}
        return {}

    @property
    def left(self) -> int:
        """The number of those of `current` that have not ended."""
        return len(self.current) - len(self.ended)

    def without_weights(self) -> dict[Key, Hyperparameters]:
        """The best trials whose weights are missing; called when nothing else is left to train.

        The weights were lost, or not kept because another rule ranked the trials. If training such
        a trial again fails, the search ends, and the trial's record stays as it is.
        """
        lost = [key for key in self._best() if not self._store.file(File.WEIGHTS, key).is_file()]
        return {key: self.draws[key] for key in lost}

    def why_again(self, key: Key) -> str | None:
        """The reason why a trial is trained again; None for other trials."""
        if self._is_done(key):
            return f"trial {key} is among the best, but its weights are missing: trained again"
        if self.state(key) is State.RETRY:
            error = self._records[key].error
            return f"trial {key} is trained again" + (f"; it failed: {error}" if error else "")
        return None

    def clean_up(self) -> None:
        """Set aside damaged weights of the best trials; delete files that a killed process left.

        Called when nothing else is left to train.
        """
        for key in self._best():
            self._store.mended(partial(self._check_weights, key))
        missing = self.without_weights()
        for key in self._stored():
            if self._is_done(key) and key not in missing:
                self._store.delete(File.CHECKPOINT, key)
        self._keep_weights(self._best())

    def _keep_weights(self, kept: Collection[Key]) -> None:
        """Delete the weights of all trials but these."""
        for key in self._stored():
            if key not in kept:
                self._store.delete(File.WEIGHTS, key)

    def set_aside_damaged_checkpoints(self, keys: Iterable[Key]) -> StoredCheckpoints:
        """The checkpoints of these trials, where they exist; damaged ones are set aside."""
        keys, self._from = list(keys), {}
        for key in keys:
            self._checkpoint(key)

        def exists(key: Key) -> bool:
            return self._store.file(File.CHECKPOINT, key).is_file()

        return StoredCheckpoints(keys, exists, self._checkpoint)

    def _checkpoint(self, key: Key) -> Checkpoint | None:
        """The checkpoint of a trial, or None; one that is damaged is set aside."""
        found = self._store.mended(partial(self._read_checkpoint, key))
        self._from.pop(key, None)
        if found is not None:
            self._from[key] = found.epoch, found.step
        return found

    def record(self, event: Event) -> None:
        """Record an event of the engine on disk."""
        if isinstance(event, StackingChosen):
            self._store.write_stacking(Sharing(**asdict(event.stacking)))
        elif isinstance(event, TrialStarted):
            self._start(event)
        elif isinstance(event, TrialCompiled):
            self._compare(event)
            self._write_outputs(event.key)
        elif isinstance(event, EpochFinished):
            self._add_epoch(event)
        elif isinstance(event, Checkpoint):
            self._keep_checkpoint(event)
        elif isinstance(event, TrialFinished):
            self._end(event)
        elif isinstance(event, TrialLost):
            self._lose(event)

    def stopped(self) -> None:
        """Take back the count of running trials' attempts: they did not end this process."""
        for key in self._running:
            self._uncount(key)

    # --- the events of a trial ---

    def _start(self, event: TrialStarted) -> None:
        key = event.key
        if self._is_done(key):
            return  # its record is kept until its weights exist again
        trial, before = self._new(key), self._records.get(key)
        trial = replace(trial, history=event.history, device=event.device, node=event.node)
        if before:
            attempts, failures = before.attempts + 1, before.failures
            trial = replace(trial, attempts=attempts, failures=failures, deaths=before.deaths)
        # A death is counted in advance, because a process that dies can't count it.
        trial = replace(trial, deaths=trial.deaths + 1)
        self._records[key] = trial  # before writing: the trial runs even if the disk is full
        self._running.add(key)
        self._store.write_trial(trial)

    def _add_epoch(self, event: EpochFinished) -> None:
        """Add an epoch to a running trial's record, so that whoever reads the run sees it."""
        trial = self._records[event.key]
        if trial.status == "running":
            # Trials of a group that failed are tried again from an earlier epoch.
            history = (*trial.history[: event.epoch - 1], event.metrics)
            trial = replace(trial, history=history, seconds=event.seconds)
            self._records[event.key] = trial
            self._store.write_trial(trial)

    def _compare(self, event: TrialCompiled) -> None:
        """Raise `UsageError` if what is trained is not what this process has built."""
        recorded, trained = self._records[event.key].computation, event.computation
        if not recorded or not trained or recorded.versions != trained.versions:
            return
        if different := recorded.differences(trained):
            raise UsageError(
                f"{self._store.path}: trial {event.key}: build_model returns another network"
                f" on the trial's node than here, with different {different}"
            )

    def _lose(self, event: TrialLost) -> None:
        """A trial died without a result: its attempt counts unless the node was lost."""
        if event.key in self._running:
            self._running.discard(event.key)
            if event.node_lost:
                self._uncount(event.key)

    def _uncount(self, key: Key) -> None:
        """Take back the count of an attempt that the trial itself did not end."""
        trial = self._records[key]
        trial = replace(trial, attempts=trial.attempts - 1, deaths=max(0, trial.deaths - 1))
        self._records[key] = trial
        self._store.write_trial(trial)

    def _keep_checkpoint(self, event: Checkpoint) -> None:
        self._store.write_checkpoint(event.key, *to_arrays(event))
        trial = self._records[event.key]
        further = (event.epoch, event.step) > self._from.get(event.key, (0, 0))
        if trial.deaths and further:
            # The trial makes progress: the next attempt will resume from this checkpoint.
            self._records[event.key] = replace(trial, deaths=0)
            if trial.status == "running":
                self._store.write_trial(self._records[event.key])

    def _end(self, event: TrialFinished) -> None:
        key, before = event.key, self._records[event.key]
        trial = self._finish(event, before)
        if before.status == "completed":
            if trial.status != "completed":
                raise EnvironmentFailure(f"trial {key} failed when trained again: {trial.error}")
            # As JSON, in which NaN is null and equals itself.
            now, then = (history_to_json(each.history) for each in (trial, before))
            if now != then or trial.validation_sha256 != before.validation_sha256:
                logger.info(f"note: trial {key} did not reproduce its first result")
            elif trial.weights_sha256 == before.weights_sha256:
                trial = before
        if trial is not before:
            self._store.write_trial(trial)
        self._running.discard(key)
        self._records[key] = trial
        if not self._is_done(key):
            return
        self._store.delete(File.CHECKPOINT, key)
        # The weights of a trial that is not done are kept, because its record may name them again.
        others = [key for key in self._stored() if not self._is_done(key)]
        self._keep_weights([*others, *self._best()])

    def _finish(self, event: TrialFinished, before: Trial) -> Trial:
        """The record of a trial that ended; first writes the files whose SHA-256 it has."""
        trial = self._new(event.key)
        validation = array_bytes(rows(event.validation))
        weights_sha256, data = None, self.dataset
        if event.parameters is not None:
            model = TrainedModel(
                trial.hyperparameters,
                data.image_shape,
                data.labels,
                data.scale,
                event.parameters,
                self._network,
                preparation=data.preparation,
                computation=trial.computation,
                length=self._data.length,
            )
            content = model.to_bytes()
            weights_sha256 = sha256(content)
            self._write_outputs(event.key, event.parameters)
            self._store.write_bytes(File.VALIDATION, validation, event.key)
            self._store.write_bytes(File.WEIGHTS, content, event.key)
        if event.traceback:
            traceback = event.traceback.encode(errors="backslashreplace")
            self._store.write_bytes(File.ERROR, traceback, event.key)
        else:
            self._store.delete(File.ERROR, event.key)
        failures = before.failures + (event.error is not None)
        return replace(
            trial,
            status="completed" if event.error is None else "failed",
            attempts=before.attempts,
            device=before.device,
            node=before.node,
            failures=0 if event.diverged or event.refused else failures,
            history=event.history,
            seconds=event.seconds,
            error=event.error,
            weights_sha256=weights_sha256,
            validation=() if weights_sha256 is None else event.validation,
            validation_sha256=None if weights_sha256 is None else sha256(validation),
            validation_data_sha256=None if weights_sha256 is None else data.validation_sha256,
        )

    def _new(self, key: Key) -> Trial:
        """The record of a trial that begins."""
        draw = self.draws[key]
        bound, computation = self._network.bind(draw, self._data), None
        with suppress(NetworkError):  # its trial says why
            computation = bound.computation
        return Trial(
            key.index, draw, "running", (), bound.layers, computation=computation, rerun=key.rerun
        )

    def _write_outputs(self, key: Key, weights: Parameters | None = None) -> None:
        """Store the outputs by which versions of JAX compare a network of one's own."""
        trial = self._records[key]
        if trial.computation is None:
            return
        kept = self._store.mended(partial(self._store.read_outputs, key))
        if kept is None or weights is not None:
            outputs = StoredOutputs(self._network, trial, self._settings.space.seed, self._data)
            found = kept or outputs.of_start()
            self._store.write_bytes(
                File.OUTPUTS, sealed_bytes(found | outputs.of_end(found, weights), {}), key
            )

    def _write_given_up(self, key: Key) -> None:
        trial = self._records[key]
        if self.state(key) is State.GIVEN_UP and trial.status == "running":
            error = f"the process died {trial.deaths} times while this trial was running"
            error += "; a larger --max-retries trains it again"
            self._records[key] = replace(trial, status="failed", error=error)
            self._store.write_trial(self._records[key])

    # --- reading and checking files ---

    def _check_network(self) -> None:
        """Raise `UsageError` if a network of one's own is not what trials were trained with."""
        notes = {
            check_trial(
                self._store,
                trial,
                self._network,
                self._settings.space.seed,
                self._data,
                OTHERWISE,
            )
            for key in self.current
            if (trial := self._records.get(key))
        }
        for note in sorted(filter(None, notes)):
            logger.info(note)
        for key in self.current:
            if key.rerun is not None:
                self._check_rerun(key)

    def _check_rerun(self, key: Key) -> None:
        """Raise `UsageError` unless a rerun has its trial's network; a refit has other steps."""
        before = self._records[Key(key.index)].computation
        now = self._network.bind(self.draws[key], self._data).computation
        if before is None or now is None or now.versions != before.versions:
            return
        now = replace(now, training=before.training) if key.refit else now
        if different := before.differences(now):
            raise UsageError(
                f"{self._store.path}: trial {key} has another network than trial {key.index},"
                f" with different {different}"
            )

    def _is_done(self, key: Key) -> bool:
        return self.state(key) in DONE

    def _stored(self) -> list[Key]:
        """The keys that have a folder, of the kind of `current`."""
        first = self.current[0]
        if first.rerun is None:
            return self._store.trial_keys()
        return [key for key in self._store.reruns() if key.refit == first.refit]

    def _best(self) -> list[Key]:
        """Those of `current` whose weights are kept.

        Of each finalist's reruns it is the first that completed, because its network is tested if
        the finalist is chosen.
        """
        if self.current[0].rerun is None:
            return [each.trial.key for each in self.ranking.ranked[: self._settings.output.keep]]
        first: dict[int, Key] = {}
        for key in sorted(self.current):
            record = self._records.get(key)
            if record is not None and record.status == "completed":
                first.setdefault(key.index, key)
        return list(first.values())

    def _read(self, key: Key) -> Trial | None:
        """The record of a trial; `DamagedFile` if the record or its validation bits are invalid."""
        try:
            trial = self._store.read_trial(key)
        except MissingFile:
            if key in self.draws:
                logger.info(f"note: trial {key} has no validation.npy and is trained again")
            raise
        if trial is None:
            return None
        path = self._store.file(File.TRIAL, key)
        if trial.hyperparameters != self.draws.get(key, trial.hyperparameters):
            raise DamagedFile(path, "does not have the hyperparameters of its draw")
        if trial.status != "completed":
            return trial
        epochs = len(trial.history)
        if epochs != self._settings.training.epochs:
            raise DamagedFile(path, f"has {epochs} epochs, not {self._settings.training.epochs}")
        if trial.validation_data_sha256 != self.dataset.validation_sha256:
            raise DamagedFile(path, "does not refer to results on these validation images")
        if not agree(trial.history, trial.validation, len(self.dataset.y_validation)):
            raise DamagedFile(path, "its validation accuracies do not match validation.npy")
        return trial

    def _read_checkpoint(self, key: Key) -> Checkpoint:
        """The checkpoint of a trial; `DamagedFile` if it is invalid."""
        arrays, content = self._store.read_checkpoint(key)
        try:
            return from_arrays(
                arrays,
                content,
                key,
                self._network.bind(self.draws[key], self._data),
                len(self.dataset.y_validation),
                self._settings.training,
            )
        except ValueError as problem:
            path = self._store.file(File.CHECKPOINT, key)
            raise DamagedFile(path, f"is not a checkpoint of this trial: {problem}") from None

    def _check_weights(self, key: Key) -> bool:
        """True if a trial's weights match its record; `DamagedFile` if they don't."""
        path = self._store.file(File.WEIGHTS, key)
        if sha256(read_bytes(path)) != self._records[key].weights_sha256:
            raise DamagedFile(path, "its SHA-256 differs from the one in the trial's record")
        return True
