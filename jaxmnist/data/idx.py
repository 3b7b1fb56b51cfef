"""IDX files, as MNIST's are.

The format: two zero bytes, a type, the number of axes, each axis's length as a big-endian 32-bit
number, then the numbers, big-endian too (Yann LeCun's description of the MNIST files).
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import numpy as np

from jaxmnist.data.arrays import Arrays, check_arrays
from jaxmnist.data.contents import open_file, what_it_is
from jaxmnist.errors import UsageError
from jaxmnist.reading import read_stated

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
