from __future__ import annotations

import math
import unicodedata
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, f1_score

from jaxmnist.files import as_json, from_json
from jaxmnist.results.confusion import (
    Evaluation,
    beside_constant,
    describe_classes,
    describe_confusions,
    judge,
    report_table,
    table,
)
from jaxmnist.results.evaluation import about_gap, about_labels, describe_gap, gap_between
from jaxmnist.results.ranking import Corrected, interval
from jaxmnist.runs.records import Classification


@pytest.fixture
def judged():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 300)
    predictions = np.where(rng.random(300) < 0.8, truth, rng.integers(0, 3, 300))
    return truth, predictions, judge(truth, predictions, (3, 5, 7, 11))


def test_judge_counts_as_scikit_learn(judged):
    truth, predictions, evaluation = judged
    assert np.array_equal(evaluation.confusion_matrix, confusion_matrix(truth, predictions))
    assert evaluation.accuracy == accuracy_score(truth, predictions)


def test_report_by_hand(judged):
    truth, predictions, evaluation = judged
    report = evaluation.classification_report()
    for k, label in enumerate(("3", "5", "7", "11")):
        hits = ((truth == k) & (predictions == k)).sum()
        precision, recall = hits / (predictions == k).sum(), hits / (truth == k).sum()
        assert math.isclose(report[label]["precision"], precision)
        assert math.isclose(report[label]["recall"], recall)
        assert math.isclose(
            report[label]["f1-score"], 2 * precision * recall / (precision + recall)
        )
        assert report[label]["support"] == (truth == k).sum()
    assert math.isclose(report["accuracy"], (truth == predictions).mean())


NAMES = ("cat", "T-shirt/top", "Übergröße", "a name of exactly 24 cells")


@pytest.mark.parametrize("names", [(), NAMES])
def test_the_table_of_the_report_is_scikit_learns(judged, names):
    truth, predictions, _ = judged
    evaluation = judge(truth, predictions, (3, 5, 7, 11), names)
    shown = [name[:24] for name in names] or ["3", "5", "7", "11"]
    if names:
        shown[3] = "a name of exactly 24 ce…"
    theirs = classification_report(truth, predictions, target_names=shown, digits=3)
    ours = report_table(evaluation, range(4)).splitlines()
    width = len(theirs.splitlines()[0])
    assert "\n".join(line[:width].rstrip() for line in ours) == theirs.rstrip()
    assert ours[0][width:] == "  recall, 95 %"
    for k, line in enumerate(ours[2:6]):
        hits, images = ((truth == k) & (predictions == k)).sum(), (truth == k).sum()
        low, high = stats.binomtest(hits, images).proportion_ci(0.95, "wilson")
        assert line[width:] == f"  {low:.3f}–{high:.3f}"
    assert not any(line[width:] for line in ours[6:])
    report = classification_report(
        truth, predictions, target_names=names or shown, output_dict=True
    )
    assert evaluation.classification_report() == report


def columns(line: str) -> int:
    """The width of a line on a terminal, by Unicode's own table."""
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in line)


@pytest.mark.parametrize("count", [4, 20])
def test_tables_with_names_are_aligned_and_safe(count):
    names = ["数字の名前", "accuracy", "x\x1b[2J\ny", "long " * 30, *map(str, range(16))][:count]
    rng = np.random.default_rng(0)
    truth, predictions = rng.integers(0, count, (2, 3000))
    evaluation = judge(truth, predictions, range(count), names)
    matrix = "\n".join(describe_confusions(evaluation, "some.json")).splitlines()[1:]
    report = [line for line in "\n".join(describe_classes(evaluation, "")).splitlines()[1:] if line]
    assert len({columns(line) for line in matrix}) == 1
    assert len({columns(line) for line in report[1 : count + 1]}) == 1
    assert len({columns(line) for line in report[count + 1 :]}) == 1
    assert columns(report[1]) - columns(report[-1]) == len("  0.000–0.000")
    assert columns(matrix[0]) <= max(80, 24 + 6 * count)
    for line in (*matrix, *report):
        assert line.isprintable()
    assert len(matrix) == count + 1
    assert "数字の名前" in matrix[1]
    # The class that has an average's name doesn't take its place.
    assert "accuracy (1)" in matrix[2]
    found = evaluation.classification_report()
    assert found["accuracy"] == accuracy_score(truth, predictions)
    assert found["accuracy (1)"]["support"] == (truth == 1).sum()


