"""Paired comparisons of everything that was tested on a run's own test images.

The winner's network, the ensemble and the SVM of each backend, all pairs as one family of tests.
Reading needs the run's files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.errors import UsageError, printable
from jaxmnist.files import DamagedFile, content_sha256, read_array, read_json
from jaxmnist.results.confusion import REPORT_SHAPE, Evaluation, beside_constant
from jaxmnist.results.selection import Ranked
from jaxmnist.results.statistics import difference_p_values, holm, p_value, signed
from jaxmnist.runs.store import RunDirectory, WritableRunDirectory
from jaxmnist.runs.trial import Trial

# --- Which trials make the ensemble, and what its report says; for reading, without JAX ---

# Fields of best/ensemble/ensemble.json, of which `members` is its own.
MEMBERS_SHAPE = {"members": [{"trial": int, "model_sha256": str}]}
SHAPE = {
    **MEMBERS_SHAPE,
    "model_sha256": str,
    **REPORT_SHAPE,
    "probabilities_sha256": str,
    "validation_accuracy": float,
}


def first_members(ranked: Sequence[Ranked], count: int) -> tuple[Trial, ...]:
    """The first `count` trials of a ranking, by index: their order in it changes nothing.

    Raises `UsageError` if fewer have completed.
    """
    if len(ranked) < count:
        raise UsageError(f"--ensemble {count} needs as many completed trials: {len(ranked)} are")
    return tuple(sorted((entry.trial for entry in ranked[:count]), key=lambda trial: trial.index))


def members_identity(hashes: Sequence[str | None]) -> str:
    """The SHA-256 that identifies an ensemble: of its members' weights' hashes, in any order."""
    return content_sha256(sorted(map(str, hashes)))


def are_first_members(content: dict[str, Any], ranked: Sequence[Ranked]) -> bool:
    """Whether a report is of the first trials of this ranking, with the weights they have now."""
    stated = content["members"]
    if not 2 <= len(stated) <= len(ranked):
        return False
    now = [
        {"trial": trial.index, "model_sha256": trial.weights_sha256}
        for trial in first_members(ranked, len(stated))
    ]
    same: bool = content["model_sha256"] == members_identity(
        [each["model_sha256"] for each in stated]
    )
    return same and bool(stated == now)


def kept_ensemble(directory: RunDirectory, ranked: Sequence[Ranked]) -> dict[str, Any] | None:
    """The content of best/ensemble/ensemble.json; None if it is damaged or of other trials."""
    try:
        content = read_json(directory.ensemble_path, SHAPE)
        Evaluation.from_json(content)
    except (DamagedFile, ValueError):  # repeating the search's command sets it aside
        return None
    return content if are_first_members(content, ranked) else None


def describe_ensemble(content: dict[str, Any]) -> str:
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


# --- Paired comparisons of everything that was tested on a run's own test images ---

# Fields of best/comparisons.json.
COMPARISONS_SHAPE = {
    "models": {str: {"accuracy": float, "predictions_sha256": str}},
    "comparisons": [
        {
            "first": str,
            "second": str,
            "only_first": int,
            "only_second": int,
            "p_value": float,
            "significant": bool,
        }
    ],
}
TESTED_NETWORK = {"model_sha256": str, "accuracy": float, "probabilities_sha256": str}
TESTED_SVM = {
    "model_sha256": str,
    "data": str,
    "accuracy": float,
    "predictions_sha256": str,
    "backend": str,
}


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for the test images, as a file.

    path, sha256: of the file: classes int64[N], or probabilities float32[N, K].
    accuracy: that the model's report states.
    """

    path: Path
    sha256: str
    accuracy: float

    def classes(self) -> np.ndarray:
        """The predicted classes int64[N]; raises `DamagedFile`."""
        found = read_array(self.path, self.sha256)
        classes: np.ndarray = found.argmax(1) if found.ndim == 2 else found
        return classes


def tested_models(
    directory: RunDirectory, ranked: Sequence[Ranked], winner: str | None
) -> dict[str, Predictions]:
    """What was tested of the present winner, by name; what can't be read is left out.

    ranked: the trials, the first of which may be an ensemble.
    winner: the SHA-256 of the weights that best/ is to hold.
    """
    data = directory.search["identity"]["data"]
    found = {}
    if report := _read(directory.test_path, TESTED_NETWORK, winner):
        found["network"] = Predictions(
            directory.probabilities_path, report["probabilities_sha256"], report["accuracy"]
        )
    if ensemble := kept_ensemble(directory, ranked):
        found["ensemble"] = Predictions(
            directory.ensemble_probabilities_path,
            ensemble["probabilities_sha256"],
            ensemble["accuracy"],
        )
    for place in directory.svm_places(backends=True):
        report = _read(directory.svm_path(*place), TESTED_SVM, winner)
        if report and report["data"] == data:
            name = "SVM" if "SVM" not in found else f"SVM by {report['backend']}"
            predictions = directory.predictions_path(*place)
            found[name] = Predictions(predictions, report["predictions_sha256"], report["accuracy"])
    return {name: each for name, each in found.items() if each.path.is_file()}


