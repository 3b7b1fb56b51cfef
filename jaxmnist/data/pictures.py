"""Images for prediction from files: arrays as they are, pictures prepared as MNIST's digits were.

In a picture a digit is dark on bright paper, anywhere and of any size; a network trained on MNIST
expects bright digits on black, all of one size and centred. `mnist_like` converts one to the other.
"""

from __future__ import annotations

import stat
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy import ndimage

from jaxmnist.data.archives import npz_names, read_npz_member
from jaxmnist.data.arrays import EIGHT_BITS, OVER, check_images, check_levels
from jaxmnist.data.contents import reason
from jaxmnist.errors import UsageError
from jaxmnist.reading import read_npy

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
LARGEST_PICTURE = 64 * 10**6  # pixels; more than a phone's camera takes
BRIGHT = 127  # a border above this level is paper, not the black around MNIST's digits
LEAST_INK = 16  # levels above the background; less may be JPEG noise on a plain surface
FAINT = 192  # a digit whose brightest pixel is below this level gets its contrast stretched


@dataclass(frozen=True, eq=False)  # arrays don't compare to a single truth value
class Picture:
    """One image for a network, with the steps that made it.

    Attributes:
      name: what to call it in output: the path, or "path[3]" for one of a stack of images.
      image: uint8 or float32[H, W, C], as the network takes it.
      steps: a phrase for each step, in order; empty if the image is used as it is.
    """

    name: str
    image: np.ndarray
    steps: tuple[str, ...]


def read_pictures(
    path: Path, image_shape: tuple[int, int, int], scale: float = EIGHT_BITS
) -> list[Picture]:
    """Read the images of a file, whose type is determined by its content, not its name.

    Args:
      path: an array (`.npy`, or `.npz` with an array `images` or a single one) of numbers
        0..scale in the shape [H, W, C] or [N, H, W, C], or if C is 1 also [H, W] or [N, H, W],
        which is used as it is; or a picture (PNG, JPEG, BMP, GIF, WebP). For one channel a
        picture is prepared by `mnist_like`, for three it is scaled as a whole to H×W.
      image_shape: the network's (H, W, C).
      scale: the scale of the network's images; see `Dataset`.

    Raises:
      UsageError: the file can't be read, is damaged, is too large, is blank, or doesn't suit the
        network.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"{path}: is a folder or a device, not a file with an image")
        # Whatever Pillow and NumPy warn about is either harmless here or refused below.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = file.read(6)
            size = file.seek(0, 2)
            file.seek(0)
            if head == b"\x93NUMPY":
                return _from_array(path, read_npy(str(path), file, size), image_shape, scale)
            if head[:4] == b"PK\3\4":
                return _from_array(path, _read_npz(path, file), image_shape, scale)
            if image_shape[2] not in (1, 3):
                raise UsageError(
                    f"{path}: is not an array (.npy, .npz); this network's images have"
                    f" {image_shape[2]} channels, and pictures give only 1 or 3"
                )
            pixels, steps = _read_picture(path, file)
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    if image_shape[2] == 3:
        image, more = _scaled_rgb(pixels, image_shape[0], image_shape[1])
    else:
        image, more = mnist_like(path, pixels, image_shape[0], image_shape[1])
    if scale != EIGHT_BITS:
        image = image * np.float32(scale / EIGHT_BITS)
        more = (*more, f"white is {scale:g}, as in the training images")
    return [Picture(str(path), image, (*steps, *more))]


def mnist_like(
    path: Path, pixels: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Convert a picture into an image like MNIST's digits.

    The picture is converted to grey and, if the median of its outermost pixels is bright, inverted.
    If it was not inverted and has the right size, it is used as it is. Otherwise the median of the
    border is subtracted as the background, and pixels that then lie below six standard deviations
    of the border (estimated as nine median absolute deviations) are set to 0 as noise. Ink
    consists of the pixels that exceed the background by more than `LEAST_INK` levels and by a
    quarter of the 95th percentile of all such pixels; patches smaller than a twentieth of the
    largest are ignored as specks. The ink's bounding box is scaled, with its aspect ratio kept,
    into a square of 20/28 of the image (20×20 for MNIST), its contrast is stretched if it is
    faint, and its centre of mass is moved to the image's centre, pixel 14 of 0..27 as in MNIST,
    by whole pixels and no further than the image reaches.

    Args:
      path: the picture's file, for errors.
      pixels: uint8[h, w] grey or uint8[h, w, 3] RGB.
      height: H of the result.
      width: W of the result.

    Returns:
      image: uint8[H, W, 1].
      steps: what was done, in order.

    Raises:
      UsageError: there is no ink.

    References:
      Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits (its web page: size
      normalised to fit in a 20×20 box with the aspect ratio preserved, grey levels from
      anti-aliasing, centred in 28×28 by the centre of mass).
    """
    steps = []
    grey = pixels
    if pixels.ndim == 3:
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
        if (pixels[..., :1] != pixels[..., 1:]).any():
            steps.append("converted to grey")
    inverted = float(np.median(_border(grey))) > BRIGHT
    if inverted:
        grey = 255 - grey
        steps.append("inverted: its border is bright")
    elif grey.shape == (height, width) and grey.max() > grey.min():
        return grey[..., None], tuple(steps)

    ink, box = _find_ink(path, grey)
    ink = ink[box]
    side = max(1, round(20 / 28 * min(height, width)))
    rows, columns = (max(1, round(length * side / max(ink.shape))) for length in ink.shape)
    # When they shrink an image, Pillow's filters cover all of the source, which anti-aliases. In
    # floating point, a thin line on a large sheet doesn't round to 0 before it is stretched.
    exact = Image.fromarray(ink.astype(np.float32))
    digit = np.asarray(exact.resize((columns, rows), Image.Resampling.BICUBIC)).clip(0, 255)
    steps.append(f"scaled into {side}×{side}")
    if digit.max() < FAINT:
        steps.append("faint: contrast stretched")
        digit = digit * (255 / digit.max())
    steps.append("centred by centre of mass")
    return _centred(np.round(digit).astype(np.uint8), height, width)[..., None], tuple(steps)


