"""The ink in a picture: which pixels are the shape that somebody drew, and where it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxmnist.data.ground import LEAST_INK, ink_near_ground, ink_on_plain, ink_on_surface
from jaxmnist.data.shapes import MARKS, at_edge, find_sheet, several, sort_out
from jaxmnist.errors import UsageError

LARGEST = 8 * 10**6  # pixels of a picture in which ink is looked for
SMALLEST = 56  # pixels of the shorter side to which a noisy picture may be reduced
ROUGH = 64.0  # levels of noise; what varies more is no ground
DOUBTFUL = 2.5  # times the noise; weaker ink may be none
CLEAR = 3.0  # times the noise; weaker ink is looked for in averages of pixels too


@dataclass(frozen=True, eq=False)
class Ink:
    """The ink of a picture, cut out.

    levels: float32[h, w], 0 where there is no ink, at most 255.
    dark: whether it is darker than its ground.
    steps: what was left out to find it.
    warnings: what may be wrong with it.
    """

    levels: np.ndarray
    dark: bool
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def find_ink(name: str, pixels: np.ndarray) -> Ink:
    """Find the ink of a picture.

    It is looked for on a smooth ground and, where most of that is covered, on a plain one; in the
    grey picture and, where ink hardly exceeds the noise, in averages of 2×2, 4×4 and 8×8 pixels;
    and where the picture is plain in grey, in each of its colours.

    Args:
      name: what to call the picture in errors.
      pixels: uint8[h, w] grey or uint8[h, w, 3] RGB.

    Raises:
      UsageError: there is no ink, or no ground.
    """
    for steps, grey in _views(pixels):
        found = _clearest(_reduced(grey, math.ceil(math.sqrt(grey.size / LARGEST))))
        if found is not None:
            return dataclasses.replace(found.ink, steps=steps + found.ink.steps)
    if ink_on_surface(_reduced(grey, math.ceil(math.sqrt(grey.size / LARGEST))))[1] > ROUGH:
        raise UsageError(f"{name}: no shape was found in it: its brightness varies everywhere")
    raise UsageError(
        f"{name}: blank: nothing but perhaps a frame stands out from its ground by more than"
        f" {LEAST_INK:g} of 255 levels"
    )


def _views(pixels: np.ndarray) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """A picture in grey, uint8[h, w], then in each of its colours, the richest first; and steps."""
    if pixels.ndim == 2:
        yield (), pixels
        return
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    if (pixels[..., :1] == pixels[..., 1:]).all():
        yield (), grey
        return
    yield ("converted to grey",), grey
    spread = [float(np.ptp(np.percentile(pixels[..., k], (1, 99)))) for k in range(3)]
    for k in sorted(range(3), key=lambda k: -spread[k]):
        name = ("red", "green", "blue")[k]
        yield (f"only its {name} used: it is plain in grey",), pixels[..., k]


def _clearest(grey: np.ndarray) -> _Found | None:
    """The ink of a picture uint8[h, w] at the scale at which noise hides it least."""
    best = None
    reduced = grey
    for factor in (1, 2, 4, 8):
        if factor > 1 and min(grey.shape) < SMALLEST * factor:
            break
        reduced = _reduced(grey, factor)
        found = _find(reduced)
        if found is not None and (best is None or found.contrast > best.contrast):
            best = found
        if found is None and best is not None and best.contrast < CLEAR / 2:
            best = None  # a few pixels of noise, which averages don't have
        if best is not None and best.contrast >= CLEAR:
            break
    if best is None and ink_on_surface(reduced)[1] > ROUGH:
        return _look(ink_on_plain(reduced), reduced)
    return best


def _reduced(grey: np.ndarray, factor: int) -> np.ndarray:
    """The averages of factor × factor pixels."""
    return grey if factor <= 1 else np.asarray(Image.fromarray(grey).reduce(factor))


@dataclass(frozen=True, eq=False)
class _Found:
    """What one way of looking for ink has found.

    ink: the ink.
    contrast: the median of its levels as a multiple of the noise.
    touches: whether the ink touches the picture's edge.
    levels: those of all pixels, float32[h, w].
    mask: the ink and what was left out, bool[h, w].
    """

    ink: Ink
    contrast: float
    touches: bool
    levels: np.ndarray
    mask: np.ndarray


def _find(grey: np.ndarray, inside: bool = False) -> _Found | None:
    """The ink of a picture uint8[h, w]; None if it is blank.

    inside: the picture is a sheet that was found in a larger picture.
    """
    smooth = ink_on_surface(grey)
    is_rough = smooth[1] > ROUGH
    found = _look(smooth, grey, inside)
    if found is not None and not found.touches and MARKS not in found.ink.steps:
        return found
    if min(grey.shape) < SMALLEST or (found is None and not is_rough):
        return None if is_rough else found
    # What looks like ink at the edge may be a shadow with a sharp edge, which is weaker than ink.
    near = _look(ink_near_ground(grey, smooth[2]), grey, inside)
    if near is None or near.touches:
        return None if is_rough else found
    if found is None or found.mask.shape != near.mask.shape:
        return near if is_rough else found
    shadow = found.levels[found.mask & ~near.mask]
    kept = found.levels[found.mask & near.mask]
    weaker = kept.size and shadow.size and np.median(shadow) < 0.8 * np.median(kept)
    return near if is_rough or weaker else found


def _look(
    result: tuple[np.ndarray, float, bool], grey: np.ndarray, inside: bool = False
) -> _Found | None:
    """The shapes in what a function of `ground` has found in uint8[h, w]; see `_find`."""
    levels, noise, dark = result
    least = max(noise, LEAST_INK)
    risen = levels[levels > least]
    if not risen.size:
        return None
    mask: np.ndarray = levels > max(least, float(np.percentile(risen, 95)) / 4)
    sheet = None if dark or inside else find_sheet(mask)
    if sheet is not None:
        found = _find(grey[sheet], inside=True)
        if found is not None:
            steps = ("only the sheet in it used", *found.ink.steps)
            return dataclasses.replace(found, ink=dataclasses.replace(found.ink, steps=steps))
    kept, left_out, steps = sort_out(mask)
    if not kept.any():
        return None
    rows, columns = (np.flatnonzero(kept.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cut = np.where(left_out[box], np.float32(0), levels[box].clip(0, 255))
    touches = at_edge(kept) > 0
    warnings = several(kept[box])
    if touches:
        warnings += ("its ink touches the picture's edge, where a part may be missing",)
    if sheet is not None:
        warnings += ("it may be an empty sheet: only a filled rectangle was found",)
    contrast = float(np.median(levels[kept])) / max(noise, 1.0)
    if contrast < DOUBTFUL:
        warnings += ("its ground is uneven, and what was taken for ink hardly stands out",)
    return _Found(Ink(cut, dark, steps, warnings), contrast, touches, levels, mask)
