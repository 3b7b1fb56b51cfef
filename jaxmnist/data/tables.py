"""Images in tables: a CSV file with a row for each image, as on Kaggle.

A row has a label and the image's pixels, row by row. With a header the column `label` (or `class`,
`target`, `y`) is the label, else the first column; a column `id` or `index` is left out.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

from jaxmnist.data.arrays import Found, Part, square_shape
from jaxmnist.data.contents import head_of, open_file, reason, what_it_is
from jaxmnist.data.labels import LONGEST_NAME
from jaxmnist.data.names import PARTS, listed
from jaxmnist.errors import UsageError
from jaxmnist.hyperparameters import shown
from jaxmnist.reading import largest_file

LABEL_COLUMNS = ("label", "labels", "class", "target", "y")
OTHER_COLUMNS = ("", "id", "index", "unnamed: 0")
LONGEST_LINE = 2**22  # characters
ROWS = 2048  # that are read together
DTYPES = (np.uint8, np.int64, np.float64)  # of pixels; the first that holds all of them


def table_parts(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of CSV files by the part that they say, as train.csv and test.csv do."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        tokens = re.split(r"[-_. ]+", name.lower())
        if said := [PARTS[token] for token in tokens if token in PARTS]:
            parts.setdefault(said[-1], []).append(name)
    return parts


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
    for part in ("train", "validation", "test"):
        if part in parts:
            path = folder / parts[part][0]
            pixels, labels = read_rows(path)
            if labels is not None:
                read[part] = pixels, labels
            elif part == "train":
                raise UsageError(f"{path}: has no column of labels")
            else:
                notes.append(f"note: {path} has no labels, so that it is no {part} part")
    return _found(str(folder), read, notes)


def read_table(path: Path) -> Found:
    """Read a CSV file as a dataset without parts; `UsageError` if it has no labels."""
    pixels, labels = read_rows(path)
    if labels is None:
        raise UsageError(f"{path}: has no column of labels")
    return _found(str(path), {"train": (pixels, labels)}, [])


def _found(source: str, parts: Mapping[str, Part], notes: list[str]) -> Found:
    height, width, channels = parts["train"][0].shape[1:]
    if channels == 3:
        notes.append(
            f"note: {source}: rows are read as images of {height}×{width}, red, green and blue of"
            " each pixel side by side"
        )
    return Found.of(parts, notes)


def read_rows(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a CSV file, gzipped or not: images [N, H, W, C] and labels [N], None if there are none.

    Memory holds the pixels and a few thousand rows of text.

    Raises:
      UsageError: the file can't be read, or a row is not like the first; the line is named.
    """
    head = head_of(path)
    if known := what_it_is(head):
        raise UsageError(f"{path}: {known}")
    if b"\0" in head:
        raise UsageError(f"{path}: is in no format that is read")
    try:
        with (
            open_file(path) as file,
            io.TextIOWrapper(file, "utf-8-sig", "replace") as text,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("error", DeprecationWarning)
            return _Table(path, text).read()
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, gzip raises more than OSError
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None


class _Table:
    """A CSV file that is being read.

    shape: (H, W, C) of the images.
    label: the column of the label; None if there is none.
    skipped: the columns that are neither label nor pixels.
    """

    def __init__(self, path: Path, text: IO[str]) -> None:
        self.path = path
        self._lines = self._numbered(text)
        first = next(self._lines, None)
        if first is None:
            raise UsageError(f"{path}: has no rows")
        self._separator = max(",;\t", key=first[1].count)
        fields = self._split(first[1])
        is_header = sum(not _is_number(field) for field in fields) > 1
        self.width = len(fields)
        self._first = None if is_header else first
        names = [field.strip().lower() for field in fields] if is_header else []
        self.skipped = {i for i, name in enumerate(names) if name in OTHER_COLUMNS}
        labels = [i for i, name in enumerate(names) if name in LABEL_COLUMNS]
        pixels = self.width - len(self.skipped)
        if len(labels) > 1:
            raise UsageError(f"{path}: has {len(labels)} columns of labels in its header")
        self.label: int | None = labels[0] if labels else None
        if self.label is None and not square_shape(pixels) and square_shape(pixels - 1):
            self.label = next(i for i in range(self.width) if i not in self.skipped)
        pixels -= self.label is not None
        shape = square_shape(pixels)
        if shape is None:
            raise UsageError(
                f"{path}: its rows have {self.width} columns, which are not a label and the pixels"
                " of a square image, grey or RGB"
            )
        self.shape = shape

    def _numbered(self, text: IO[str]) -> Iterator[tuple[int, str]]:
        """Yield the lines that are not blank, with their numbers from 1."""
        number = 0
        while line := text.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE:
                raise UsageError(f"{self.path}: line {number}: is too long for a row of pixels")
            if line := line.strip():
                yield number, line

    def _split(self, line: str) -> list[str]:
        return line.replace('"', "").split(self._separator)

    def read(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Read all rows."""
        blocks, labels = [], []
        size, rows = 0, [] if self._first is None else [self._first]
        while True:
            while len(rows) < ROWS and (row := next(self._lines, None)):
                rows.append(row)
            if not rows:
                break
            block, found = self._block(rows)
            size += block.nbytes
            if size > largest_file():
                raise UsageError(f"{self.path}: has more pixels than can be loaded")
            blocks.append(block)
            labels += found
            rows = []
        if not blocks:
            raise UsageError(f"{self.path}: has no rows")
        pixels = np.concatenate(blocks).reshape(-1, *self.shape)
        return pixels, None if self.label is None else _numbers_or_text(labels)

    def _block(self, rows: list[tuple[int, str]]) -> tuple[np.ndarray, list[str]]:
        """Return the pixels [n, D] and labels of some rows."""
        texts, labels = [], []
        for number, line in rows:
            line = line.replace('"', "")
            if line.count(self._separator) + 1 != self.width:
                raise UsageError(
                    f"{self.path}: line {number} has {line.count(self._separator) + 1} columns, and"
                    f" the first line {self.width}"
                )
            label = None
            if self.label == 0 and not self.skipped:  # the usual case, and the fast one
                label, _, line = line.partition(self._separator)
            elif self.label is not None or self.skipped:
                fields = line.split(self._separator)
                label = None if self.label is None else fields[self.label]
                left = {*self.skipped, self.label}
                line = self._separator.join(f for i, f in enumerate(fields) if i not in left)
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
            for field in line.split(self._separator):
                if not _is_number(field):
                    what = shown(field.strip())
                    raise UsageError(f"{self.path}: line {number}: {what} is no number")
        raise UsageError(f"{self.path}: lines {rows[0][0]} to {rows[-1][0]} can't be read")

    def _numbers(self, texts: list[str], dtype: type) -> np.ndarray:
        return np.loadtxt(texts, dtype=dtype, delimiter=self._separator, comments=None, ndmin=2)


def _numbers_or_text(labels: list[str]) -> np.ndarray:
    """Return labels [N] as numbers if all are, such as 5.0, else as text."""
    try:
        return np.array([float(label) for label in labels])
    except ValueError:
        return np.array(labels)


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field
