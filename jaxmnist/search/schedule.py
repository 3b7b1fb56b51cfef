"""The trials of a search: their states, which to train next, and whose weights to keep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import (
    Checkpoint,
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
from jaxmnist.errors import EnvironmentFailure, NetworkError, UsageError
from jaxmnist.files import DamagedFile, MissingFile, array_bytes, read_bytes, sha256
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network, Parameters
from jaxmnist.results.matching import SAME, StoredOutputs, check_trial
from jaxmnist.results.run import Run
from jaxmnist.results.selection import rule_of
from jaxmnist.results.trained import TrainedModel
from jaxmnist.runs.store import WritableRunDirectory
from jaxmnist.runs.trial import (
    DONE,
    QUEUE,
    Rerun,
    State,
    Trial,
    TrialKey,
    agree,
    history_to_json,
    index_of,
    number_of,
    state_of,
)
from jaxmnist.settings import SearchSettings

# --- The trials of a search: their states, which to train next, and whose weights to keep ---

logger = logging.getLogger("jaxmnist")
OTHERWISE = f"{SAME}; --overwrite starts over, --project-name starts a run beside it"


class StoredCheckpoints(Mapping[TrialKey, Checkpoint]):
    """The checkpoints of some trials by key, each read from disk when it is asked for.

    Args:
      keys: the trials.
      exists: whether a trial has a checkpoint now.
      read: the checkpoint of a trial, or None if it is damaged.
    """

    def __init__(
        self,
        keys: Iterable[TrialKey],
        exists: Callable[[TrialKey], bool],
        read: Callable[[TrialKey], Checkpoint | None],
    ) -> None:
        self._keys = dict.fromkeys(keys)
        self._exists = exists
        self._read = read

    def __getitem__(self, key: TrialKey) -> Checkpoint:
        found = self._read(key) if key in self._keys and self._exists(key) else None
        if found is None:
            raise KeyError(key)
        return found

    def __iter__(self) -> Iterator[TrialKey]:
        return (key for key in self._keys if self._exists(key))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Trials:
    """The trial records of a run, written to disk whenever they change.

    On construction, invalid records are set aside, and trials that are given up are recorded as
    failed.

    Args:
      directory: the run directory, for writing.
      network: the network whose configurations are trained.
      dataset: the dataset that the trials train on.
      settings: the settings of the search.
      draws: the hyperparameters of each trial of the budget, by index.

    Raises:
      UsageError: the run has finished trials beyond the budget.
    """

    def __init__(
        self,
        directory: WritableRunDirectory,
        network: Network,
        dataset: Dataset,
        settings: SearchSettings,
        draws: Mapping[TrialKey, Hyperparameters],
    ) -> None:
        self.draws = draws
        self._directory = directory
        self._network = network
        self._dataset = dataset
        self._data = DataSpec.of(dataset, settings.training())
        self._settings = settings
        self._records: dict[TrialKey, Trial] = {}
        self._running: set[TrialKey] = set()
        self._from: dict[TrialKey, tuple[int, int]] = {}  # epoch and step of the checkpoints
        directory.set_aside_misplaced()
        for index in self._stored():
            trial = directory.mended(partial(self._read, index))
            if trial is not None:
                self._records[index] = trial
        self._check_network()
        done = [index for index in self._records if self._is_done(index)]
        beyond = [i for i in done if i not in draws and isinstance(i, int)]
        if beyond:
            raise UsageError(
                f"--max-trials {len(draws)} is less than the {max(beyond) + 1} trials that this run"
                " has finished"
            )
        for index in done:
            self._write_given_up(index)
        if done := [index for index in done if index in draws]:
            logger.info(self._already(len(done)))

    @property
    def stacking(self) -> Stacking | None:
        """How the trials share programs; None if that was not chosen yet."""
        kept = self._directory.search.get("stacking")
        try:
            return None if kept is None else Stacking(**kept)
        except (TypeError, ValueError):  # written by a later version; measured again
            return None

    def state(self, index: TrialKey) -> State:
        """The state of a trial."""
        return state_of(self._records.get(index), self._settings.max_retries)

    def pending(self) -> dict[TrialKey, Hyperparameters]:
        """The draws to train next, in the order of `QUEUE`; empty when all are done."""
        for states in QUEUE:
            found = [index for index in self.draws if self.state(index) in states]
            if found:
                alone = states == QUEUE[-1]
                return {index: self.draws[index] for index in (found[:1] if alone else found)}
        return {}

    @property
    def left(self) -> int:
        """The number of trials of the budget that are not done."""
        return sum(not self._is_done(index) for index in self.draws)

    def without_weights(self) -> dict[TrialKey, Hyperparameters]:
        """The best trials whose weights are missing; to be called when no others will be trained.

        The weights may have been lost, or were not kept because a different rule ranked the trials.
        If training such a trial again fails, the search ends, and the trial's record is kept.
        """
        lost = [i for i in self._best() if not self._directory.weights_path(i).is_file()]
        return {index: self.draws[index] for index in lost}

    def why_again(self, index: TrialKey) -> str | None:
        """The reason why a trial is trained again; None for other trials."""
        if self._is_done(index):
            return f"trial {index} is among the best, but its weights are missing: trained again"
        if self.state(index) is State.RETRY:
            error = self._records[index].error
            return f"trial {index} is trained again" + (f"; it failed: {error}" if error else "")
        return None

    def set_aside_damaged_weights(self) -> None:
        """Set aside weights of the best trials whose SHA-256 differs from that in their records."""
        for index in self._best():
            self._directory.mended(partial(self._check_weights, index))

    def delete_leftovers(self) -> None:
        """Delete files that a killed process left; to be called when no others will be trained."""
        best = set(self._best())
        missing = self.without_weights()
        for index in self._records:
            if self._is_done(index) and index not in missing:
                self._directory.drop_checkpoint(index)
        self._directory.keep_weights(best, self._stored())

    def set_aside_damaged_checkpoints(self, indices: Iterable[TrialKey]) -> StoredCheckpoints:
        """The checkpoints of these trials, where they exist; damaged ones are set aside."""
        indices, self._from = list(indices), {}
        for index in indices:
            self._checkpoint(index)

        def exists(index: TrialKey) -> bool:
            return self._directory.checkpoint_path(index).is_file()

        return StoredCheckpoints(indices, exists, self._checkpoint)

    def _checkpoint(self, index: TrialKey) -> Checkpoint | None:
        """The checkpoint of a trial, or None; one that is damaged is set aside."""
        found = self._directory.mended(partial(self._read_checkpoint, index))
        self._from.pop(index, None)
        if found is not None:
            self._from[index] = found.epoch, found.step
        return found

    def record(self, event: Event) -> None:
        """Write an event to disk."""
        if isinstance(event, StackingChosen):
            self._directory.write_stacking(asdict(event.stacking))
        elif isinstance(event, TrialStarted):
            self._start(event)
        elif isinstance(event, TrialCompiled):
            self._compare(event)
            self._write_outputs(event.index)
        elif isinstance(event, Checkpoint):
            self._keep_checkpoint(event)
        elif isinstance(event, TrialFinished):
            self._end(event)
        elif isinstance(event, TrialLost):
            self._lose(event)

    def stopped(self) -> None:
        """Uncount the attempts of running trials, which did not cause this end of the process."""
        for index in self._running:
            self._uncount(index)

    # --- the events of a trial ---

    def _start(self, event: TrialStarted) -> None:
        index = event.index
        if self._is_done(index):
            return  # its record is kept until its weights exist again
        trial, before = self._new(index, "running"), self._records.get(index)
        trial = replace(trial, device=event.device, node=event.node)
        if before:
            attempts, failures = before.attempts + 1, before.failures
            trial = replace(trial, attempts=attempts, failures=failures, deaths=before.deaths)
        # A death is counted in advance, because a process that dies can't count it.
        trial = replace(trial, deaths=trial.deaths + 1)
        self._records[index] = trial  # before writing: the trial runs even if the disk is full
        self._running.add(index)
        self._directory.write_trial(trial)

    def _compare(self, event: TrialCompiled) -> None:
        """Raise `UsageError` if what is trained is not what this process has built."""
        recorded, trained = self._records[event.index].computation, event.computation
        if not recorded or not trained or recorded.versions != trained.versions:
            return
        if different := recorded.differences(trained):
            raise UsageError(
                f"{self._directory.path}: trial {event.index}: build_model returns another network"
                f" on the trial's node than here, with different {different}"
            )

    def _lose(self, event: TrialLost) -> None:
        """A trial has ended without a word: its attempt counts unless the node was lost."""
        if event.index in self._running:
            self._running.discard(event.index)
            if event.node_lost:
                self._uncount(event.index)

    def _uncount(self, index: TrialKey) -> None:
        """Uncount a trial's attempt, whose end it did not cause."""
        trial = self._records[index]
        trial = replace(trial, attempts=trial.attempts - 1, deaths=max(0, trial.deaths - 1))
        self._records[index] = trial
        self._directory.write_trial(trial)

    def _keep_checkpoint(self, event: Checkpoint) -> None:
        self._directory.write_checkpoint(event.index, *to_arrays(event))
        trial = self._records[event.index]
        further = (event.epoch, event.step) > self._from.get(event.index, (0, 0))
        if trial.deaths and further:
            # The trial makes progress: the next attempt will resume from this checkpoint.
            self._records[event.index] = replace(trial, deaths=0)
            if trial.status == "running":
                self._directory.write_trial(self._records[event.index])

    def _end(self, event: TrialFinished) -> None:
        index, before = event.index, self._records[event.index]
        trial = self._finish(event, before)
        if before.status == "completed":
            if trial.status != "completed":
                raise EnvironmentFailure(f"trial {index} failed when trained again: {trial.error}")
            # As JSON, where what isn't a number equals itself.
            now, then = (history_to_json(each.history) for each in (trial, before))
            if now != then or trial.validation_sha256 != before.validation_sha256:
                logger.info(f"note: trial {index} did not reproduce its first result")
            elif trial.weights_sha256 == before.weights_sha256:
                trial = before
        if trial is not before:
            self._directory.write_trial(trial)
        self._running.discard(index)
        self._records[index] = trial
        if not self._is_done(index):
            return
        self._directory.drop_checkpoint(index)
        # The weights of a trial that is not done are kept, because its record may name them again.
        others = {i for i in self._stored() if not self._is_done(i)}
        self._directory.keep_weights(others | set(self._best()), self._stored())

    def _finish(self, event: TrialFinished, before: Trial) -> Trial:
        """The record of a trial that ended; writes the weights and bits that it names first."""
        trial = self._new(event.index, "completed" if event.error is None else "failed")
        validation = array_bytes(rows(event.validation))
        weights_sha256, data = None, self._dataset
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
            self._write_outputs(event.index, event.parameters)
            self._directory.write_validation(event.index, validation)
            self._directory.write_weights(event.index, content)
        if event.traceback or self._directory.error_path(event.index).is_file():
            self._directory.write_error(event.index, event.traceback)
        failures = before.failures + (event.error is not None)
        return replace(
            trial,
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

    def _new(self, index: TrialKey, status: str) -> Trial:
        draw = self.draws[index]
        layers = self._network.layers(draw, self._data)
        computation = None
        with suppress(NetworkError):  # its trial says why
            computation = self._network.computation(draw, self._data)
        trial = Trial(index_of(index), draw, status, (), layers, computation=computation)
        return replace(trial, rerun=number_of(index))

    def _write_outputs(self, index: TrialKey, weights: Parameters | None = None) -> None:
        """Keep what a network of one's own is compared by, across versions of JAX."""
        trial = self._records[index]
        if trial.computation is None:
            return
        kept = self._directory.mended(partial(self._directory.read_outputs, index))
        if kept is None or weights is not None:
            outputs = StoredOutputs(self._network, trial, self._settings, self._data)
            found = kept or outputs.of_start()
            self._directory.write_outputs(index, found | outputs.of_end(found, weights))

    def _write_given_up(self, index: TrialKey) -> None:
        trial = self._records[index]
        if self.state(index) is State.GIVEN_UP and trial.status == "running":
            error = f"the process died {trial.deaths} times while this trial was running"
            error += "; a larger --max-retries trains it again"
            self._records[index] = replace(trial, status="failed", error=error)
            self._directory.write_trial(self._records[index])

    # --- reading and checking files ---

    def _check_network(self) -> None:
        """Raise `UsageError` if a network of one's own is not what trials were trained with."""
        notes = {
            check_trial(
                self._directory, trial, self._network, self._settings, self._data, OTHERWISE
            )
            for index, trial in self._records.items()
            if index in self.draws
        }
        for note in sorted(filter(None, notes)):
            logger.info(note)

    def _is_done(self, index: TrialKey) -> bool:
        return self.state(index) in DONE

    def _already(self, done: int) -> str:
        """What is said of trials that earlier sessions finished."""
        return f"{done} trials are already finished"

    def _stored(self) -> Sequence[TrialKey]:
        """The trials that have a folder."""
        return self._directory.trial_indices()

    def _best(self) -> list[TrialKey]:
        """The trials whose weights are kept."""
        images = len(self._dataset.y_validation)
        rule = rule_of(self._settings.select, images, self._settings.tolerance)
        ranked = rule.rank(list(self._records.values()))
        return [entry.trial.index for entry in ranked[: self._settings.keep]]

    def _read(self, index: TrialKey) -> Trial | None:
        """The record of a trial; `DamagedFile` if the record or its validation bits are invalid."""
        try:
            trial = self._directory.read_trial(index)
        except MissingFile:
            if index in self.draws:
                logger.info(f"note: trial {index} has no validation.npy and is trained again")
            raise
        if trial is None:
            return None
        path = self._directory.trial_folder(index) / "trial.json"
        if trial.hyperparameters != self.draws.get(index, trial.hyperparameters):
            raise DamagedFile(path, "does not have the hyperparameters of its draw")
        if trial.status != "completed":
            return trial
        epochs = len(trial.history)
        if epochs != self._settings.epochs:
            raise DamagedFile(path, f"has {epochs} epochs, not {self._settings.epochs}")
        if trial.validation_data_sha256 != self._dataset.validation_sha256:
            raise DamagedFile(path, "does not refer to results on these validation images")
        if not agree(trial.history, trial.validation, len(self._dataset.y_validation)):
            raise DamagedFile(path, "its validation accuracies do not match validation.npy")
        return trial

    def _read_checkpoint(self, index: TrialKey) -> Checkpoint:
        """The checkpoint of a trial; `DamagedFile` if it is invalid."""
        arrays, content = self._directory.read_checkpoint(index)
        try:
            return from_arrays(
                arrays,
                content,
                index,
                self.draws[index],
                self._network,
                self._data,
                len(self._dataset.y_validation),
                self._settings.training(),
            )
        except ValueError as problem:
            path = self._directory.checkpoint_path(index)
            raise DamagedFile(path, f"is not a checkpoint of this trial: {problem}") from None

    def _check_weights(self, index: TrialKey) -> bool:
        """True if a trial's weights match its record; `DamagedFile` if they don't."""
        path = self._directory.weights_path(index)
        if sha256(read_bytes(path)) != self._records[index].weights_sha256:
            raise DamagedFile(path, "its SHA-256 differs from the one in the trial's record")
        return True


# --- Trainings again of trials that are done: the finalists' reruns, and the winner's refit ---


class Reruns(Trials):
    """The records of reruns, or of a refit, written to disk whenever they change.

    They are what `Trials` are for trials; its `draws` are the reruns that are wanted. The weights
    of the first completed rerun of each trial are kept, because its network is tested if the trial
    is chosen; other reruns that an earlier session trained keep their records.
    """

    def _already(self, done: int) -> str:
        return f"{done} of {len(self.draws)} are already finished"

    def _stored(self) -> Sequence[TrialKey]:
        kinds = {key.refit for key in self.draws if isinstance(key, Rerun)}
        return [key for key in self._directory.reruns() if key.refit in kinds]

    def _best(self) -> list[TrialKey]:
        wanted = sorted(key for key in self.draws if isinstance(key, Rerun))
        first: dict[int, TrialKey] = {}
        for key in wanted:
            record = self._records.get(key)
            if record is not None and record.status == "completed":
                first.setdefault(key.index, key)
        return list(first.values())

    def _check_network(self) -> None:
        """Also that a refit has the network of its trial, but for the number of its steps."""
        super()._check_network()
        for key, draw in self.draws.items():
            trial = self._directory.read_trial(index_of(key))
            if trial is None or trial.computation is None:
                continue
            now = self._network.computation(draw, self._data)
            if now is None or now.versions != trial.computation.versions:
                continue
            refit = isinstance(key, Rerun) and key.refit
            now = replace(now, training=trial.computation.training) if refit else now
            if different := trial.computation.differences(now):
                raise UsageError(
                    f"{self._directory.path}: trial {key} has another network than trial"
                    f" {trial.index}, with different {different}"
                )

    @property
    def ended(self) -> Collection[TrialKey]:
        """The wanted reruns that have ended."""
        return [key for key in self.draws if self._is_done(key)]


def check_reruns(run: Run) -> None:
    """Raise `EnvironmentFailure` if no rerun of any finalist completed."""
    if not run.finals:
        key = run.rerun_keys[0]
        failed = run.directory.read_trial(key)
        assert failed is not None
        raise EnvironmentFailure(f"every rerun failed; trial {key}: {failed.error}")


def check_refit(run: Run, key: Rerun) -> None:
    """Raise `EnvironmentFailure` if the refit failed."""
    record = run.directory.read_trial(key)
    if run.final_trial is None and record is not None:
        raise EnvironmentFailure(
            f"trial {key} failed: {record.error}; without --refit the winner itself is tested"
        )
