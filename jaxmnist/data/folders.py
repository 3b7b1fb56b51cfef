"""Folders of pictures, a folder for each class: `train/cat/1.png`, or `cat/1.png` without parts."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jaxmnist.data.arrays import Found, Part, Source
from jaxmnist.data.contents import reason, visible
from jaxmnist.data.names import PARTS, listed
from jaxmnist.data.picture_files import (
    NotAPicture,
    Raster,
    bits_of,
    common_ground,
    converted,
    in_channels,
    named,
    read_rasters,
)
from jaxmnist.errors import UsageError
from jaxmnist.reading import largest_file

PICTURE_NAME = re.compile(
    r"\.(png|jpe?g|jpe|jfif|bmp|gif|webp|tiff?|p[bgnp]m|hei[cf]|avif|jp2)$", re.IGNORECASE
)
# Names that a part may have, also those that are no part's here, as Kaggle's test1.
LIKE_PART = re.compile(rf"({'|'.join(PARTS)})([-_ ]?(\d+|set|data|imgs?|images?|pictures?))*")
MOST_NOTES = 10  # classes of which a note says what is left out


@dataclass
class _Reading:
    """What has been read so far.

    shape: (H, W) of all pictures, which is that of the file `first`.
    size: bytes of pixels.
    left_out: what is wrong with each file that is left out, by the name of its class, or "".
    files: the number of files of each class.
    """

    root: Path
    shape: tuple[int, int] | None = None
    first: Path | None = None
    size: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    files: Counter[str] = field(default_factory=Counter)

    def leave_out(self, name: str, lines: list[str]) -> None:
        """Leave out files or folders of a class."""
        if lines:
            self.left_out.setdefault(name, []).extend(lines)

    def notes(self) -> list[str]:
        """A note for each class of which something is left out."""
        notes = []
        for name, lines in sorted(self.left_out.items())[:MOST_NOTES]:
            of = f"class {name}: {len(lines)} of {self.files[name]} files are left out"
            what = of if name else f"{len(lines)} left out beside the classes"
            notes.append(f"note: {what}{'; the first' * (len(lines) > 1)}: {lines[0]}")
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
        if names and all(LIKE_PART.fullmatch(name.lower()) for name in names):
            raise UsageError(
                f"{folder}: {listed(names)} hold no folders of classes: put the pictures of each"
                f" class into a folder of its own, such as {names[-1]}/cat/1.png"
            )
        return {"train": folder}, []
    if "train" not in parts:
        found = parts[min(parts)].name
        raise UsageError(f"{folder}: has a folder {found}, but no folder train with classes in it")
    if others:
        notes.append(f"note: beside the parts, these folders are left out: {listed(others)}")
    return parts, notes


def _read_parts(folder: Path, root: Path) -> Found:
    parts, notes = _parts(folder, root)
    reading = _Reading(root)
    read = {part: _read_classes(path, reading) for part, path in parts.items()}
    notes += reading.notes()
    rasters = [raster for found, _ in read.values() for raster in found]
    steps = Counter(step for raster in rasters for step in raster.steps)
    source = Source(pictures=True, bits=bits_of(rasters))
    if clear := sum(raster.alpha is not None for raster in rasters):
        background = common_ground(rasters)
        source = replace(source, background=background)
        steps[f"transparency is replaced by {named(background)}"] = clear
    if deep := sum(raster.is_deep for raster in rasters):
        how = f"are read as {source.bits} bits, and become 8"
        if source.bits == 0:
            source = replace(source, black=min(float(r.pixels.min()) for r in read["train"][0]))
            how = f"are kept, less the smallest, {source.black:g}"
        elif source.bits == 1:
            how = "become 8 bits"
        steps[f"levels of more than 8 bits {how}"] = deep
    notes += [f"note: {count} pictures: {step}" for step, count in steps.items()]
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
    reading.leave_out("", [f"{folder / name} lies in no class's folder" for name in others])
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
    wrong = []
    for file in files:
        path = folder / file
        try:
            rasters += _read(path, reading)
        except NotAPicture:
            wrong.append(f"{path} is no picture")
        except UsageError:
            raise
        except Exception as error:  # given damaged bytes, decoders raise anything
            wrong.append(f"{path} can't be read: {reason(error)}")
    if inner and not rasters:
        raise UsageError(
            f"{folder}: has no pictures but the folder {inner[0]}; --data-dir must name the folder"
            " that holds the folders of classes"
        )
    if not rasters and any(map(PICTURE_NAME.search, files)):
        raise UsageError(
            f"{folder}: none of its {len(files)} files can be read, so that the class would be"
            f" missing; the first: {wrong[0]}: repair them, or remove the folder"
        )
    if not rasters:
        reading.leave_out("", [f"{folder} has no pictures"])
        return []
    reading.files[folder.name] += len(files)
    for name in inner:
        below = sum(len(visible(place, reading.root)[1]) for place in _below(folder / name))
        reading.files[folder.name] += below
        wrong += [f"{folder / name} is a folder in a class's, with {below} files"] * below
    reading.leave_out(folder.name, wrong)
    return rasters


def _below(folder: Path) -> list[Path]:
    """A folder and all folders in it, links aside."""
    return [
        folder,
        *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink()),
    ]


def _read(path: Path, reading: _Reading) -> list[Raster]:
    """Read the pictures of a file, all of the size of the first."""
    if not path.is_file():  # a pipe would block
        raise OSError("is no regular file")
    with path.open("rb") as file:
        rasters = read_rasters(path, file)
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
        reading.size += raster.pixels.nbytes
        if reading.size > largest_file():
            raise UsageError(f"{path}: the pictures up to this one are more than can be loaded")
    return rasters
