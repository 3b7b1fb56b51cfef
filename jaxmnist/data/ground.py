"""The ground of a picture: the paper's, board's or canvas' own brightness at each pixel.

Light falls unevenly on paper, so that the ground is a surface, and what differs from it is ink.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

LEAST_INK = 16.0  # levels from the ground; less may be JPEG noise on a plain surface
SMALL = 96  # pixels of the longer side at which a surface is fitted
DARKEST = 40.0  # levels; light as weak as that isn't made up for
POWERS = ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))  # of y and x, in a surface
CLOSE = 12.0  # levels from the surface that may be ground in the first of its fits


def ink_on_surface(grey: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Find what differs from a smooth ground: a polynomial of second degree.

    The surface is fitted to the outermost pixels, whose ink counts little as the sum of absolute
    differences is made least, and then to all that lie near it. That takes light from one side,
    a vignette, and ink over most of a picture that leaves its border free.

    Args:
      grey: uint8[h, w].

    Returns:
      ink: float32[h, w], levels by which pixels differ from the ground in the ink's direction;
        for dark ink, as if the ground were white.
      noise: levels that noise of the ground doesn't exceed: six standard deviations, estimated as
        nine median absolute deviations.
      dark: whether the ink is darker than the ground.
    """
    small = grey.astype(np.float64)
    if max(grey.shape) > SMALL:
        sides = (max(1, round(side * SMALL / max(grey.shape))) for side in grey.shape[::-1])
        reduced = Image.fromarray(grey).resize(tuple(sides), Image.Resampling.BOX)
        small = np.asarray(reduced, np.float64)
    y, x = _axes(*small.shape)
    terms = np.stack([(y**i * x**j).ravel() for i, j in POWERS], 1)
    edge = _edge(small.shape).ravel()
    values = small.ravel()
    weights = edge.astype(np.float64)
    for _ in range(12):  # iteratively reweighted least squares, for the least absolute differences
        surface = terms @ _solve(terms, values, weights)
        weights = edge / np.maximum(np.abs(values - surface), 0.5)
    for close in (CLOSE, CLOSE, CLOSE / 2, CLOSE / 2):
        away = np.abs(values - surface)
        reach = max(close, 4.5 * min(float(np.median(away)), float(np.median(away[edge]))))
        factors = _solve(terms, values, (away <= reach).astype(np.float64))
        surface = terms @ factors
    y, x = _axes(*grey.shape)
    ground = np.zeros(grey.shape, np.float32)
    for (i, j), factor in zip(POWERS, factors, strict=True):
        ground += np.float32(factor) * y.astype(np.float32) ** i * x.astype(np.float32) ** j
    ground = ground.round(2).clip(0, 255)
    return _ink(grey, ground)


def ink_on_plain(grey: np.ndarray) -> tuple[np.ndarray, float, bool]:
    """Find what differs from one level: shapes that fill a picture up to its edge.

    The levels are divided in two by Otsu's threshold, the one with the largest variance between
    the parts; the ground is the median of the part that has most of the outermost pixels.
    Arguments and results are those of `ink_on_surface`.

    References:
      N. Otsu: A threshold selection method from gray-level histograms (1979).
    """
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below, sums = counts.cumsum(), (counts * np.arange(256)).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = (sums[-1] * below - sums * below[-1]) ** 2 / (below * (below[-1] - below))
    bright = grey > int(np.nan_to_num(between).argmax())
    edge = bright[_edge(grey.shape)]
    part = grey[bright == (2 * int(edge.sum()) > edge.size)]
    part = (part if part.size else grey).astype(np.float32)
    level = np.median(part)
    ground = np.full(grey.shape, level, np.float32)
    return _ink(grey, ground, 9 * float(np.median(np.abs(part - level))))


def ink_near_ground(grey: np.ndarray, dark: bool) -> tuple[np.ndarray, float, bool]:
    """Find what differs from its surroundings: strokes thinner than a quarter of the picture.

    It keeps a ground with sharp shadows, where `ink_on_surface` takes a shadow for ink. Its ground
    is the morphological closing of the picture for dark ink, and the opening for bright ink.
    Results are those of `ink_on_surface`.

    Args:
      grey: uint8[h, w].
      dark: whether to look for dark ink.
    """
    smooth = ndimage.median_filter(grey, 3)
    window = max(3, min(grey.shape) // 4)
    closing = ndimage.grey_closing if dark else ndimage.grey_opening
    return _ink(smooth, closing(smooth, window).astype(np.float32), dark=dark)


def _ink(
    grey: np.ndarray, ground: np.ndarray, noise: float | None = None, dark: bool | None = None
) -> tuple[np.ndarray, float, bool]:
    """Ink, noise and direction, from the ground float32[h, w].

    noise: where it is not to be estimated from the whole picture and from its edge.
    dark: the direction, where that isn't the one in which there is more.
    """
    if noise is None:
        away = np.abs(ground - grey)
        noise = 9 * min(float(np.median(away)), float(np.median(away[_edge(grey.shape)])))
    found = []
    for is_dark in (True, False) if dark is None else (dark,):
        difference = (ground - grey) if is_dark else (grey - ground)
        ink = np.where(difference > max(noise, 0.5), difference, np.float32(0))
        if is_dark:
            ink *= 255 / np.maximum(ground, DARKEST)
        found.append((ink, is_dark, float(ink[ink > LEAST_INK].sum())))
    ink, is_dark, _ = max(found, key=lambda each: each[2])
    return ink, noise, is_dark


def _edge(shape: tuple[int, ...]) -> np.ndarray:
    """The outermost pixels of [h, w], a twenty-fifth of the shorter side deep: bool[h, w]."""
    depth = max(1, min(shape) // 25)
    edge = np.ones(shape, bool)
    edge[depth:-depth, depth:-depth] = False
    return edge


def _axes(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the columns of a picture as numbers from −1 to 1: float64[h, 1], [1, w]."""
    return np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]


def _solve(terms: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The factors of terms [n, 6] with the least weighted squared differences from values [n]."""
    weighted = terms * weights[:, None]
    # A small picture may leave factors open: the smallest ones are taken.
    solution: np.ndarray = np.linalg.lstsq(weighted.T @ terms, weighted.T @ values, rcond=1e-10)[0]
    return solution
