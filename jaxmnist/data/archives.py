"""NumPy's files: `.npz` with the arrays of a dataset, `.npy` and IDX files with one array each."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np

from jaxmnist.data.arrays import Found, Part
from jaxmnist.data.contents import NPY, UNPACK, ZIP, head_of, open_file, what_it_is
from jaxmnist.data.idx import is_idx, read_idx, without_origin
from jaxmnist.data.names import choose, listed, parse
from jaxmnist.errors import UsageError
from jaxmnist.reading import check_unpacked, largest_file, read_npy

LONGEST_LIST = 16 * 2**20  # bytes of a zip archive's list of members, each of which takes over 46
PARTS: dict[int, tuple[str, ...]] = {
    2: ("train",),
    4: ("train", "test"),
    6: ("train", "validation", "test"),
}


def read_npz(path: Path) -> Found:
    """Read the arrays of a dataset from an `.npz` file, which can't run code.

    Their names say what they are; see `names`. Arrays without names, arr_0, arr_1 and so on, are
    recognised by their shapes.
    """
    with open_file(path) as file, open_zip(file) as archive:
        return read_parts(path, archive)


def read_parts(path: Path, archive: zipfile.ZipFile) -> Found:
    """Read the arrays of a dataset from an open archive of the file at `path`; see `read_npz`."""
    names = npz_names(archive)
    others = [name for name in archive.namelist() if not name.endswith((".npy", "/"))]
    if others and not names:
        raise UsageError(
            f"{path}: is a zip archive of {len(others)} files, such as {listed(others[:1])}; unpack"
            " it and name its folder"
        )
    chosen = choose(str(path), names, "array")
    nameless = [f"arr_{i}" for i in range(len(names))]
    if not chosen and (len(names) not in PARTS or sorted(names) != nameless):
        raise UsageError(f"{path}: has no array x_train; it has {listed(names)}")
    wanted = [name for pair in chosen.values() for name in pair] or nameless
    size = sum(archive.getinfo(f"{name}.npy").file_size for name in wanted)
    if size > largest_file():
        raise UsageError(f"{path}: unpacks to {size} bytes, more than can be loaded")
    if not chosen:
        return by_shape(
            str(path), [read_npz_member(path, archive, name, text=True) for name in nameless]
        )
    return Found.of(
        {
            part: (
                read_npz_member(path, archive, images),
                read_npz_member(path, archive, labels, text=True),
            )
            for part, (images, labels) in chosen.items()
        }
    )


def by_shape(source: str, arrays: Sequence[np.ndarray]) -> Found:
    """Recognise the parts of two, four or six arrays without names: images have more axes.

    Images stand in the order training, (validation,) test, and labels too; either may come first.
    """
    axes = max(array.ndim for array in arrays)
    images = [array for array in arrays if array.ndim == axes]
    labels = [array for array in arrays if array.ndim < axes]
    lengths = [[len(array) for array in kind if array.ndim] for kind in (images, labels)]
    if axes < 2 or lengths[0] != lengths[1]:
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise UsageError(
            f"{source}: can't tell images from labels by the shapes {shapes}; name the arrays"
            " x_train, y_train, x_test, y_test"
        )
    return in_order(list(zip(images, labels, strict=True)))


def in_order(pairs: Sequence[Part]) -> Found:
    """Return one to three pairs of images and labels as training, (validation,) test parts."""
    return Found.of(dict(zip(PARTS[2 * len(pairs)], pairs, strict=True)))


class _Listed:
    """A file whose list of members isn't read if it is far longer than a data set's."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size > LONGEST_LIST:  # zipfile reads nothing else that is long at once
            raise ValueError(f"it lists too many files: {UNPACK}")
        return self._file.read(size)


def open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    """Open a zip archive for reading; its list of members is read."""
    return zipfile.ZipFile(cast(IO[bytes], _Listed(file)))


def npz_names(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays in an `.npz` file."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npz_member(
    path: Path, archive: zipfile.ZipFile, name: str, *, text: bool = False
) -> np.ndarray:
    """Read the array `name` of the `.npz` file at `path`; see `read_npy`."""
    entry = archive.getinfo(f"{name}.npy")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # Of other methods zipfile unpacks all that it has read, however much that becomes.
        raise UsageError(f"{path}: {name} uses a compression that NumPy doesn't write: {UNPACK}")
    # Members may share their bytes, so that it is the archive's size that counts.
    check_unpacked(f"{path}: {name}", entry.file_size, path.stat().st_size)
    with archive.open(entry) as member:
        return read_npy(f"{path}: {name}", member, text=text)


def read_array(path: Path, *, text: bool = False) -> np.ndarray:
    """Read the one array of an IDX, `.npy` or `.npz` file, gzipped or not.

    Args:
      path: the file.
      text: whether the array may be one of text, as labels may.

    Raises:
      UsageError: the file is something else, or damaged.
    """
    head = head_of(path)
    if is_idx(head):
        return without_origin(read_idx(path)) if text else read_idx(path)
    if head.startswith(NPY):
        with open_file(path) as file:
            return read_npy(str(path), file, text=text)
    if head.startswith(ZIP):
        with open_file(path) as file, open_zip(file) as archive:
            names = npz_names(archive)
            if len(names) != 1:
                raise UsageError(f"{path}: must have a single array; it has {listed(names)}")
            return read_npz_member(path, archive, names[0], text=text)
    known = what_it_is(head)
    raise UsageError(f"{path}: {known or 'is no IDX, .npy or .npz file with an array'}")


def read_images(path: Path) -> np.ndarray:
    """Read images for prediction from an IDX, `.npy` or `.npz` file, gzipped or not.

    Of an `.npz` file that is its array `images`, its test images or its only array.
    """
    if not head_of(path).startswith(ZIP):
        return read_array(path)
    with open_file(path) as file, open_zip(file) as archive:
        names = npz_names(archive)
        tests = [n for n in names if (p := parse(n)) and (p.part, p.kind) == ("test", "images")]
        suitable = [name for name in names if name == "images"] or tests or names
        if len(suitable) != 1:
            raise UsageError(
                f"{path}: needs an array named images or x_test, or a single array; it has"
                f" {listed(names)}"
            )
        return read_npz_member(path, archive, suitable[0])


def read_array_files(folder: Path, chosen: Mapping[str, tuple[str, str]]) -> Found:
    """Read a dataset of one array a file: IDX, `.npy` or `.npz`.

    Args:
      folder: where the files lie.
      chosen: the names of the files with images and with labels, by part; see `names.choose`.
    """
    return Found.of(
        {
            part: (read_array(folder / images), read_array(folder / labels, text=True))
            for part, (images, labels) in chosen.items()
        }
    )
