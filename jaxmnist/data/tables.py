"""Images in tables: a CSV file with a row for each image, as on Kaggle.

A row has a label and the image's pixels, row by row. The label column is the one named `label`,
`labels`, `class`, `target` or `y`. Otherwise it is the one column whose name differs from the rest.
Otherwise it is the first or the last column, chosen by its values. A column `id` or `index` is left
out.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from jaxmnist.data.arrays import LONGEST_NAME, Found, Part, Source, square_shape
from jaxmnist.data.contents import PARTS, head_of, listed, open_file, what_it_is
from jaxmnist.errors import UsageError
from jaxmnist.files import largest_file
from jaxmnist.hyperparameters import shown

LABEL_COLUMNS = ("label", "labels", "class", "target", "y")
OTHER_COLUMNS = ("", "id", "index", "unnamed: 0", "imageid", "image_id", "filename", "file", "path")
LONGEST_LINE = 2**22  # characters
MOST_BLANK = 2**22  # characters, of all blank lines
ROWS = 2048  # that are read together
# Rows from which values decide which column has the labels: where nothing else is known, by
# constant columns too, and against what is known.
SEVERAL, MANY, ENOUGH = 3, 10, 20
WHOLE = 0.9  # of a column of labels are whole numbers; others are mistakes, which are told
PIXELS = 0.5  # neighbouring pixels differ less by the statistic of Kolmogorov and Smirnov
KOLMOGOROV = 1.36  # of two samples of n: they differ at the 5 % level above KOLMOGOROV √(2 / n)
DTYPES = (np.uint8, np.int64, np.float64)  # of pixels; the first that holds all of them


def table_parts(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of CSV files by the part that they say, as train.csv and test.csv do."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        tokens = re.split(r"[-_. ]+", name.lower())
        if said := [PARTS[token] for token in tokens if token in PARTS]:
            parts.setdefault(said[-1], []).append(name)
    return parts


class Rows(NamedTuple):
    """The rows of a table.

    pixels: images [N, H, W, C], uint8, int64 or float64.
    labels: text [N] as the file spells them; None if there are none.
    column: which column has the labels, as the end of a sentence; empty if there are none.
    end: "first" or "last", if the labels are in the first or the last column; else None.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    column: str
    end: str | None


def read_table_files(folder: Path, parts: Mapping[str, Sequence[str]]) -> Found:
    """Read the CSV files of a folder; see `table_parts`.

    A test file without labels, as Kaggle's, is no test part.

    Raises:
      UsageError: several files of one part, or a damaged one.
    """
    for part, found in parts.items():
        if len(found) > 1:
            raise UsageError(
                f"{folder}: has several tables of the {part} part, {listed(found)}; keep one of"
                " them, or name a single file"
            )
    read: dict[str, Part] = {}
    notes = []
    end = None
    for part in ("train", "validation", "test"):
        if part in parts:
            path = folder / parts[part][0]
            rows = read_rows(path, end)
            if rows.labels is not None:
                read[part] = rows.pixels, rows.labels
                notes.append(f"note: {path}: labels are read from {rows.column}")
                end = end or rows.end
            elif part == "train":
                raise UsageError(f"{path}: has no column of labels")
            else:
                notes.append(f"note: {path} has no labels, and is not used as the {part} part")
    return _found(str(folder), read, notes, end)


def read_table(path: Path) -> Found:
    """Read a CSV file as a dataset without parts; `UsageError` if it has no labels."""
    rows = read_rows(path)
    if rows.labels is None:
        raise UsageError(f"{path}: has no column of labels")
    note = f"note: {path}: labels are read from {rows.column}"
    return _found(str(path), {"train": (rows.pixels, rows.labels)}, [note], rows.end)


def _found(source: str, parts: Mapping[str, Part], notes: list[str], end: str | None) -> Found:
    height, width, channels = parts["train"][0].shape[1:]
    if channels == 3:
        notes.append(
            f"note: {source}: rows are read as images of {height}×{width}, red, green and blue of"
            " each pixel side by side"
        )
    return Found.of(parts, notes, Source(label=end))


def read_rows(path: Path, label: str | None = None) -> Rows:
    """Read a CSV file, gzipped or not.

    Memory holds the pixels and a few thousand rows of text; where the values have to decide which
    column has the labels, also four columns of text.

    Args:
      path: the file.
      label: "first" or "last", which column has the labels where neither a header nor the values
        say it; None if that isn't known.

    Raises:
      UsageError: the file can't be read, a row is not like the first (the line is named), or the
        values don't tell which column has the labels.
    """
    head = head_of(path)
    if known := what_it_is(head):
        raise UsageError(f"{path}: {known}")
    if b"\0" in head:
        raise UsageError(f"{path}: is not in a supported format")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        with _opened(path) as text:
            form = _Form.of(path, next(_lines(path, text), None))
        if len(form.candidates) == 2:
            with _opened(path) as text:
                label = _labelled_end(path, form, _lines(path, text), label)
        with _opened(path) as text:
            return _Table(path, form, label).read(_lines(path, text))


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    with open_file(path) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
        try:
            yield text
        except UnicodeDecodeError:
            raise UsageError(f"{path}: is not text in UTF-8: save it as CSV UTF-8") from None


