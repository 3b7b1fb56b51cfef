"""Files of arrays: IDX, `.npz`, `.npy` and MATLAB.

The IDX format: two zero bytes, a type, the number of axes, each axis's length as a big-endian
32-bit number, then the numbers, big-endian too (Yann LeCun's description of the MNIST files).
SciPy reads MATLAB files of version 5 to 7.2, such as EMNIST's.
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, cast

import numpy as np

from jaxmnist.data.arrays import (
    Arrays,
    Found,
    Part,
    check_arrays,
)
from jaxmnist.data.contents import (
    NPY,
    UNPACK,
    ZIP,
    choose,
    head_of,
    listed,
    open_file,
    parse,
    what_it_is,
)
from jaxmnist.errors import UsageError
from jaxmnist.files import PIECE, check_unpacked, largest_file, memory, read_npy, read_stated

# --- IDX files, as MNIST's are ---

# Signed bytes, type 9, are left out: nobody publishes images so, and a flipped bit looks like them.
TYPES = {8: ">u1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
MOST_AXES = 4  # of an array of images
QMNIST_COLUMNS = 8  # of a label in QMNIST's files: the class, then where the digit comes from

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def is_idx(head: bytes) -> bool:
    """Whether a file that begins so is an IDX file."""
    return len(head) >= 4 and head[:2] == b"\0\0" and head[2] in TYPES and head[3] > 0


def read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """Read the array in an IDX file, gzipped or not.

    Args:
      path: the file.
      sha256: the SHA-256 that the uncompressed bytes must have; None for no check.

    Raises:
      UsageError: the file can't be read, isn't IDX, is shorter or longer than its header says,
        or has another SHA-256.
    """
    with open_file(path) as file:
        head = file.read(4)
        axes = head[3] if len(head) == 4 else 0
        shape_bytes = file.read(4 * axes)
        if len(head) < 4 or head[:2] != b"\0\0" or not axes or len(shape_bytes) < 4 * axes:
            known = what_it_is(head + shape_bytes) if head else None
            wrong = known or "not an IDX file: its header is wrong or cut short"
            raise UsageError(f"{path}: {wrong}")
        if axes > MOST_AXES:
            raise UsageError(f"{path}: is an IDX file of {axes} axes; images have at most 4")
        if head[2] not in TYPES:
            raise UsageError(f"{path}: is an IDX file of the unknown type {head[2]:#x}")
        dtype = np.dtype(TYPES[head[2]])
        shape = tuple(int(side) for side in np.frombuffer(shape_bytes, ">u4"))
        size = math.prod(shape) * dtype.itemsize
        content = read_stated(str(path), file, size)
    if sha256 is not None:
        digest = hashlib.sha256(head + shape_bytes)
        digest.update(content)
        if digest.hexdigest() != sha256:
            raise UsageError(f"{path}: damaged: its SHA-256 is {digest.hexdigest()}, not {sha256}")
    if size == 0:
        raise UsageError(f"{path}: its header says that it is empty: {shape}")
    return np.frombuffer(content, dtype).reshape(shape)


def read_idx_folder(folder: Path, sha256: dict[str, str] | None = None) -> Arrays:
    """Read the four IDX files of a folder, named exactly like MNIST's, with or without `.gz`."""
    found = {}
    for key, name in IDX_NAMES.items():
        path = next(
            (path for end in ("", ".gz") if os.path.isfile(path := folder / f"{name}{end}")), None
        )
        if path is None:
            raise UsageError(f"{folder}: has no file {name} or {name}.gz")
        found[key] = read_idx(path, None if sha256 is None else sha256[key])
    return check_arrays(str(folder), **found)


def without_origin(labels: np.ndarray) -> np.ndarray:
    """Return the classes of QMNIST's labels [N, 8], their first column; others as they are."""
    qmnist = labels.dtype == ">i4" and labels.ndim == 2 and labels.shape[1] == QMNIST_COLUMNS
    if not qmnist or (labels.sum(1) == 1).all():  # one-hot rows
        return labels
    classes: np.ndarray = labels[:, 0]
    return classes


# --- NumPy's files ---

LONGEST_LIST = 16 * 2**20  # bytes of a zip archive's list of members, each of which takes over 46
PARTS: dict[int, tuple[str, ...]] = {
    2: ("train",),
    4: ("train", "test"),
    6: ("train", "validation", "test"),
}


def read_npz(path: Path) -> Found:
    """Read the arrays of a dataset from an `.npz` file, which can't run code.

    Their names say what they are; see `contents`. Arrays without names, arr_0, arr_1 and so on, are
    recognised by their shapes.
    """
    with open_file(path) as file, open_zip(file) as archive:
        return read_parts(path, archive)


