"""The trials of a search: which are done, which to train, whose weights to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

from jaxmnist.atomic import DamagedFile, read_bytes, sha256
from jaxmnist.config import Hyperparameters, SearchSettings
from jaxmnist.data import Dataset
from jaxmnist.engine import Event, StackingChosen, TrialFinished, TrialStarted
from jaxmnist.errors import SurroundingsError, UsageError
from jaxmnist.lanes import Stacking
from jaxmnist.model import count_parameters
from jaxmnist.record import METRICS, Trial
from jaxmnist.selection import rank
from jaxmnist.store import RunDirectory
from jaxmnist.trained import TrainedModel


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
        self._attempts: dict[int, int] = {}
        self._done: dict[int, Trial] = {}
        directory.set_aside_misplaced(say)
        for index in directory.trial_indices():
            trial = self._read(index)
            if trial is not None:
                self._attempts[index] = trial.attempts
                if trial.status != "running":
                    self._done[index] = trial
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
        """The draws to train: those not done; when all are, the best whose weights are gone.

        Weights may have been lost, or were not kept because other rules ranked the trials then.
        """
        missing = {index: draw for index, draw in self.draws.items() if index not in self._done}
        if missing:
            return missing
        lost = [
            index
            for index in self._best()
            if not self._directory.mended(partial(self._has_weights, index), self._say)
        ]
        for index in lost:
            self._say(f"trial {index} is among the best, but its weights are gone: once more")
        return {index: self.draws[index] for index in lost}

    def record(self, event: Event) -> None:
        """Keep on disk what happened to a trial."""
        if isinstance(event, StackingChosen):
            self._directory.write_stacking(asdict(event.stacking))
            return
        index = event.index
        if isinstance(event, TrialStarted) and index not in self._done:
            self._attempts[index] = self._attempts.get(index, 0) + 1
            self._directory.write_trial(self._trial(index, "running"))
        elif isinstance(event, TrialFinished):
            before = self._done.get(index)
            trial = self._finish(event)
            if before is not None and before.status == "completed":
                # Its record stands until its weights are there again.
                if trial.status != "completed":
                    raise SurroundingsError(f"trial {index} failed this time: {trial.error}")
                if trial.history != before.history:
                    self._say(f"note: trial {index} went otherwise than the first time")
                elif trial.weights_sha256 == before.weights_sha256:
                    trial = before
            if trial is not before:
                self._directory.write_trial(trial)
            self._done[index] = trial
            # Of a trial that is not done the weights may be what its record will name again.
            others = set(self._directory.trial_indices()) - self._done.keys()
            self._directory.keep_weights(others | set(self._best()))

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
            attempts=self._attempts.get(index, 1),
        )

    def _finish(self, event: TrialFinished) -> Trial:
        """The record of a trial that ended; its weights are written before it names them."""
        trial = self._trial(event.index, "completed" if event.error is None else "failed")
        weights_sha256, data = None, self._dataset
        if event.parameters is not None:
            model = TrainedModel(
                trial.hyperparameters, data.image_shape, data.labels, event.parameters
            )
            content = model.to_bytes()
            weights_sha256 = sha256(content)
            self._directory.write_weights(event.index, content)
        return replace(
            trial,
            history={key: [getattr(epoch, key) for epoch in event.history] for key in METRICS},
            seconds=event.seconds,
            error=event.error,
            weights_sha256=weights_sha256,
        )
