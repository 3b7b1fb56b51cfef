"""The one reader of pictures: what a file holds, upright, and how that becomes pixels.

Training and prediction both read files here. What can only be decided for all pictures together,
the background of transparent ones and the meaning of levels of more than 8 bits, is decided for the
training pictures and kept with the model (`arrays.Source`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxmnist.data.arrays import Source
from jaxmnist.errors import UsageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
NAMES = "PNG, JPEG, BMP, GIF, WebP, TIFF, PPM"
LARGEST_PICTURE = 64 * 10**6  # pixels; more than a phone's camera takes
OPAQUE = 255
PALE = 170  # strokes above this level are put on black where they were on nothing
LEAST_LEVEL = 64  # of 255; 16 bits of color whose upper 8 stay below it have too few levels
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # EXIF's tag
SUBFILE, REDUCED_OR_MASK = 254, 0b101  # TIFF's tag NewSubfileType: no page of its own
# How to turn pixels [h, w, …] upright, by EXIF's orientation (EXIF 2.3).
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}

RGB = tuple[int, int, int]


class NotAPicture(UsageError):
    """A file is no picture, or one of a format that isn't read."""


@dataclass(frozen=True, eq=False)
class Raster:
    """A picture as its file holds it, upright.

    pixels: uint8[h, w] grey or [h, w, 3] RGB; int32 or float32[h, w] for levels of more than 8
      bits.
    alpha: uint8[h, w], below 255 where the picture is transparent; None if it is opaque.
    steps: a phrase for each thing that was done to it.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    steps: tuple[str, ...] = ()

    @property
    def is_deep(self) -> bool:
        """Whether its levels have more than 8 bits."""
        return self.pixels.dtype != np.uint8


def read_rasters(path: Path, file: BinaryIO) -> list[Raster]:
    """Read the pictures of a file: the pages of a TIFF file, or the first frame of an animation.

    Pages of another size than the first, and those that TIFF marks as previews or masks, are left
    out, which the steps of the first say.

    Raises:
      NotAPicture: the file is no picture, or one of another format.
      UsageError: it is too large, or its levels can't be read. Damaged files raise whatever Pillow
        raises.
    """
    try:
        picture = _open(path, file)
    except Image.DecompressionBombError:
        raise _too_large(path) from None
    pages = getattr(picture, "n_frames", 1)
    if pages == 1:
        return [_raster(path, picture)]
    if picture.format != "TIFF":
        return [_raster(path, picture, "only the first frame is used")]
    found: list[Raster] = []
    size, left_out = picture.size, 0
    for page in range(pages):
        picture.seek(page)
        kind = getattr(picture, "tag_v2", {}).get(SUBFILE, 0)
        if picture.size == size and not kind & REDUCED_OR_MASK:
            found.append(_raster(path, picture))
        else:
            left_out += 1
    if not found:
        raise UsageError(f"{path}: has only previews and masks")
    if left_out:
        step = f"{left_out} of {pages} pages, previews or of another size, are left out"
        found[0] = Raster(found[0].pixels, found[0].alpha, (*found[0].steps, step))
    return found


def _too_large(path: Path) -> UsageError:
    return UsageError(f"{path}: is too large: over {LARGEST_PICTURE // 10**6} megapixels")


def _open(path: Path, file: BinaryIO) -> Image.Image:
    """Open a picture, an HEIC one by pillow-heif."""
    head = file.read(12)
    file.seek(0)
    formats: tuple[str, ...] = FORMATS
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        try:
            importlib.import_module("pillow_heif").register_heif_opener()
        except ImportError:
            raise UsageError(
                f"{path}: is an HEIC photo: python -m pip install pillow-heif, or convert it to"
                " JPEG"
            ) from None
        formats = ("HEIF",)
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise NotAPicture(f"{path}: is not a readable image: {NAMES} is needed") from None


def _raster(path: Path, picture: Image.Image, *steps: str) -> Raster:
    """The current page of a picture."""
    if picture.width * picture.height > LARGEST_PICTURE:
        raise _too_large(path)
    tiles = str(getattr(picture, "tile", ""))  # emptied by load
    picture.load()
    upright = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    pixels, alpha = _pixels(picture)
    if ";16" in tiles and pixels.dtype == np.uint8:  # Pillow keeps the upper 8 bits of a color
        if pixels.max() < LEAST_LEVEL:
            raise UsageError(
                f"{path}: its 16 bits a color use few of their levels, which would be lost: save it"
                " as grey, or with 8 bits a color"
            )
        steps += ("the upper 8 of 16 bits a color are used",)
    if upright is not None:
        pixels, alpha = upright(pixels), None if alpha is None else upright(alpha)
        steps += ("turned upright by the EXIF orientation",)
    return Raster(pixels, alpha, steps)


def _pixels(picture: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels and the alpha of a `Raster`, not yet upright."""
    alpha = None
    if picture.mode.startswith("I") or picture.mode == "F":
        pixels = np.array(picture).astype(np.float32 if picture.mode == "F" else np.int32)
        if not np.isfinite(pixels).all():
            raise ValueError("has pixels that are not finite numbers")
        if "transparency" in picture.info:
            alpha = np.uint8(OPAQUE) * (pixels != picture.info["transparency"])
    elif picture.has_transparency_data:
        both = np.array(picture.convert("RGBA"))
        pixels, alpha = both[..., :3], both[..., 3]
    else:
        grey = picture.mode in ("1", "L", "LA", "La")
        pixels = np.array(picture.convert("L" if grey else "RGB"))
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0]
    return pixels, None if alpha is None or alpha.min() == OPAQUE else alpha


