"""Images for prediction: pictures prepared like the training images, and arrays.

What that takes follows from the training images: shapes on a plain ground, all of one size and
centred, as MNIST's, are cut out of a picture and placed likewise, bright on dark or dark on
bright; photographs and textures are only resized.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from jaxmnist.data.array_files import is_idx, read_images
from jaxmnist.data.arrays import (
    ARRAYS,
    EIGHT_BITS,
    OVER,
    Source,
    arranged_images,
    check_images,
    check_levels,
    square_shape,
)
from jaxmnist.data.contents import NPY, ZIP, files_below, head_of, unreadable
from jaxmnist.data.pictures import (
    NAMES,
    NotAPicture,
    Raster,
    bits_of,
    colour_name,
    converted,
    ground_of,
    in_channels,
    read_rasters,
)
from jaxmnist.data.tables import read_rows
from jaxmnist.errors import JaxmnistError, UsageError, local_path
from jaxmnist.files import NOT_STORED

# --- How pictures become images like those that a network was trained on ---

SAMPLE = 2000  # training images that are looked at, evenly spread
NEAR = 0.1  # of the scale; levels closer than that are one ground
STRONG = 0.25  # of the scale; levels further from the ground than that are ink
WORDS = ("auto", "resize")  # of `preparation_for`


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
      word: 'auto', like the training images; 'resize', resized only.
      option: what the word was given as, for errors.

    Raises:
      UsageError: another word, or a model that doesn't know its training images.
    """
    if word not in WORDS:
        raise UsageError(f"{option} must be {' or '.join(WORDS)}, not {word!r}")
    known = model.preparation
    if word == "resize":
        return replace(known or Preparation(model.image_shape, model.scale), placing=None)
    if known is None:
        raise UsageError(
            "the model doesn't say what its training images look like: give a Preparation, or"
            f" {option} resize"
        )
    return known


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


# --- Images for prediction as numbers: `.npy`, IDX, `.npz` and CSV files ---

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


# --- Ink that was cut out, placed in an image as the training images' shapes are ---

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


# --- Images for prediction ---

logger = logging.getLogger("jaxmnist")
ALIKE = 64  # levels; a picture of the right size with a border as near to the ground is an image


@dataclass(frozen=True, eq=False)  # arrays don't compare to a single truth value
class Picture:
    """One image for a network, with the steps that made it.

    Attributes:
      name: what to call it in output: the path, or "path[3]" for one of a stack of images.
      image: uint8 or float32[H, W, C], as the network takes it.
      steps: a phrase for each step, in order; empty if the image is used as it is.
      warnings: a phrase for each reason to doubt the image.
      prepared: whether it was a picture and no array.
    """

    name: str
    image: np.ndarray
    steps: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    prepared: bool = True


def read_pictures(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    model: Takes | Preparation,
    prepare: str = "auto",
) -> np.ndarray:
    """Read images from files, prepared like the images that a model was trained on.

    Args:
      paths: files and folders, or one of them, as `jaxmnist predict` takes them.
      model: a trained model, or a preparation.
      prepare: 'auto' or 'resize': the option `--prepare` of the command.

    Returns:
      uint8 or float32[N, H, W, C], in the order of the paths and, in folders, of the names.

    Raises:
      UsageError: there is no file, or one has no image.

    >>> read_pictures("digit.png", model).shape
    (1, 28, 28, 1)
    """
    preparation = model if isinstance(model, Preparation) else preparation_for(model, prepare)
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found = []
    for path in given:
        for file in files_of(Path(local_path(path))):
            found += read_file(file, preparation)
    if not found:
        raise UsageError("paths names no file")
    for picture in found:
        for line in picture.warnings:
            logger.warning("%s: %s", picture.name, line)
    return np.stack([picture.image for picture in found])


