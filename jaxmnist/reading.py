"""Reading files of unknown size and origin, with no more memory than a file has bytes."""

from __future__ import annotations

import math
import os
from io import BufferedIOBase
from typing import IO

import numpy as np

from jaxmnist.errors import UsageError

LARGEST_FILE = 8 * 2**30  # bytes, uncompressed; see `largest_file`
LARGEST_CODE_POINT = 0x10FFFF  # of Unicode
PIECE = 2**20  # bytes to read at a time where only a header states how many there are


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


def read_npy(
    name: str, file: BufferedIOBase | IO[bytes], size: int, *, text: bool = False
) -> np.ndarray:
    """Read the array in a `.npy` file of `size` bytes; its header is checked first.

    Only plain numbers are read, and with `text` plain text too, which can't run code. `name` is
    for errors.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # 3.0 differs from 2.0 only in how it encodes names of fields, which are refused
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in ("biufSU" if text else "biuf"):
        what = "Python objects" if dtype.kind == "O" else dtype.name
        mend = "; save it with array.astype(str)" if text and dtype.kind == "O" else ""
        only = "only plain numbers and text are read" if text else "only plain numbers are read"
        raise UsageError(f"{name}: is an array of {what}; {only}{mend}")
    promised, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if promised != found or min(shape, default=0) < 0:
        raise UsageError(f"{name}: its header states {promised} bytes of data, but it has {found}")
    if promised > largest_file():
        raise UsageError(f"{name}: has {promised} bytes of data, more than can be loaded")
    content = read_up_to(file, promised)
    if dtype.kind == "U" and content:
        points = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if points.max() > LARGEST_CODE_POINT:
            raise UsageError(f"{name}: is damaged: its text has characters that don't exist")
    array = np.frombuffer(content, dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