def _lines(path: Path, text: IO[str]) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, without quotes, with their numbers from 1."""
    number = blank = 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UsageError(f"{path}: line {number}: is too long for a row of pixels")
        if row := line.strip(" \r\n"):
            yield number, row.replace('"', "")
        else:
            blank += len(line)
        if blank > MOST_BLANK:
            raise UsageError(f"{path}: line {number}: too many blank lines before it")


@dataclass(frozen=True)
class _Form:
    """What the first line of a CSV file says.

    separator: of the columns. width: the number of columns. header: their names, none without one.
    shape: (H, W, C) of the images.
    skipped: the columns that are neither label nor pixels.
    candidates: the columns that may have the label: none, one, or the first and the last.
    """

    separator: str
    width: int
    header: tuple[str, ...]
    shape: tuple[int, int, int]
    skipped: frozenset[int]
    candidates: tuple[int, ...]

    @classmethod
    def of(cls, path: Path, first: tuple[int, str] | None) -> _Form:
        """The form of a file that begins with this line."""
        if first is None:
            raise UsageError(f"{path}: has no rows")
        separator = max(",;\t", key=first[1].count)
        fields = [field.strip() for field in first[1].split(separator)]
        width = len(fields)
        header = tuple(fields) if _is_header(fields) else ()
        names = [name.lower() for name in header]
        skipped = frozenset(i for i, name in enumerate(names) if name in OTHER_COLUMNS)
        skipped |= {width - 1} if fields[-1] == "" else set()  # each row ends with a separator
        labels = [i for i, name in enumerate(names) if name in LABEL_COLUMNS]
        if len(labels) > 1:
            raise UsageError(f"{path}: has {len(labels)} columns of labels in its header")
        left = [i for i in range(width) if i not in skipped]
        if not labels and not square_shape(len(left)) and square_shape(len(left) - 1):
            labels = _unlike_pixels(names, left) or [left[0], left[-1]]
        shape = square_shape(len(left) - bool(labels))
        if shape is None:
            raise UsageError(
                f"{path}: its rows have {width} columns, which are not a label and the pixels"
                " of a square image, grey or RGB"
            )
        return cls(separator, width, header, shape, skipped, tuple(labels))

    def named(self, column: int) -> str:
        """A column as the end of a sentence."""
        if self.header and not _is_number(self.header[column]):
            return f"column {shown(self.header[column])}"
        ends = {0: "the first column", self.width - 1: "the last column"}
        return ends.get(column, f"column {column + 1}")

    def end(self, column: int) -> str | None:
        """ "first" or "last", if a column is that among those that aren't skipped."""
        left = [i for i in range(self.width) if i not in self.skipped]
        return {left[0]: "first", left[-1]: "last"}.get(column)


def _is_header(fields: Sequence[str]) -> bool:
    """Whether a first line has names of columns.

    Names may be numbers, where columns are counted, but for one at either end; or where pandas has
    taken a row for the header and told equal values apart as 0, 0.1, 0.2.
    """
    if sum(not _is_number(field) for field in fields) > 1:
        return True
    return any(_are_names(names) for names in (fields, fields[1:], fields[:-1]))


def _are_names(numbers: Sequence[str]) -> bool:
    """Whether numbers count the columns, or have been made different by pandas."""
    if list(numbers) in ([str(i) for i in range(k, len(numbers) + k)] for k in (0, 1)):
        return True
    seen: Counter[str] = Counter()
    for number in numbers:
        value, _, again = number.partition(".")
        if again != (str(seen[value]) if seen[value] else ""):
            return False
        seen[value] += 1
    return len(numbers) > len(seen)


def _unlike_pixels(names: Sequence[str], columns: Sequence[int]) -> list[int]:
    """The one of these columns whose name, without digits, differs from those of all others."""
    stems = {i: re.sub(r"\d+", "", names[i]) for i in columns} if names else {}
    if all(_is_number(names[i]) for i in stems):
        return []
    count = Counter(stems.values())
    odd = [i for i, stem in stems.items() if count[stem] == 1]
    return odd if len(odd) == 1 else []


