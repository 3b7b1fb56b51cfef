"""The one reader of pictures, alone or in a folder for each class: what a file holds, as pixels.

Training and prediction both read files here. What can only be decided for all pictures of a dataset
together, the background of transparent ones and the meaning of levels of more than 8 bits, is kept
with the model (`arrays.Source`).
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxmnist.data.arrays import Found, Part, Source
from jaxmnist.data.contents import PARTS, files_below, listed, reason, unreadable, visible
from jaxmnist.data.split import eight_bits
from jaxmnist.errors import JaxmnistError, SettingError, UsageError
from jaxmnist.files import largest_file

# --- The one reader of pictures: what a file holds, upright, and how that becomes pixels ---

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
NAMES = "PNG, JPEG, BMP, GIF, WebP, TIFF, PPM"
LARGEST_PICTURE = 64 * 10**6  # pixels; more than a phone's camera takes
OPAQUE = 255
BRIGHT = 127  # strokes above this level are put on black where they were on nothing
LEAST_LEVEL = 64  # of 255; colours of 16 bits whose upper 8 stay below it have few levels left
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
ORIENTATION = 0x0112  # EXIF's tag
SUBFILE, REDUCED_OR_MASK = 254, 0b101  # TIFF's tag NewSubfileType: no page of its own
# More of TIFF's tags: bits and kind of a level, whether 0 is white, values a pixel.
BITS, FORMAT, PHOTOMETRIC, SAMPLES = 258, 339, 262, 277
SIGNED, WHITE_IS_ZERO = 2, 0
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

    pixels: uint8[h, w] grey or [h, w, 3] RGB; int64 or float32[h, w] for levels of more than 8
      bits.
    alpha: uint8[h, w], below 255 where the picture is transparent; None if it is opaque.
    steps: a phrase for each thing that was done to it.
    is_reduced: whether the pixels are the upper 8 of 16 bits a colour, all that Pillow keeps.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    steps: tuple[str, ...] = ()
    is_reduced: bool = False

    @property
    def is_deep(self) -> bool:
        """Whether its levels have more than 8 bits."""
        return self.pixels.dtype != np.uint8

    @property
    def levels(self) -> np.ndarray:
        """Its pixels that are not transparent, whose levels mean something: [n] or [h, w, …]."""
        return self.pixels if self.alpha is None else self.pixels[self.alpha > 0]


def read_rasters(path: Path) -> list[Raster]:
    """Read the pictures of a file: the pages of a TIFF file, or the first frame of an animation.

    Pages of another size than the first, and those that TIFF marks as previews or masks, are left
    out, which the steps of the first say.

    Raises:
      NotAPicture: the file is no picture, or one of another format.
      UsageError: it is too large. Damaged files raise whatever Pillow raises.
    """
    if not path.is_file():  # a pipe would block
        raise OSError("is no regular file")
    with path.open("rb") as file:
        try:
            picture = _open(path, file)
        except Image.DecompressionBombError:
            raise _too_large(path) from None
        pages = getattr(picture, "n_frames", 1)
        if pages == 1:
            return [_raster(path, picture)]
        if picture.format != "TIFF":
            return [_raster(path, picture, "only the first frame is used")]
        if pages * picture.width * picture.height > largest_file():
            raise UsageError(f"{path}: its {pages} pages are more than can be loaded")
        return _pages(path, picture, pages)


def _pages(path: Path, picture: Image.Image, pages: int) -> list[Raster]:
    """The pages of a TIFF file; see `read_rasters`."""
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
        raise ValueError("has only previews and masks")
    if left_out:
        step = f"{left_out} of {pages} pages are left out: previews, or of another size"
        found[0] = replace(found[0], steps=(*found[0].steps, step))
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
            raise ValueError(
                "is an HEIC photo: python -m pip install pillow-heif, or convert it to JPEG"
            ) from None
        formats = ("HEIF",)
    try:
        return Image.open(file, formats=formats)
    except UnidentifiedImageError:
        raise NotAPicture(f"{path}: is not a picture; {NAMES} can be read") from None


def _raster(path: Path, picture: Image.Image, *steps: str) -> Raster:
    """The current page of a picture."""
    if picture.width * picture.height > LARGEST_PICTURE:
        raise _too_large(path)
    deep = _has_deep_colours(picture)
    picture.load()
    upright = UPRIGHT.get(picture.getexif().get(ORIENTATION, 1))
    pixels, alpha = _pixels(picture)
    reduced = deep and pixels.dtype == np.uint8
    if reduced:
        steps += ("colours of 16 bits are reduced to 8 bits",)
    if upright is not None:
        pixels, alpha = upright(pixels), None if alpha is None else upright(alpha)
        steps += ("rotated by the EXIF orientation",)
    return Raster(pixels, alpha, steps, reduced)


def _has_deep_colours(picture: Image.Image) -> bool:
    """Whether a picture that isn't loaded yet has more than 8 bits a colour or grey level."""
    decoder = str(getattr(picture, "tile", ""))  # Pillow's decoder and its arguments
    if picture.format == "PPM":
        largest = re.search(r"'RGB', (\d+)", decoder)
        return largest is not None and int(largest[1]) > OPAQUE
    return picture.format in ("PNG", "TIFF") and ";16" in decoder


