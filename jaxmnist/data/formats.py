"""Images and labels from files: IDX (gzipped or not) and `.npz`.

The IDX format: two zero bytes, a type, the number of axes, each axis's length as a big-endian
32-bit number, then the numbers (Yann LeCun's description of the MNIST files). Only unsigned
bytes (type 8) are read here.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmnist.errors import UsageError, one_line
from jaxmnist.reading import largest_file, read_npy, read_up_to

UNSIGNED_BYTES = 8
MOST_AXES = 4  # of an array of images
EIGHT_BITS = 255.0  # the largest pixel of 8-bit images
OVER = 8  # times the scale; images with larger pixels are on another scale

IDX_NAMES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


class Arrays(NamedTuple):
    """A dataset as it was loaded: images [N, H, W, C] and labels int64[N] of two parts.

    Images are uint8 where all pixels are whole numbers from 0 to 255, else float32, in both parts.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """Read the array in an IDX file of unsigned bytes, gzipped if the name ends in `.gz`.

    Args:
      path: the file.
      sha256: the SHA-256 that the uncompressed bytes must have; None for no check.

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
            if axes > MOST_AXES:
                raise UsageError(f"{path}: is an IDX file of {axes} axes; images have at most 4")
            if head[2] != UNSIGNED_BYTES:
                raise UsageError(
                    f"{path}: is an IDX file of type {head[2]:#x}; only 0x8, unsigned bytes, is"
                    " read"
                )
            shape = tuple(int(side) for side in np.frombuffer(shape_bytes, ">u4"))
            size = math.prod(shape)
            if size > largest_file():
                raise UsageError(f"{path}: its header states {size} bytes, more than can be loaded")
            # One byte more than the header states shows whether the file is longer.
            content = read_up_to(file, size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    if len(content) != size:
        found = f"only {len(content)}" if len(content) < size else "more"
        raise UsageError(f"{path}: its header states {size} bytes of data, but it has {found}")
    if sha256 is not None:
        digest = hashlib.sha256(head + shape_bytes)
        digest.update(content)
        if digest.hexdigest() != sha256:
            raise UsageError(f"{path}: damaged: its SHA-256 is {digest.hexdigest()}, not {sha256}")
    if size == 0:
        raise UsageError(f"{path}: its header says that it is empty: {shape}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_idx_folder(folder: Path, sha256: dict[str, str] | None = None) -> Arrays:
    """Read the four IDX files of a folder, named like MNIST's, each with or without `.gz`."""
    found = {}
    for key, name in IDX_NAMES.items():
        # MNIST's files are also distributed as train-images.idx3-ubyte.
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
    """Read x_train, y_train, x_test and y_test from an `.npz` file, which can't run code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = npz_names(archive)
            for key in Arrays._fields:
                if key not in names:
                    raise UsageError(
                        f"{path}: has no array {key}; it has {', '.join(names)[:200] or 'none'}"
                    )
            size = sum(archive.getinfo(f"{key}.npy").file_size for key in Arrays._fields)
            if size > largest_file():
                raise UsageError(f"{path}: unpacks to {size} bytes, more than can be loaded")
            found = {key: read_npz_member(path, archive, key) for key in Arrays._fields}
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    return check_arrays(str(path), **found)


def npz_names(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays in an `.npz` file."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npz_member(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Read the array `name` of the `.npz` file at `path`; see `read_npy`."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as member:
        return read_npy(f"{path}: {name}", member, entry.file_size)


def check_arrays(
    source: str, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray, y_test: np.ndarray
) -> Arrays:
    """Return `Arrays`, images with a channel axis; `UsageError` if they don't fit together."""
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
    if parts["x_train"].dtype != parts["x_test"].dtype:
        parts |= {key: parts[key].astype(np.float32) for key in ("x_train", "x_test")}
    check_levels(f"{source}: x_test", parts["x_test"], scale_of(source, parts["x_train"]))
    return Arrays(**parts)


def check_images(name: str, images: np.ndarray) -> np.ndarray:
    """Return images [N, H, W, C]: uint8 if all pixels are whole numbers 0 to 255, else float32.

    Args:
      name: what to call them in errors.
      images: [N, H, W] or [N, H, W, C] of any numbers or booleans.

    Raises:
      UsageError: another shape, or pixels that are negative, not finite, or not numbers.
    """
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UsageError(f"{name}: images must be (N, H, W) or (N, H, W, C), not {images.shape}")
    if images.dtype.kind not in "biuf":
        raise UsageError(f"{name}: pixels must be numbers, not {images.dtype}")
    if images.dtype != np.uint8:
        # NumPy warns about values beyond float32's range, which are refused here.
        with np.errstate(over="ignore"):
            real = images.astype(np.float32)
        if not np.isfinite(real).all():
            raise UsageError(f"{name}: has pixels that are not finite numbers")
        if images.size and images.min() < 0:
            raise UsageError(
                f"{name}: has negative pixels, down to {real.min():g}; shift the values so that"
                " black is 0"
            )
        # Check the original array: float32 would round some fractions to whole numbers.
        is_whole = bool(np.all(images <= 255)) and bool(np.all(images == np.floor(images)))
        images = images.astype(np.uint8) if is_whole else real
    return images if images.ndim == 4 else images[..., None]


def scale_of(name: str, images: np.ndarray) -> float:
    """Return the number to divide pixels of such images by, so that they range from 0 to about 1.

    It is 255 if 8-bit images have a value above 127, else the largest value, so that images of 0
    and 1, of 0..16, or of 12 bits become as bright as others.

    Args:
      name: what to call the images in errors.
      images: training images, as `check_images` gives them.

    Raises:
      UsageError: all pixels are 0.
    """
    largest = float(images.max())
    if largest == 0:
        raise UsageError(f"{name}: all pixels of the training images are 0")
    return EIGHT_BITS if images.dtype == np.uint8 and largest > EIGHT_BITS // 2 else largest


def check_levels(name: str, images: np.ndarray, scale: float) -> None:
    """Raise `UsageError` if `images`, as `check_images` gives them, are not on this scale.

    Pixels may exceed the scale, as test images may be brighter than all training images, but at
    most `OVER` times; and fractions up to 1 don't belong to a scale above `OVER`.
    """
    largest = float(images.max(initial=0))
    if largest > OVER * scale or (images.dtype != np.uint8 and largest <= 1 and scale > OVER):
        raise UsageError(
            f"{name}: its pixels reach {largest:g}, and those of the training images {scale:g};"
            " use the same scale for both"
        )


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
    """Return an exception's message as one line, without the path, which the caller names."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return one_line(error)
