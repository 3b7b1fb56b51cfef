"""Reading files of unknown size and origin, with no more memory than a file has bytes."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from io import BufferedIOBase, BytesIO
from typing import IO

import numpy as np

from jaxmnist.errors import UsageError

LARGEST_FILE = 8 * 2**30  # bytes, uncompressed; see `largest_file`
LARGEST_CODE_POINT = 0x10FFFF  # of Unicode
PIECE = 2**20  # bytes to read at a time where only a header states how many there are
# A packed file that unpacks to both more bytes than the first number, and more than the second for
# each of its bytes, is refused: that is how a small file takes all memory. zlib reaches 1030 for
# each byte. MNIST's images have 2, binary ones as float64 120, one-hot rows of 62 classes 280, a
# digit on an empty 256×256 canvas 260.
UNPACKED, TIMES = 64 * 2**20, 500
# 3.0 differs from 2.0 only in how it encodes names of fields, which are refused.
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}
LONGEST_HEADER = 10_000  # bytes, of a .npy file's; NumPy reads no longer ones either


def memory() -> int:
    """Return this machine's memory in bytes; `2 * LARGEST_FILE` if the system doesn't report it."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = -1
    return found if found > 0 else 2 * LARGEST_FILE


def largest_file() -> int:
    """Return how many bytes a file may unpack to: half of the memory, at most 8 GiB."""
    return min(LARGEST_FILE, memory() // 2)


def read_up_to(file: BufferedIOBase | IO[bytes], size: int) -> bytearray:
    """Read at most `size` bytes; memory is allocated only for bytes that exist."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(PIECE, size - len(content)))):
        content += piece
    return content


def read_stated(name: str, file: BufferedIOBase | IO[bytes], size: int) -> bytearray:
    """Read the rest of a file whose header states that it has `size` bytes.

    Raises:
      UsageError: it has fewer or more, or `size` is more than can be loaded.
    """
    if size > largest_file():
        raise UsageError(f"{name}: its header states more than can be loaded")
    content = read_up_to(file, size)
    if len(content) < size or file.read(1):
        found = f"only {len(content)}" if len(content) < size else "more"
        raise UsageError(f"{name}: its header states {size} bytes of data, but it has {found}")
    return content


def check_unpacked(name: str, unpacked: int, packed: int) -> None:
    """Raise `UsageError` if so many packed bytes unpack to far more than images do."""
    if unpacked > max(UNPACKED, TIMES * packed):
        raise UsageError(
            f"{name}: unpacks to over {TIMES} times its size, as images hardly do; if you trust"
            " it, store it without compression"
        )


def read_npy(name: str, file: BufferedIOBase | IO[bytes], *, text: bool = False) -> np.ndarray:
    """Read the array in a `.npy` file; its header is checked first.

    Only plain numbers are read, and with `text` plain text too, which can't run code. `name` is
    for errors.
    """
    shape, is_fortran, dtype = _npy_header(name, file)
    if dtype.kind not in ("biufSU" if text else "biuf"):
        what = {"O": "Python objects", "V": "records"}.get(dtype.kind, dtype.name)
        mend = "; save it with array.astype(str)" if text and dtype.kind == "O" else ""
        only = "only plain numbers and text are read" if text else "only plain numbers are read"
        raise UsageError(f"{name}: is an array of {what}; {only}{mend}")
    content = read_stated(name, file, math.prod(shape) * dtype.itemsize)
    if dtype.kind == "U" and content:
        points = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > LARGEST_CODE_POINT:
            raise UsageError(f"{name}: is damaged: its text has characters that don't exist")
    try:
        array = np.frombuffer(content, dtype)
        return array.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, TypeError):  # negative, too many axes, or text of no characters
        raise UsageError(f"{name}: its header states a shape that no array has") from None


def _npy_header(
    name: str, file: BufferedIOBase | IO[bytes]
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and dtype that a `.npy` file's header states; NumPy parses it.

    NumPy's own errors aren't repeated: they advise to trust the file.
    """
    try:
        version = np.lib.format.read_magic(file)
        parse = HEADERS[version]
        length = file.read(2 if version == (1, 0) else 4)
        size = min(int.from_bytes(length, "little"), LONGEST_HEADER)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that Python 2 wrote
            return parse(BytesIO(length + file.read(size)))
    except (UsageError, OSError, EOFError, zlib.error):  # it isn't the header
        raise
    except Exception:  # Python's parser raises anything, also RecursionError and MemoryError
        raise UsageError(
            f"{name}: its header isn't that of a NumPy array; save it again with numpy.save"
        ) from None
