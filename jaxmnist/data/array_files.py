"""Images for prediction as numbers: `.npy`, IDX, `.npz` and CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxmnist.data.archives import read_images
from jaxmnist.data.arrays import OVER, arranged_images, check_images, check_levels, square_shape
from jaxmnist.data.contents import NPY, ZIP, head_of
from jaxmnist.data.idx import is_idx
from jaxmnist.data.preparation import Preparation
from jaxmnist.data.tables import read_rows
from jaxmnist.errors import UsageError

LONG_HEAD = 2**16  # bytes at a file's start that say whether it is CSV
TRANSPOSED = "transposed, as in training"


def read_stack(
    path: Path, preparation: Preparation
) -> tuple[np.ndarray, bool, tuple[str, ...]] | None:
    """Read the images of a file of numbers, whose type is determined by its content.

    They may have the shape [H, W, C] or [N, H, W, C], if C is 1 also [H, W] or [N, H, W]; or, as in
    training, channels that come first, or rows of pixels [N, D]. Rows and columns are swapped if
    those of the training arrays were.

    Args:
      path: `.npy`, IDX, `.npz` with an array `images`, test images or a single array; or CSV, an
        image a row, with or without a header and a column of labels; see `tables`. All may be
        gzipped.
      preparation: shape and scale of the images.

    Returns:
      None if it is another file, else
      stack: uint8 or float32[N, H, W, C].
      single: whether the file has one image, without the axis N.
      steps: what was done with the images.

    Raises:
      UsageError: the images don't suit the network.
    """
    head = head_of(path, LONG_HEAD)
    source = preparation.source
    if head.startswith((NPY, ZIP)) or is_idx(head):
        array = read_images(path)
    elif _is_csv(path, head):
        array = read_rows(path, source.label).pixels
    else:
        return None
    return _stack(path, array, preparation)


def _is_csv(path: Path, head: bytes) -> bool:
    """Whether a file is CSV: by its name, or since it begins with a line of many fields."""
    first = head.split(b"\n", 1)[0]
    if path.name.lower().endswith((".csv", ".csv.gz")):
        return b"\0" not in head
    try:
        text = first.decode("utf-8-sig")
    except UnicodeDecodeError:
        return False
    printed = all(c.isprintable() or c in "\t\r" for c in text)
    return printed and max(map(text.count, ",;\t")) >= 35


def _stack(
    path: Path, array: np.ndarray, preparation: Preparation
) -> tuple[np.ndarray, bool, tuple[str, ...]]:
    """One image or a stack of them as a stack, checked; see `read_stack`."""
    height, width, channels = preparation.image_shape
    swapped = preparation.source.transposed and not preparation.source.pictures
    if swapped:
        height, width = width, height
    found = array.shape
    last, first = (height, width, channels), (channels, height, width)
    shapes = {last, first, (height, width) if channels == 1 else last}
    single = found in shapes and found[1:] not in shapes
    stack = array[None] if single else array
    rows = len(found) == 2 and square_shape(found[1]) == last
    if not rows and stack.shape[1:] not in shapes:
        raise UsageError(
            f"{path}: is an array {found}; this network takes images {last}, or a stack of them,"
            f" {('N', *last)}".replace("'", "")
            + ", which are transposed" * swapped
        )
    steps: tuple[str, ...] = ()
    if rows:
        stack, note = arranged_images(stack)
        steps = (str(note),)
    elif stack.shape[1:] == first != last:
        stack = np.moveaxis(stack, 1, -1)
        steps = ("its channels were the first axis of an image, and are now the last",)
    stack = stack.reshape(-1, *last)
    if swapped:
        stack = np.ascontiguousarray(stack.swapaxes(1, 2))
        steps += (TRANSPOSED,)
    stack = check_images(str(path), stack)
    if len(stack) == 0:
        raise UsageError(f"{path}: has no images")
    check_levels(str(path), stack, preparation.scale)
    largest = float(stack.max())
    if largest < preparation.scale / OVER:
        steps += (
            f"used as it is, though its largest pixel is {largest:g}, and that of the training"
            f" images {preparation.scale:g}",
        )
    return stack, single, steps
