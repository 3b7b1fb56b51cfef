"""A dataset of images and integer labels, in training, validation and test parts.

Which reader reads a file or a folder is decided by its content.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.array_files import (
    MATLAB,
    in_order,
    is_idx,
    read_array_files,
    read_idx_folder,
    read_matlab,
    read_npz,
)
from jaxmnist.data.arrays import (
    ARRAYS,
    EIGHT_BITS,
    Arrays,
    Found,
    Source,
    check,
    class_names_of,
    hot_pixel,
    scale_of,
    transposed,
)
from jaxmnist.data.contents import (
    NPY,
    PARTS,
    ZIP,
    check_link,
    choose,
    head_of,
    listed,
    parse,
    visible,
    what_it_is,
)
from jaxmnist.data.download import load_named
from jaxmnist.data.pictures import read_class_folders
from jaxmnist.data.preparation import Preparation, preparation_of
from jaxmnist.data.split import digests, limited, notes_on, part_fingerprint, validation_part
from jaxmnist.data.tables import read_table, read_table_files, table_parts
from jaxmnist.errors import Named, SettingError, UsageError, local_path, wrong
from jaxmnist.settings import DataSettings

# --- Data as people have them, recognised by their content ---

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
    mend = "; a dataset is named by {dataset} {path}" if is_name else ""
    raise SettingError("{data_dir} {path}: no such folder or file" + mend, path=path)


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


# --- The dataset ---

ENDING = r"\.(npz|npy|csv|gz|zip|mat|png|jpg|pkl|h5)$"  # no dataset's name ends so
MNIST_SHA256 = {
    "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@dataclass(frozen=True)
class Dataset:
    """Images [N, H, W, C] and their classes int32[N], 0 to K − 1, in three parts.

    Images are uint8 where all pixels are whole numbers from 0 to 255, else float32.
    labels: the K labels, ascending, as the data gives them: class k has label `labels[k]`.
    class_names: K names to show, `class_names[k]` of class k; see `class_names_of`.
    scale: the divisor of pixels before they reach a network or an SVM; see `arrays.scale_of`.
    notes: a line for each thing about the data that their owner should know.
    in_memory: whether they were given as arrays, and not as files or by a name.
    source: what was decided for all of their files.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    labels: tuple[int, ...]
    scale: float
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    in_memory: bool = False
    source: Source = ARRAYS

    def __post_init__(self) -> None:
        names = class_names_of(self.labels, self.class_names)
        object.__setattr__(self, "class_names", names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        height, width, channels = self.x_train.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """The number of classes, K."""
        return len(self.labels)

    @cached_property
    def preparation(self) -> Preparation:
        """How pictures are prepared like the training images."""
        return preparation_of(self.x_train, self.scale, self.source)

    @cached_property
    def fingerprint(self) -> str:
        """The SHA-256 of all of the data, including the split."""
        return self._sha256("train", "validation", "test")

    @cached_property
    def validation_sha256(self) -> str:
        """The SHA-256 of the validation images and their labels."""
        return self._sha256("validation")

    @cached_property
    def different_validation(self) -> int:
        """The number of validation images that are not copies of others."""
        return len(np.unique(digests(self.x_validation)))

    @cached_property
    def test_sha256(self) -> str:
        """The SHA-256 of the test images, as 8 bits, and their labels.

        Datasets with other training images, another split or pixels on another scale share it, also
        if training images of a further class renumber the classes.
        """
        present = np.unique(self.y_test)
        names = [self.class_names[k] for k in present]
        numbers = np.asarray(self.labels, np.int64)
        if names == sorted(names):  # labels may be places in the sorted list of all names
            numbers[present] = [_number(self.labels[k], self.class_names[k]) for k in present]
        return part_fingerprint(self.x_test, numbers[self.y_test], self.scale)

    def _sha256(self, *parts: str) -> str:
        digest = hashlib.sha256(repr((self.labels, self.scale)).encode())
        for part in parts:
            for array in (getattr(self, f"x_{part}"), getattr(self, f"y_{part}")):
                digest.update(repr((array.shape, str(array.dtype))).encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def scale_note(self) -> str | None:
        """A note on the scale; None if it is 255, or 1 for fractions."""
        if self.scale == EIGHT_BITS or (self.scale == 1 and self.x_train.dtype != np.uint8):
            return None
        return (
            f"note: pixels of {self.name} are divided by {self.scale:g}, the largest value in the"
            f" training images, not by {EIGHT_BITS:g}"
        )


def _number(label: int, name: str) -> int:
    """A number of 64 bits for a class, which depends on its name alone: the number that it is."""
    if name == str(label):
        return label
    if re.fullmatch("-?[0-9]{1,15}", name):
        return int(name)
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


def joined(data: Dataset) -> Dataset:
    """Return data whose training images are followed by those that validated; none are left."""
    return replace(
        data,
        x_train=np.concatenate([data.x_train, data.x_validation]),
        y_train=np.concatenate([data.y_train, data.y_validation]),
        x_validation=data.x_validation[:0],
        y_validation=data.y_validation[:0],
    )


def load_arrays(
    dataset: str | None = None, data_dir: str | None = None, transpose: bool = False
) -> Arrays:
    """Load the arrays of a dataset: from `data_dir`, from the package (mnist), or by its name.

    Args:
      dataset: 'mnist' (also if None), or a name that `download.load_named` takes.
      data_dir: a file or folder that is read instead of `dataset`; see `read_files`.
      transpose: swap rows and columns of the images.

    Raises:
      UsageError: an unknown name, or files that are damaged or don't fit together.
      EnvironmentFailure: the dataset can't be downloaded.

    >>> load_arrays("mnist").x_train.shape
    (60000, 28, 28, 1)
    """
    if data_dir is not None:
        return read_files(Path(local_path(data_dir, Named("data_dir"))), transpose=transpose)
    arrays = _by_name(dataset or "mnist")
    return transposed(arrays) if transpose else arrays


def _by_name(dataset: str) -> Arrays:
    """Load a dataset from the package, or by a name that `download.load_named` takes."""
    if dataset == "mnist":
        with resources.as_file(resources.files("jaxmnist.data") / "mnist") as folder:
            return read_idx_folder(folder, MNIST_SHA256)
    is_path = SettingError(
        "{dataset} {given} is a path, not a name: use {data_dir} {given}", given=dataset
    )
    if os.path.isabs(dataset) or dataset.startswith(".") or re.search(ENDING, dataset.lower()):
        raise is_path
    try:
        return load_named(dataset)
    except UsageError:
        if os.path.exists(dataset):
            raise is_path from None
        raise


def load_dataset(settings: DataSettings, seed: int) -> Dataset:
    """Load and split the dataset that `settings` specify; the seed is that of the split."""
    arrays = load_arrays(settings.dataset, settings.data_dir, settings.transpose)
    return split_as(settings, seed, arrays)


def dataset_in_memory(data: Any, settings: DataSettings, seed: int) -> Dataset:
    """The dataset of arrays.

    Args:
      data: (x_train, y_train, x_test, y_test); with (x_validation, y_validation) between the two,
        which then validate; or (x, y), of which a test part is set aside. The parts may be pairs,
        as Keras' `load_data` gives them, and all may be what `load_arrays` returns. Images are
        numbers [N, H, W], [N, H, W, C], [N, C, H, W] or [N, D]; labels are numbers or names [N],
        or one-hot [N, K].
      settings: of the data, which name and split them.
      seed: of the split.

    Raises:
      UsageError: the arrays are not such ones, or don't fit together.
    """
    # Copies: a change of the caller's arrays while a search runs must not reach the test set.
    if isinstance(data, Arrays):
        fields: Any = map(copy, data)
        own = Arrays(*fields)
        if settings.transpose and not own.source.transposed:
            own = transposed(own)
        return replace(split_as(settings, seed, own), in_memory=True)
    if isinstance(data, tuple | list) and len(data) in (2, 3):
        pairs = [part for part in data if isinstance(part, tuple | list) and len(part) == 2]
        if len(pairs) == len(data):
            data = [array for pair in pairs for array in pair]
    if not isinstance(data, tuple | list) or len(data) not in (2, 4, 6):
        raise UsageError(
            "data must be (x_train, y_train, x_test, y_test), or have x_validation, y_validation"
            " between them, or be (x, y)"
        )
    try:
        parts = [np.array(array) for array in data]
    except (ValueError, TypeError):
        raise UsageError("data must be arrays of images and of labels") from None
    found = in_order(list(zip(parts[::2], parts[1::2], strict=True)))
    arrays = check("data", found, transpose=settings.transpose)
    return replace(split_as(settings, seed, arrays), in_memory=True)


def split_as(settings: DataSettings, seed: int, arrays: Arrays) -> Dataset:
    """Split a dataset as `settings` say."""
    return split(
        settings.dataset_name,
        arrays,
        validation_split=settings.validation_split,
        seed=seed,
        train_limit=settings.train_limit,
    )


def split(
    name: str, arrays: Arrays, *, validation_split: float, seed: int, train_limit: int | None = None
) -> Dataset:
    """Split the training images into training and validation images.

    Args:
      name: the name of the dataset.
      arrays: the dataset as it was loaded; its own validation part is used if there is one.
      validation_split: fraction of the N training images to draw, stratified by class, at least one
        of each class with two different images. Equal images stay on one side, and as many are
        drawn as is nearest to round(validation_split × N): exactly that where no images are equal.
      seed: the seed of the draw.
      train_limit: use only so many training images, the first of each class, in proportion; None
        for all.

    Raises:
      UsageError: fewer than two classes, a part that is too small for the classes, or a label of
        test or validation images that no training image has.
    """
    labels, classes, counts = np.unique(arrays.y_train, return_inverse=True, return_counts=True)
    names = tuple(arrays.names.get(int(label), str(label)) for label in labels)
    if len(labels) < 2:
        raise UsageError(
            f"{name}: all training images have the label {names[0]}; two classes are needed"
        )
    y_test = _classes(name, "test", arrays.y_test, labels, arrays.names)
    x = arrays.x_train
    if train_limit is not None and train_limit < len(classes):
        if train_limit < len(labels):
            raise wrong(
                "train_limit",
                f"{train_limit} is fewer images than {name} has classes, {len(labels)}",
            )
        chosen = limited(classes, counts, train_limit)
        x, classes = x[chosen], classes[chosen]
        counts = np.bincount(classes)
    scale = scale_of(name, arrays.x_train)  # of all training images, regardless of the limit
    notes, given = arrays.notes, None
    if hot := hot_pixel(arrays.x_train):
        notes += (f"note: {name}: {hot.line}; all are divided by {scale:g}",)
    hashed = digests(x), classes
    if arrays.x_validation is not None and arrays.y_validation is not None:
        x_validation = arrays.x_validation
        y_validation = _classes(name, "validation", arrays.y_validation, labels, arrays.names)
        given = digests(x_validation), y_validation
        y = classes.astype(np.int32)
    else:
        groups = np.unique(hashed[0], return_inverse=True)[1]
        drawn, more = validation_part(classes, groups, names, validation_split, seed, train_limit)
        x_validation, y_validation = x[drawn], classes[drawn].astype(np.int32)
        x, y = x[~drawn], classes[~drawn].astype(np.int32)
        notes += more
    notes += notes_on(hashed, given, (digests(arrays.x_test), y_test))
    return Dataset(
        name,
        x,
        y,
        x_validation,
        y_validation,
        arrays.x_test,
        y_test,
        tuple(int(label) for label in labels),
        scale,
        names,
        notes,
        source=arrays.source,
    )


def _classes(
    name: str, part: str, found: np.ndarray, labels: np.ndarray, names: Mapping[int, str]
) -> np.ndarray:
    """Return the classes int32[N] of labels; `UsageError` for one that training images lack."""
    unknown = np.setdiff1d(found, labels)
    if len(unknown):
        label = names.get(int(unknown[0]), unknown[0])
        raise UsageError(
            f"{name}: {part} images have the label {label}, which no training image has"
        )
    return np.searchsorted(labels, found).astype(np.int32)