def _labelled_end(
    path: Path, form: _Form, lines: Iterator[tuple[int, str]], known: str | None
) -> str:
    """Whether the "first" or the "last" of a file's candidates has the labels.

    Text is a label, and a column of fractions is none. Of two columns of which one varies, the
    other is a pixel's. Labels have other values than the pixel beside them, and a pixel has about
    the same ones: distributions are compared by the statistic of Kolmogorov and Smirnov, the
    largest difference of the two empirical distribution functions.

    Args:
      path, form, lines: the file.
      known: what other tables of the dataset, or training, say; it holds where few rows or their
        values don't decide.

    Raises:
      UsageError: it can't be told.
    """
    if form.header:
        next(lines)
    left = [i for i in range(form.width) if i not in form.skipped]
    ends = (left[0], left[1]), (left[-1], left[-2])
    columns: dict[int, list[str]] = {i: [] for pair in ends for i in pair}
    low, high = max(left[:2]) + 1, form.width - min(left[-2:])
    for number, line in lines:
        start = line.split(form.separator, low)
        end = line.rsplit(form.separator, high)
        if len(start) <= low or len(end) <= high:
            raise UsageError(
                f"{path}: line {number} has {line.count(form.separator) + 1} columns, and the"
                f" first line {form.width}"
            )
        for i, values in columns.items():
            values.append((start[i] if i < low else end[i - form.width]).strip())
    text = [not all(map(_is_number, columns[label])) for label, _ in ends]
    if text[0] != text[1]:
        return "first" if text[0] else "last"
    rows = len(columns[left[0]])
    if not any(text) and rows >= (ENOUGH if known else SEVERAL):
        labels, pixels = (
            np.nan_to_num([_numbers(columns[i]) for i in side], posinf=0, neginf=0)
            for side in zip(*ends, strict=True)
        )
        whole = [(values == np.floor(values)).mean() > WHOLE for values in labels]
        varied = [rows < MANY or np.ptp(values) > 0 for values in labels]
        for able in (whole, varied):
            if able[0] != able[1]:
                return "first" if able[0] else "last"
        first, last = map(_distance, labels, pixels)
        least = min(0.99, KOLMOGOROV * math.sqrt(2 / rows))
        if abs(first - last) > least and min(first, last) < PIXELS:
            return "first" if first > last else "last"
    if known:
        return known
    raise UsageError(
        f"{path}: cannot tell whether the first or the last column holds the labels: add a header"
        " such as label,p0,p1"
    )


def _numbers(fields: Sequence[str]) -> list[float]:
    """Numbers [n]; NaN for text, whose line is told when it is read."""
    return [float(field) if _is_number(field) else math.nan for field in fields]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of the empirical distribution functions of two samples [n]."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    below = (np.searchsorted(values, both, "right") for values in (a, b))
    return float(np.abs(np.subtract(*below)).max(initial=0)) / max(1, len(a))


class _Table:
    """A CSV file of a known form; of two candidates `end` says which has the labels."""

    def __init__(self, path: Path, form: _Form, end: str | None) -> None:
        self.path, self.form = path, form
        candidates = form.candidates
        self.label = candidates[-1 if end == "last" else 0] if candidates else None

    def read(self, lines: Iterator[tuple[int, str]]) -> Rows:
        """Read all rows."""
        if self.form.header:
            next(lines)
        blocks, labels = [], []
        size = 0
        while rows := list(itertools.islice(lines, ROWS)):
            block, found = self._block(rows)
            size += block.nbytes
            if size > largest_file():
                raise UsageError(f"{self.path}: has more pixels than can be loaded")
            blocks.append(block)
            labels += found
        if not blocks:
            raise UsageError(f"{self.path}: has no rows")
        pixels = np.concatenate(blocks).reshape(-1, *self.form.shape)
        if self.label is None:
            return Rows(pixels, None, "", None)
        column = self.form.named(self.label)
        return Rows(pixels, np.array(labels), column, self.form.end(self.label))

    def _block(self, rows: list[tuple[int, str]]) -> tuple[np.ndarray, list[str]]:
        """Return the pixels [n, D] and labels of some rows."""
        texts, labels = [], []
        separator, skipped = self.form.separator, self.form.skipped
        for number, line in rows:
            if (columns := line.count(separator) + 1) != self.form.width:
                raise UsageError(
                    f"{self.path}: line {number} has {columns} columns, and the first line"
                    f" {self.form.width}"
                )
            label = None
            if self.label == 0 and not skipped:  # the usual case, and the fast one
                label, _, line = line.partition(separator)
            elif self.label == self.form.width - 1 and not skipped:
                line, _, label = line.rpartition(separator)
            elif self.label is not None or skipped:
                fields = line.split(separator)
                label = None if self.label is None else fields[self.label]
                left = {*skipped, self.label}
                line = separator.join(f for i, f in enumerate(fields) if i not in left)
            texts.append(line)
            if label is not None:
                labels.append(label.strip())
                if not 0 < len(labels[-1]) <= LONGEST_NAME:
                    what = shown(labels[-1])
                    raise UsageError(f"{self.path}: line {number}: {what} is no label")
        for dtype in DTYPES:
            # Some releases of NumPy cut fractions off with a mere warning.
            with suppress(ValueError, OverflowError, DeprecationWarning):
                return self._numbers(texts, dtype), labels
        for (number, _), line in zip(rows, texts, strict=True):
            for field in line.split(separator):
                if not _is_number(field):
                    what = shown(field.strip())
                    raise UsageError(f"{self.path}: line {number}: {what} is no number")
        raise UsageError(f"{self.path}: lines {rows[0][0]} to {rows[-1][0]} can't be read")

    def _numbers(self, texts: list[str], dtype: type) -> np.ndarray:
        separator = self.form.separator
        return np.loadtxt(texts, dtype=dtype, delimiter=separator, comments=None, ndmin=2)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field
