"""How pictures become images like those that a network was trained on.

What that takes follows from the training images: shapes on a plain ground, all of one size and
centred, as MNIST's, are cut out of a picture and placed likewise, bright on dark or dark on
bright; photographs and textures are only resized.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from jaxmnist.data.arrays import ARRAYS, EIGHT_BITS, Source
from jaxmnist.errors import UsageError
from jaxmnist.files import NOT_STORED

SAMPLE = 2000  # training images that are looked at, evenly spread
NEAR = 0.1  # of the scale; levels closer than that are one ground
STRONG = 0.25  # of the scale; levels further from the ground than that are ink
WORDS = ("auto", "mnist", "inverted", "resize")  # of `preparation_for`


@dataclass(frozen=True)
class Placing:
    """How shapes stand on the plain ground of an image.

    ground: the level of the ground, as a fraction of the images' scale.
    ink: the level of the shapes, likewise; darker or brighter than the ground.
    size: the longer side of a shape's bounding box, as a fraction of the image's shorter side.
    centre: what is at the image's centre: the shape's centre of "mass" or that of its "box".
    """

    ground: float
    ink: float
    size: float
    centre: Literal["mass", "box"]

    def __post_init__(self) -> None:
        levels = 0 <= self.ground <= 1 and 0 <= self.ink <= 1
        if not levels or self.ink == self.ground or not 0 < self.size <= 1:
            raise ValueError("not a placing")

    @property
    def dark(self) -> bool:
        """Whether shapes are darker than the ground."""
        return self.ink < self.ground

    def box(self, image_shape: tuple[int, int, int]) -> int:
        """The longer side of a shape in an image of (H, W, C), in pixels."""
        return max(1, round(self.size * min(image_shape[:2])))


MNIST = Placing(0.0, 1.0, 20 / 28, "mass")
INVERTED = Placing(1.0, 0.0, 20 / 28, "mass")


@dataclass(frozen=True)
class Preparation:
    """How pictures become images for a network.

    image_shape: (H, W, C) of the images; not stored with the rest, which is read with (0, 0, 0).
    scale: the scale of their pixels, see `Dataset`; not stored either.
    placing: how shapes are placed; None if pictures are only resized.
    colour: whether the training images are known to have colours.
    brightness: the range of the training images' means, as fractions of the scale, or None.
    source: what was decided for all files of the training images.
    as_trained: whether pictures like the training pictures are used as they are.
    """

    image_shape: tuple[int, int, int] = field(default=(0, 0, 0), metadata=NOT_STORED)
    scale: float = field(default=EIGHT_BITS, metadata=NOT_STORED)
    placing: Placing | None = None
    colour: bool = False
    brightness: tuple[float, float] | None = None
    source: Source = ARRAYS
    as_trained: bool = field(default=True, metadata=NOT_STORED)

    def describe(self) -> str:
        """What happens to pictures, as the end of a sentence: 'dark ink on a bright ground, …'."""
        height, width = self.image_shape[:2]
        placing = self.placing
        if placing is None:
            return f"as they are, resized to {height}×{width}"
        ink, ground = ("dark", "bright") if placing.dark else ("bright", "dark")
        side = placing.box(self.image_shape)
        centre = "centre of mass" if placing.centre == "mass" else "bounding box"
        return f"{ink} ink on a {ground} ground, scaled into {side}×{side}, centred by {centre}"

    def describe_transposition(self) -> str | None:
        """Which files are transposed, as a sentence; None if none are."""
        if not self.source.transposed:
            return None
        which = "pictures are transposed too; give arrays and tables upright"
        if not self.source.pictures:
            which = "arrays and tables are transposed too; give pictures upright"
        return f"The training images were transposed: {which}."

    def unusual(self, image: np.ndarray) -> str | None:
        """What shows that an image [H, W, C] isn't like the training images; None if nothing."""
        if self.brightness is None:
            return None
        low, high = self.brightness
        mean = float(image.mean(dtype=np.float64)) / self.scale
        if low <= mean <= high:
            return None
        cause = "; bright and dark look exchanged" if low <= 1 - mean <= high else ""
        return (
            f"its mean brightness is {mean:.2f}, and that of the training images {low:.2f} to"
            f" {high:.2f}{cause}"
        )


class Takes(Protocol):
    """What takes images, such as a trained model."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""

    @property
    def scale(self) -> float:
        """The scale of pixels."""

    @property
    def preparation(self) -> Preparation | None:
        """How pictures are prepared like the training images; None if that isn't known."""


