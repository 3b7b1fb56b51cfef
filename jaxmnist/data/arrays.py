"""The validation of all data: labels and images of every reader, in one shape and on one scale."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxmnist.data.split import TEST_FRACTION, held_out
from jaxmnist.errors import UsageError, printable
from jaxmnist.hyperparameters import shown

# --- Labels of every kind that data bring, as whole numbers and the names of classes ---

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


# --- The checks that all data pass ---

EIGHT_BITS = 255.0  # the largest pixel of 8-bit images
OVER = 8  # times the scale; images with larger pixels are on another scale
# The most that is hot (see `hot_pixel`), of pixels, images and places that are not black.
HARDLY_ANY, FEW_IMAGES = 0.01, 0.1
HANDFUL = 5  # hot pixels in an image
APART = 8  # times what all others reach, where something is hot
SMALLEST_SIDE = 6  # pixels, of images whose channels come first or that are rows of numbers
LARGEST_BITS = 64  # of a level of a picture

Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Source:
    """What was decided for all files of a dataset together; prediction reads files the same way.

    pictures: whether they were pictures, and not arrays or tables.
    transposed: whether all images were transposed.
    label: "first" or "last", where the columns of tables have the labels; or None.
    bits: how pictures with levels of more than 8 bits became 8 bits: as numbers of so many bits, or
      for 1 as fractions from 0 to 1; 0 if their levels were kept; None if there were none.
    black: the level of kept levels that became 0, the smallest one of the training pictures.
    background: the color that replaced transparency, RGB; None if there was none.
    """

    pictures: bool = False
    transposed: bool = False
    label: str | None = None
    bits: int | None = None
    black: float = 0.0
    background: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        levels = (0, *(self.background or ()))
        bits = 0 if self.bits is None else self.bits
        possible = min(levels) >= 0 and max(levels) <= EIGHT_BITS and 0 <= bits <= LARGEST_BITS
        if not possible or self.label not in (None, "first", "last"):
            raise ValueError("not a source")


ARRAYS = Source()  # arrays as they are


class Arrays(NamedTuple):
    """A dataset as it was loaded: images [N, H, W, C] and labels int64[N] of its parts.

    Images are uint8 where all pixels are whole numbers from 0 to 255, else float32, in all parts.
    x_validation, y_validation: None unless the data bring a validation part.
    names: the names of labels, where the data bring names.
    notes: a line for each thing that was changed or left out.
    source: what was decided for all of their files.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    x_validation: np.ndarray | None = None
    y_validation: np.ndarray | None = None
    names: Mapping[int, str] = {}
    notes: tuple[str, ...] = ()
    source: Source = ARRAYS


@dataclass(frozen=True)
class Found:
    """Images and labels of parts, unchecked, as a reader found them.

    train, validation, test: images and their labels, of any shape that `check` accepts; None where
      there is no such part.
    notes: a line for each thing that the reader left out.
    source: what it decided for all files.
    """

    train: Part
    validation: Part | None = None
    test: Part | None = None
    notes: tuple[str, ...] = ()
    source: Source = ARRAYS

    @classmethod
    def of(
        cls, parts: Mapping[str, Part], notes: Sequence[str] = (), source: Source = ARRAYS
    ) -> Found:
        """The parts by name: 'train', 'validation' and 'test'."""
        validation, test = parts.get("validation"), parts.get("test")
        return cls(parts["train"], validation, test, tuple(notes), source)


def check(source: str, found: Found, *, transpose: bool = False) -> Arrays:
    """Return the arrays of a dataset, images with a channel axis and labels as whole numbers.

    Images whose channels come first, [N, C, H, W], are turned, and rows of numbers [N, D] become
    square images. Where there is no test part, images are set aside for it by their content.

    Args:
      source: what to call the data in errors.
      found: the parts as they were found.
      transpose: swap rows and columns of all images.

    Raises:
      UsageError: the arrays are not images and labels, or don't fit together.
    """
    parts = {"train": found.train, "validation": found.validation, "test": found.test}
    given = {part: pair for part, pair in parts.items() if pair is not None}
    notes = [*found.notes]
    images: dict[str, np.ndarray] = {}
    for part, (pixels, _) in given.items():
        arranged, note = arranged_images(pixels)
        images[part] = check_images(f"{source}: x_{part}", arranged)
        notes += [f"note: {source}: {note}"] if note and part == "train" else []
    found_labels = {part: labels for part, (_, labels) in given.items()}
    labels, names = read_labels(source, found_labels, are_folders=found.source.pictures)
    images = _fitting(source, images, labels)
    if "test" not in images:
        chosen = held_out(images["train"], labels["train"], scale_of(source, images["train"]))
        if not chosen.any():
            raise UsageError(
                f"{source}: has no test images, and no class has two different images, of which"
                " one could be set aside"
            )
        for kind in (images, labels):
            kind["test"], kind["train"] = kind["train"][chosen], kind["train"][~chosen]
        notes.append(
            f"note: {source} has no test part: {chosen.sum()} of {len(chosen)} images are set"
            f" aside for it, about {100 * TEST_FRACTION:.0f} % of each class, chosen by their"
            " content alone"
        )
    arrays = Arrays(
        images["train"],
        labels["train"],
        images["test"],
        labels["test"],
        images.get("validation"),
        labels.get("validation"),
        names,
        tuple(notes),
        found.source,
    )
    return transposed(arrays) if transpose else arrays


