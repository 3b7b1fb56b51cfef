"""Folders of pictures, a folder for each class: `train/cat/1.png`, or `cat/1.png` without parts."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmnist.data.arrays import Found, Part
from jaxmnist.data.contents import reason
from jaxmnist.data.names import PARTS
from jaxmnist.errors import UsageError
from jaxmnist.reading import largest_file

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
LARGEST_PICTURE = 64 * 10**6  # pixels
HIDDEN = ("Thumbs.db", "desktop.ini", "__MACOSX")  # beside names that begin with a dot
OPAQUE = 255
BRIGHT = 127  # strokes above this level on average are bright, and stand on black


@dataclass
class _Reading:
    """What has been read so far.

    shape: (H, W) of all pictures, which is that of the file `first`.
    size: bytes of pixels.
    left_out: what is wrong with each file that is left out.
    """

    shape: tuple[int, int] | None = None
    first: Path | None = None
    size: int = 0
    left_out: list[str] = field(default_factory=list)


def visible(folder: Path) -> tuple[list[str], list[str]]:
    """Return the names of the folders and of the files in a folder, sorted, without hidden ones."""
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name not in HIDDEN:
                    (folders if entry.is_dir() else files).append(entry.name)
    except OSError as error:
        raise UsageError(f"{folder}: can't be read: {reason(error)}") from None
    return sorted(folders), sorted(files)


def read_class_folders(folder: Path) -> Found:
    """Read pictures of one size, in a folder for each class.

    Pictures are greyscale, or RGB if one of them has colours. Files that are no pictures are left
    out, which a note says. Transparency becomes black under bright strokes and white under dark
    ones, the same in all pictures.

    Args:
      folder: holds folders of classes, or train/ and test/ (also val/) that hold them.

    Raises:
      UsageError: no pictures, or pictures of different sizes.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns about is refused here, or harmless
        return _read_parts(folder)


