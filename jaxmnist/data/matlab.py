"""MATLAB files of version 5 to 7.2: EMNIST's, and those with arrays x and y.

The format: a header of 128 bytes, then the variables. All is made of elements: a tag with type and
size, the data, and zeros up to a multiple of 8 bytes. A variable is an element of type `MATRIX`, or
one of type `COMPRESSED` that holds such an element packed by zlib. A matrix consists of elements
itself: class and flags, the lengths of its axes, its name, and the numbers, column by column; cells
and structures have further matrices instead ('MAT-File Format' of MathWorks).

It is read here, not by SciPy, whose reader descends into itself for each level of cells in cells,
until the process ends, and makes as many objects as a file states.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from io import SEEK_END, BufferedReader
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np

from jaxmnist.data.arrays import Found, Part
from jaxmnist.data.contents import open_file, reason
from jaxmnist.data.names import PARTS, choose, listed
from jaxmnist.errors import UsageError
from jaxmnist.reading import PIECE, Unpacked, largest_file, read_up_to

MATLAB = b"MATLAB 5.0 MAT-file"
HEADER = 128  # bytes before the first variable
COMPRESSED, MATRIX = 15, 14  # types of elements
SMALL_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4"}
NUMBERS = SMALL_NUMBERS | {7: "f4", 9: "f8", 12: "i8", 13: "u8"}  # by the type of an element
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
WIDE = (4, 17, 18)  # of these the order of bytes counts
CELL, STRUCTURE, TEXT, NUMERIC, OPAQUE = 1, 2, 4, range(6, 16), 17  # classes of matrices
CLASS, COMPLEX = 0xFF, 1 << 11  # bits of a matrix's flags
LEVELS = 8  # of structures and cells in each other
MOST_AXES = 32
LONGEST = 2**32  # bytes, of any element
MOST_VARIABLES = 10_000
LONGEST_NAMES = 2**16  # bytes of a variable's name, and of all names of a structure's fields
DAMAGED = "its elements are damaged"
SAVE = "save it without compression (-v6)"


def read_matlab(path: Path) -> Found:
    """Read a dataset from a MATLAB file.

    That is EMNIST's structure `dataset.train.images` and so on, or arrays whose names say what
    they are; see `names`.

    Raises:
      UsageError: the file holds something else, is damaged, or unpacks to too much.
    """
    try:
        with open_file(path) as file:
            variables = _Variables(path, file)
            if found := _emnist(variables.read("dataset")):
                return Found.of(found)
            chosen = choose(str(path), variables.arrays(), "array")
            if not chosen:
                known = listed(sorted(variables.found))
                raise UsageError(f"{path}: has no array x_train; it has {known}")
            return Found.of(
                {part: (variables.array(x), variables.array(y)) for part, (x, y) in chosen.items()}
            )
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None


def _emnist(dataset: Any) -> dict[str, Part] | None:
    """Return the parts of EMNIST's structure; None if it is something else."""
    parts: dict[str, Part] = {}
    for name, part in dataset.items() if isinstance(dataset, dict) else ():
        if name in PARTS and isinstance(part, dict):
            pair = part.get("images"), part.get("labels")
            if isinstance(pair[0], np.ndarray) and isinstance(pair[1], np.ndarray):
                parts[PARTS[name]] = pair[0], pair[1]
    return parts if "train" in parts else None


class _Head(NamedTuple):
    """What a matrix begins with.

    kind: its class.
    end: the position behind the matrix.
    """

    kind: int
    is_complex: bool
    shape: tuple[int, ...]
    name: str
    end: int


