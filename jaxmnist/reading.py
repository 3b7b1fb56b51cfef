"""Files of unknown size and origin: never more memory is taken than a file has bytes."""

from __future__ import annotations

import math
import os
from io import BufferedIOBase
from typing import IO

import numpy as np

from jaxmnist.errors import UsageError

LARGEST_FILE = 8 * 2**30  # bytes, uncompressed; see `largest_file`
PIECE = 2**20  # bytes that are read at a time where only a header says how many will come


def memory() -> int:
    """Bytes of memory that this machine has; twice the largest file's if the system doesn't say."""
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        found = -1
    return found if found > 0 else 2 * LARGEST_FILE


def largest_file() -> int:
    """Bytes that a file may unpack to: half of the memory, and 8 GiB at most."""
    return min(LARGEST_FILE, memory() // 2)


def read_up_to(file: BufferedIOBase | IO[bytes], size: int) -> bytearray:
    """At most `size` bytes; memory is taken only for those that are there."""
    content = bytearray()
    while len(content) < size and (piece := file.read(min(PIECE, size - len(content)))):
        content += piece
    return content


def read_npy(name: str, file: BufferedIOBase | IO[bytes], size: int) -> np.ndarray:
    """The array in a `.npy` of `size` bytes; its header's claims are checked first.

    It holds plain numbers, which can't run code. `name` is for errors.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    else:  # 3.0 differs from 2.0 in the encoding of the names of fields, which are refused
        shape, is_fortran, dtype = np.lib.format.read_array_header_2_0(file)
    if dtype.kind not in "biuf":
        raise UsageError(f"{name}: an array of {dtype.name}; only plain numbers are read")
    promised, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if promised != found or min(shape, default=0) < 0:
        raise UsageError(f"{name}: its header promises {promised} bytes of data, it has {found}")
    if promised > largest_file():
        raise UsageError(f"{name}: has {promised} bytes of data, more than can be used")
    array = np.frombuffer(read_up_to(file, promised), dtype)
    return array.reshape(shape, order="F" if is_fortran else "C")
