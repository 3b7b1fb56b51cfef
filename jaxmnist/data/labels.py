"""Labels of every kind that data bring, as whole numbers and the names of classes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from jaxmnist.errors import UsageError, printable
from jaxmnist.hyperparameters import shown

LONGEST_NAME = 100  # characters
LARGEST_LABEL = 2**53  # the whole numbers up to it are exact as floats
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
MISSING = ("nan", "<na>")  # how pandas and NumPy write that there is no label


def read_labels(
    source: str, parts: Mapping[str, np.ndarray], *, are_folders: bool = False
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """Return labels as int64[N] by part, and the names of those classes that bring one.

    Whole numbers, also as floats or as text, stay the numbers they are, however a part spells them
    (7, 7.0, 007); a part that has two spellings of one number has two classes. Other text is
    numbered in the order of the sorted names, in Unicode's composed form; False is 0 and True is 1;
    the label of a one-hot row is the position of its 1.

    Args:
      source: what to call the data in errors.
      parts: labels of the parts 'train', 'validation' and 'test': [N], [N, 1], or one-hot [N, K].
      are_folders: whether they are names of folders, any of which is a class.

    Raises:
      UsageError: anything else: fractions, NaN, or -1 where it marks images without a label.
    """
    flat = {part: _flat(f"{source}: y_{part}", labels) for part, labels in parts.items()}
    kinds = {labels.dtype.kind for labels in flat.values()}
    if "U" not in kinds:
        truth = {0: "False", 1: "True"} if kinds == {"b"} else {}
        found = {part: _whole(f"{source}: y_{part}", labels) for part, labels in flat.items()}
        _check_labelled(source, found)
        return found, truth
    if kinds != {"U"}:
        raise UsageError(f"{source}: labels are text in one part and numbers in another")
    places, spelled = {}, {}
    for part, labels in flat.items():
        known, places[part] = np.unique(labels, return_inverse=True)
        spelled[part] = [unicodedata.normalize("NFC", str(name)) for name in known]
        if not are_folders:
            _check_text(f"{source}: y_{part}", spelled[part])
    numbers = number_names(spelled.values())
    numbered = {
        part: np.array([numbers[name] for name in spelled[part]], np.int64)[of_label].reshape(-1)
        for part, of_label in places.items()
    }
    if not are_folders:
        _check_labelled(source, numbered)
    names: dict[int, str] = {}
    place_of_text = any(_whole_number(name) != number for name, number in numbers.items())
    for name, number in numbers.items():
        # A number with several spellings, or one like 7.0, is shown as the number.
        plain = number not in names and (place_of_text or name.removeprefix("-").isdigit())
        names[number] = printable(name) if plain else str(number)
    return numbered, names


def number_names(parts: Iterable[Collection[str]]) -> dict[str, int]:
    """Return the label of each class name: the number it is, if all are, else its place.

    Args:
      parts: the names in each part of the data. Two spellings of one number in the same part are
        two classes, so that all names are text.

    >>> number_names([["b", "a", "10"]]), number_names([["10", "9"], ["9.0"]])
    ({'10': 0, 'a': 1, 'b': 2}, {'9': 9, '9.0': 9, '10': 10})
    """
    values = [{name: _whole_number(name) for name in part} for part in parts]
    known = {name: value for part in values for name, value in part.items()}
    if None not in known.values() and all(len({*p.values()}) == len(p) for p in values):
        numbers = {name: value for name, value in known.items() if value is not None}
        return dict(sorted(numbers.items(), key=lambda item: (item[1], item[0])))
    return {name: place for place, name in enumerate(sorted(known))}


def _whole_number(text: str) -> int | None:
    """The whole number that a text spells; None if it is another text."""
    if not re.fullmatch(NUMBER, text, re.ASCII):
        return None
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < LARGEST_LABEL else None


def _check_text(name: str, labels: Sequence[str]) -> None:
    """Raise `UsageError` for labels that stand for a missing one, and if all are fractions."""
    if missing := [label for label in labels if label.lower() in MISSING]:
        raise UsageError(
            f"{name}: {missing[0]!r} marks a missing label: remove these images or label them"
        )
    if all(re.fullmatch(NUMBER, label, re.ASCII) for label in labels):
        fractions = [label for label in labels if not float(label).is_integer()]
        if fractions:
            raise UsageError(
                f"{name}: labels must be whole numbers or names, not {shown(fractions[0])}"
            )


def _check_labelled(source: str, parts: Mapping[str, np.ndarray]) -> None:
    """Raise `UsageError` if -1 marks images without a label: it is the only negative one.

    Beside 1 alone it is one of two classes.
    """
    known = {int(label) for labels in parts.values() for label in np.unique(labels)}
    if min(known, default=0) != -1 or known == {-1, 1}:
        return
    part, count = next((p, n) for p, y in parts.items() if (n := int((y == -1).sum())))
    raise UsageError(
        f"{source}: y_{part}: {count} of {len(parts[part])} labels are -1, which marks images"
        " without a label: remove these images, or number the classes from 0"
    )


def class_names_of(
    labels: Sequence[int], names: Sequence[str] = (), taken: Collection[str] = ()
) -> tuple[str, ...]:
    """Return a name to show for each class: safe for a terminal, of bounded length, all different.

    A blank name becomes the label; a name that stands twice, or is taken, gets its label beside it.

    Args:
      labels: the K labels, all different.
      names: the K names, as somebody wrote them; none for the labels themselves.
      taken: names that no class may have.

    Raises:
      ValueError: there are names, but not K, or a label stands twice.

    >>> class_names_of([0, 3, 4], ["cat", "dog", "dog"]), class_names_of([0, 3])
    (('cat', 'dog (3)', 'dog (4)'), ('0', '3'))
    """
    if len(set(labels)) < len(labels):
        raise ValueError("a label stands twice")
    shown = [
        cut_off(printable(name)).strip() or str(label)
        for label, name in zip(labels, names or map(str, labels), strict=True)
    ]
    while (counts := Counter([*shown, *taken])) and max(counts[name] for name in shown) > 1:
        shown = [
            f"{name} ({label})" if counts[name] > 1 else name
            for label, name in zip(labels, shown, strict=True)
        ]
    return tuple(shown)


def cut_off(name: str) -> str:
    """Return a name, cut off if it is longer than `LONGEST_NAME`."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def _flat(name: str, labels: np.ndarray) -> np.ndarray:
    """Return labels [N] of numbers, bools or text."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind == "O":
        labels = _of_objects(name, labels)
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "biuf":
        ones = labels == 1
        if not ((ones | (labels == 0)).all() and (ones.sum(1) == 1).all()):
            raise UsageError(
                f"{name}: labels must be (N,), or (N, K) with a single 1 in each row, not"
                f" {labels.shape}"
            )
        labels = ones.argmax(1)
    if labels.ndim != 1:
        raise UsageError(f"{name}: labels must be (N,), not {labels.shape}")
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{name}: labels are not text in UTF-8") from None
    if labels.dtype.kind == "U":
        lengths = np.char.str_len(labels)
        if labels.size and not 0 < lengths.min() <= lengths.max() <= LONGEST_NAME:
            raise UsageError(
                f"{name}: names of classes must have 1 to {LONGEST_NAME} characters, not"
                f" {lengths.max() if lengths.min() else 0}"
            )
    elif labels.dtype.kind not in "biuf":
        raise UsageError(f"{name}: labels must be whole numbers or names, not {labels.dtype}")
    return labels


def _of_objects(name: str, labels: np.ndarray) -> np.ndarray:
    """Return an array of Python's objects as one of text, or of numbers."""
    if all(isinstance(label, str) for label in labels.ravel()):
        return labels.astype(str)
    numbers = (int, float, np.number, np.bool_)
    if not all(isinstance(label, numbers) for label in labels.ravel()):
        raise UsageError(f"{name}: labels must be whole numbers or names, not a mixture of objects")
    try:
        return np.array(labels.tolist())
    except (ValueError, OverflowError):
        raise UsageError(f"{name}: labels must be whole numbers or names") from None


def _whole(name: str, labels: np.ndarray) -> np.ndarray:
    """Return numbers [N] as int64; `UsageError` unless they are whole."""
    if labels.dtype.kind == "f":
        real = labels.astype(np.float64)
        if not (np.isfinite(real) & (real == np.floor(real)) & (abs(real) < LARGEST_LABEL)).all():
            raise UsageError(f"{name}: labels must be whole numbers, not {labels.dtype} like these")
    elif labels.dtype.kind == "O" or (
        labels.dtype == np.uint64 and labels.size and labels.max() > 2**63 - 1
    ):
        raise UsageError(f"{name}: labels must be whole numbers below 2^63, not {labels.dtype}")
    return labels.astype(np.int64)