def transposed(arrays: Arrays) -> Arrays:
    """Return a dataset whose images are transposed."""
    images: dict[str, Any] = {
        name: np.ascontiguousarray(array.swapaxes(1, 2))
        for name in ("x_train", "x_validation", "x_test")
        if (array := getattr(arrays, name)) is not None
    }
    return arrays._replace(
        **images, source=replace(arrays.source, transposed=not arrays.source.transposed)
    )


def _fitting(
    source: str, images: dict[str, np.ndarray], labels: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return images of one dtype; `UsageError` if the parts don't fit together."""
    for part, array in images.items():
        if len(array) != len(labels[part]):
            raise UsageError(f"{source}: {len(array)} {part} images but {len(labels[part])} labels")
        if len(array) == 0:
            raise UsageError(f"{source}: has no {part} images")
        if array.shape[1:] != images["train"].shape[1:]:
            raise UsageError(
                f"{source}: training images are {images['train'].shape[1:]} and {part} images"
                f" {array.shape[1:]}"
            )
    if len({array.dtype for array in images.values()}) > 1:
        images = {part: array.astype(np.float32) for part, array in images.items()}
    scale = scale_of(source, images["train"])
    for part in images.keys() - {"train"}:
        check_levels(f"{source}: x_{part}", images[part], scale)
    return images


def check_arrays(
    source: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> Arrays:
    """Return the `Arrays` of a training and a test part; see `check`."""
    return check(source, Found((x_train, y_train), test=(x_test, y_test)))


def arranged_images(images: np.ndarray) -> tuple[np.ndarray, str | None]:
    """Return images with their channels last, and rows of numbers as images; and a note if so."""
    shape = images.shape
    if images.ndim == 4 and shape[1] in (1, 3) and min(shape[2:]) >= SMALLEST_SIDE:
        turned = np.ascontiguousarray(np.moveaxis(images, 1, -1))
        return turned, f"images of {shape[1:]} have their channels first: turned to channels last"
    if images.ndim == 2 and (square := square_shape(shape[1])):
        height, width, channels = square
        return images.reshape(-1, *square), (
            f"rows of {shape[1]} numbers are read as images of {height}×{width}"
            + (", red, green and blue of each pixel side by side" if channels == 3 else "")
        )
    return images, None


def square_shape(numbers: int) -> tuple[int, int, int] | None:
    """Return the shape (H, W, C) of a square image of so many numbers, of 1 or 3 channels.

    >>> square_shape(784), square_shape(3072), square_shape(785)
    ((28, 28, 1), (32, 32, 3), None)
    """
    for channels in (1, 3):
        side = math.isqrt(numbers // channels)
        if side >= SMALLEST_SIDE and side * side * channels == numbers:
            return side, side, channels
    return None


def check_images(name: str, images: np.ndarray) -> np.ndarray:
    """Return images [N, H, W, C]: uint8 if all pixels are whole numbers 0 to 255, else float32.

    Args:
      name: what to call them in errors.
      images: [N, H, W] or [N, H, W, C] of any numbers or booleans.

    Raises:
      UsageError: another shape, or pixels that are negative, not finite, or not numbers.
    """
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UsageError(f"{name}: images must be (N, H, W) or (N, H, W, C), not {images.shape}")
    if images.dtype.kind not in "biuf":
        raise UsageError(f"{name}: pixels must be numbers, not {images.dtype}")
    if images.dtype != np.uint8:
        # NumPy warns about values beyond float32's range, which are refused here.
        with np.errstate(over="ignore"):
            real = images.astype(np.float32)
        if not np.isfinite(real).all():
            raise UsageError(f"{name}: has pixels that are not finite numbers")
        if images.size and images.min() < 0:
            raise UsageError(
                f"{name}: has negative pixels, down to {real.min():g}; shift the values so that"
                " black is 0"
            )
        # Check the original array: float32 would round some fractions to whole numbers.
        is_whole = bool(np.all(images <= 255)) and bool(np.all(images == np.floor(images)))
        images = images.astype(np.uint8) if is_whole else real
    return images if images.ndim == 4 else images[..., None]


def scale_of(name: str, images: np.ndarray) -> float:
    """Return the number to divide pixels of such images by, so that they range from 0 to about 1.

    It is 255 if the largest value is from 128 to 255, and 1 if it is a fraction above 0.5; else the
    largest value, so that images of 0 and 1, of 0..16, or of 12 bits become as bright as others.

    Args:
      name: what to call the images in errors.
      images: training images, as `check_images` gives them.

    Raises:
      UsageError: all pixels are 0, or hardly any are as large as the largest; see `hot_pixel`.
    """
    largest = float(images.max())
    if largest == 0:
        raise UsageError(f"{name}: all pixels of the training images are 0")
    usual = _usual_scale(largest)
    hot = hot_pixel(images)
    # Of usual images a few in a hundred may be bright.
    if hot and (usual is None or hot.images <= max(1, HARDLY_ANY * len(images))):
        raise UsageError(
            f"{name}: {hot.line} and would become black. Correct or remove it, or clip pixels to"
            f" {hot.others:g}"
        )
    return usual or largest


def _usual_scale(largest: float) -> float | None:
    """The scale of fractions or of 8-bit images, if the largest pixel is one's; else None."""
    return next((top for top in (1.0, EIGHT_BITS) if top / 2 < largest <= top), None)


class Hot(NamedTuple):
    """A value so much larger than all others that it alone would set the scale.

    line: the beginning of a sentence on it. others: the largest other value. images: with such one.
    """

    line: str
    others: float
    images: int


def hot_pixel(images: np.ndarray) -> Hot | None:
    """What is so much larger than all else that it alone would set the scale; None if nothing is.

    Pixels above 1/OVER of it are hot if they are few, in few images and few in each; also, unless
    the scale is usual (8-bit images and fractions may be nearly black), if they are in hardly any
    images, or at hardly any places of the image, as those of a broken sensor. The others must end
    far below: in star fields, photographs and whatever has values of all sizes nothing is hot.
    """
    largest = float(images.max())
    above = images > images.dtype.type(largest / OVER)
    pixels = np.count_nonzero(above)
    if pixels > HARDLY_ANY * images.size:  # nearly always, and cheap
        return None
    of_images, of_places = images.max((1, 2, 3)), images.max((0, 3))
    hot = of_images > images.dtype.type(largest / OVER)
    row, column = np.unravel_index(of_places.argmax(), of_places.shape)
    where = f"training image {of_images.argmax()} (counted from 0) has a pixel of {largest:g}"
    if hot.sum() > 1:
        where += f", as {hot.sum()} images have"
    others = float(images.max(where=~above, initial=0))
    if (
        pixels <= min(HARDLY_ANY * np.count_nonzero(images), HANDFUL * hot.sum())
        and hot.sum() <= max(1, FEW_IMAGES * np.count_nonzero(of_images))
        and images[above].min() > APART * others > 0
    ):
        return Hot(f"{where}; all other pixels are at most {others:g}", others, int(hot.sum()))
    place = f"the pixel in row {row} and column {column} reaches {largest:g}"
    for maxima, line in ((of_images, where), (of_places.ravel(), place)):
        most = float(maxima.max(where=maxima <= largest / OVER, initial=0))
        over = maxima[maxima > largest / OVER]
        few = len(over) <= HARDLY_ANY * np.count_nonzero(maxima)
        if _usual_scale(largest) is None and few and over.min() > APART * most > 0:
            return Hot(f"{line}; all others are at most {most:g}", most, int(hot.sum()))
    return None


def check_levels(name: str, images: np.ndarray, scale: float) -> None:
    """Raise `UsageError` if `images`, as `check_images` gives them, are not on this scale.

    Pixels may exceed the scale, as test images may be brighter than all training images, but at
    most `OVER` times; and fractions up to 1 don't belong to a scale above `OVER`.
    """
    largest = float(images.max(initial=0))
    if largest > OVER * scale or (images.dtype != np.uint8 and largest <= 1 and scale > OVER):
        over = np.flatnonzero((images > OVER * scale).any((1, 2, 3)))
        some = 0 < len(over) < len(images)
        where = f" in {len(over)} of {len(images)} images, first in {over[0]}" if some else ""
        raise UsageError(
            f"{name}: its pixels reach {largest:g}{where}, and those of the training images"
            f" {scale:g}; use the same scale for both"
        )
