"""Pictures as people have them, read by Pillow: upright, opaque, 8 bits a channel."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxmnist.errors import UsageError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
NAMES = "PNG, JPEG, BMP, GIF, WebP, TIFF, .npy, .npz or .csv"
LARGEST_PICTURE = 64 * 10**6  # pixels; more than a phone's camera takes
PALE = 170  # strokes above this level are put on black where they were on nothing
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # EXIF's tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(path: Path, file: BinaryIO) -> tuple[np.ndarray, list[str]]:
    """Read a picture, upright and opaque, as uint8[h, w] or uint8[h, w, 3], and its steps.

    A clear ground becomes white, or black under pale strokes. Grey levels of more than 8 bits
    become 8 bits; a file of 16 bits whose levels have fewer, such as a camera's 12, is read on
    the scale of those.

    Raises:
      UsageError: the file is no picture, one of another format, or too large. Damaged files raise
        whatever Pillow raises.
    """
    too_large = f"{path}: is too large: over {LARGEST_PICTURE // 10**6} megapixels"
    try:
        picture = _open(path, file)
    except Image.DecompressionBombError:
        raise UsageError(too_large) from None
    if picture.width * picture.height > LARGEST_PICTURE:
        raise UsageError(too_large)
    steps = []
    if getattr(picture, "n_frames", 1) > 1:
        steps.append(f"only its first {'page' if picture.format == 'TIFF' else 'frame'} used")
    picture.load()
    upright = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    flat = _opaque(picture, steps)
    if upright is not None:
        flat = flat.transpose(upright)
        steps.append("turned upright by its EXIF orientation")
    return np.array(flat), steps


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
        raise UsageError(f"{path}: is not a readable image: {NAMES} is needed") from None


def _opaque(picture: Image.Image, steps: list[str]) -> Image.Image:
    """Return the picture in mode L or RGB; appends what was done to `steps`."""
    if picture.mode.startswith("I") or picture.mode == "F":
        levels = np.array(picture).astype(np.float64)
        clear = levels == picture.info.get("transparency", -1)
        grey = Image.fromarray(_eight_bits(levels, clear, picture.mode, steps))
        if not clear.any():
            return grey
        picture = Image.merge("LA", (grey, Image.fromarray(np.uint8(255) * ~clear)))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            ground, name = _ground_of(picture)
            steps.append(f"transparency replaced by {name}")
            return Image.alpha_composite(ground, picture).convert("RGB")
    return picture.convert("L" if picture.mode in ("1", "L", "LA", "La") else "RGB")


def _eight_bits(levels: np.ndarray, clear: np.ndarray, mode: str, steps: list[str]) -> np.ndarray:
    """Levels float64[h, w] of more than 8 bits, or real ones, as uint8[h, w]."""
    if not np.isfinite(levels).all():
        raise ValueError("has pixels that are not finite numbers")
    largest = float(levels[~clear].max(initial=0.0))
    if mode == "F" and largest <= 1:
        return np.round(levels.clip(0, 1) * 255).astype(np.uint8)
    bits = next((n for n in (8, 10, 12, 14) if 0 < largest < 2**n), 16)
    if largest >= 2**16:  # of 32 bits
        bits = max(16, int(largest).bit_length())
    if bits != 16:
        steps.append(f"read as {bits} bits a pixel: its levels reach {largest:g}")
    # 65535 is 257 × 255: levels that were once 8 bits are restored exactly.
    exact: np.ndarray = np.round(levels * (255 / (2**bits - 1))).clip(0, 255)
    return exact.astype(np.uint8)


def _ground_of(picture: Image.Image) -> tuple[Image.Image, str]:
    """What to put under a picture RGBA that is clear in places, and its name.

    Under strokes it is white, or black if they are pale. A picture that is mostly opaque, such as
    one with round corners, has a ground of its own, which goes on.
    """
    pixels = np.asarray(picture)
    solid = pixels[pixels[..., 3] >= 128]
    if 2 * len(solid) > pixels[..., 3].size:
        colour = tuple(int(level) for level in np.median(solid[:, :3], axis=0))
        name = "white" if colour == (255, 255, 255) else "the colour of the rest"
        return Image.new("RGBA", picture.size, (*colour, 255)), name
    weights = pixels[..., 3].astype(np.float64)
    grey = np.asarray(picture.convert("RGB").convert("L"), np.float64)
    pale = float((grey * weights).sum()) > PALE * float(weights.sum())
    name = "black" if pale else "white"
    return Image.new("RGBA", picture.size, name), name
