"""Images for prediction: from pictures, prepared like the training images, and from arrays."""

from __future__ import annotations

import logging
import os
import stat
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from jaxmnist.data.array_files import read_stack
from jaxmnist.data.arrays import EIGHT_BITS
from jaxmnist.data.contents import reason
from jaxmnist.data.ink import find_ink
from jaxmnist.data.picture_files import read_picture
from jaxmnist.data.placing import place
from jaxmnist.data.preparation import Placing, Preparation, Takes, preparation_for
from jaxmnist.errors import UsageError, local_path

logger = logging.getLogger("jaxmnist")
ALIKE = 64  # levels; a picture of the right size with a border as near to the ground is an image
CLUTTER = ("thumbs.db", "desktop.ini")  # what systems put into folders, beside hidden files


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

    Hidden files, and what systems put into folders, are left out. `UsageError` if a folder can't
    be read or has none.
    """
    if not path.is_dir():
        return [path]

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename or path}: can't be read: {reason(error)}")

    found = [
        Path(folder, name)
        for folder, _, names in os.walk(path, onerror=refuse)
        for name in names
        if not name.startswith(".") and name.lower() not in CLUTTER
    ]
    found = [file for file in found if not set(_hidden(file.relative_to(path)))]
    if not found:
        raise UsageError(f"{path}: has no files")
    return sorted(found)


def _hidden(path: Path) -> list[str]:
    """The hidden folders on a path."""
    return [part for part in path.parts if part.startswith(".")]


def read_file(path: Path, preparation: Preparation) -> list[Picture]:
    """Read the images of a file, whose type is determined by its content, not its name.

    Args:
      path: an array (`.npy`, or `.npz` with an array `images` or test images, or a single one) of
        numbers from 0 to the scale in the shape [H, W, C] or [N, H, W, C], or if C is 1 also
        [H, W] or [N, H, W], or a CSV file with an image a row, which are used as they are; or a
        picture (PNG, JPEG, BMP, GIF, WebP, TIFF, and HEIC where pillow-heif is installed), which
        is prepared.
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
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arrays = read_stack(path, file, preparation)
            if arrays is not None:
                return _as_they_are(path, *arrays, preparation)
            if channels not in (1, 3):
                raise UsageError(
                    f"{path}: is not an array (.npy, .npz, .csv); this network's images have"
                    f" {channels} channels, and pictures give only 1 or 3"
                )
            pixels, steps = read_picture(path, file)
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    return [_prepared(path, pixels, tuple(steps), preparation)]


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


def _prepared(
    path: Path, pixels: np.ndarray, steps: tuple[str, ...], preparation: Preparation
) -> Picture:
    """Make an image of a picture's pixels uint8[h, w] or uint8[h, w, 3]."""
    height, width, channels = preparation.image_shape
    placing = preparation.placing
    doubts: tuple[str, ...] = ()
    if placing is None:
        image, more = _resized(pixels, preparation)
        if preparation.colour and _is_grey(pixels):
            doubts = ("it has no colours, and the training images have",)
    elif pixels.shape[:2] == (height, width) and _is_image(pixels, placing):
        image, more = _resized(pixels, preparation)
    else:
        image, more, doubts = _placed(path, pixels, placing, height, width)
    if channels == 3 and image.ndim == 2:
        image = np.repeat(image[..., None], 3, -1)
    image = image.reshape(height, width, channels)
    scale = preparation.scale
    if scale == EIGHT_BITS:
        image = np.round(image).astype(np.uint8)
    else:
        image = image * np.float32(scale / EIGHT_BITS)
        more = (*more, f"white is {scale:g}, as in the training images")
    unusual = preparation.unusual(image)
    doubts += (unusual,) if unusual else ()
    return Picture(str(path), image, steps + more, doubts)


def _placed(
    path: Path, pixels: np.ndarray, placing: Placing, height: int, width: int
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Cut the ink out of a picture and place it: float32[H, W], steps and warnings."""
    ink = find_ink(path, pixels)
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
