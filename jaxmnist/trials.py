"""The trials of a search: which are done, which to train, whose weights to keep."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial

from jaxmnist.atomic import DamagedFile, read_bytes, sha256
from jaxmnist.checkpoint import from_arrays, to_arrays
from jaxmnist.config import Hyperparameters, SearchSettings
from jaxmnist.data import Dataset
from jaxmnist.errors import SurroundingsError, UsageError
from jaxmnist.events import Checkpoint, Event, StackingChosen, TrialFinished, TrialStarted
from jaxmnist.lanes import Stacking
from jaxmnist.model import count_parameters
from jaxmnist.record import METRICS, Trial
from jaxmnist.selection import rank
from jaxmnist.store import RunDirectory
from jaxmnist.trained import TrainedModel

# A process that ends without a word leaves its trials running. Whoever ended it is not known, so
# that a trial may be in it so often, beside the retries, until that counts as the trial's fault.
DEATHS = 5


class Trials:
    """The records of a run, kept on disk as they change.

    Args:
      directory: of the run, locked.
      dataset: that the trials train on.
      settings: of the search.
      draws: the hyperparameters of each trial of the budget, by index.
      say: tells a person something, a line at a time.

    Raises:
      UsageError: the run has finished trials beyond the budget.
    """

    def __init__(
        self,
        directory: RunDirectory,
        dataset: Dataset,
        settings: SearchSettings,
        draws: dict[int, Hyperparameters],
        say: Callable[[str], None],
    ) -> None:
        self.draws = draws
        self._directory = directory
        self._dataset = dataset
        self._settings = settings
        self._say = say
        self._done: dict[int, Trial] = {}
        self._begun: dict[int, Trial] = {}  # those that run, or ran, or may be tried again
        self._running: set[int] = set()
        self._from: dict[int, tuple[int, int]] = {}  # epoch and step of the checkpoints
        directory.set_aside_misplaced(say)
        for index in directory.trial_indices():
            trial = self._read(index)
            if trial is not None:
                self._keep(trial)
        beyond = self._done.keys() - draws.keys()
        if beyond:
            raise UsageError(
                f"--max-trials {len(draws)} is less than the {max(beyond) + 1} trials that this run"
                " has finished"
            )
        if self._done:
            say(f"{len(self._done)} trials are finished already")

    @property
    def stacking(self) -> Stacking | None:
        """How the trials share programs, if that was settled already."""
        kept = self._directory.read_search().get("stacking")
        try:
            return None if kept is None else Stacking(**kept)
        except (TypeError, ValueError):  # of a later version; it is measured again
            return None

    def pending(self) -> dict[int, Hyperparameters]:
        """The draws to train now; none when all is done.

        First come those that never failed, then those that an exception ended, then, one at a
        time, those in which the process ended more often than it is allowed to fail: what they may
        do harms no other then. When all are done, it is the best whose weights are gone: they may
        have been lost, or were not kept because other rules ranked the trials then. (What goes
        wrong with these ends the search: their records stand.)
        """
        missing = [index for index in self.draws if index not in self._done]
        begun = {i: self._begun[i] for i in missing if i in self._begun}
        alone = [i for i in begun if begun[i].deaths > self._settings.max_retries]
        failed = [i for i in begun if begun[i].failures and i not in alone]
        fresh = [i for i in missing if i not in failed and i not in alone]
        if not missing:
            lost = [
                index
                for index in self._best()
                if not self._directory.mended(partial(self._has_weights, index), self._say)
            ]
            # A process that was killed may have left what it was about to delete.
            for index in self._done.keys() - set(lost):
                self._directory.drop_checkpoint(index, self._say)
            self._directory.keep_weights(set(self._best()), self._say)
            for index in lost:
                self._say(f"trial {index} is among the best, but its weights are gone: once more")
            fresh = lost
        for index in failed if not fresh else []:
            error = begun[index].error
            self._say(f"trial {index} is tried again" + (f"; it failed: {error}" if error else ""))
        return {index: self.draws[index] for index in fresh or failed or alone[:1]}

    def checkpoints(self, indices: Iterable[int]) -> dict[int, Checkpoint]:
        """Where those of these trials that have a checkpoint can go on."""
        found = {index: self._checkpoint(index) for index in indices}
        kept = {index: checkpoint for index, checkpoint in found.items() if checkpoint}
        self._from = {index: (found.epoch, found.step) for index, found in kept.items()}
        return kept

    def record(self, event: Event) -> None:
        """Keep on disk what happened to a trial."""
        if isinstance(event, StackingChosen):
            self._directory.write_stacking(asdict(event.stacking))
        elif isinstance(event, TrialStarted):
            self._start(event.index)
        elif isinstance(event, Checkpoint):
            self._directory.write_checkpoint(event.index, *to_arrays(event))
            begun = self._begun[event.index]
            further = (event.epoch, event.step) > self._from.get(event.index, (0, 0))
            if begun.deaths and further:
                # It gets on: however this attempt ends, the next one begins from here.
                self._begun[event.index] = replace(begun, deaths=0)
                if begun.status == "running":
                    self._directory.write_trial(self._begun[event.index])
        elif isinstance(event, TrialFinished):
            self._end(event)

    def stopped(self) -> None:
        """The process ends in good order, which is no trial's fault: its attempt doesn't count."""
        for index in self._running:
            trial = self._begun[index]
            trial = replace(trial, attempts=trial.attempts - 1, deaths=max(0, trial.deaths - 1))
            self._directory.write_trial(trial)

    def _start(self, index: int) -> None:
        if index in self._done:
            return  # its record stands until its weights are there again
        before = self._begun.get(index)
        trial = self._trial(index, "running")
        # Deaths are counted before they happen, as nobody could afterwards.
        if before:
            trial = replace(trial, attempts=before.attempts + 1, deaths=before.deaths)
        trial = replace(trial, deaths=trial.deaths + 1)
        self._begun[index] = trial  # also if the disk is full: it runs, and may be kept later
        self._running.add(index)
        self._directory.write_trial(trial)

    def _end(self, event: TrialFinished) -> None:
        index, before = event.index, self._done.get(event.index)
        trial = self._finish(event)
        if before is not None and before.status == "completed":
            if trial.status != "completed":
                raise SurroundingsError(f"trial {index} failed this time: {trial.error}")
            if trial.history != before.history:
                self._say(f"note: trial {index} went otherwise than the first time")
            elif trial.weights_sha256 == before.weights_sha256:
                trial = before
        if trial is not before:
            self._directory.write_trial(trial)
        self._running.discard(index)
        self._keep(trial)
        if index not in self._done:
            return
        self._directory.drop_checkpoint(index, self._say)
        # Of a trial that is not done the weights may be what its record will name again.
        others = set(self._directory.trial_indices()) - self._done.keys()
        self._directory.keep_weights(others | set(self._best()), self._say)

    def _keep(self, trial: Trial) -> None:
        """Count a trial among those that are done, or those that are to be trained."""
        retries = self._settings.max_retries
        given_up = trial.deaths >= DEATHS + retries
        if trial.status == "running" and given_up:
            error = f"the process ended {trial.deaths} times while it ran"
            error += "; a larger --max-retries tries it again"
            trial = replace(trial, status="failed", error=error)
            self._directory.write_trial(trial)
        self._begun[trial.index] = trial
        again = not given_up and (0 < trial.failures <= retries or trial.deaths > 0)
        if trial.status == "completed" or (trial.status == "failed" and not again):
            self._done[trial.index] = trial

    def _checkpoint(self, index: int) -> Checkpoint | None:
        """The checkpoint of a trial; one that can't be believed is set aside."""
        data = self._dataset

        def read() -> Checkpoint:
            arrays, content = self._directory.read_checkpoint(index)
            try:
                return from_arrays(
                    arrays,
                    content,
                    index,
                    self.draws[index],
                    data.image_shape,
                    data.classes,
                    self._settings.training(),
                )
            except ValueError as problem:
                path = self._directory.checkpoint_path(index)
                raise DamagedFile(path, f"is no checkpoint of this trial: {problem}") from None

        return self._directory.mended(read, self._say)

    def _best(self) -> list[int]:
        images = len(self._dataset.y_validation)
        trials = list(self._done.values())
        ranked = rank(trials, images, self._settings.select, self._settings.tolerance)
        return [entry.trial.index for entry in ranked[: self._settings.keep]]

    def _read(self, index: int) -> Trial | None:
        """The record of a trial; one that can't be believed is set aside."""

        def read() -> Trial | None:
            trial = self._directory.read_trial(index)
            path = self._directory.trial_folder(index) / "trial.json"
            if trial and trial.hyperparameters != self.draws.get(index, trial.hyperparameters):
                raise DamagedFile(path, "does not have the hyperparameters of its draw")
            epochs = len(trial.history["val_accuracy"]) if trial else 0
            if trial and trial.status == "completed" and epochs != self._settings.epochs:
                raise DamagedFile(path, f"has {epochs} epochs, not {self._settings.epochs}")
            return trial

        return self._directory.mended(read, self._say)

    def _has_weights(self, index: int) -> bool:
        """Whether a trial's weights are there; `DamagedFile` if its record names others."""
        path = self._directory.weights_path(index)
        if sha256(read_bytes(path)) != self._done[index].weights_sha256:
            raise DamagedFile(path, "its SHA-256 is not the one that its trial's record names")
        return True

    def _trial(self, index: int, status: str) -> Trial:
        draw, data = self.draws[index], self._dataset
        return Trial(
            index,
            draw,
            status,
            {key: [] for key in METRICS},
            count_parameters(draw, data.image_shape, data.classes),
            failures=self._begun[index].failures if index in self._begun else 0,
        )

    def _finish(self, event: TrialFinished) -> Trial:
        """The record of a trial that ended; its weights are written before it names them."""
        trial = self._trial(event.index, "completed" if event.error is None else "failed")
        weights_sha256, data = None, self._dataset
        if event.parameters is not None:
            model = TrainedModel(
                trial.hyperparameters, data.image_shape, data.labels, data.scale, event.parameters
            )
            content = model.to_bytes()
            weights_sha256 = sha256(content)
            self._directory.write_weights(event.index, content)
        return replace(
            trial,
            attempts=self._begun[event.index].attempts,
            failures=0 if event.diverged else trial.failures + (event.error is not None),
            history={key: [getattr(epoch, key) for epoch in event.history] for key in METRICS},
            seconds=event.seconds,
            error=event.error,
            weights_sha256=weights_sha256,
        )