def _border(grey: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of [h, w] as one axis."""
    return np.concatenate([grey[0], grey[-1], grey[1:-1, 0], grey[1:-1, -1]])


def _find_ink(path: Path, grey: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Return uint8[h, w] above the background, noise set to 0, and the bounding box of ink."""
    border = _border(grey)
    background = round(float(np.median(border)))
    noise = 9 * float(np.median(np.abs(border.astype(np.int16) - background)))
    ink = np.maximum(grey, background) - np.uint8(background)
    risen = ink[ink > max(noise, LEAST_INK)]
    if not risen.size:
        raise UsageError(f"{path}: blank: nothing in it stands out from its border")
    ink[ink <= noise] = 0
    least = max(noise, LEAST_INK, float(np.percentile(risen, 95)) / 4)
    patches, _ = ndimage.label(ink > least, structure=np.ones((3, 3)))
    areas = np.bincount(patches.ravel())
    areas[0] = 0
    mask = (areas >= areas.max() / 20)[patches] & (patches > 0)
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return ink, (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))


def _centred(digit: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return uint8[H, W] of zeros with `digit` [h, w] centred by its mass, as far as it fits."""
    image = np.zeros((height, width), np.uint8)
    corner = []
    for axis, length in enumerate((height, width)):
        mass = digit.sum(axis=1 - axis, dtype=np.float64)
        centre = float(mass @ np.arange(len(mass)) / mass.sum())
        corner.append(min(max(round(length / 2 - centre), 0), length - len(mass)))
    top, left = corner
    image[top : top + digit.shape[0], left : left + digit.shape[1]] = digit
    return image


def _scaled_rgb(pixels: np.ndarray, height: int, width: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Scale a whole picture uint8[h, w] or uint8[h, w, 3] to uint8[H, W, 3]; give the steps too."""
    steps = ["converted from grey to RGB"] if pixels.ndim == 2 else []
    picture = Image.fromarray(pixels).convert("RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        steps.append(f"scaled as a whole to {height}×{width}")
    return np.array(picture), tuple(steps)


def _read_picture(path: Path, file: BinaryIO) -> tuple[np.ndarray, list[str]]:
    """Read a picture, upright and opaque, as uint8[h, w] or uint8[h, w, 3], and its steps."""
    too_large = f"{path}: is too large: over {LARGEST_PICTURE // 10**6} megapixels"
    try:
        picture: Image.Image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise UsageError(
            f"{path}: is not a readable image: PNG, JPEG, BMP, GIF, WebP, .npy or .npz is needed"
        ) from None
    except Image.DecompressionBombError:
        raise UsageError(too_large) from None
    if picture.width * picture.height > LARGEST_PICTURE:
        raise UsageError(too_large)
    steps = ["only its first frame used"] if getattr(picture, "is_animated", False) else []
    picture.load()
    turns = Image.Transpose
    upright = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(picture.getexif().get(0x0112, 1))  # EXIF's tag Orientation
    flat = _without_transparency(picture, steps)
    if upright is not None:
        flat = flat.transpose(upright)
        steps.append("turned upright by its EXIF orientation")
    return np.array(flat), steps


def _without_transparency(picture: Image.Image, steps: list[str]) -> Image.Image:
    """Return the picture in mode L or RGB; transparency becomes white, which `steps` then says."""
    if picture.mode.startswith("I"):  # a 16-bit grey PNG
        levels = np.array(picture).astype(np.int32)
        clear = levels == picture.info.get("transparency", -1)
        if clear.any():
            levels[clear] = 65535
            steps.append("transparency replaced by white")
        # 65535 is 257 × 255: levels that were once 8 bits are restored exactly.
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
            steps.append("transparency replaced by white")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _read_npz(path: Path, file: BinaryIO) -> np.ndarray:
    """Read the array `images` of an `.npz` file, or its only array."""
    with zipfile.ZipFile(file) as archive:
        names = npz_names(archive)
        if "images" not in names and len(names) != 1:
            raise UsageError(
                f"{path}: needs an array named images, or a single array;"
                f" it has {', '.join(names)[:200] or 'none'}"
            )
        return read_npz_member(path, archive, "images" if "images" in names else names[0])


def _from_array(
    path: Path, array: np.ndarray, image_shape: tuple[int, int, int], scale: float
) -> list[Picture]:
    """Return the pictures of one image or a stack of them, checked against the network's."""
    height, width, channels = image_shape
    single = [image_shape] + [(height, width)] * (channels == 1)
    if array.shape not in single and array.shape[1:] not in single:
        raise UsageError(
            f"{path}: is an array {array.shape}; this network takes images {image_shape}, or a"
            f" stack of them, {('N', *image_shape)}".replace("'", "")
        )
    stack = check_images(str(path), array.reshape(-1, *image_shape))
    if len(stack) == 0:
        raise UsageError(f"{path}: has no images")
    check_levels(str(path), stack, scale)
    largest, steps = float(stack.max()), []
    if largest < scale / OVER:
        steps.append(
            f"used as it is, though its largest pixel is {largest:g}, and that of the training"
            f" images {scale:g}"
        )
    names = [str(path)] if array.shape in single else [f"{path}[{i}]" for i in range(len(stack))]
    return [Picture(name, image, tuple(steps)) for name, image in zip(names, stack, strict=True)]