def read_parts(path: Path, archive: zipfile.ZipFile) -> Found:
    """Read the arrays of a dataset from an open archive of the file at `path`; see `read_npz`."""
    names = npz_names(archive)
    others = [name for name in archive.namelist() if not name.endswith((".npy", "/"))]
    if others and not names:
        raise UsageError(
            f"{path}: is a zip archive of {len(others)} files, such as {listed(others[:1])}; unpack"
            " it and name its folder"
        )
    chosen = choose(str(path), names, "array")
    nameless = [f"arr_{i}" for i in range(len(names))]
    if not chosen and (len(names) not in PARTS or sorted(names) != nameless):
        raise UsageError(f"{path}: has no array x_train; it has {listed(names)}")
    wanted = [name for pair in chosen.values() for name in pair] or nameless
    size = sum(archive.getinfo(f"{name}.npy").file_size for name in wanted)
    if size > largest_file():
        raise UsageError(f"{path}: unpacks to {size} bytes, more than can be loaded")
    if not chosen:
        return by_shape(
            str(path), [read_npz_member(path, archive, name, text=True) for name in nameless]
        )
    return Found.of(
        {
            part: (
                read_npz_member(path, archive, images),
                read_npz_member(path, archive, labels, text=True),
            )
            for part, (images, labels) in chosen.items()
        }
    )


def by_shape(source: str, arrays: Sequence[np.ndarray]) -> Found:
    """Recognise the parts of two, four or six arrays without names: images have more axes.

    Images stand in the order training, (validation,) test, and labels too; either may come first.
    """
    axes = max(array.ndim for array in arrays)
    images = [array for array in arrays if array.ndim == axes]
    labels = [array for array in arrays if array.ndim < axes]
    lengths = [[len(array) for array in kind if array.ndim] for kind in (images, labels)]
    if axes < 2 or lengths[0] != lengths[1]:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise UsageError(
            f"{source}: can't tell images from labels by the shapes {shapes}; name the arrays"
            " x_train, y_train, x_test, y_test"
        )
    return in_order(list(zip(images, labels, strict=True)))


def in_order(pairs: Sequence[Part]) -> Found:
    """Return one to three pairs of images and labels as training, (validation,) test parts."""
    return Found.of(dict(zip(PARTS[2 * len(pairs)], pairs, strict=True)))


class _Listed:
    """A file whose list of members isn't read if it is far longer than a data set's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > LONGEST_LIST:  # zipfile reads nothing else that is long at once
            raise ValueError(f"it lists too many files: {UNPACK}")
        return self._file.read(size)


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip archive for reading; its list of members is read."""
    return zipfile.ZipFile(cast(IO[bytes], _Listed(file)))


def npz_names(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays in an `.npz` file."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npz_member(
    path: Path, archive: zipfile.ZipFile, name: str, *, text: bool = False
) -> np.ndarray:
    """Read the array `name` of the `.npz` file at `path`; see `read_npy`."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Of other methods zipfile unpacks all that it has read, however much that becomes.
        raise UsageError(f"{path}: {name} uses a compression that NumPy doesn't write: {UNPACK}")
    # Members may share their bytes, so that it is the archive's size that counts.
    check_unpacked(f"{path}: {name}", entry.file_size, path.stat().st_size)
    with archive.open(entry) as member:
        return read_npy(f"{path}: {name}", member, text=text)


def read_array(path: Path, *, text: bool = False) -> np.ndarray:
    """Read the one array of an IDX, `.npy` or `.npz` file, gzipped or not.

    Args:
      path: the file.
      text: whether the array may be one of text, as labels may.

    Raises:
      UsageError: the file is something else, or damaged.
    """
    head = head_of(path)
    if is_idx(head):
        return without_origin(read_idx(path)) if text else read_idx(path)
    if head.startswith(NPY):
        with open_file(path) as file:
            return read_npy(str(path), file, text=text)
    if head.startswith(ZIP):
        with open_file(path) as file, open_zip(file) as archive:
            names = npz_names(archive)
            if len(names) != 1:
                raise UsageError(f"{path}: must have a single array; it has {listed(names)}")
            return read_npz_member(path, archive, names[0], text=text)
    known = what_it_is(head)
    raise UsageError(f"{path}: {known or 'is no IDX, .npy or .npz file with an array'}")


def read_images(path: Path) -> np.ndarray:
    """Read images for prediction from an IDX, `.npy` or `.npz` file, gzipped or not.

    Of an `.npz` file that is its array `images`, its test images or its only array.
    """
    if not head_of(path).startswith(ZIP):
        return read_array(path)
    with open_file(path) as file, open_zip(file) as archive:
        names = npz_names(archive)
        tests = [n for n in names if (p := parse(n)) and (p.part, p.kind) == ("test", "images")]
        suitable = [name for name in names if name == "images"] or tests or names
        if len(suitable) != 1:
            raise UsageError(
                f"{path}: needs an array named images or x_test, or a single array; it has"
                f" {listed(names)}"
            )
        return read_npz_member(path, archive, suitable[0])


def read_array_files(folder: Path, chosen: Mapping[str, tuple[str, str]]) -> Found:
    """Read a dataset of one array a file: IDX, `.npy` or `.npz`.

    Args:
      folder: where the files lie.
      chosen: the names of the files with images and with labels, by part; see `contents.choose`.
    """
    return Found.of(
        {
            part: (read_array(folder / images), read_array(folder / labels, text=True))
            for part, (images, labels) in chosen.items()
        }
    )


# --- MATLAB files of version 5 to 7.2 ---

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
    they are; see `contents`.

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