def files_of(path: Path) -> list[Path]:
    """The files of a folder and of the folders in it, in the order of their names; a file itself.

    Hidden and system files are left out. `UsageError` if a folder can't be read or has none, or a
    link in it leads out of it.
    """
    if not path.is_dir():
        return [path]
    if found := files_below(path, path):
        return found
    raise UsageError(f"{path}: has no files")


def read_file(path: Path, preparation: Preparation) -> list[Picture]:
    """Read the images of a file, whose type is determined by its content, not its name.

    Args:
      path: numbers, which are used as they are (see `read_stack`); or a picture (PNG,
        JPEG, BMP, GIF, WebP, TIFF, PPM, and HEIC where pillow-heif is installed), which is
        prepared. Each page of a TIFF file is a picture.
      preparation: how pictures become images.

    Raises:
      UsageError: the file can't be read, is damaged, is too large, is blank, or doesn't suit the
        network.
    """
    channels = preparation.image_shape[2]
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: is a folder or a device, not a file with an image")
        # Whatever Pillow and NumPy warn about is either harmless here or refused below.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays = read_stack(path, preparation)
            if arrays is not None:
                return _as_they_are(path, *arrays, preparation)
            if channels not in (1, 3):
                raise UsageError(
                    f"{path}: is not an array (.npy, .npz, .csv); this network's images have"
                    f" {channels} channels, and pictures give only 1 or 3"
                )
            rasters = read_rasters(path)
    except NotAPicture:
        raise UsageError(
            f"{path}: is not a readable image: {NAMES}, IDX, .npy, .npz or .csv is needed"
        ) from None
    except JaxmnistError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise unreadable(path, error) from None
    names = [str(path)] if len(rasters) == 1 else [f"{path}[{k}]" for k in range(len(rasters))]
    return [
        _prepared(name, raster, preparation) for name, raster in zip(names, rasters, strict=True)
    ]


def _as_they_are(
    path: Path, stack: np.ndarray, single: bool, steps: tuple[str, ...], preparation: Preparation
) -> list[Picture]:
    """The pictures of a stack of arrays."""
    found = []
    for k, image in enumerate(stack):
        unusual = preparation.unusual(image)
        name = str(path) if single else f"{path}[{k}]"
        found.append(Picture(name, image, steps, (unusual,) if unusual else (), False))
    return found


def _prepared(name: str, raster: Raster, preparation: Preparation) -> Picture:
    """Make an image of a picture."""
    height, width, channels = preparation.image_shape
    source, scale = preparation.source, preparation.scale
    pixels, steps = _pixels(name, raster, source)
    if source.pictures and source.transposed:
        pixels = pixels.swapaxes(0, 1)
        steps += (TRANSPOSED,)
    doubts: tuple[str, ...] = ()
    white = _white(pixels, preparation)
    suitable = pixels.shape[:2] == (height, width) and (channels == 3 or pixels.ndim == 2)
    if source.pictures and preparation.as_trained and suitable and white == scale:
        image = in_channels(pixels, channels)
        check_levels(name, image[None], scale)
    else:
        if white != EIGHT_BITS:
            pixels = np.rint(pixels * (EIGHT_BITS / white)).clip(0, EIGHT_BITS).astype(np.uint8)
        image, more, doubts = _resized_or_placed(name, pixels, preparation)
        steps += more
        if scale == EIGHT_BITS:
            image = np.rint(image).astype(np.uint8)
        else:
            image = image * np.float32(scale / EIGHT_BITS)
            steps += (f"white is {scale:g}, as in the training images",)
    unusual = preparation.unusual(image)
    doubts += (unusual,) if unusual else ()
    return Picture(name, image, steps, doubts)