def preparation_for(model: Takes, word: str = "auto", option: str = "prepare") -> Preparation:
    """The preparation that a word names.

    Args:
      model: what takes the images.
      word: 'auto', like the training images; 'mnist', like MNIST's digits; 'inverted', like those,
        but dark on a bright ground; 'resize', resized only.
      option: what the word was given as, for errors.

    Raises:
      UsageError: another word, or a model that doesn't know its training images.
    """
    if word not in WORDS:
        raise UsageError(f"{option} must be one of {', '.join(WORDS)}, not {word!r}")
    known = model.preparation
    if word == "auto":
        if known is None:
            raise UsageError(
                f"the model doesn't say what its training images look like: give {option}"
                f" {', '.join(WORDS[1:-1])} or {WORDS[-1]}"
            )
        return known
    placing = {"mnist": MNIST, "inverted": INVERTED}.get(word)
    known = known or Preparation(model.image_shape, model.scale)
    return dataclasses.replace(known, placing=placing, as_trained=placing is None)


def preparation_of(images: np.ndarray, scale: float, source: Source = ARRAYS) -> Preparation:
    """The preparation that makes pictures like `images`.

    Of at most `SAMPLE` images, evenly spread over all, it looks at the means, at differences
    between the channels, and at shapes on a plain ground (`_placing_of`).

    Args:
      images: training images, uint8 or float32[N, H, W, C].
      scale: the scale of their pixels; see `Dataset`.
      source: what was decided for all of their files.
    """
    sample = images[:: math.ceil(len(images) / SAMPLE)]
    levels = sample.astype(np.float32) / np.float32(scale)
    low, high = map(float, np.quantile(levels.mean((1, 2, 3)), (0.001, 0.999)))
    beyond = max((high - low) / 10, 0.005)  # what others of the same kind may exceed the range by
    colour = bool(np.ptp(levels, axis=3).mean() > 0.02)
    height, width, channels = images.shape[1:]
    placing = None
    if channels in (1, 3) and not colour and min(height, width) > 2:
        placing = _placing_of(levels.mean(3))
    brightness = (round(low - beyond, 4), round(high + beyond, 4))
    shape = (height, width, channels)
    return Preparation(shape, float(scale), placing, colour, brightness, source)


def _placing_of(levels: np.ndarray) -> Placing | None:
    """How shapes stand in images float32[N, H, W] from 0 to 1; None if they are no such images.

    They are if most border pixels have one level, the ground; if what differs from it strongly
    is nearly all brighter or nearly all darker; and if there is at most half as much of that at
    the border as in the inner half of the images. All numbers are medians over the images.
    """
    height, width = levels.shape[1:]
    edge = np.ones((height, width), bool)
    edge[1:-1, 1:-1] = False
    border = levels[:, edge]
    ground = float(np.median(border))
    near = np.abs(border - ground) <= NEAR
    if near.mean() < 0.5:
        return None
    bright, dark = (int((sign * (levels - ground) > STRONG).sum()) for sign in (1, -1))
    if min(bright, dark) > 0.1 * max(bright, dark) or bright == dark:
        return None
    sign = 1 if bright > dark else -1
    strength = sign * (levels - ground)
    strong = strength > STRONG
    inner = strong[:, height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
    if strong[:, edge].mean() > inner.mean() / 2:
        return None
    noise = float(np.quantile(np.abs(border - ground)[near], 0.99))
    shapes = strength[strong.any((1, 2))]
    contrast = float(np.median(shapes.max((1, 2))))
    found = shapes > max(contrast / 20, 1.5 * noise)
    sides, boxes, masses = zip(*(_extent(found * shapes, axis) for axis in (2, 1)), strict=True)
    size = float(np.median(np.maximum(*sides))) / min(height, width)
    # How far the centres of boxes and of masses scatter says which of them was centred.
    box, mass = (sum(_scatter(axis) for axis in centres) for centres in (boxes, masses))
    ground, ink = _extreme(ground), _extreme(ground + sign * contrast)
    if ground == ink:
        return None
    return Placing(ground, ink, round(min(1.0, size), 4), "box" if box < mass else "mass")


def _extent(shapes: np.ndarray, across: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of shapes [N, H, W] summed across an axis: lengths, centres of boxes and of masses, [N]."""
    mass = shapes.sum(across)
    filled, length = mass > 0, mass.shape[1]
    first = filled.argmax(1)
    last = length - 1 - filled[:, ::-1].argmax(1)
    centre = (mass @ np.arange(length)) / mass.sum(1)
    return last + 1 - first, (first + last) / 2, centre


def _scatter(values: np.ndarray) -> float:
    """The mean absolute deviation from the median."""
    return float(np.abs(values - np.median(values)).mean())


def _extreme(level: float) -> float:
    """A level as 0 or 1 if it is nearly or beyond that, so that noise doesn't grey pictures."""
    level = min(max(level, 0.0), 1.0)
    return float(round(level)) if abs(level - round(level)) < 0.02 else round(level, 4)