def _read(path: Path, shape: Any, winner: str | None) -> dict[str, Any] | None:
    try:
        content = read_json(path, shape)
    except DamagedFile:  # what made the file sets it aside
        return None
    return content if content["model_sha256"] == winner else None


def compare_models(right: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """All pairs of models by McNemar's exact test, as one family.

    Args:
      right: the images that each model classified correctly, bool[N], by its name.

    Returns:
      For each pair the fields `COMPARISONS_SHAPE['comparisons']`; `significant` at 5 % for all
      pairs together.

    References:
      See `paired.difference_p_values` and `paired.holm`.
    """
    pairs = list(combinations(right, 2))
    counts = np.array(
        [((right[a] & ~right[b]).sum(), (right[b] & ~right[a]).sum()) for a, b in pairs],
        np.int64,
    ).reshape(-1, 2)
    p_values = difference_p_values(counts[:, 0], counts[:, 1])
    return [
        {
            "first": first,
            "second": second,
            "only_first": int(only_first),
            "only_second": int(only_second),
            "p_value": float(p_value),
            "significant": bool(told),
        }
        for (first, second), (only_first, only_second), p_value, told in zip(
            pairs, counts, p_values, holm(p_values), strict=True
        )
    ]


def write_comparisons(
    files: WritableRunDirectory, ranked: Sequence[Ranked], winner: str | None, truth: np.ndarray
) -> dict[str, Any] | None:
    """Compare what was tested, and write best/comparisons.json; the test set isn't evaluated.

    Args:
      files: of a run that the caller has locked.
      ranked, winner: see `tested`.
      truth: the true classes of the run's own test images, int[N].

    Returns:
      The content of the file; None if fewer than two models were tested.
    """
    found, right = tested_models(files, ranked, winner), {}
    for name, each in found.items():
        classes = files.mended(each.classes)
        if classes is not None:
            right[name] = classes == truth
    if len(right) < 2:
        return None
    models = _models({name: found[name] for name in right})
    content = {"models": models, "comparisons": compare_models(right)}
    if files.mended(lambda: read_json(files.comparisons_path, COMPARISONS_SHAPE)) != content:
        files.write_json(files.comparisons_path, content)
    return content


def kept_comparisons(
    directory: RunDirectory, ranked: Sequence[Ranked], winner: str | None
) -> dict[str, Any] | None:
    """The content of best/comparisons.json; None if damaged, or not of what was tested last."""
    try:
        content = read_json(directory.comparisons_path, COMPARISONS_SHAPE)
    except DamagedFile:  # repeating the search's command sets it aside
        return None
    models = content["models"]
    named = {name for pair in content["comparisons"] for name in (pair["first"], pair["second"])}
    same = bool(ranked) and models == _models(tested_models(directory, ranked, winner))
    return content if same and named == set(models) else None


def _models(found: Mapping[str, Predictions]) -> dict[str, Any]:
    return {
        name: {"accuracy": each.accuracy, "predictions_sha256": each.sha256}
        for name, each in found.items()
    }


def describe_comparisons(content: dict[str, Any] | None) -> list[str]:
    """The content of best/comparisons.json as lines; none if there is none."""
    if not content:
        return []
    pairs, models = content["comparisons"], content["models"]
    together = f", at 5 % for all {len(pairs)} together by Holm's method" if len(pairs) > 1 else ""
    lines = [f"On the same test images (McNemar's exact test{together}):"]
    for pair in pairs:
        first, second = pair["first"], pair["second"]
        difference = models[second]["accuracy"] - models[first]["accuracy"]
        verdict = "more than chance explains" if pair["significant"] else "within chance"
        lines.append(
            printable(
                f"{second} − {first}: {models[second]['accuracy']:.4f} −"
                f" {models[first]['accuracy']:.4f} = {signed(difference)}; classified correctly by"
                f" the {first} alone: {pair['only_first']} images, by the {second} alone:"
                f" {pair['only_second']}; p {p_value(pair['p_value'], '= ')}, {verdict}."
            )
        )
    return lines