def bits_of(rasters: Sequence[Raster]) -> int | None:
    """How levels of more than 8 bits in all of these pictures are to be read; see `arrays.Source`.

    Where all pictures have such levels, these are kept, unless they come from 8 bits: 65535 is
    257 × 255.
    """
    deep = [raster for raster in rasters if raster.is_deep]
    if not deep:
        return None
    # Transparent pixels have levels that mean nothing.
    levels = [r.pixels if r.alpha is None else r.pixels[r.alpha > 0] for r in deep]
    largest = max(float(pixels.max(initial=0)) for pixels in levels)
    if largest < 2**16 and all((pixels % 257 == 0).all() for pixels in levels):
        return 16
    if len(deep) == len(rasters) and all(raster.alpha is None for raster in deep):
        return 0
    if largest <= 1 and any(raster.pixels.dtype == np.float32 for raster in deep):
        return 1
    return next((n for n in (8, 10, 12, 14, 16) if largest < 2**n), int(largest).bit_length())


def ground_of(raster: Raster) -> RGB:
    """The background of one picture that is transparent in places.

    Under strokes it is white, or black if they are pale. A picture that is mostly opaque, such as
    one with round corners, has a background of its own, which goes on.
    """
    assert raster.alpha is not None
    solid = raster.pixels[raster.alpha >= 128]
    if 2 * len(solid) > raster.alpha.size and not raster.is_deep:
        colour = np.broadcast_to(np.median(solid, axis=0), 3)
        return int(colour[0]), int(colour[1]), int(colour[2])
    return common_ground([raster])


def common_ground(rasters: Sequence[Raster]) -> RGB:
    """The background of pictures, as far as they are transparent: black under pale strokes."""
    total = weight = 0.0
    for raster in rasters:
        if raster.alpha is not None:
            alpha = raster.alpha.astype(np.float64)
            grey = raster.pixels if raster.pixels.ndim == 2 else raster.pixels.mean(2)
            if raster.is_deep:
                grey = eight_bits(grey, bits_of([raster]) or 16)
            total += float((grey * alpha).sum())
            weight += float(alpha.sum())
    return (0, 0, 0) if total > PALE * weight else (255, 255, 255)


def named(colour: RGB) -> str:
    """A background as a word."""
    known = {(255, 255, 255): "white", (0, 0, 0): "black"}
    return known.get(colour, "the colour of the rest")


def eight_bits(levels: np.ndarray, bits: int) -> np.ndarray:
    """Levels of so many bits (1: fractions) as uint8 of the same shape."""
    exact: np.ndarray = np.rint(levels.astype(np.float64) * (255 / (2**bits - 1)))
    return exact.clip(0, 255).astype(np.uint8)


def converted(raster: Raster, source: Source) -> np.ndarray:
    """The pixels of a picture: uint8[h, w] or [h, w, 3]; float32[h, w] where levels are kept.

    Args:
      raster: the picture.
      source: how levels of more than 8 bits are read, and what replaces transparency.
    """
    pixels, background = raster.pixels, source.background
    if raster.is_deep and source.bits:
        pixels = eight_bits(pixels, source.bits)
    elif raster.is_deep:
        pixels = (pixels - source.black).clip(0).astype(np.float32)
    if raster.alpha is None or background is None:
        return pixels
    alpha = raster.alpha[..., None].astype(np.float32) / OPAQUE
    colour = np.array(background, np.float32)
    grey = pixels.ndim == 2
    mixed: np.ndarray = np.rint(
        (pixels[..., None] if grey else pixels) * alpha + colour * (1 - alpha)
    )
    flat = mixed.astype(np.uint8)
    return flat[..., 0] if (flat[..., :1] == flat[..., 1:]).all() else flat


def in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Pixels as [h, w, C]; RGB without colours becomes grey for one channel."""
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], channels, 2)
    return pixels[..., :channels]
