"""Trainings again of trials that are done: the finalists' reruns, and the winner's refit."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.results.run import Run
from jaxmnist.runs.keys import Rerun, TrialKey, index_of
from jaxmnist.search.trials import Trials


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