def _pixels(picture: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels and the alpha of a `Raster`, not yet upright."""
    alpha = None
    tags = getattr(picture, "tag_v2", {})
    if picture.format == "TIFF":
        _check_tiff(tags, picture.mode)
    if picture.mode.startswith("I") or picture.mode == "F":
        pixels = np.array(picture)
        if picture.mode == "F" and not np.isfinite(pixels).all():
            raise ValueError("has pixels that are not finite numbers")
        if picture.mode != "F":
            is_unsigned = tags.get(BITS, (0,))[0] == 32 and tags.get(FORMAT, (1,))[0] == 1
            pixels = (pixels.view(np.uint32) if is_unsigned else pixels).astype(np.int64)
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            pixels = 2 ** tags.get(BITS, (16,))[0] - 1 - pixels
        if "transparency" in picture.info:
            alpha = np.uint8(OPAQUE) * (pixels != picture.info["transparency"])
    elif picture.has_transparency_data:
        both = np.array(picture.convert("RGBA"))
        pixels, alpha = both[..., :3].copy(), both[..., 3].copy()
    else:
        grey = picture.mode in ("1", "L", "LA", "La")
        pixels = np.array(picture.convert("L" if grey else "RGB"))
    if pixels.ndim == 3 and (pixels[..., :1] == pixels[..., 1:]).all():
        pixels = pixels[..., 0].copy()
    return pixels, None if alpha is None or alpha.min() == OPAQUE else alpha


def _check_tiff(tags: Mapping[int, Any], mode: str) -> None:
    """Raise `ValueError` for TIFF's kinds of levels that Pillow reads as other ones."""
    if tags.get(FORMAT, (1,))[0] == SIGNED and tags.get(BITS, (1,))[0] == 8:
        raise ValueError("has signed levels of 8 bits, which are not read: save it with 16 bits")
    if tags.get(SAMPLES, 1) == 2 and mode not in ("LA", "La", "PA"):
        raise ValueError("has two values a pixel, which are neither grey nor RGB")


def bits_of(rasters: Sequence[Raster], *, keep: bool) -> int | None:
    """How levels of more than 8 bits in all of these pictures are to be read; see `arrays.Source`.

    Args:
      rasters: the pictures.
      keep: whether levels may be kept. They are where all pictures have such levels and none is
        transparent, unless the levels come from 8 bits: 65535 is 257 × 255.
    """
    deep = [raster for raster in rasters if raster.is_deep]
    if not deep:
        return None
    levels = [raster.levels for raster in deep]
    largest = max(float(pixels.max(initial=0)) for pixels in levels)
    if largest < 2**16 and all((pixels % 257 == 0).all() for pixels in levels):
        return 16
    if keep and len(deep) == len(rasters) and all(raster.alpha is None for raster in deep):
        return 0
    if largest <= 1 and any(raster.pixels.dtype.kind == "f" for raster in deep):
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
    return common_ground([raster], bits_of([raster], keep=False))


def common_ground(rasters: Sequence[Raster], bits: int | None) -> RGB:
    """The background of pictures, as far as they are transparent: black under pale strokes.

    bits: how levels of more than 8 bits are read; see `arrays.Source`.
    """
    total = weight = 0.0
    for raster in rasters:
        if raster.alpha is not None:
            alpha = raster.alpha.astype(np.float64)
            grey = raster.pixels if raster.pixels.ndim == 2 else raster.pixels.mean(2)
            if raster.is_deep and bits:
                grey = eight_bits(grey, 2**bits - 1)
            total += float((grey * alpha).sum())
            weight += float(alpha.sum())
    return (0, 0, 0) if total > BRIGHT * weight else (255, 255, 255)


def colour_name(colour: RGB) -> str:
    """A background as a word."""
    known = {(255, 255, 255): "white", (0, 0, 0): "black"}
    return known.get(colour, "the colour of the rest")


def converted(raster: Raster, source: Source) -> np.ndarray:
    """The pixels of a picture: uint8[h, w] or [h, w, 3]; float32[h, w] where levels are kept.

    Args:
      raster: the picture. If it is transparent its levels aren't kept.
      source: how levels of more than 8 bits are read, and what replaces transparency.
    """
    pixels, background = raster.pixels, source.background
    if raster.is_deep and source.bits:
        pixels = eight_bits(pixels, 2**source.bits - 1)
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


# --- Folders of pictures, a folder for each class ---

# Names of files that nobody means as pictures.
OTHER_NAME = re.compile(
    r"\.(txt|md|rst|json|ya?ml|toml|ini|cfg|xml|csv|tsv|html?|pdf|docx?|xlsx?|py|ipynb|sh|log|pkl"
    r"|npy|npz|mat|h5|hdf5|pth?|onnx|safetensors|zip|gz|tar|db)$",
    re.IGNORECASE,
)
# Names that a part may have, also those that are no part's here, as Kaggle's test1.
LIKE_PART = re.compile(rf"({'|'.join(PARTS)})([-_ ]?(\d+|set|data|imgs?|images?|pictures?))*")
MOST_NOTES = 10  # classes of which a note says what is left out


@dataclass
class _Reading:
    """What has been read so far.

    shape: (H, W) of all pictures, which is that of the file `first`.
    size: bytes of pixels.
    left_out: why files are left out, and how many, by the name of their class, or "".
    files: the number of files of each class.
    """

    root: Path
    shape: tuple[int, int] | None = None
    first: Path | None = None
    size: int = 0
    left_out: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    files: Counter[str] = field(default_factory=Counter)

    def leave_out(self, name: str, line: str, count: int = 1) -> None:
        """Leave out so many files of a class, or something outside the classes."""
        self.left_out.setdefault(name, []).append((line, count))

    def notes(self) -> list[str]:
        """A note for each class of which something is left out."""
        notes = []
        for name, lines in sorted(self.left_out.items())[:MOST_NOTES]:
            count = sum(count for _, count in lines)
            what = f"class {name}: {count} of {self.files[name]} files are left out"
            if not name:
                what = f"files or folders outside the classes are left out: {count}"
            notes.append(f"note: {what}; {'the first: ' * (count > 1)}{lines[0][0]}")
        if (more := len(self.left_out) - MOST_NOTES) > 0:
            notes.append(f"note: files of {more} more classes are left out")
        return notes


def read_class_folders(folder: Path, root: Path) -> Found:
    """Read pictures of one size, in a folder for each class.

    Pictures are greyscale, or RGB if one of them has colours. Files that are no pictures are left
    out, which a note says for each class. Transparency becomes black under pale strokes and white
    under others, the same in all pictures; levels of more than 8 bits are kept if all pictures
    have them.

    Args:
      folder: holds folders of classes, or train/ and test/ (also val/) that hold them.
      root: the folder that a person named, which links must not lead out of.

    Raises:
      UsageError: no pictures, pictures of different sizes, or a class none of which can be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Pillow warns about is refused here, or harmless
        return _read_parts(folder, root)


def _parts(folder: Path, root: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the folders of the parts, or `folder` itself as the training part; and notes.

    A folder that is named like a part is one if it holds folders; else it is a class.
    """
    parts: dict[str, Path] = {}
    notes, others = [], []
    names = visible(folder, root)[0]
    for name in names:
        part = PARTS.get(name.lower())
        if part is None:
            others.append(name)
        elif not visible(folder / name, root)[0]:
            notes.append(f"note: {folder / name} has no folders of classes, and is no {part} part")
        elif part in parts:
            raise UsageError(f"{folder}: {parts[part].name} and {name} are both the {part} part")
        else:
            parts[part] = folder / name
    if not parts:
        lower = [name.lower() for name in names]
        if not PARTS.keys().isdisjoint(lower) and all(map(LIKE_PART.fullmatch, lower)):
            raise UsageError(
                f"{folder}: {listed(names)} contain no class folders: put the pictures of each"
                f" class into a folder of its own, such as {names[-1]}/cat/1.png"
            )
        return {"train": folder}, []
    if "train" not in parts:
        found = parts[min(parts)].name
        raise UsageError(f"{folder}: has a folder {found}, but no folder train with classes in it")
    if others:
        found = listed(others)
        notes.append(f"note: folders other than train, validation and test are left out: {found}")
    return parts, notes


def _read_parts(folder: Path, root: Path) -> Found:
    parts, notes = _parts(folder, root)
    reading = _Reading(root)
    read = {part: _read_classes(path, reading) for part, path in parts.items()}
    notes += reading.notes()
    rasters = [raster for found, _ in read.values() for raster in found]
    steps = Counter(step for raster in rasters for step in raster.steps)
    source = Source(pictures=True, bits=bits_of(rasters, keep=True))
    reduced = [int(r.pixels.max()) for r in rasters if r.is_reduced and r.alpha is None]
    if 0 < max(reduced, default=0) < LEAST_LEVEL:
        raise UsageError(
            f"{folder}: its colours of 16 bits are so dark that 8 bits would lose their levels:"
            " save the pictures as greyscale, or with 8 bits a colour"
        )
    if clear := sum(raster.alpha is not None for raster in rasters):
        background = common_ground(rasters, source.bits)
        source = replace(source, background=background)
        steps[f"transparency is replaced by {colour_name(background)}"] = clear
    if deep := sum(raster.is_deep for raster in rasters):
        step = f"levels of {source.bits} bits are converted to 8 bits"
        if source.bits == 0:
            source = replace(source, black=min(float(r.pixels.min()) for r in read["train"][0]))
            step = f"levels of more than 8 bits are kept; the smallest, {source.black:g}, becomes 0"
        elif source.bits == 1:
            step = "fractions are converted to 8 bits"
        if source.bits != 8:
            steps[step] = deep
        kinds = {raster.pixels.dtype.kind: raster for raster in rasters if raster.is_deep}
        if len(kinds) == 2 and source.bits == 0 and kinds["f"].pixels.max() <= 1:
            raise UsageError(
                f"{folder}: some pictures have fractions as levels and others whole numbers:"
                " use the same scale for all"
            )
    notes += [f"note: {n} picture{'s' * (n > 1)}: {step}" for step, n in steps.items()]
    pixels = {
        part: [converted(raster, source) for raster in found] for part, (found, _) in read.items()
    }
    channels = max(array.shape[2] if array.ndim == 3 else 1 for a in pixels.values() for array in a)
    found: dict[str, Part] = {}
    for part, arrays in pixels.items():
        stack = np.stack([in_channels(array, channels) for array in arrays])
        found[part] = stack, np.array(read[part][1])
    return Found.of(found, notes, source)


def _read_classes(folder: Path, reading: _Reading) -> tuple[list[Raster], list[str]]:
    """Read the pictures of one part, and the name of the class of each."""
    rasters: list[Raster] = []
    labels: list[str] = []
    classes, others = visible(folder, reading.root)
    for name in others:
        reading.leave_out("", f"{folder / name} is not in a class folder")
    for name in classes:
        read = _read_class(folder / name, reading)
        rasters += read
        labels += [name] * len(read)
    if not rasters:
        raise UsageError(f"{folder}: has no pictures in folders of classes")
    return rasters, labels


def _read_class(folder: Path, reading: _Reading) -> list[Raster]:
    """Read the pictures of one class; none of a folder without files that are meant as pictures."""
    inner, files = visible(folder, reading.root)
    rasters: list[Raster] = []
    wrong: list[str] = []
    for file in files:
        path = folder / file
        try:
            rasters += _read(path, reading)
        except NotAPicture:
            wrong.append(f"{path} is no picture")
        except JaxmnistError:
            raise
        except Exception as error:  # given damaged bytes, decoders raise anything
            found = unreadable(path, error)
            if not isinstance(found, UsageError):
                raise found from None
            wrong.append(f"{path} can't be read: {reason(error)}")
    if inner and not rasters:
        raise SettingError(
            "{folder}: has no pictures but the folder {inner}; {data_dir} must name the folder that"
            " holds the folders of classes",
            folder=folder,
            inner=inner[0],
        )
    if not rasters and not all(map(OTHER_NAME.search, files)):
        raise UsageError(
            f"{folder}: none of its {len(files)} files is a readable picture (first: {wrong[0]}):"
            " repair them, or remove the folder"
        )
    if not rasters:
        reading.leave_out("", f"{folder} has no pictures")
        return []
    reading.files[folder.name] += len(files)
    for line in wrong:
        reading.leave_out(folder.name, line)
    for name in inner:
        if below := len(files_below(folder / name, reading.root)):
            reading.files[folder.name] += below
            line = f"{folder / name} is a subfolder of a class, with {below} files"
            reading.leave_out(folder.name, line, below)
    return rasters


def _read(path: Path, reading: _Reading) -> list[Raster]:
    """Read the pictures of a file, all of the size of the first."""
    rasters = read_rasters(path)
    for raster in rasters:
        shape = raster.pixels.shape[:2]
        if reading.shape is None:
            reading.shape, reading.first = shape, path
        if shape != reading.shape:
            height, width = reading.shape
            raise UsageError(
                f"{reading.first} is {height}×{width} pixels and {path} {shape[0]}×{shape[1]}:"
                " resize the pictures to one size, such as 28×28"
            )
        reading.size += raster.pixels.nbytes + (0 if raster.alpha is None else raster.alpha.nbytes)
        if reading.size > largest_file():
            raise UsageError(f"{path}: the pictures up to this one are more than can be loaded")
    return rasters
