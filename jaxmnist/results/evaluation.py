"""The test set: accuracy, its gap to validation, calibration, and how often it was evaluated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, TypeVar

import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import printable
from jaxmnist.files import (
    DamagedFile,
    array_bytes,
    read_array,
    read_bytes,
    sha256,
)
from jaxmnist.results import comparisons
from jaxmnist.results.confusion import (
    SENTENCE,
    Evaluation,
    beside_constant,
    describe_classes,
    describe_confusions,
    judge,
    shortened,
)
from jaxmnist.results.ranking import Corrected, interval
from jaxmnist.results.run import Run
from jaxmnist.results.selection import signed
from jaxmnist.runs.ledger import Looks, ledger_path
from jaxmnist.runs.records import (
    BINS,
    Bin,
    Classification,
    EnsembleReport,
    File,
    ModelReport,
    calibration_error,
)
from jaxmnist.runs.store import Store

R = TypeVar("R", bound=Classification)
M = TypeVar("M", bound=ModelReport)

# --- Whether a network's probabilities are as often right as they say ---

SIMULATIONS = 2000


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities of N images can be trusted.

    loss: the mean of −ln p, p the probability of the true class: the cross-entropy.
    bins: 15, in ascending order of the probability of the predicted class.
    """

    loss: float
    bins: tuple[Bin, ...]

    @property
    def images(self) -> int:
        """The number of images, N."""
        return sum(part.images for part in self.bins)

    @property
    def error(self) -> float:
        """See `calibration_error`."""
        return calibration_error(self.bins)

    @property
    def excess(self) -> float:
        """The mean probability of the predicted class minus the accuracy."""
        return sum(part.gap for part in self.bins) / self.images

    def error_by_chance(self) -> float:
        """The calibration error that chance stays below in 95 of 100 cases.

        That of a network whose probabilities are true, on as many images with these probabilities:
        the right ones of a bin are binomial.

        References:
          Bröcker and Smith, 'Increasing the reliability of reliability diagrams', 2007.
        """
        generator = np.random.default_rng(0)  # fixed, so that a report made again is the same
        filled = [part for part in self.bins if part.images]
        images = np.array([part.images for part in filled])
        sums = np.array([part.probability for part in filled])
        drawn = generator.binomial(images, (sums / images).clip(0, 1), (SIMULATIONS, len(filled)))
        return float(np.quantile(np.abs(drawn - sums).sum(1) / self.images, 0.95))

    @classmethod
    def of(cls, report: ModelReport) -> Calibration:
        """The calibration that a report has."""
        return cls(report.loss, report.reliability)


def calibration(truth: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """The calibration of predicted probabilities.

    One below the spacing of numbers at 1 (1.2e-7 in float32) counts as that, as in scikit-learn's
    `log_loss`, so that the loss stays finite.

    Args:
      truth: int[N], the true classes, 0 to K − 1.
      probabilities: float32[N, K], of each class; rows add up to 1.
    """
    true_ones = probabilities[np.arange(len(truth)), truth]
    least = np.finfo(probabilities.dtype).eps
    loss = float(-np.log(true_ones.clip(least, 1).astype(np.float64)).mean())
    highest = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == truth
    places = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], highest)  # an edge ends its bin

    def sums(weights: np.ndarray | None = None) -> Sequence[Any]:
        """The sum of weights in each bin; without them the number of images."""
        found: list[Any] = np.bincount(places, weights, BINS).tolist()
        return found

    rows = zip(sums(), sums(right), sums(highest), strict=True)
    return Calibration(loss, tuple(Bin(n, int(hits), total) for n, hits, total in rows))


def describe_calibration(found: Calibration, label_smoothing: float = 0.0) -> str:
    """Loss and calibration error, and whether chance explains it, in two or three sentences.

    label_smoothing: the part of the labels that training spread over all classes.
    """
    chance = found.error_by_chance()
    said = f"Test loss {found.loss:.4f}. Expected calibration error {found.error:.4f}"
    if found.error <= chance:
        return f"{said}: within chance, as true probabilities would show up to {chance:.4f}."
    direction = "too high" if found.excess > 0 else "too low"
    said += (
        f", more than chance explains ({chance:.4f}): the probabilities of the predicted"
        f" classes are {direction} by {abs(found.excess):.4f} on average."
    )
    if found.excess < 0 and label_smoothing:
        said += f" Labels were smoothed by {label_smoothing:g} in training, which lowers them."
    return said