@pytest.mark.parametrize(
    "changes",
    [{"class_names": ["a", "b"]}, {"class_names": []}, {"labels": [3, 5, 7, 7]}],
)
def test_stored_names_that_do_not_fit_are_refused(judged, changes):
    with pytest.raises(ValueError, match=r"name|label|argument"):
        from_json(Classification, {**as_json(judged[2].record()), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": 0.5},
        {"confusion_matrix": []},
        {"confusion_matrix": [[]] * 4},
        {"confusion_matrix": [[0] * 4] * 4},
        {"confusion_matrix": [[1] * 4] * 3},
        {"confusion_matrix": [[1] * 4, [1] * 4, [1] * 4, [1] * 3]},
        {"confusion_matrix": [[-1, 2, 1, 1], *[[1] * 4] * 3]},
        {"confusion_matrix": [[2**62] * 4] * 4, "accuracy": 0.25},
        {"classification_report": None},
        {"confidence_interval": [0.5]},
    ],
)
def test_a_stored_evaluation_that_contradicts_itself_is_refused(judged, changes):
    content = as_json(judged[2].record())
    assert from_json(Classification, content) == judged[2].record()
    with pytest.raises(ValueError):  # noqa: PT011
        from_json(Classification, {**content, **changes})


def test_stored_names_are_made_safe_again(judged):
    content = {**as_json(judged[2].record()), "class_names": ["\x1b[2J", "a", "a", " "]}
    found = from_json(Classification, content)
    assert Evaluation.of(found).class_names == ("\\x1b[2J", "a (5)", "a (7)", "11")


def test_wilson_interval_by_its_formula():
    matrix = np.array([[4900, 50], [45, 5005]])
    low, high = Evaluation((0, 1), matrix).confidence_interval()
    n, p, z = 10_000, 9905 / 10_000, 1.959963984540054
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert math.isclose(low, centre - half, rel_tol=1e-12)
    assert math.isclose(high, centre + half, rel_tol=1e-12)


def test_a_label_that_is_never_there():
    evaluation = judge(np.array([0, 0, 1]), np.array([0, 0, 0]), (0, 1, 2))
    report = evaluation.classification_report()
    assert report["1"]["precision"] == report["2"]["recall"] == 0
    assert evaluation.recall_intervals()[2] is None
    assert "–" not in report_table(evaluation, [2])


def test_json_reads_back(judged):
    evaluation = judged[2]
    again = Evaluation.of(from_json(Classification, as_json(evaluation.record())))
    assert (again.labels, again.class_names) == (evaluation.labels, ("3", "5", "7", "11"))
    assert np.array_equal(again.confusion_matrix, evaluation.confusion_matrix)


def test_table_has_labels_on_both_sides():
    rows = [line.split() for line in table(np.array([[10, 2], [0, 333]]), ("4", "9")).splitlines()]
    assert rows == [["4", "9"], ["4", "10", "2"], ["9", "0", "333"]]


def test_of_many_classes_the_worst_are_shown():
    """Compared with scikit-learn's numbers for each class, and with the whole matrix."""
    rng = np.random.default_rng(0)
    truth, predictions = rng.integers(0, 50, (2, 2000))
    predictions = np.where(rng.random(2000) < 0.7, truth, predictions)
    evaluation = judge(truth, predictions, range(100, 150))
    scores = f1_score(truth, predictions, average=None)
    lines = "\n".join(describe_classes(evaluation, "some.json")).splitlines()
    assert "20 worst of 50 classes (some.json has all)" in lines[0]
    assert [int(line.split()[0]) - 100 for line in lines[3:23]] == list(
        np.argsort(scores, kind="stable")[:20]
    )
    assert [line.split()[0] for line in lines[24:]] == ["accuracy", "macro", "weighted"]
    matrix = confusion_matrix(truth, predictions)
    lines = "\n".join(describe_confusions(evaluation, "some.json")).splitlines()
    assert "some.json has the whole matrix" in lines[0]
    counts = sorted(matrix[~np.eye(50, dtype=bool)])[::-1]
    assert [int(line.split()[-2]) for line in lines[1:]] == counts[:20]
    right = judge(truth, truth, range(50))
    assert describe_confusions(right, "some.json") == ["No image of 50 classes is misclassified."]