def _parts(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of the parts, or `folder` itself as the training part; and notes.

    A folder that is named like a part is one if it holds folders; else it is a class.
    """
    parts: dict[str, Path] = {}
    notes = []
    for name in visible(folder)[0]:
        part = PARTS.get(name.lower())
        if part is None:
            continue
        if not visible(folder / name)[0]:
            notes.append(f"note: {folder / name} has no folders of classes, and is no {part} part")
        elif part in parts:
            raise UsageError(f"{folder}: {parts[part].name} and {name} are both the {part} part")
        else:
            parts[part] = folder / name
    if not parts:
        return {"train": folder}, []
    if "train" not in parts:
        found = parts[min(parts)].name
        raise UsageError(f"{folder}: has a folder {found}, but no folder train with classes in it")
    return parts, notes


def _read_parts(folder: Path) -> Found:
    parts, notes = _parts(folder)
    reading = _Reading()
    read = {part: _read_classes(path, reading) for part, path in parts.items()}
    if reading.left_out:
        several = len(reading.left_out) > 1
        what = f"{len(reading.left_out)} files are" if several else "a file is"
        notes.append(f"note: {what} left out; {'the first: ' * several}{reading.left_out[0]}")
    strokes = _brightness([image for images, _ in read.values() for image in images])
    background = 255 if strokes is None or strokes <= BRIGHT else 0
    if strokes is not None:
        colour = "white" if background else "black"
        notes.append(f"note: transparency of the pictures is replaced by {colour}")
    opaque = {
        part: [_composited(image, background) for image in images]
        for part, (images, _) in read.items()
    }
    coloured = any(
        image.ndim == 3 and (image[..., :1] != image[..., 1:]).any()
        for images in opaque.values()
        for image in images
    )
    found: dict[str, Part] = {}
    for part, images in opaque.items():
        stack = np.stack([_in_channels(image, 3 if coloured else 1) for image in images])
        found[part] = stack, np.array(read[part][1])
    return Found.of(found, notes)


def _read_classes(folder: Path, reading: _Reading) -> tuple[list[np.ndarray], list[str]]:
    """Read the pictures of one part, and the name of the class of each."""
    images: list[np.ndarray] = []
    labels: list[str] = []
    classes, others = visible(folder)
    reading.left_out += [f"{folder / name} lies in no class's folder" for name in others]
    for name in classes:
        inner, files = visible(folder / name)
        before = len(images)
        for file in files:
            path = folder / name / file
            try:
                image = _read(path, reading)
            except UsageError:
                raise
            except Exception as error:  # given damaged bytes, decoders raise anything
                wrong = "is no picture"
                if not isinstance(error, UnidentifiedImageError):
                    wrong = f"can't be read: {reason(error)}"
                reading.left_out.append(f"{path} {wrong}")
                continue
            images.append(image)
            labels.append(name)
        if inner and before == len(images):
            raise UsageError(
                f"{folder / name}: has no pictures but the folder {inner[0]}; --data-dir must name"
                " the folder that holds the folders of classes"
            )
        reading.left_out += [f"{folder / name / other} is a folder in a class's" for other in inner]
    if not images:
        raise UsageError(f"{folder}: has no pictures in folders of classes")
    return images, labels


def _read(path: Path, reading: _Reading) -> np.ndarray:
    """Read a picture: uint8[H, W] grey, [H, W, 3] RGB or [H, W, 4] RGB with transparency."""
    if not path.is_file():  # a pipe would block
        raise OSError("is no regular file")
    with Image.open(path, formats=FORMATS) as picture:
        if picture.width * picture.height > LARGEST_PICTURE:
            raise UsageError(f"{path}: is too large: over {LARGEST_PICTURE // 10**6} megapixels")
        shape = picture.height, picture.width
        upright = ImageOps.exif_transpose(picture) if picture.format != "PNG" else picture
        pixels = _pixels(upright)
    if reading.shape is None:
        reading.shape, reading.first = pixels.shape[:2], path
    if pixels.shape[:2] != reading.shape:
        height, width = reading.shape
        raise UsageError(
            f"{reading.first} is {height}×{width} pixels and {path} {shape[0]}×{shape[1]}: resize"
            " the pictures to one size, such as 28×28"
        )
    reading.size += pixels.nbytes
    if reading.size > largest_file():
        raise UsageError(f"{path}: the pictures up to this one are more than can be loaded")
    return pixels


def _pixels(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I"):  # 16 bits of grey; 65535 is 257 × 255
        return ((np.array(picture).astype(np.int32).clip(0, 65535) + 128) // 257).astype(np.uint8)
    if picture.has_transparency_data:
        pixels = np.array(picture.convert("RGBA"))
        return pixels[..., :3] if pixels[..., 3].min() == OPAQUE else pixels
    return np.array(picture.convert("L" if picture.mode in ("1", "L", "F") else "RGB"))


def _brightness(images: list[np.ndarray]) -> float | None:
    """Return the mean level of what is not transparent; None if nothing is transparent."""
    total = weight = 0.0
    for image in images:
        if image.shape[2:] == (4,):
            alpha = image[..., 3].astype(np.float64)
            total += float((image[..., :3].mean(2) * alpha).sum())
            weight += float(alpha.sum())
    return total / weight if weight else None


def _composited(image: np.ndarray, background: int) -> np.ndarray:
    """Return a picture without transparency, on a background of this level."""
    if image.shape[2:] != (4,):
        return image
    alpha = image[..., 3:].astype(np.float32) / OPAQUE
    pixels: np.ndarray = np.rint(image[..., :3] * alpha + background * (1 - alpha))
    return pixels.astype(np.uint8)


def _in_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """Return a picture as uint8[H, W, C]; RGB without colours becomes grey for one channel."""
    if image.ndim == 2:
        return np.repeat(image[..., None], channels, 2)
    return image[..., :channels]
