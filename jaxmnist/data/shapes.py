"""Patches of ink in a picture: shapes, frames around them, marks at the edge, sheets."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

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