def selected(score: float, images: int, luck: float = 0.0, trials: int = 10) -> Corrected:
    """A winner's score corrected by `luck`, whose interval has no further variance."""
    corrected = score - luck
    return Corrected(trials, images, score, corrected, interval(corrected, images), ())


def on_test(right: int, images: int) -> Evaluation:
    """An evaluation with this many correct classifications."""
    return Evaluation((0, 1), np.array([[right, images - right], [0, 0]]))


def test_the_interval_of_the_gap_is_newcombes():
    """Table II of Newcombe 1998, method 10: 56/70 − 48/80, 9/10 − 3/10 and 10/10 − 0/20."""
    for (right, images), (others, all_others), expected in (
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 20), (0.6791, 1.0)),
    ):
        gap = gap_between(selected(right / images, images), on_test(others, all_others))
        assert gap.size == pytest.approx(right / images - others / all_others)
        assert (gap.low, min(1.0, gap.high)) == pytest.approx(expected, abs=5e-5)
        assert gap.visible == pytest.approx(gap.size - gap.low)


def test_the_gap_is_that_of_the_corrected_score():
    says = describe_gap(selected(0.995, 6000, luck=0.004), on_test(9905, 10_000))
    assert says.startswith("Corrected validation accuracy 0.9910 − test accuracy 0.9905 = +0.0005 ")
    assert "Only a gap above 0.0032 would have shown" in says
    assert "equally hard" in says
    assert "does not rule overfitting out" in says
    # Without the correction it would have been more than chance explains.
    assert "overfitted" in describe_gap(selected(0.995, 6000), on_test(9905, 10_000))


@pytest.mark.parametrize(
    ("validation", "right", "says"),
    [
        (
            0.999,
            9890,
            "overfitted the validation images beyond what selection explains, or the test",
        ),
        (0.97, 9890, "the test images are easier"),
        (1.0, 9999, "does not rule overfitting out"),
    ],
)
def test_what_the_gap_says(validation, right, says):
    assert says in describe_gap(selected(validation, 6000), on_test(right, 10_000))


def test_one_trial_had_no_luck_in_selection():
    says = describe_gap(selected(0.99, 6000, trials=1), on_test(9890, 10_000))
    assert says.startswith("Validation accuracy 0.9900 − test accuracy 0.9890")


def test_a_gap_from_a_perfect_score_on_few_images_is_chance():
    assert "does not rule" in describe_gap(selected(1.0, 50), on_test(98, 100))


def test_equal_accuracies_have_a_gap_in_one_comparison_of_twenty():
    rng = np.random.default_rng(0)
    validation, test = rng.binomial(6000, 0.99, 400), rng.binomial(10_000, 0.99, 400)
    gaps = [
        gap_between(selected(v / 6000, 6000), on_test(t, 10_000))
        for v, t in zip(validation, test, strict=True)
    ]
    assert 8 <= sum(not gap.low <= 0 <= gap.high for gap in gaps) <= 33


@pytest.mark.parametrize("share", [0.1, 0.5, 0.96])
def test_a_constant_answer_stands_beside_an_accuracy_that_does_not_clearly_beat_it(share):
    """Against SciPy's Wilson interval, for every accuracy on 300 images."""
    largest = round(share * 300)
    for right in range(301):
        first, second = min(right, largest), right - min(right, largest)
        matrix = [[first, largest - first], [300 - largest - second, second]]
        test = Evaluation((4, 7), np.array(matrix), ("cat", "dog"))
        class_counts = np.array(matrix).sum(1)
        constant = class_counts.max() / 300
        low = stats.binomtest(right, 300).proportion_ci(method="wilson").low
        said = beside_constant(test)
        assert (said == []) == (low > constant)
        if said:
            name = ("cat", "dog")[class_counts.argmax()]
            short = "is below" if right / 300 < constant else "is not clearly above"
            assert said == [
                f"{right / 300:.4f} {short} {constant:.4f}, the accuracy of always answering"
                f" {name}, the largest class."
            ]
        assert beside_constant(on_test(300 - largest, 300), right / 300) == beside_constant(
            on_test(200, 300), right / 300
        )


