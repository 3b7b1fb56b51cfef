"""Images and labels from files: IDX (gzipped or not) and `.npz`.

The IDX format: two zero bytes, a type, the number of axes, each axis's length as a big-endian
32-bit number, then the numbers (Yann LeCun's description of the MNIST files). Only unsigned
bytes (type 8) are read here.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmnist.errors import UsageError

UNSIGNED_BYTES = 8
LARGEST_FILE = 8 * 2**30  # bytes, uncompressed; more than any memory that this program suits

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class Arrays(NamedTuple):
    """A dataset as it was found: images uint8[N, H, W, C] and labels int64[N] of two parts."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzipped if the name ends in `.gz`.

    Args:
      path: the file.
      sha256: of the uncompressed bytes, checked where given.

    Raises:
      UsageError: the file can't be read, isn't IDX, is shorter or longer than its header says,
        or has another SHA-256.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(4)
            axes = head[3] if len(head) == 4 else 0
            shape_bytes = file.read(4 * axes)
            if len(head) < 4 or head[:2] != b"\0\0" or not axes or len(shape_bytes) < 4 * axes:
                raise UsageError(f"{path}: not an IDX file: its header is wrong or cut short")
            if head[2] != UNSIGNED_BYTES:
                raise UsageError(
                    f"{path}: an IDX file of type {head[2]:#x}; only unsigned bytes, 0x8, are read"
                )
            shape = tuple(int(side) for side in np.frombuffer(shape_bytes, ">u4"))
            size = 1
            for side in shape:
                size *= side
            if size > LARGEST_FILE:
                raise UsageError(f"{path}: its header claims {size} bytes, more than can be used")
            # One byte more than the header promises tells a longer file; a shorter one shows too.
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    if len(content) != size:
        found = f"only {len(content)}" if len(content) < size else "more"
        raise UsageError(f"{path}: its header promises {size} bytes of data, it has {found}")
    if sha256 is not None:
        digest = hashlib.sha256(head + shape_bytes + content).hexdigest()
        if digest != sha256:
            raise UsageError(f"{path}: damaged: its SHA-256 is {digest}, not {sha256}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_folder(folder: Path, sha256: dict[str, str] | None = None) -> Arrays:
    """The four IDX files of a folder, named as MNIST's, each with or without `.gz`."""
    found = {}
    for key, name in IDX_NAMES.items():
        # MNIST's files are also handed round as train-images.idx3-ubyte.
        candidates = [
            folder / f"{base}{end}"
            for base in (name, name.replace("-idx", ".idx"))
            for end in ("", ".gz")
        ]
        path = next((path for path in candidates if os.path.isfile(path)), None)
        if path is None:
            raise UsageError(f"{folder}: has no file {name} or {name}.gz")
        found[key] = read_idx(path, None if sha256 is None else sha256[key])
    return check_arrays(str(folder), **found)


def read_npz(path: Path) -> Arrays:
    """The arrays x_train, y_train, x_test and y_test of an `.npz` file; it can't run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > LARGEST_FILE:
            raise UsageError(f"{path}: unpacks to {size} bytes, more than can be used")
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in Arrays._fields if key not in archive]
            if missing:
                raise UsageError(
                    f"{path}: has no array {missing[0]}; it has {', '.join(archive) or 'none'}"
                )
            found = {key: archive[key] for key in Arrays._fields}
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    return check_arrays(str(path), **found)


def check_arrays(
    source: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> Arrays:
    """`Arrays` of these, images with a channel axis; `UsageError` if they don't fit together."""
    parts = {}
    for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        parts[f"x_{part}"] = check_images(f"{source}: x_{part}", images)
        parts[f"y_{part}"] = _check_labels(f"{source}: y_{part}", labels)
        if len(images) != len(labels):
            raise UsageError(f"{source}: {len(images)} {part} images but {len(labels)} labels")
        if len(images) == 0:
            raise UsageError(f"{source}: has no {part} images")
    if parts["x_train"].shape[1:] != parts["x_test"].shape[1:]:
        shapes = [parts[key].shape[1:] for key in ("x_train", "x_test")]
        raise UsageError(f"{source}: training images are {shapes[0]} and test images {shapes[1]}")
    return Arrays(**parts)


def check_images(name: str, images: np.ndarray) -> np.ndarray:
    """Images as uint8[N, H, W, C]; `UsageError` naming `name` if they can't be that."""
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UsageError(f"{name}: images must be (N, H, W) or (N, H, W, C), not {images.shape}")
    if images.dtype != np.uint8:
        whole = images.dtype.kind in "iuf" and bool(
            np.all((images >= 0) & (images <= 255) & (images == np.floor(images)))
        )
        if not whole:
            raise UsageError(
                f"{name}: pixels must be whole numbers from 0 to 255 (fractions times 255,"
                f" rounded), not {images.dtype} of other values"
            )
        images = images.astype(np.uint8)
    return images if images.ndim == 4 else images[..., None]


def _check_labels(name: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UsageError(f"{name}: labels must be (N,), not {labels.shape}")
    if labels.dtype.kind not in "iu" or (
        labels.dtype == np.uint64 and labels.size and labels.max() > 2**63 - 1
    ):
        raise UsageError(f"{name}: labels must be whole numbers, not {labels.dtype}")
    return labels.astype(np.int64)


def reason(error: BaseException) -> str:
    """An exception's message in one line, without the path that the caller names already."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return " ".join(str(error).split()) or type(error).__name__
