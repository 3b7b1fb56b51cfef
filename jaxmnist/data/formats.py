"""Data as people have them, recognised by their content: which reader reads a file or a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxmnist.data.archives import read_array_files, read_npz
from jaxmnist.data.arrays import Arrays, Found, check
from jaxmnist.data.contents import NPY, ZIP, head_of, what_it_is
from jaxmnist.data.folders import read_class_folders, visible
from jaxmnist.data.idx import is_idx
from jaxmnist.data.names import PARTS, listed
from jaxmnist.data.tables import read_table, read_table_files
from jaxmnist.errors import UsageError

ARRAY_FILE = re.compile(r"(\.npy|\.npz|[-.]idx\d[-.a-z]*)(\.gz)?$", re.IGNORECASE)
ARCHIVE = re.compile(r"\.npz$", re.IGNORECASE)
TABLE = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
DEEPEST = 2  # folders in each other above the data, as torchvision's MNIST/raw
MOST_FOLDERS = 100  # that are looked into


def read_files(path: Path, *, transpose: bool = False) -> Arrays:
    """Read a dataset from a file or a folder.

    Args:
      path: an `.npz` or CSV file, or a folder of array files, CSV files or folders of pictures; or
        the beginning of the names of array files in a folder, such as folder/emnist-letters.
      transpose: swap rows and columns of the images.

    Raises:
      UsageError: there is nothing, or it is no dataset, or damaged.
    """
    return check(str(path), _read(path), transpose=transpose)


def _read(path: Path) -> Found:
    if os.path.isdir(path):
        return _read_folder(path)
    if os.path.isfile(path):
        return _read_file(path)
    if path.name and os.path.isdir(path.parent):
        names = visible(path.parent)[1]
        starting = [name for name in names if name.startswith((f"{path.name}-", f"{path.name}_"))]
        if found := _read_arrays(path.parent, starting):
            return found
    raise UsageError(f"--data-dir {path}: no such folder or file")


def _read_file(path: Path) -> Found:
    head = head_of(path)
    if head.startswith(ZIP):
        return read_npz(path)
    if head.startswith(NPY) or is_idx(head):
        raise UsageError(
            f"{path}: has a single array; name the folder that holds images and labels, or"
            " the beginning that their names share"
        )
    if known := what_it_is(head):
        raise UsageError(f"{path}: {known}")
    return read_table(path)


def _read_folder(folder: Path) -> Found:
    """Read what a folder holds, or the only folder with data below it."""
    places = _places(folder)
    if not places:
        raise UsageError(
            f"{folder}: has no data that can be read: IDX, .npy, .npz or CSV files, or pictures in"
            f" folders of classes; it has"
            f" {listed(name for names in visible(folder) for name in names)}"
        )
    if len(places) > 1:
        several = listed(str(place.relative_to(folder)) for place in places)
        raise UsageError(f"{folder}: holds several datasets, {several}: name one of these folders")
    place = places[0]
    files = visible(place)[1]
    tables, archives = (
        [name for name in files if pattern.search(name)] for pattern in (TABLE, ARCHIVE)
    )
    found = _read_arrays(place, files) or (read_table_files(place, tables) if tables else None)
    if found:
        return found
    if len(archives) == 1:
        return read_npz(place / archives[0])
    if _holds_files(files):
        raise UsageError(f"{place}: has several files, none for training: {listed(files)}")
    return read_class_folders(place)


def _read_arrays(folder: Path, names: list[str]) -> Found | None:
    return read_array_files(folder, [name for name in names if ARRAY_FILE.search(name)])


def _places(folder: Path, depth: int = 0) -> list[Path]:
    """Return the folders with data, from `folder` downwards."""
    folders, files = visible(folder)
    inner = {name: visible(folder / name)[1] for name in folders[:MOST_FOLDERS]}
    if _holds_files(files) or any(
        name.lower() in PARTS or (found and not _holds_files(found))
        for name, found in inner.items()
    ):
        return [folder]
    if depth == DEEPEST:
        return []
    return [place for name in inner for place in _places(folder / name, depth + 1)]


def _holds_files(names: list[str]) -> bool:
    return any(ARRAY_FILE.search(name) or TABLE.search(name) for name in names)