class _Variables:
    """The variables of a MATLAB file.

    found: what each begins with, and its place in the file, by name.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._left = largest_file()  # bytes that may still be read
        start = file.read(HEADER)
        self._order = "<" if start[126:] == b"IM" else ">"
        if start[124:126] != (b"\0\1" if self._order == "<" else b"\1\0"):
            raise ValueError("its header is damaged, or of another version")
        self.found: dict[str, tuple[_Head, int]] = {}
        size, place = file.seek(0, SEEK_END), HEADER
        while place < size:
            file.seek(place)
            length = _Elements(file, self._order, self._read).tag()[1]
            head = self._open(place)[0].head()
            self.found[head.name] = head, place
            if len(self.found) > MOST_VARIABLES:
                raise ValueError(f"it has over {MOST_VARIABLES} variables")
            place += 8 + length
        if place != size:
            raise EOFError("it is cut short")
        self.found.pop("", None)  # what MATLAB keeps for itself

    def arrays(self) -> list[str]:
        """Return the names of the arrays of numbers or text, and of cells, which may be labels."""
        return [
            name
            for name, (head, _) in self.found.items()
            if math.prod(head.shape) > 1
            and (head.kind in (CELL, *NUMERIC) or (head.kind == TEXT and head.shape[0] > 1))
        ]

    def array(self, name: str) -> np.ndarray:
        """Return an array of that name."""
        if not isinstance(value := self.read(name), np.ndarray):
            raise UsageError(f"{self._path}: {name} is no array of real numbers or of text")
        return value

    def read(self, name: str) -> Any:
        """Return a variable, see `_Elements.matrix`; None if there is none of that name."""
        if name not in self.found:
            return None
        elements, stream = self._open(self.found[name][1])
        value = elements.matrix()
        # At a stream's end zlib compares its checksum.
        if stream is not self._file and stream.read(1):
            raise ValueError(DAMAGED)
        return value

    def _open(self, place: int) -> tuple[_Elements, IO[bytes]]:
        """Return the elements of the variable that begins there, and the file or stream of them."""
        self._file.seek(place)
        kind, size, _ = _Elements(self._file, self._order, self._read).tag()
        stream = self._file
        if kind == COMPRESSED:
            stream = cast(
                IO[bytes], BufferedReader(Unpacked(str(self._path), self._file, size, SAVE))
            )
        else:
            self._file.seek(place)
        return _Elements(stream, self._order, self._read), stream

    def _read(self, stream: IO[bytes], size: int) -> bytearray:
        """Read so many bytes, neither fewer nor, together, more than can be loaded."""
        self._left -= size
        if self._left < 0:
            raise UsageError(f"{self._path}: unpacks to more bytes than can be loaded")
        content = read_up_to(stream, size)
        if len(content) < size:
            raise EOFError("it is cut short")
        return content


class _Elements:
    """Elements of a MATLAB file, read one after another.

    Args:
      stream: the file, or what a variable of it unpacks to.
      order: '<' or '>', that of the bytes of a number.
      read: reads exactly so many bytes.
    """

    def __init__(
        self, stream: IO[bytes], order: str, read: Callable[[IO[bytes], int], bytearray]
    ) -> None:
        self._stream, self._order, self._read_from = stream, order, read
        self._position = 0

    def _read(self, size: int) -> bytearray:
        self._position += size
        return self._read_from(self._stream, size)

    def tag(self) -> tuple[int, int, bytearray | None]:
        """Read a tag: an element's type, its size, and its data if the tag holds them."""
        tag = self._read(8)
        kind, size = np.frombuffer(tag, f"{self._order}u4").tolist()
        if kind >> 16:  # four bytes at most, in place of the size
            return kind & 0xFFFF, kind >> 16, tag[4 : 4 + (kind >> 16)]
        return kind, size, None

    def _data(self, longest: int = LONGEST) -> tuple[int, bytearray]:
        """Read an element of at most `longest` bytes: its type and data."""
        kind, size, content = self.tag()
        if size > (longest if content is None else len(content)):
            raise ValueError(DAMAGED)
        if content is None:
            content = self._read(size)
            self._position += len(self._stream.read(-size % 8))
        return kind, content

    def _whole(self, longest: int) -> list[int]:
        """Read an element of at most so many whole numbers, and at least one."""
        _, content = self._data(4 * longest)
        if len(content) < 4 or len(content) % 4:
            raise ValueError(DAMAGED)
        numbers: list[int] = np.frombuffer(content, f"{self._order}i4").tolist()
        return numbers

    def head(self) -> _Head:
        """Read what a matrix begins with."""
        kind, size, _ = self.tag()
        if kind != MATRIX:
            raise ValueError(DAMAGED)
        end = self._position + size
        if size == 0:
            return _Head(0, False, (0,), "", end)
        flags = self._whole(2)[0]
        shape = () if flags & CLASS == OPAQUE else tuple(self._whole(MOST_AXES))
        if min(shape, default=0) < 0:
            raise ValueError(DAMAGED)
        name = self._data(LONGEST_NAMES)[1].decode("utf-8", "replace")
        return _Head(flags & CLASS, bool(flags & COMPLEX), shape, name, end)

    def matrix(self, level: int = 1) -> Any:
        """Read a matrix, without axes of length 1.

        Returns:
          An array of numbers or text; cells as an array of objects; a structure as a dict; a
          single number or text as such; None for all else.
        """
        if level > LEVELS:
            raise ValueError(f"its data are nested over {LEVELS} levels deep")
        head = self.head()
        value: Any = None
        if head.kind in NUMERIC and not head.is_complex:
            value = self._numbers(head)
        elif head.kind == TEXT:
            value = self._text(head)
        elif head.kind == CELL:
            count = math.prod(head.shape)
            if 8 * count > head.end - self._position:  # the size of that many tags
                raise ValueError(DAMAGED)
            value = np.empty(count, object)
            for k in range(count):
                value[k] = self.matrix(level + 1)
            value = value.reshape(head.shape, order="F")
        elif head.kind == STRUCTURE and math.prod(head.shape) == 1:
            value = {name: self.matrix(level + 1) for name in self._fields()}
        if self._position > head.end:
            raise ValueError(DAMAGED)
        while self._position < head.end:  # what isn't read
            self._read(min(PIECE, head.end - self._position))
        if isinstance(value, np.ndarray):
            value = value.squeeze()
            return value if value.ndim else value.item()
        return value

    def _fields(self) -> list[str]:
        """Read the names of a structure's fields, which all have the same length in the file."""
        width, names = self._whole(1)[0], self._data(LONGEST_NAMES)[1]
        if width <= 0 or len(names) % width:
            raise ValueError(DAMAGED)
        fields = [names[i : i + width] for i in range(0, len(names), width)]
        return [field.split(b"\0")[0].decode("utf-8", "replace") for field in fields]

    def _numbers(self, head: _Head) -> np.ndarray:
        kind, content = self._data()
        dtype = np.dtype(self._order + NUMBERS.get(kind, "V1"))
        if dtype.kind == "V" or len(content) != math.prod(head.shape) * dtype.itemsize:
            raise ValueError(DAMAGED)
        return np.frombuffer(content, dtype).reshape(head.shape, order="F")

    def _text(self, head: _Head) -> np.ndarray:
        """Read text [n, length] as an array of n strings."""
        kind, content = self._data()
        order = {"<": "-le", ">": "-be"}[self._order] if kind in WIDE else ""
        text = content.decode(TEXTS.get(kind, "latin-1") + order, "replace")
        shape = (1, len(text)) if head.shape[0] == 1 else head.shape
        if len(text) != math.prod(shape):
            raise ValueError(DAMAGED)
        if not text:
            return np.array("")
        letters = np.array([text]).view("U1").reshape(shape, order="F")
        return np.ascontiguousarray(letters).view(f"U{shape[-1]}")