# --- How often a test set was evaluated, and for what, in a sentence ---

MOST_NAMED = 5  # runs that a sentence names, unless more are shown


def looks_of(runs: Mapping[str, Store], test_sha256: str) -> Looks:
    """All evaluations on test images that these runs know: theirs, and those of their folders.

    A ledger counts once, and so does an evaluation that several runs know. Raises like
    `Store.read_looks`.

    Args:
      runs: by the names that their evaluations get; those of other runs have the ledger's names.
      test_sha256: the fingerprint of the test images.
    """
    damaged, known = {}, []
    for name, run in runs.items():
        looks = run.read_looks(test_sha256)
        damaged[ledger_path(run.path).resolve()] = looks.damaged
        for look in looks.found:
            # Both may mislead: a copy has the identity of its original, a moved run another name.
            foreign = (look.identity_sha256 != run.identity_sha256, look.run != run.name)
            known.append((foreign, look if all(foreign) else replace(look, run=name)))
    known.sort(key=lambda each: each[0])  # of equal evaluations the first one's name stays
    return Looks.of((look for _, look in known), sum(damaged.values()))


def times(count: int) -> str:
    """'once', '2 times'."""
    return "once" if count == 1 else f"{count} times"


def describe_looks(looks: Looks, *own: str) -> str:
    """The number of evaluations of a test set, and which they were, by run and purpose.

    Args:
      looks: of the test set; see `Store.read_looks` and `looks_of`.
      own: the names of the runs that are shown, which are named first.
    """
    if not looks.count:
        return "The test set has not been evaluated."
    purposes: dict[str, Counter[str]] = {}
    for look in looks.found:
        purposes.setdefault(look.run, Counter())[look.purpose] += 1
    names = [*filter(purposes.__contains__, own), *(name for name in purposes if name not in own)]
    most = max(MOST_NAMED, len(own))
    parts = [f"{_listed(purposes[name])} of {name}" for name in names[:most]]
    if others := names[most:]:
        more = sum(purposes[name].total() for name in others)
        parts.append(f"{more} more of {len(others)} other {'run' if len(others) == 1 else 'runs'}")
    if looks.damaged:
        lines = "a line of the ledger is" if looks.damaged == 1 else "lines of the ledger are"
        parts.append(f"{looks.damaged} unknown ({lines} damaged or missing)")
    return f"Test set evaluated {times(looks.count)}: {'; '.join(parts)}."


