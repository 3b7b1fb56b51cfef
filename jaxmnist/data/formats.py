"""Data as people have them, recognised by their content: which reader reads a file or a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxmnist.data.archives import read_array_files, read_npz
from jaxmnist.data.arrays import Arrays, Found, check
from jaxmnist.data.contents import NPY, ZIP, check_link, head_of, visible, what_it_is
from jaxmnist.data.folders import read_class_folders
from jaxmnist.data.idx import is_idx
from jaxmnist.data.matlab import MATLAB, read_matlab
from jaxmnist.data.names import PARTS, choose, listed, parse
from jaxmnist.data.tables import read_table, read_table_files, table_parts
from jaxmnist.errors import UsageError

ARRAY_FILE = re.compile(r"(\.npy|\.npz|[-.]idx\d[-.a-z]*)(\.gz)?$", re.IGNORECASE)
ARCHIVE = re.compile(r"\.(npz|mat)$", re.IGNORECASE)  # files with a whole dataset
PICTURE_NAME = re.compile(r"\.(png|jpe?g|bmp|gif|webp|tiff?|p[bgnp]m)$", re.IGNORECASE)
TABLE = re.compile(r"\.csv(\.gz)?$", re.IGNORECASE)
DEEPEST = 2  # folders in each other above the data, as torchvision's MNIST/raw
MOST_FOLDERS = 100  # that are looked into


def read_files(path: Path, *, transpose: bool = False) -> Arrays:
    """Read a dataset from a file or a folder.

    Args:
      path: an `.npz`, CSV or MATLAB file; a folder of array files, of CSV files or of folders of
        pictures; or one of the array files in a folder, or the beginning of their names, such as
        folder/emnist-letters.
      transpose: swap rows and columns of the images.

    Raises:
      UsageError: there is nothing, or it is no dataset, or damaged.
    """
    return check(str(path), _read(path), transpose=transpose)


def _read(path: Path) -> Found:
    if os.path.isdir(path):
        return _read_folder(path)
    if os.path.exists(path):  # of a pipe or a device the reader says so
        return _read_file(path)
    if path.name and os.path.isdir(path.parent):
        names = visible(path.parent)[1]
        starting = [name for name in names if name.startswith((f"{path.name}-", f"{path.name}_"))]
        if found := _array_files(path.parent, starting):
            return _read_beside(path, found)
    is_name = re.fullmatch(r"[a-z][a-z0-9_]*", str(path))
    mend = f"; a dataset is named by --dataset {path}" if is_name else ""
    raise UsageError(f"--data-dir {path}: no such folder or file{mend}")


def _read_file(path: Path) -> Found:
    """Read a file, or of one array the dataset in the same folder that it belongs to."""
    head = head_of(path)
    if head.startswith(ZIP):
        return read_npz(path)
    if head.startswith(MATLAB):
        return read_matlab(path)
    if head.startswith(NPY) or is_idx(head):
        if name := parse(path.name):
            beside = visible(path.parent)[1]
            same = [other for other in beside if (p := parse(other)) and p.dataset == name.dataset]
            if found := _array_files(path.parent, same):
                return _read_beside(path, found)
        raise UsageError(
            f"{path}: is a single array; give the others the names x_train, y_train, x_test and"
            " y_test and name their folder"
        )
    if known := what_it_is(head):
        raise UsageError(f"{path}: {known}")
    return read_table(path)


def _read_beside(path: Path, found: dict[str, tuple[str, str]]) -> Found:
    """Read array files in the folder of `path`, which a person named."""
    for name in {name for pair in found.values() for name in pair} - {path.name}:
        check_link(path.parent / name, path.parent)
    return read_array_files(path.parent, found)


def _read_folder(folder: Path) -> Found:
    """Read what a folder holds, or the only folder with data below it."""
    places = _places(folder, folder)
    if len(places) > 1:
        several = listed(str(place.relative_to(folder)) for place in places)
        raise UsageError(f"{folder}: holds several datasets, {several}: name one of these folders")
    datasets = _datasets(places[0], folder) if places else {}
    if len(datasets) > 1:
        raise UsageError(
            f"{folder}: holds several datasets, {listed(datasets)}: name a file, or keep only one"
        )
    if not datasets:
        raise UsageError(
            f"{folder}: has no data that can be read: IDX, .npy, .npz, .mat or CSV files, or"
            " pictures in folders of classes; it has"
            f" {listed(name for names in visible(folder) for name in names)}"
        )
    return next(iter(datasets.values()))()


def _datasets(folder: Path, root: Path) -> dict[str, Callable[[], Found]]:
    """Return the datasets of a folder, and how to read each, by the name of a file of it.

    root: the folder that a person named, which links must not lead out of.
    """
    files = visible(folder, root)[1]
    arrays = _array_files(folder, files)
    tables = [name for name in files if TABLE.search(name)]
    parts = table_parts(tables)
    found: dict[str, Callable[[], Found]] = {}
    if arrays:
        found[arrays["train"][0]] = partial(read_array_files, folder, arrays)
    if "train" in parts:
        found[parts["train"][0]] = partial(read_table_files, folder, parts)
    used = {name for pair in arrays.values() for name in pair}
    for name in files:
        if ARCHIVE.search(name) and name not in used:
            found[name] = partial(_read_file, folder / name)
    if _has_pictures(folder, root):
        found["folders of pictures"] = partial(read_class_folders, folder, root)
    if not found and len(tables) == 1:
        found[tables[0]] = partial(read_table, folder / tables[0])
    return found


def _array_files(folder: Path, names: list[str]) -> dict[str, tuple[str, str]]:
    return choose(str(folder), [name for name in names if ARRAY_FILE.search(name)], "file")


def _places(folder: Path, root: Path, depth: int = 0) -> list[Path]:
    """Return the folders with data, from `folder` downwards."""
    folders, files = visible(folder, root)
    if _has_files(files) or _has_pictures(folder, root):
        return [folder]
    if depth == DEEPEST:
        return []
    inner = folders[:MOST_FOLDERS]
    return [place for name in inner for place in _places(folder / name, root, depth + 1)]


def _has_files(names: list[str]) -> bool:
    patterns = (ARRAY_FILE, ARCHIVE, TABLE)
    return any(pattern.search(name) for name in names for pattern in patterns)


def _has_pictures(folder: Path, root: Path) -> bool:
    """Whether a folder has folders named like parts, or folders with other files than arrays."""
    for name in visible(folder, root)[0][:MOST_FOLDERS]:
        files = visible(folder / name, root)[1]
        pictures = any(PICTURE_NAME.search(file) for file in files)
        if pictures or (not _has_files(files) and (files or name.lower() in PARTS)):
            return True
    return False