def _pixels(name: str, raster: Raster, source: Source) -> tuple[np.ndarray, tuple[str, ...]]:
    """The pixels of a picture, as training read its like, and the steps.

    uint8[h, w] or uint8[h, w, 3]; or, if training kept levels of more than 8 bits, float32[h, w].
    """
    steps = raster.steps
    largest = float(raster.levels.max(initial=0))
    if not source.pictures:
        source = ARRAYS
    if raster.is_deep and (source.bits is None or (source.bits == 0 and raster.alpha is not None)):
        source = replace(source, bits=bits_of([raster], keep=False))
        if source.bits not in (1, 16):
            steps += (f"read as {source.bits} bits a pixel: its levels reach {largest:g}",)
    if raster.is_deep and source.bits and largest > 2**source.bits - 1:
        raise UsageError(
            f"{name}: its levels reach {largest:g}, and the training pictures have"
            f" {source.bits} bits: use the same scale for both"
        )
    if raster.alpha is not None:
        background = source.background or ground_of(raster)
        source = replace(source, background=background)
        steps += (f"transparency replaced by {colour_name(background)}",)
    return converted(raster, source), steps


def _white(pixels: np.ndarray, preparation: Preparation) -> float:
    """The scale of a picture's levels: that of the training images if it is a picture like theirs.

    A picture of 8 bits with levels far above theirs, such as 255 where they have 0 and 1, isn't.
    """
    source, scale = preparation.source, preparation.scale
    if pixels.dtype != np.uint8:
        return scale
    alike = source.pictures and source.bits != 0 and float(pixels.max()) <= OVER * scale
    return scale if alike else EIGHT_BITS


def _resized_or_placed(
    name: str, pixels: np.ndarray, preparation: Preparation
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Make float32[H, W, C] from 0 to 255 of a picture's pixels of 8 bits; steps and warnings."""
    height, width, channels = preparation.image_shape
    placing = preparation.placing
    doubts: tuple[str, ...] = ()
    same_size = pixels.shape[:2] == (height, width)
    if placing is None or (same_size and _is_image(pixels, placing)):
        image, steps = _resized(pixels, preparation)
        if placing is None and preparation.colour and _is_grey(pixels):
            doubts = ("it has no colours, and the training images have",)
    else:
        image, steps, doubts = _placed(name, pixels, placing, height, width)
    return in_channels(image, channels), steps, doubts


def _placed(
    name: str, pixels: np.ndarray, placing: Placing, height: int, width: int
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Cut the ink out of a picture and place it: float32[H, W], steps and warnings."""
    # Imported here: SciPy's functions of images take a fifth of a second, which no search needs.
    from jaxmnist.data.ink import find_ink

    ink = find_ink(name, pixels)
    image, more = place(ink.levels, placing, height, width)
    steps = ink.steps
    if ink.dark != placing.dark:
        was = "dark ink on a bright ground" if ink.dark else "bright ink on a dark ground"
        steps += (f"inverted: {was}",)
    return image, steps + more, ink.warnings


def _is_grey(pixels: np.ndarray) -> bool:
    """Whether a picture uint8[h, w] or uint8[h, w, 3] has no colours."""
    return pixels.ndim == 2 or bool((pixels[..., :1] == pixels[..., 1:]).all())


def _is_image(pixels: np.ndarray, placing: Placing) -> bool:
    """Whether a picture of the right size is an image already: it has ink on the same ground."""
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float64)
    border = np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])
    near = abs(float(np.median(border)) - 255 * placing.ground) <= ALIKE
    return near and bool(grey.max() > grey.min())


def _resized(pixels: np.ndarray, preparation: Preparation) -> tuple[np.ndarray, tuple[str, ...]]:
    """Scale a whole picture to float32[H, W] or [H, W, 3]; give the steps too."""
    height, width, channels = preparation.image_shape
    steps = []
    picture = Image.fromarray(pixels)
    if channels == 1:
        if not _is_grey(pixels):
            steps.append("converted to grey")
        picture = picture.convert("L")
    else:
        if pixels.ndim == 2:
            steps.append("converted from grey to RGB")
        picture = picture.convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        steps.append(f"scaled as a whole to {height}×{width}")
    return np.asarray(picture, np.float32), tuple(steps)