def _listed(purposes: Counter[str]) -> str:
    """'winner', 'winner and 2 × SVM', 'winner, SVM and evaluation'."""
    named = {("SVM" if name == "svm" else name): count for name, count in purposes.items()}
    words = [f"{count} × {name}" if count > 1 else name for name, count in named.items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# --- The gap between validation and test accuracy: what it shows, and what it can't show ---

COPIES = 0.1  # of the validation images; with more, intervals from their number are too narrow
MOST_PAIRS = 3  # of renamed classes, that a sentence names


@dataclass(frozen=True)
class Gap:
    """The winner's corrected validation accuracy minus its test accuracy.

    low, high: its 95 % interval.
    """

    size: float
    low: float
    high: float

    @property
    def visible(self) -> float:
        """The smallest gap above 0 that would have been more than chance explains."""
        return self.size - self.low


def gap_between(found: Corrected, test: Evaluation) -> Gap:
    """Compare the corrected score with the accuracy on the test images.

    The interval combines those of the two accuracies, d ± √(δ₁² + δ₂²), where δ is how far each
    reaches towards the other: the corrected score's contains the variance of the correction.

    References:
      Newcombe, 'Interval estimation for the difference between independent proportions: comparison
      of eleven methods', 1998, method 10.
    """
    low, high = found.interval
    test_low, test_high = test.confidence_interval()
    size = found.score - test.accuracy
    below = math.hypot(found.score - low, test_high - test.accuracy)
    above = math.hypot(high - found.score, test.accuracy - test_low)
    return Gap(size, size - below, size + above)


def about_labels(found: Corrected, test: Evaluation) -> list[str]:
    """What is probably wrong with the test part, in a sentence; none where nothing seems to be.

    A renaming of the labels repairs the test accuracy if that is significantly below the corrected
    score, and no longer so, or by no more than a fifth, once each predicted class stands for the
    true one that fits best. An accuracy is below chance if its 95 % interval is below 1/K for K
    classes.

    Args:
      found: the winner's score and what selection has added to it.
      test: the winner on the test images.
    """
    classes, accuracy = len(test.labels), test.accuracy
    gap = gap_between(found, test)
    if gap.low > 0:
        renamed, pairs = _renamed(test)
        left = gap_between(found, renamed)
        # In a class of a few images, and in guesses, other names may happen to fit better.
        better = renamed.confidence_interval()[0] > accuracy and not beside_constant(renamed)
        if better and (left.low <= 0 or left.size <= gap.size / 5):
            more = f" and {len(pairs) - MOST_PAIRS} more" if len(pairs) > MOST_PAIRS else ""
            return [
                f"Renaming the classes raises the test accuracy from {accuracy:.4f} to"
                f" {renamed.accuracy:.4f}: {', '.join(pairs[:MOST_PAIRS])}{more}. The test labels"
                " are probably numbered differently from the training labels: compare both."
            ]
    if test.confidence_interval()[1] < 1 / classes:
        return [
            f"The test accuracy {accuracy:.4f} is below chance, 1/{classes} = {1 / classes:.4f}."
            " The test labels are probably numbered differently from the training labels, or the"
            " test images are prepared differently (inverted, transposed, on another scale):"
            " compare both."
        ]
    return []


def _renamed(test: Evaluation) -> tuple[Evaluation, list[str]]:
    """The evaluation with predicted classes renamed for the highest accuracy, and the renamings.

    References:
      Kuhn, 'The Hungarian method for the assignment problem', 1955.
    """
    from scipy.optimize import linear_sum_assignment  # imported here: most results need none

    matrix, classes = test.confusion_matrix, len(test.labels)
    # Of equally good assignments the one that renames the fewest classes.
    weights = matrix * (classes + 1) + np.eye(classes, dtype=np.int64)
    predicted = linear_sum_assignment(weights, maximize=True)[1]
    hits = matrix[np.arange(classes), predicted]
    names = [printable(shortened(name, SENTENCE)) for name in test.class_names]
    pairs = [
        f"{names[k]} is classified as {names[predicted[k]]} ({hits[k]:,} of {matrix[k].sum():,})"
        for k in np.argsort(-hits, kind="stable")
        if predicted[k] != k and hits[k]
    ]
    return replace(test, confusion_matrix=matrix[:, predicted]), pairs


def describe_gap(found: Corrected, test: Evaluation) -> str:
    """What the gap between the corrected validation accuracy and the test accuracy says.

    Args:
      found: the winner's score and what selection has added to it.
      test: the winner on the test images.
    """
    gap = gap_between(found, test)
    what = "Validation accuracy" if found.trials == 1 else "Corrected validation accuracy"
    line = (
        f"{what} {found.score:.4f} − test accuracy {test.accuracy:.4f} = {signed(gap.size)}"
        f" (95 % interval {signed(gap.low)} to {signed(gap.high)})"
    )
    if wrong := about_labels(found, test):
        sure = ", more than chance explains" if gap.low > 0 else ""
        return " ".join([f"{line}{sure}.", *wrong])
    if gap.low > 0 and found.trials == 1:
        return f"{line}, more than chance explains: the test images are harder."
    if gap.low > 0:
        return (
            f"{line}, more than chance explains: the search has overfitted the validation images"
            " beyond what selection explains, or the test images are harder."
        )
    if gap.high < 0:
        return (
            f"{line}, more than chance explains: the test images are easier than the validation"
            " images, which would hide an overfitting."
        )
    return (
        f"{line}. Only a gap above {gap.visible:.4f} would have shown, and validation and test"
        " images may not be equally hard: that none is visible does not rule overfitting out."
    )


def score_of(run: Run, report: ModelReport) -> Corrected:
    """The corrected validation accuracy of the network that best/test.json tells of.

    Args:
      run: with the finalists and the corrected score.
      report: best/test.json.
    """
    score, images = report.validation_accuracy, report.validation_images
    if not run.ranking.finals or score is None or images is None:
        return run.ranking.corrected
    chosen = run.ranking.finals[0]
    less = max(0.0, score - chosen.added.size)
    reach = interval(less, images, chosen.added.variance)
    return Corrected(chosen.rivals, images, score, less, reach, ())


def about_gap(run: Run, report: ModelReport) -> str:
    """What the run's best/test.json says about the gap between validation and test accuracy.

    Args:
      run: with the finalists and the corrected score.
      report: best/test.json.
    """
    score, test = score_of(run, report), Evaluation.of(report)
    images = run.validation_images
    different = run.store.search.data.validation_different
    instead = ""
    if report.refit_images is not None:
        instead = (
            f"The network was refitted on {report.refit_images:,} images; no validation images"
            " are left, so no gap is shown."
        )
    elif different < (1 - COPIES) * images:
        instead = (
            f"Only {different:,} of the {images:,} validation images differ from each other, so the"
            " gap between validation and test accuracy shows little."
        )
    return " ".join([instead, *about_labels(score, test)]) if instead else describe_gap(score, test)


# --- The test set: accuracy with its interval, confusion matrix, classification report ---


def prepare() -> None:
    """Import in advance the modules that evaluation needs, which takes about a second."""
    for name in ("scipy.stats", "sklearn.metrics"):
        import_module(name)


def look(run: Run, dataset: Dataset, purpose: str) -> ModelReport:
    """Evaluate the winner on the test set once, and save the results under best/."""
    winner = run.winner()
    said: dict[str, Any] = {"refit_images": len(dataset.y_train) + len(dataset.y_validation)}
    return look_at(
        ModelReport,
        run.store,
        dataset,
        purpose,
        winner.model_sha256,
        run.best_model.predict_proba,
        **(said if winner.refit else validated(winner.score, dataset)),
    )


def validated(accuracy: float, dataset: Dataset) -> dict[str, Any]:
    """The fields of a report on a model's accuracy on the validation images."""
    return {"validation_accuracy": accuracy, "validation_images": len(dataset.y_validation)}


def look_at(
    kind: type[M],
    store: Store,
    dataset: Dataset,
    purpose: str,
    model_sha256: str,
    predict_proba: Callable[[np.ndarray], np.ndarray],
    **said: Any,
) -> M:
    """Evaluate a model on the test set once, and write the report, which is returned.

    The ledger records the evaluation before it happens.

    Args:
      kind: of the report.
      purpose: see `Look`.
      model_sha256: of the model's weights.
      predict_proba: returns the probabilities float32[N, K] of images [N, H, W, C].
      said: the report's other fields.
    """
    store.record_look(purpose, model_sha256, dataset.test_sha256)
    probabilities = predict_proba(dataset.x_test)
    classes = probabilities.argmax(1)
    evaluation = judge(dataset.y_test, classes, dataset.labels, dataset.class_names)
    found = calibration(dataset.y_test, probabilities)
    return write_report(
        store,
        kind,
        {"probabilities_sha256": array_bytes(probabilities)},
        **vars(evaluation.record()),
        model_sha256=model_sha256,
        loss=found.loss,
        calibration_error=found.error,
        reliability=found.bins,
        looks=store.looks_to_keep(dataset.test_sha256),
        **said,
    )


def write_report(
    store: Store,
    kind: type[R],
    beside: dict[str, bytes],
    at: Sequence[str] = (),
    /,
    **said: Any,
) -> R:
    """Write the files that a report names, then the report, which is returned.

    beside: the contents of these files, by the fields of the report that have their SHA-256.
    at: the place of an SVM. said: the other fields.
    """
    said |= {name: sha256(content) for name, content in beside.items()}
    report = kind(**said)
    for name, content in beside.items():
        store.write_bytes(kind.BESIDE[name], content, at)
    store.write(report, at)
    return report


def read_report(
    store: Store, kind: type[R], belongs: Callable[[R], bool], at: Sequence[str] = ()
) -> R | None:
    """A report; None if it doesn't belong to what is asked for.

    Raises `DamagedFile` if it is damaged, or a file beside it whose SHA-256 it has.
    """
    report = store.read(kind, at)
    if not belongs(report):
        return None
    for name, file in kind.BESIDE.items():
        path = store.file(file, at)
        if (found := sha256(read_bytes(path))) != getattr(report, name):
            name = store.file(kind.FILE, at).name
            raise DamagedFile(path, f"its SHA-256 is {found}, not {name}'s")
    return report


def kept_look(run: Run) -> ModelReport | None:
    """The content of best/test.json; None if it belongs to another winner.

    Raises `DamagedFile` if the file, or that of its predictions, is damaged.
    """
    return kept_report(run.store, ModelReport, run.ranking.tested_sha256)


def kept_report(store: Store, kind: type[M], model_sha256: str | None) -> M | None:
    """A report on a model's probabilities, see `read_report`; None if it is another model's."""
    report = read_report(store, kind, lambda found: found.model_sha256 == model_sha256)
    if report is not None:
        beside = store.file(kind.BESIDE["probabilities_sha256"])
        shape = read_array(beside, report.probabilities_sha256).shape
        if shape != (report.images, len(report.labels)):
            raise DamagedFile(beside, f"does not match {store.file(kind.FILE).name}")
    return report


def looks_at_test(run: Run) -> str:
    """How often the run's test set was evaluated, by this run and others, and for what."""
    return describe_looks(run.store.read_looks(run.store.test_sha256), run.store.name)


def about_probabilities(run: Run, report: ModelReport) -> str:
    """The loss and the calibration in best/test.json, with what in training explains them."""
    trained = run.settings.training.for_trial(run.best_trial.hyperparameters)
    return describe_calibration(Calibration.of(report), trained.label_smoothing)


def describe_evaluation(run: Run, report: ModelReport) -> list[str]:
    """The run's best/test.json in lines, and all evaluations of the test set."""
    evaluation = Evaluation.of(report)
    low, high = evaluation.confidence_interval()
    return [
        f"Test accuracy: {evaluation.accuracy:.4f} on {evaluation.images} images"
        f" (95 % interval {low:.4f} to {high:.4f})",
        *beside_constant(evaluation),
        looks_at_test(run),
        about_probabilities(run, report),
        about_gap(run, report),
        "",
        *describe_confusions(evaluation, "best/test.json"),
        "",
        *describe_classes(evaluation, "best/test.json"),
    ]


# --- The best trials' ensemble on the test set: evaluated once, and read again afterwards ---


def evaluate_ensemble(run: Run, dataset: Dataset, count: int) -> EnsembleReport:
    """The report of the first `count` trials' ensemble, which is made unless it is kept.

    Args:
      run: a run whose first trials' weights are kept, locked by the caller.
      dataset: the run's own.
      count: number of members.

    Returns:
      best/ensemble/ensemble.json.

    Raises:
      UsageError: fewer trials have completed.
    """
    trials = comparisons.first_members(run.ranking.ranked, count)
    members = comparisons.members_of(trials)
    identity = comparisons.members_identity([member.model_sha256 for member in members])
    if kept := run.store.mended(lambda: _kept_ensemble(run, identity)):
        return kept
    ensemble = run.ensemble_of(trials)
    right = ensemble.predict_proba(dataset.x_validation).argmax(1) == dataset.y_validation
    return look_at(
        EnsembleReport,
        run.store,
        dataset,
        "ensemble",
        identity,
        ensemble.predict_proba,
        members=members,
        **validated(float(right.mean()), dataset),
    )


def _kept_ensemble(run: Run, identity: str) -> EnsembleReport | None:
    """The kept report; None if it is another ensemble's. Raises `DamagedFile` if it is damaged."""
    report = kept_report(run.store, EnsembleReport, identity)
    if report is not None and not comparisons.are_first_members(report, run.ranking.ranked):
        raise DamagedFile(run.store.file(File.ENSEMBLE), "does not list the members that it is of")
    return report
