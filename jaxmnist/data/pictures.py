"""Images for prediction: from pictures, prepared like the training images, and from arrays."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmnist.data.array_files import TRANSPOSED, read_stack
from jaxmnist.data.arrays import ARRAYS, EIGHT_BITS, OVER, Source, check_levels
from jaxmnist.data.contents import files_below, unreadable
from jaxmnist.data.ink import find_ink
from jaxmnist.data.picture_files import (
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
from jaxmnist.data.preparation import Placing, Preparation, Takes, preparation_for
from jaxmnist.errors import JaxmnistError, UsageError, local_path

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
      prepare: 'auto', 'mnist', 'inverted' or 'resize': the option `--prepare` of the command.

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
      path: numbers, which are used as they are (see `array_files.read_stack`); or a picture (PNG,
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
