"""The members of the ensemble, and paired comparisons of all models that were tested.

The winner's network, the ensemble and the SVM of each backend, all pairs as one family of tests.
Reading needs the run's files alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from jaxmnist.errors import printable, wrong
from jaxmnist.files import DamagedFile, content_sha256, read_array, read_record
from jaxmnist.results.confusion import Evaluation, beside_constant
from jaxmnist.results.selection import Ranked, difference_p_values, holm, p_value, signed
from jaxmnist.runs.records import (
    Compared,
    Comparisons,
    EnsembleReport,
    File,
    Member,
    ModelReport,
    Pair,
    SvmReport,
)
from jaxmnist.runs.store import Store
from jaxmnist.runs.trial import Trial

R = TypeVar("R")

# --- The ensemble: its members and its report ---


def first_members(ranked: Sequence[Ranked], count: int) -> tuple[Trial, ...]:
    """The first `count` trials of a ranking, by index: their order in it changes nothing.

    Raises `UsageError` if fewer have completed.
    """
    if len(ranked) < count:
        raise wrong("ensemble", f"{count} needs as many completed trials: {len(ranked)} are")
    return tuple(sorted((entry.trial for entry in ranked[:count]), key=lambda trial: trial.index))


def members_identity(hashes: Sequence[str | None]) -> str:
    """The SHA-256 that identifies an ensemble: of its members' weights' hashes, in any order."""
    return content_sha256(sorted(map(str, hashes)))


def members_of(trials: Sequence[Trial]) -> tuple[Member, ...]:
    """The members of an ensemble of these trials."""
    return tuple(Member(trial.index, str(trial.weights_sha256)) for trial in trials)


def are_first_members(report: EnsembleReport, ranked: Sequence[Ranked]) -> bool:
    """Whether a report is of the first trials of this ranking, with the weights they have now."""
    members = report.members
    if not 2 <= len(members) <= len(ranked):
        return False
    identity = members_identity([member.model_sha256 for member in members])
    now = members_of(first_members(ranked, len(members)))
    return report.model_sha256 == identity and members == now


def kept_ensemble(store: Store, ranked: Sequence[Ranked]) -> EnsembleReport | None:
    """The content of best/ensemble/ensemble.json; None if it is damaged or of other trials."""
    report = _read(store.file(File.ENSEMBLE), EnsembleReport)
    return report if report and are_first_members(report, ranked) else None


def describe_ensemble(report: EnsembleReport) -> str:
    """The content of best/ensemble/ensemble.json in sentences, on a line."""
    low, high = report.confidence_interval
    names = ", ".join(str(member.trial) for member in report.members)
    count = len(report.members)
    said = (
        f"Ensemble of the first {count} trials ({names}), by the mean of their"
        f" probabilities: test accuracy {report.accuracy:.4f} (95 % interval {low:.4f} to"
        f" {high:.4f}), validation accuracy {report.validation_accuracy:.4f}. Predicting with it"
        f" costs {count} times the computing."
    )
    return " ".join([said, *beside_constant(Evaluation.of(report))])


# --- Paired comparisons on a run's own test images ---


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
    store: Store, ranked: Sequence[Ranked], winner: str | None
) -> dict[str, Predictions]:
    """What was tested of the present winner, by name; what can't be read is left out.

    ranked: the trials, the first of which may be an ensemble.
    winner: the SHA-256 of the weights that best/ is to hold.
    """
    data = store.search.identity["data"]
    found = {}
    test = _read(store.file(File.TEST), ModelReport)
    if test and test.model_sha256 == winner:
        found["network"] = Predictions(
            store.file(File.PROBABILITIES), test.probabilities_sha256, test.accuracy
        )
    if ensemble := kept_ensemble(store, ranked):
        found["ensemble"] = Predictions(
            store.file(File.ENSEMBLE_PROBABILITIES),
            ensemble.probabilities_sha256,
            ensemble.accuracy,
        )
    for place in store.svm_places(backends=True):
        svm = _read(store.file(File.SVM, place), SvmReport)
        if svm and (svm.model_sha256, svm.data) == (winner, data):
            name = "SVM" if "SVM" not in found else f"SVM by {svm.backend}"
            predictions = store.file(File.PREDICTIONS, place)
            found[name] = Predictions(predictions, svm.predictions_sha256, svm.accuracy)
    return {name: each for name, each in found.items() if each.path.is_file()}


def _read(path: Path, kind: type[R]) -> R | None:
    """The record in a file; None if it is damaged or missing: what made it sets it aside."""
    try:
        return read_record(path, kind)
    except DamagedFile:
        return None


def compare_models(right: Mapping[str, np.ndarray]) -> tuple[Pair, ...]:
    """All pairs of models by McNemar's exact test, as one family.

    Args:
      right: the images that each model classified correctly, bool[N], by its name.

    References:
      See `difference_p_values` and `holm`.
    """
    pairs = list(combinations(right, 2))
    counts = np.array(
        [((right[a] & ~right[b]).sum(), (right[b] & ~right[a]).sum()) for a, b in pairs],
        np.int64,
    ).reshape(-1, 2)
    p_values = difference_p_values(counts[:, 0], counts[:, 1])
    significant = holm(p_values)
    return tuple(
        Pair(first, second, int(alone[0]), int(alone[1]), float(p_value), bool(told))
        for (first, second), alone, p_value, told in zip(
            pairs, counts, p_values, significant, strict=True
        )
    )


def write_comparisons(
    store: Store, ranked: Sequence[Ranked], winner: str | None, truth: np.ndarray
) -> Comparisons | None:
    """Compare what was tested, and write best/comparisons.json; the test set isn't evaluated.

    Args:
      store: of a run that the caller has locked.
      ranked, winner: see `tested_models`.
      truth: the true classes of the run's own test images, int[N].

    Returns:
      The content of the file; None if fewer than two models were tested.
    """
    found, right = tested_models(store, ranked, winner), {}
    for name, each in found.items():
        classes = store.mended(each.classes)
        if classes is not None:
            right[name] = classes == truth
    if len(right) < 2:
        return None
    models = _models({name: found[name] for name in right})
    now = Comparisons(models, compare_models(right))
    if store.mended(lambda: store.read(Comparisons)) != now:
        store.write(now)
    return now


def kept_comparisons(
    store: Store, ranked: Sequence[Ranked], winner: str | None
) -> Comparisons | None:
    """The content of best/comparisons.json; None if damaged, or not of what was tested last."""
    kept = _read(store.file(File.COMPARISONS), Comparisons)
    same = kept and ranked and kept.models == _models(tested_models(store, ranked, winner))
    return kept if same else None


def _models(found: Mapping[str, Predictions]) -> dict[str, Compared]:
    return {name: Compared(each.accuracy, each.sha256) for name, each in found.items()}


def describe_comparisons(found: Comparisons | None) -> list[str]:
    """The content of best/comparisons.json as lines; none if there is none."""
    if not found:
        return []
    pairs, models = found.comparisons, found.models
    together = f", at 5 % for all {len(pairs)} together by Holm's method" if len(pairs) > 1 else ""
    lines = [f"On the same test images (McNemar's exact test{together}):"]
    for pair in pairs:
        first, second = models[pair.first].accuracy, models[pair.second].accuracy
        verdict = "more than chance explains" if pair.significant else "within chance"
        lines.append(
            printable(
                f"{pair.second} − {pair.first}: {second:.4f} − {first:.4f} ="
                f" {signed(second - first)}; classified correctly by the {pair.first} alone:"
                f" {pair.only_first} images, by the {pair.second} alone: {pair.only_second}; p"
                f" {p_value(pair.p_value, '= ')}, {verdict}."
            )
        )
    return lines
