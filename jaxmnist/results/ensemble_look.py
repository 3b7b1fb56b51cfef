"""The best trials' ensemble on the test set: evaluated once, and read again afterwards."""

from __future__ import annotations

from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.results import members
from jaxmnist.results.evaluation import Subject, look_at, read_report, validated
from jaxmnist.results.run import Run
from jaxmnist.whole_files import DamagedFile


def evaluate_ensemble(run: Run, dataset: Dataset, count: int) -> dict[str, Any]:
    """The report of the first `count` trials' ensemble, which is made unless it is kept.

    Args:
      run: a run whose first trials' weights are kept, locked by the caller.
      dataset: the run's own.
      count: number of members.

    Returns:
      The content of best/ensemble/ensemble.json.

    Raises:
      UsageError: fewer trials have completed.
    """
    trials = members.first(run.ranked, count)
    hashes = [trial.weights_sha256 for trial in trials]
    identity = members.identity(hashes)
    if kept := run.files.mended(lambda: _kept(run, identity)):
        return kept
    place = run.directory
    ensemble = run.ensemble_of(trials)
    right = ensemble.predict_proba(dataset.x_validation).argmax(1) == dataset.y_validation
    subject = Subject(
        identity,
        ensemble.predict_proba,
        place.ensemble_path,
        place.ensemble_probabilities_path,
        {
            **validated(float(right.mean()), dataset),
            "members": [
                {"trial": trial.index, "model_sha256": trial.weights_sha256} for trial in trials
            ],
        },
    )
    return look_at(subject, run, dataset, "ensemble")


def _kept(run: Run, identity: str) -> dict[str, Any] | None:
    """The kept report; None if it is another ensemble's. Raises `DamagedFile` if it is damaged."""
    path, beside = run.directory.ensemble_path, run.directory.ensemble_probabilities_path
    content, _ = read_report(path, beside, identity, members.MEMBERS_SHAPE)
    if content is not None and not members.are_first(content, run.ranked):
        raise DamagedFile(path, "does not list the members that it is of")
    return content
