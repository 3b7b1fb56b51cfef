"""MATLAB files of version 5 to 7.2: EMNIST's, and those with arrays x and y; SciPy reads them."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from jaxmnist.data.archives import open_zip, read_parts
from jaxmnist.data.arrays import Found
from jaxmnist.data.contents import open_file
from jaxmnist.errors import UsageError
from jaxmnist.reading import PIECE, check_unpacked, largest_file, memory

MATLAB = b"MATLAB 5.0 MAT-file"
HEADER = 128  # bytes before the first variable
COMPRESSED = 15  # the type of a variable that zlib has packed
PROGRAM = Path(__file__).with_name("matlab_process.py")
# What SciPy may take: bytes, and for each byte of the unpacked file; seconds, and bytes a second.
LEAST_MEMORY, MEMORY = 2**29, 4
LEAST_SECONDS, SPEED = 60, 10**6


def read_matlab(path: Path) -> Found:
    """Read a dataset from a MATLAB file, gzipped or not.

    That is EMNIST's structure `dataset.train.images` and so on, or arrays whose names say what
    they are; see `names`.

    Raises:
      UsageError: the file holds something else, is damaged, or unpacks to too much.
    """
    with open_file(path) as file, TemporaryFile() as plain, TemporaryFile() as arrays:
        _unpack(path, file, plain)
        _convert(plain, arrays)
        with open_zip(arrays) as archive:
            return read_parts(path, archive)


def _unpack(path: Path, file: IO[bytes], plain: IO[bytes]) -> None:
    """Write a MATLAB file without compression."""
    head = file.read(HEADER)
    plain.write(head)
    order = "<" if head.endswith(b"IM") else ">"
    packed = path.stat().st_size
    while len(tag := file.read(8)) == 8:
        kind, left = struct.unpack(f"{order}2I", tag)
        unpacker = zlib.decompressobj() if kind == COMPRESSED else None
        plain.write(b"" if unpacker else tag)
        while not (unpacker and unpacker.eof) and (piece := file.read(min(PIECE, left))):
            left -= len(piece)
            while piece:
                plain.write(unpacker.decompress(piece, PIECE) if unpacker else piece)
                piece = unpacker.unconsumed_tail if unpacker else b""
                check_unpacked(str(path), plain.tell(), packed)
                if plain.tell() > largest_file():
                    raise UsageError(f"{path}: unpacks to more bytes than can be loaded")
        if left or (unpacker and not unpacker.eof):
            raise EOFError("it is cut short")
    plain.write(tag)  # SciPy says what is wrong with the rest


def _convert(plain: IO[bytes], arrays: IO[bytes]) -> None:
    """Let SciPy write the arrays of a MATLAB file as an `.npz` file, in a process."""
    size = plain.tell()
    plain.seek(0)
    bounds = min(LEAST_MEMORY + MEMORY * size, memory()), LEAST_SECONDS + size // SPEED
    # Isolated, it runs no code of the working directory, nor what variables name.
    folders = [folder for folder in sys.path if os.path.realpath(folder) != os.getcwd()]
    ended = subprocess.run(
        [sys.executable, "-IB", "-Wignore", PROGRAM, *map(str, bounds), *folders],
        stdin=plain,
        stdout=arrays,
        stderr=subprocess.PIPE,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # each takes memory
    )
    if ended.returncode == -signal.SIGXCPU:
        raise ValueError("SciPy's reader took too long")
    if ended.returncode < 0:
        raise ValueError("SciPy's reader crashed on it")
    if ended.returncode:
        raise ValueError(ended.stderr.decode(errors="replace").strip().rpartition("\n")[2])
