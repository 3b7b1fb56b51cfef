"""Which trials make the ensemble, and what its report says; for reading, without JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxmnist.errors import UsageError
from jaxmnist.results.confusion import REPORT_SHAPE, Evaluation, beside_constant
from jaxmnist.results.selection import Ranked
from jaxmnist.runs.directory import RunDirectory
from jaxmnist.runs.trial import Trial
from jaxmnist.whole_files import DamagedFile, content_sha256, read_json

# Fields of best/ensemble/ensemble.json, of which `members` is its own.
MEMBERS_SHAPE = {"members": [{"trial": int, "model_sha256": str}]}
SHAPE = {
    **MEMBERS_SHAPE,
    "model_sha256": str,
    **REPORT_SHAPE,
    "probabilities_sha256": str,
    "validation_accuracy": float,
}


def first(ranked: Sequence[Ranked], count: int) -> tuple[Trial, ...]:
    """The first `count` trials of a ranking, by index: their order in it changes nothing.

    Raises `UsageError` if fewer have completed.
    """
    if len(ranked) < count:
        raise UsageError(f"--ensemble {count} needs as many completed trials: {len(ranked)} are")
    return tuple(sorted((entry.trial for entry in ranked[:count]), key=lambda trial: trial.index))


def identity(hashes: Sequence[str | None]) -> str:
    """The SHA-256 that identifies an ensemble: of its members' weights' hashes, in any order."""
    return content_sha256(sorted(map(str, hashes)))


def are_first(content: dict[str, Any], ranked: Sequence[Ranked]) -> bool:
    """Whether a report is of the first trials of this ranking, with the weights they have now."""
    stated = content["members"]
    if not 2 <= len(stated) <= len(ranked):
        return False
    now = [
        {"trial": trial.index, "model_sha256": trial.weights_sha256}
        for trial in first(ranked, len(stated))
    ]
    same: bool = content["model_sha256"] == identity([each["model_sha256"] for each in stated])
    return same and bool(stated == now)


def kept(directory: RunDirectory, ranked: Sequence[Ranked]) -> dict[str, Any] | None:
    """The content of best/ensemble/ensemble.json; None if it is damaged or of other trials."""
    try:
        content = read_json(directory.ensemble_path, SHAPE)
        Evaluation.from_json(content)
    except (DamagedFile, ValueError):  # repeating the search's command sets it aside
        return None
    return content if are_first(content, ranked) else None


def describe(content: dict[str, Any]) -> str:
    """The content of best/ensemble/ensemble.json in sentences, on a line."""
    members = content["members"]
    low, high = content["confidence_interval"]
    names = ", ".join(str(member["trial"]) for member in members)
    said = (
        f"Ensemble of the first {len(members)} trials ({names}), by the mean of their"
        f" probabilities: test accuracy {content['accuracy']:.4f} (95 % interval {low:.4f} to"
        f" {high:.4f}), validation accuracy"
        f" {content['validation_accuracy']:.4f}. Predicting with it costs {len(members)} times the"
        " computing."
    )
    return " ".join([said, *beside_constant(Evaluation.from_json(content))])
