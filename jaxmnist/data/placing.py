"""Ink that was cut out, placed in an image as the training images' shapes are."""

from __future__ import annotations

import numpy as np
from PIL import Image

from jaxmnist.data.preparation import Placing

FAINT = 192  # ink whose strongest pixel is below this level gets its contrast stretched


def place(
    ink: np.ndarray, placing: Placing, height: int, width: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Scale ink into its box, with its aspect ratio kept, and centre it.

    For MNIST's placing that is what MNIST's authors did. Centring moves by whole pixels, and no
    further than the image reaches.

    Args:
      ink: float32[h, w] from 0, no ink, to 255.
      placing: size, centre and levels of shapes in the training images.
      height: H of the result.
      width: W of the result.

    Returns:
      image: float32[H, W] from 0 to 255, of 0 and 255 where the training images are black and
        white.
      steps: what was done, in order.

    References:
      Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits (its web page: size
      normalised to fit in a 20×20 box with the aspect ratio preserved, grey levels from
      anti-aliasing, centred in 28×28 by the centre of mass).
    """
    side = placing.box((height, width, 1))
    rows, columns = (max(1, round(length * side / max(ink.shape))) for length in ink.shape)
    # When they shrink an image, Pillow's filters cover all of the source, which anti-aliases. In
    # floating point, a thin line on a large sheet doesn't round to 0 before it is stretched.
    exact = Image.fromarray(ink.astype(np.float32))
    shape = np.asarray(exact.resize((columns, rows), Image.Resampling.BICUBIC)).clip(0, 255)
    steps = [f"scaled into {side}×{side}"]
    if shape.max() < FAINT:
        steps.append("faint: contrast stretched")
        shape = shape * (255 / shape.max())
    shape = np.round(shape)
    by_mass = placing.centre == "mass"
    steps.append(f"centred by {'centre of mass' if by_mass else 'bounding box'}")
    corner = [
        _corner(shape.sum(axis=1 - axis), length, by_mass)
        for axis, length in enumerate((height, width))
    ]
    image = np.zeros((height, width), np.float32)
    top, left = corner
    image[top : top + rows, left : left + columns] = shape
    if (placing.ground, placing.ink) != (0, 1):
        image = 255 * placing.ground + (placing.ink - placing.ground) * image
    return image, tuple(steps)


def _corner(masses: np.ndarray, length: int, by_mass: bool) -> int:
    """Where a shape with these masses along an axis begins in an image of `length` pixels."""
    room = length - len(masses)
    if not by_mass:
        return room // 2
    masses = masses.astype(np.float64)
    centre = float(masses @ np.arange(len(masses)) / masses.sum())
    return min(max(round(length / 2 - centre), 0), room)
