"""Folders of pictures, a folder for each class: `train/cat/1.png`, or `cat/1.png` without parts."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jaxmnist.data.arrays import Found, Part, Source
from jaxmnist.data.contents import files_below, reason, unreadable, visible
from jaxmnist.data.names import PARTS, listed
from jaxmnist.data.picture_files import (
    LEAST_LEVEL,
    NotAPicture,
    Raster,
    bits_of,
    colour_name,
    common_ground,
    converted,
    in_channels,
    read_rasters,
)
from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.reading import largest_file

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
        raise UsageError(
            f"{folder}: has no pictures but the folder {inner[0]}; --data-dir must name the folder"
            " that holds the folders of classes"
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
