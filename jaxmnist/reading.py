"""Reading files of unknown size and origin, with no more memory than a file has bytes."""

from __future__ import annotations

import math
import os
import warnings
import zlib
from io import SEEK_CUR, SEEK_END, SEEK_SET, BufferedIOBase, BytesIO, RawIOBase
from typing import IO, TYPE_CHECKING

import numpy as np

from jaxmnist.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LARGEST_FILE = 8 * 2**30  # bytes, uncompressed; see `largest_file`
LARGEST_CODE_POINT = 0x10FFFF  # of Unicode
PIECE = 2**20  # bytes to read at a time where only a header states how many there are
PACKED_PIECE = 2**14  # packed bytes to read at a time
# A packed file that unpacks to both more bytes than the first number, and more than the second for
# each of its bytes, is refused: that is how a small file takes all memory. zlib reaches 1030 for
# each byte. MNIST's images have 2, binary ones as float64 120, one-hot rows of 62 classes 280, a
# digit on an empty 256×256 canvas 260.
UNPACKED, TIMES = 64 * 2**20, 500
UNPACK = "unpack it and name what comes out of it"
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


def check_unpacked(name: str, unpacked: int, packed: int, mend: str = UNPACK) -> None:
    """Raise `UsageError` if so many packed bytes unpack to far more than images do."""
    if unpacked > max(UNPACKED, TIMES * packed):
        raise UsageError(
            f"{name}: unpacks to over {TIMES} times its size, as images hardly do; if you trust"
            f" it, {mend}"
        )


class Unpacked(RawIOBase):
    """What a gzip file holds, or a zlib stream inside a file, unpacked as it is read.

    Reading raises `UsageError` as soon as it has unpacked to too much, see `check_unpacked`;
    `EOFError` if the file is cut short; and `zlib.error` if it is damaged.

    Args:
      name: what to call it in errors.
      file: it is read from its position on, and closed together with a gzip file.
      size: bytes of the zlib stream; None for a gzip file, which may have several members.
      mend: what to do about a file that unpacks to too much.
    """

    def __init__(
        self, name: str, file: IO[bytes], size: int | None = None, mend: str = UNPACK
    ) -> None:
        self._name, self._file, self._size, self._mend = name, file, size, mend
        self._start = file.tell()
        self._begin()

    def _begin(self) -> None:
        self._file.seek(self._start)
        self._position = self._taken = 0  # bytes unpacked, bytes read
        self._packed = b""
        self._next_stream()

    def _next_stream(self) -> None:
        # 16 more than the bits of the largest window stand for gzip.
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS + (16 if self._size is None else 0))

    def _take(self) -> bool:
        """Read further packed bytes; False if there are none."""
        left = PACKED_PIECE if self._size is None else self._size - self._taken
        self._packed = self._file.read(min(PACKED_PIECE, left))
        self._taken += len(self._packed)
        return bool(self._packed)

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Unpack as many bytes as are at hand, at most as many as the buffer has room for."""
        room = memoryview(buffer).cast("B")
        content = b""
        while len(room) and not content:
            if self._unpacker.eof:
                if self._size is not None or not (self._packed or self._take()):
                    break
                self._packed = self._packed.lstrip(b"\0")  # zeros may follow a gzip file
                if self._packed:
                    self._next_stream()
                continue
            content = self._unpacker.decompress(self._packed, len(room))
            # zlib may have more at hand when all packed bytes are with it.
            used_up = not content and not self._unpacker.eof
            self._packed = self._unpacker.unconsumed_tail or self._unpacker.unused_data
            if used_up and not self._packed and not self._take():
                raise EOFError("is cut short")
        room[: len(content)] = content
        self._position += len(content)
        check_unpacked(self._name, self._position, self._taken, self._mend)
        return len(content)

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        """Go to a position; backwards, all is unpacked anew."""
        if whence == SEEK_END:
            while self.read(PIECE):
                pass
        offset += self._position if whence in (SEEK_CUR, SEEK_END) else 0
        if offset < 0:
            raise ValueError("is damaged: it leads to a place before its beginning")
        if offset < self._position:
            self._begin()
        while self._position < offset and self.read(min(PIECE, offset - self._position)):
            pass
        return self._position

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Close it, and the gzip file."""
        if self._size is None:
            self._file.close()
        super().close()


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
    except (ValueError, TypeError):  # too many axes, or text of no characters
        raise UsageError(f"{name}: its header states a shape that no array has") from None


def _npy_header(
    name: str, file: BufferedIOBase | IO[bytes]
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, order and dtype that a `.npy` file's header states; NumPy parses it.

    NumPy's own errors aren't repeated: they advise to trust the file.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError
        is_short = version == (1, 0)
        length = file.read(2 if is_short else 4)
        size = int.from_bytes(length, "little")
        if size > LONGEST_HEADER:
            raise ValueError
        header = BytesIO(length + file.read(size))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that Python 2 wrote
            # 3.0 differs from 2.0 only in how it encodes names of fields, which are refused.
            shape, is_fortran, dtype = (
                np.lib.format.read_array_header_1_0(header)
                if is_short
                else np.lib.format.read_array_header_2_0(header)
            )
        if not all(0 <= side < 2**63 for side in shape):
            raise ValueError
    except (UsageError, OSError, EOFError, zlib.error):  # it isn't the header
        raise
    except Exception:  # Python's parser raises anything, also RecursionError and MemoryError
        raise UsageError(
            f"{name}: its header isn't that of a NumPy array; save it again with numpy.save"
        ) from None
    return shape, is_fortran, dtype
