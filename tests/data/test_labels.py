from __future__ import annotations

import numpy as np
import pytest

from jaxmnist.data.arrays import number_names, read_labels
from jaxmnist.errors import UsageError

FIVE = [3, 1, 3, 2, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.array(FIVE, np.uint8),
        np.array(FIVE, ">i4"),
        np.array(FIVE, np.float32),
        np.array([FIVE]).T,
        np.eye(4)[FIVE],
        np.eye(4, dtype=bool)[FIVE],
        np.array(FIVE).astype(str),
        np.array(FIVE).astype("S"),
        np.array(FIVE).astype(str).astype(object),  # as fetch_openml gives MNIST's
        np.array(FIVE, object),
    ],
)
def test_whole_numbers_in_every_form(labels):
    found, names = read_labels("here", {"train": labels, "test": labels[:2]})
    assert found["train"].tolist() == FIVE
    assert found["train"].dtype == np.int64
    assert found["test"].tolist() == FIVE[:2]
    assert all(names[k] == str(k) for k in names)


def test_names_are_numbered_over_all_parts():
    parts = {"train": np.array(["b", "c", "b"]), "test": np.array(["a", "c"])}
    found, names = read_labels("here", parts)
    assert {part: labels.tolist() for part, labels in found.items()} == {
        "train": [1, 2, 1],
        "test": [0, 2],
    }
    assert names == {0: "a", 1: "b", 2: "c"}
    assert read_labels("here", {"train": np.array(["a\x1b", "b"])})[1][0] == r"a\x1b"
    found, names = read_labels("here", {"train": np.array([True, False])})
    assert (found["train"].tolist(), names) == ([1, 0], {0: "False", 1: "True"})


def test_numbers_as_names():
    assert number_names([["10", "9", "0"]]) == {"0": 0, "9": 9, "10": 10}
    assert number_names([["01", "02"]]) == {"01": 1, "02": 2}
    assert number_names([["-1", "1"]]) == {"-1": -1, "1": 1}
    assert number_names([["²", "1"]]) == {"1": 0, "²": 1}
    assert number_names([["0.5", "1"]]) == {"0.5": 0, "1": 1}


@pytest.mark.parametrize(
    ("parts", "classes"),
    [
        ([["007", "7", "1e1", "10"]], ["007", "10", "1e1", "7"]),
        ([["1", "01"], ["1"]], ["01", "1"]),
        ([["7", "8"], ["7.0", "008"]], ["7", "8"]),
        ([["07", "08"], ["07"]], ["07", "08"]),
        ([["7", "8"], ["7", "7.0"]], ["7", "7.0", "8"]),
        ([["7.0", "8.0"]], ["7", "8"]),
        ([["caf\u00e9", "b"], ["cafe\u0301"]], ["b", "caf\u00e9"]),
        ([["caf\u00e9", "cafe\u0301", "b"]], ["b", "caf\u00e9"]),
    ],
)
def test_spellings(parts, classes):
    """Two spellings of a number are two classes in one part, and one over several parts."""
    arrays = dict(zip(("train", "test"), map(np.array, parts), strict=False))
    found, names = read_labels("here", arrays)
    assert sorted(names.values()) == sorted(classes)
    assert len(np.unique(np.concatenate([*found.values()]))) == len(classes)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([[-1, 0, 1, -1]], "y_train: 2 of 4 labels are -1"),
        ([[0, 1], [-1]], "y_test: 1 of 1 labels are -1"),
        ([["-1", "0", "1"]], "y_train: 1 of 3 labels are -1"),
        ([["a", "nan", "b"]], "y_train: 'nan' marks a missing label"),
    ],
)
def test_marks_of_missing_labels_are_no_classes(parts, says):
    arrays = dict(zip(("train", "test"), map(np.array, parts), strict=False))
    with pytest.raises(UsageError, match=says):
        read_labels("here", arrays)


@pytest.mark.parametrize("labels", [[-1, 1, -1], [-2, -1, 0], [-5, 3]])
def test_negative_classes(labels):
    found, _ = read_labels("here", {"train": np.array(labels)})
    assert found["train"].tolist() == labels


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array([0.5, 1]), "whole numbers"),
        (np.array([np.nan, 1]), "whole numbers"),
        (np.array([1e300, 1]), "whole numbers"),
        (np.array([2**64 - 1, 1], np.uint64), "whole numbers"),
        (np.eye(3) * 0.5, "a single 1 in each row"),
        (np.ones((3, 3)), "a single 1 in each row"),
        (np.zeros((3, 3, 3)), "must be \\(N,\\)"),
        (np.array(["", "a"]), "1 to 100 characters, not 0"),
        (np.array(["a" * 101]), "1 to 100 characters"),
        (np.array([b"a", None, 2], object), "mixture"),
        (np.array([1, 2], "M8[s]"), "whole numbers or names"),
        (np.array([1j]), "whole numbers or names"),
    ],
)
def test_what_is_no_label(labels, says):
    with pytest.raises(UsageError, match=says) as caught:
        read_labels("here", {"train": labels})
    assert str(caught.value).startswith("here: y_train: ")


def test_text_beside_numbers():
    with pytest.raises(UsageError, match="text in one part and numbers in another"):
        read_labels("here", {"train": np.array(["a"]), "test": np.array([1])})