def confused(classes: int, images: int, share: float, seed: int) -> np.ndarray:
    """A confusion matrix of `images` a class, of which about this share is right."""
    rng = np.random.default_rng(seed)
    chances = np.full((classes, classes), (1 - share) / (classes - 1))
    np.fill_diagonal(chances, share)
    return np.array([rng.multinomial(images, row) for row in chances])


def reported(test, refit_images=None):
    """What best/test.json says of an evaluation and a refit."""
    numbers = {"validation_accuracy": None, "validation_images": None}
    return SimpleNamespace(**vars(test.record()), refit_images=refit_images, **numbers)


@pytest.mark.parametrize(("different", "says"), [(2000, "harder"), (1900, "harder"), (200, "Only")])
def test_a_gap_to_copies_shows_little(different, says):
    """An interval from 2000 images is too narrow where these are 200."""
    data = SimpleNamespace(validation_different=different)
    store = SimpleNamespace(search=SimpleNamespace(data=data))
    ranking = SimpleNamespace(corrected=selected(0.95, 2000, trials=1), finals=())
    run = SimpleNamespace(ranking=ranking, validation_images=2000, store=store)
    said = about_gap(run, reported(on_test(800, 1000)))
    assert says in said
    assert ("harder" in said) == (says == "harder")


@pytest.mark.parametrize("refit", [False, True])
def test_labels_numbered_otherwise_are_told(refit):
    """Whatever the renaming; of five classes it is the best of all."""
    rng, score = np.random.default_rng(0), selected(0.9, 2000)
    ranking = SimpleNamespace(corrected=score, finals=())
    data = SimpleNamespace(validation_different=2000)
    store = SimpleNamespace(search=SimpleNamespace(data=data))
    run = SimpleNamespace(ranking=ranking, validation_images=2000, store=store)
    for seed in range(20):
        matrix, order = confused(5, 100, 0.9, seed), rng.permutation(5)
        if (order == np.arange(5)).all():
            continue
        test = Evaluation(tuple(range(5)), matrix[order], tuple("abcde"))
        best = max(np.trace(matrix[order][:, list(p)]) for p in permutations(range(5))) / 500
        said = about_gap(run, reported(test, 900 if refit else None))
        assert f"Renaming the classes raises the test accuracy from {test.accuracy:.4f}" in said
        assert f"to {best:.4f}: " in said
        moved = [k for k in range(5) if order[k] != k]
        named = [f"{'abcde'[k]} is classified as {'abcde'[order[k]]}" for k in moved]
        assert sum(each in said for each in named) == min(3, len(moved))
        assert (f" and {len(moved) - 3} more" in said) == (len(moved) > 3)
        assert "harder" not in said
        assert "overfitted" not in said


def test_an_accuracy_below_chance_is_told():
    matrix = np.full((10, 10), 11)
    np.fill_diagonal(matrix, 1)
    (said,) = about_labels(selected(0.9, 2000), Evaluation(tuple(range(10)), matrix))
    assert "The test accuracy 0.0100 is below chance, 1/10 = 0.1000" in said
    assert "prepared differently" in said
    text = describe_gap(selected(0.9, 2000), Evaluation(tuple(range(10)), matrix))
    assert text.endswith(f"more than chance explains. {said}")
    # Also where validation was no better.
    text = describe_gap(selected(0.05, 100), Evaluation(tuple(range(10)), matrix))
    assert text.endswith(f"{said}")
    assert "rule overfitting out" not in text


def test_usual_results_are_not_told_as_wrong_labels():
    for seed in range(50):
        for share in (0.1, 0.3, 0.9, 1.0):  # harder test images, chance among them
            test = Evaluation(tuple(range(10)), confused(10, 60, share, seed))
            if test.confidence_interval()[1] > 0.1:
                assert about_labels(selected(0.95, 2000), test) == []
    # Two images of a rare class, classified as another: its name fits there better by chance.
    matrix = np.diag([1000, 1000, 1, 0])
    matrix[0, 1], matrix[3, 2], matrix[2, 3] = 12, 3, 4
    score = selected(0.996, 6000)
    test = Evaluation(tuple(range(4)), matrix)
    assert gap_between(score, test).low > 0
    assert about_labels(score, test) == []
    assert "harder" in describe_gap(score, test)
