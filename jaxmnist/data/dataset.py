"""A dataset of images and integer labels, in training, validation and test parts."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.archives import in_order
from jaxmnist.data.arrays import (
    ARRAYS,
    EIGHT_BITS,
    Arrays,
    Source,
    check,
    hot_pixel,
    scale_of,
    transposed,
)
from jaxmnist.data.copies import digests, notes_on
from jaxmnist.data.download import load_named
from jaxmnist.data.formats import read_files
from jaxmnist.data.idx import read_idx_folder
from jaxmnist.data.labels import class_names_of
from jaxmnist.data.parts import limited, part_fingerprint, validation_part
from jaxmnist.data.preparation import Preparation, preparation_of
from jaxmnist.errors import UsageError, local_path
from jaxmnist.settings import SearchSettings

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
    class_names: K names to show, `class_names[k]` of class k; see `labels.class_names_of`.
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
      dataset: 'mnist' (also if None), or a name of tensorflow-datasets.
      data_dir: a file or folder that is read instead of `dataset`; see `formats.read_files`.
      transpose: swap rows and columns of the images.

    Raises:
      UsageError: an unknown name, or files that are damaged or don't fit together.
      EnvironmentFailure: the dataset can't be downloaded.

    >>> load_arrays("mnist").x_train.shape
    (60000, 28, 28, 1)
    """
    if data_dir is not None:
        return read_files(Path(local_path(data_dir, "--data-dir")), transpose=transpose)
    arrays = _by_name(dataset or "mnist")
    return transposed(arrays) if transpose else arrays


def _by_name(dataset: str) -> Arrays:
    """Load a dataset from the package, or from tensorflow-datasets."""
    if dataset == "mnist":
        with resources.as_file(resources.files("jaxmnist.data") / "mnist") as folder:
            return read_idx_folder(folder, MNIST_SHA256)
    is_path = f"--dataset {dataset} is a path, not a name: use --data-dir {dataset}"
    if os.path.isabs(dataset) or dataset.startswith(".") or re.search(ENDING, dataset.lower()):
        raise UsageError(is_path)
    try:
        return load_named(dataset)
    except UsageError:
        if os.path.exists(dataset):
            raise UsageError(is_path) from None
        raise


def load_dataset(settings: SearchSettings) -> Dataset:
    """Load and split the dataset that `settings` specify."""
    arrays = load_arrays(settings.dataset, settings.data_dir, settings.transpose)
    return split_as(settings, arrays)


def dataset_in_memory(data: Any, settings: SearchSettings) -> Dataset:
    """The dataset of arrays.

    Args:
      data: (x_train, y_train, x_test, y_test); with (x_validation, y_validation) between the two,
        which then validate; or (x, y), of which a test part is set aside. The parts may be pairs,
        as Keras' `load_data` gives them, and all may be what `load_arrays` returns. Images are
        numbers [N, H, W], [N, H, W, C], [N, C, H, W] or [N, D]; labels are numbers or names [N],
        or one-hot [N, K].
      settings: of the search.

    Raises:
      UsageError: the arrays are not such ones, or don't fit together.
    """
    # Copies: a change of the caller's arrays while a search runs must not reach the test set.
    if isinstance(data, Arrays):
        fields: Any = map(copy, data)
        own = Arrays(*fields)
        if settings.transpose and not own.source.transposed:
            own = transposed(own)
        return replace(split_as(settings, own), in_memory=True)
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
    return replace(split_as(settings, arrays), in_memory=True)


def split_as(settings: SearchSettings, arrays: Arrays) -> Dataset:
    """Split a dataset as `settings` say."""
    return split(
        settings.dataset_name,
        arrays,
        validation_split=settings.validation_split,
        seed=settings.seed,
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
            raise UsageError(
                f"--train-limit {train_limit} is fewer images than {name} has classes,"
                f" {len(labels)}"
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
