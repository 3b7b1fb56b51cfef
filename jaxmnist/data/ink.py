"""The ink in a picture: which pixels are the shape that somebody drew, and where it is.

Light falls unevenly on paper, so that the background is a surface, and what differs from it is ink.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxmnist.errors import UsageError

# --- The ground of a picture: the paper's, board's or canvas' own brightness at each pixel ---

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


# --- Patches of ink in a picture: shapes, frames around them, marks at the edge, sheets ---

BAND = 0.12  # of a side; marks that stay so near to the picture's edge are no shapes
GAP = 0.03  # of the longer side; twice that is the widest gap between pieces of one shape
FRAME, MARKS = "a frame left out", "marks at its edge left out"
SIDES = np.ones((3, 3))  # pixels that touch by a corner belong together


def at_edge(mask: np.ndarray) -> float:
    """The fraction of a mask's outermost pixels that it fills."""
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return float(edge.mean())


def find_sheet(mask: np.ndarray) -> tuple[slice, slice] | None:
    """Where a filled rectangle is that covers most of the picture, without its rim, or None."""
    labels, count = ndimage.label(mask, SIDES)
    if not count:
        return None
    areas = np.bincount(labels.ravel())[1:]
    largest = int(areas.argmax())
    box = ndimage.find_objects(labels)[largest]
    sides = [part.stop - part.start for part in box]
    patch = labels[box] == largest + 1
    if math.prod(sides) < mask.size / 3 or patch.mean() < 0.6:
        return None
    if ndimage.binary_fill_holes(patch).mean() < 0.8:
        return None
    rows, columns = (
        slice(part.start + rim, part.stop - rim)
        for part, rim in ((part, 1 + (part.stop - part.start) // 50) for part in box)
    )
    return (rows, columns) if min(sides) >= 10 else None


def sort_out(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Which ink, bool[h, w], is of shapes, which is of frames and marks at the edge, and steps.

    The rest, neither of the two, are specks: patches smaller than a twentieth of the largest.
    """
    labels, count = ndimage.label(mask, SIDES)
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    areas[0] = 0
    boxes = ndimage.find_objects(labels)
    order = np.argsort(-areas)[: min(20, count)]
    large = [int(k) for k in order if areas[k] * 1000 >= areas[order[0]]]
    frames = {k for k in large if _is_frame(labels[boxes[k - 1]] == k, boxes, k, large, mask.shape)}
    rest = [k for k in large if k not in frames]
    marks = {k for k in rest if _is_mark(labels, boxes[k - 1], k)}
    if len(marks) == len(rest):
        marks = set()
    left_out = np.zeros(count + 1, bool)
    left_out[list(frames | marks)] = True
    areas[left_out] = 0
    kept = areas >= max(1, float(areas.max()) / 20)
    steps = (FRAME,) * bool(frames) + (MARKS,) * bool(marks)
    return kept[labels], left_out[labels], steps


def _is_frame(
    patch: np.ndarray,
    boxes: list[tuple[slice, slice]],
    own: int,
    others: list[int],
    size: tuple[int, ...],
) -> bool:
    """Whether a patch, bool[h, w], is ink all along its bounding box, around another or the edge.

    boxes: the bounding boxes of all patches, the first that of patch 1.
    own: the patch's number.
    others: the numbers of the patches that it may go around.
    size: of the picture.
    """
    depths = [max(1, round(0.08 * side)) for side in patch.shape]
    sides = (
        patch[: depths[0]].any(0),
        patch[-depths[0] :].any(0),
        patch[:, : depths[1]].any(1),
        patch[:, -depths[1] :].any(1),
    )
    if min(float(side.mean()) for side in sides) < 0.8 or patch.mean() > 0.5:
        return False
    around = boxes[own - 1]
    if patch.shape == size and not patch[_inside(size)].any():
        return True
    return any(
        all(
            a.start < b.start and b.stop < a.stop for a, b in zip(around, boxes[k - 1], strict=True)
        )
        for k in others
        if k != own
    )


def _is_mark(labels: np.ndarray, box: tuple[slice, slice], own: int) -> bool:
    """Whether a patch touches the picture's edge and stays near it."""
    touches = any(
        part.start == 0 or part.stop == side for part, side in zip(box, labels.shape, strict=True)
    )
    if not touches:
        return False
    area = int((labels[box] == own).sum())
    return int((labels[_inside(labels.shape)] == own).sum()) <= area / 5


def _inside(size: tuple[int, ...]) -> tuple[slice, ...]:
    """The part of a picture that isn't near its edge."""
    depths = (max(1, round(BAND * side)) for side in size)
    return tuple(slice(depth, side - depth) for depth, side in zip(depths, size, strict=True))


def several(cut: np.ndarray) -> tuple[str, ...]:
    """A warning if shapes, bool[h, w], are several."""
    scale = min(1.0, 100 / max(cut.shape))
    sides = tuple(max(1, math.ceil(side * scale)) for side in cut.shape[::-1])
    small = np.asarray(Image.fromarray(np.uint8(255) * cut).resize(sides, Image.Resampling.BOX)) > 0
    # Pieces of one shape, such as strokes with a gap, lie near each other.
    reach = max(1, round(GAP * max(small.shape)))
    padded = np.pad(small, reach)
    labels, count = ndimage.label(ndimage.binary_dilation(padded, SIDES, iterations=reach), SIDES)
    areas = np.bincount(labels[padded], minlength=count + 1)
    several = int((areas >= areas.max() / 6).sum())
    if several < 2:
        return ()
    return (
        f"{several} separate shapes were found and taken for one: crop the picture if they are"
        " several",
    )


# --- The ink: which pixels are the shape that somebody drew ---

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
    """The shapes in what one of the functions above has found in uint8[h, w]; see `_find`."""
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
