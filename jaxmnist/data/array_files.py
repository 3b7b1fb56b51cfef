"""Images for prediction as numbers: `.npy`, `.npz` and CSV files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from jaxmnist.data.archives import npz_names, read_npz_member
from jaxmnist.data.arrays import OVER, check_images, check_levels
from jaxmnist.data.preparation import Preparation
from jaxmnist.data.tables import read_rows
from jaxmnist.errors import UsageError
from jaxmnist.reading import read_npy

IMAGES = ("images", "x_test", "test_images")  # arrays of an .npz, the first that it has
HEAD = 2**16  # bytes at a file's start that say whether it is CSV


def read_stack(
    path: Path, file: BinaryIO, preparation: Preparation
) -> tuple[np.ndarray, bool, tuple[str, ...]] | None:
    """Read the images of a file of numbers, whose type is determined by its content.

    Args:
      path: the file, for errors.
      file: its bytes: `.npy`; `.npz` with an array of `IMAGES` or a single one; or CSV, an image
        a row, with or without a header and a column of labels; see `tables`.
      preparation: shape and scale of the images.

    Returns:
      None if it is another file, else
      stack: uint8 or float32[N, H, W, C].
      single: whether the file has one image, without the axis N.
      steps: what was done with the images.

    Raises:
      UsageError: the images don't suit the network.
    """
    head = file.read(HEAD)
    size = file.seek(0, 2)
    file.seek(0)
    if head[:6] == b"\x93NUMPY":
        array = read_npy(str(path), file, size)
    elif head[:4] == b"PK\3\4":
        array = _read_npz(path, file)
    elif _is_csv(path, head):
        array = read_rows(path)[0]
    else:
        return None
    return _stack(path, array, preparation)


def _read_npz(path: Path, file: BinaryIO) -> np.ndarray:
    """Read the images of an `.npz` file; of a dataset, the test images."""
    with zipfile.ZipFile(file) as archive:
        names = npz_names(archive)
        name = next((name for name in IMAGES if name in names), None)
        if name is None and len(names) != 1:
            raise UsageError(
                f"{path}: needs an array named {', '.join(IMAGES[:-1])} or {IMAGES[-1]}, or a"
                f" single array; it has {', '.join(names)[:200] or 'none'}"
            )
        return read_npz_member(path, archive, name or names[0])


def _is_csv(path: Path, head: bytes) -> bool:
    """Whether a file is CSV: by its name, or since it begins with a line of many fields."""
    first = head.split(b"\n", 1)[0]
    if path.suffix.lower() == ".csv":
        return b"\0" not in head
    printed = all(byte in b"\t\r" or 32 <= byte < 127 for byte in first)
    return printed and max(map(first.count, b",;\t")) >= 35


def _stack(
    path: Path, array: np.ndarray, preparation: Preparation
) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    """One image or a stack of them as a stack, checked; see `read_stack`."""
    height, width, channels = image_shape = preparation.image_shape
    single = [image_shape] + [(height, width)] * (channels == 1)
    steps: tuple[str, ...] = ()
    first = (channels, height, width)
    if array.shape[1:] == first != image_shape or (
        array.shape == first != image_shape and array.shape[1:] not in single
    ):
        array = np.moveaxis(array, -3, -1)
        steps = ("its channels were the first axis of an image, and are now the last",)
    if array.shape not in single and array.shape[1:] not in single:
        raise UsageError(
            f"{path}: is an array {array.shape}; this network takes images {image_shape}, or a"
            f" stack of them, {('N', *image_shape)}".replace("'", "")
        )
    stack = check_images(str(path), array.reshape(-1, *image_shape))
    if len(stack) == 0:
        raise UsageError(f"{path}: has no images")
    check_levels(str(path), stack, preparation.scale)
    largest = float(stack.max())
    if largest < preparation.scale / OVER:
        steps += (
            f"used as it is, though its largest pixel is {largest:g}, and that of the training"
            f" images {preparation.scale:g}",
        )
    return stack, array.shape in single, steps
