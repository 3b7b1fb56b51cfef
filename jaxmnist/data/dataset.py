"""A dataset of images and integer labels, in training, validation and test parts."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.download import load_named
from jaxmnist.data.formats import (
    EIGHT_BITS,
    Arrays,
    check_arrays,
    read_idx_folder,
    read_npz,
    scale_of,
)
from jaxmnist.errors import UsageError, local_path
from jaxmnist.settings import IN_MEMORY, SearchSettings

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
    class_names: K names, `class_names[k]` of class k; the label as text where the data bring none.
    scale: the divisor of pixels before they reach a network or an SVM; see `formats.scale_of`.
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

    def __post_init__(self) -> None:
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, self.labels)))

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
    def fingerprint(self) -> str:
        """The SHA-256 of all of the data, including the split."""
        return self._sha256("train", "validation", "test")

    @cached_property
    def validation_sha256(self) -> str:
        """The SHA-256 of the validation images and their labels."""
        return self._sha256("validation")

    def _sha256(self, *parts: str) -> str:
        digest = hashlib.sha256(repr((self.labels, self.scale)).encode())
        for part in parts:
            for array in (getattr(self, f"x_{part}"), getattr(self, f"y_{part}")):
                digest.update(repr((array.shape, str(array.dtype))).encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @property
    def scale_note(self) -> str | None:
        """A note on the scale; None if it is 255."""
        if self.scale == EIGHT_BITS:
            return None
        return (
            f"note: pixels of {self.name} are divided by {self.scale:g}, the largest value in the"
            f" training images, not by {EIGHT_BITS:g}"
        )


def load_arrays(dataset: str | None = None, data_dir: str | None = None) -> Arrays:
    """Load the arrays of a dataset: from `data_dir`, from the package (mnist), or by its name.

    Args:
      dataset: 'mnist' (also if None), or a name of tensorflow-datasets.
      data_dir: a folder of IDX files or an `.npz` file, read instead of `dataset`.

    Raises:
      UsageError: an unknown name, or files that are damaged or don't fit together.
      EnvironmentFailure: the dataset can't be downloaded.

    >>> load_arrays("mnist").x_train.shape
    (60000, 28, 28, 1)
    """
    if dataset == IN_MEMORY and data_dir is None:
        raise UsageError(
            "the data of this run were arrays in memory: give them again as data=, or where they"
            " lie by --data-dir"
        )
    if data_dir is not None:
        data_dir = local_path(data_dir, "--data-dir")
        if os.path.isdir(data_dir):
            return read_idx_folder(Path(data_dir))
        if os.path.isfile(data_dir):
            return read_npz(Path(data_dir))
        raise UsageError(f"--data-dir {data_dir}: no such folder of IDX files or .npz file")
    if dataset in (None, "mnist"):
        with resources.as_file(resources.files("jaxmnist.data") / "mnist") as folder:
            return read_idx_folder(folder, MNIST_SHA256)
    assert dataset is not None
    return load_named(dataset)


def load_dataset(settings: SearchSettings) -> Dataset:
    """Load and split the dataset that `settings` specify."""
    return split(
        settings.dataset_name,
        load_arrays(settings.dataset, settings.data_dir),
        validation_split=settings.validation_split,
        seed=settings.seed,
        train_limit=settings.train_limit,
    )


def dataset_in_memory(data: Any, settings: SearchSettings) -> Dataset:
    """The dataset of arrays.

    Args:
      data: (x_train, y_train, x_test, y_test), or with (x_validation, y_validation) between the
        two, which then validate: images [N, H, W] or [N, H, W, C], whole numbers or floats, and
        their labels [N].
      settings: of the search.

    Raises:
      UsageError: the arrays are not such ones, or don't fit together.
    """
    if not isinstance(data, tuple | list) or len(data) not in (4, 6):
        raise UsageError(
            "data must be (x_train, y_train, x_test, y_test), or have x_validation, y_validation"
            " between them"
        )
    try:
        parts = [np.asarray(array) for array in data]
    except (ValueError, TypeError):
        raise UsageError("data must be arrays of images and of labels") from None
    name = settings.dataset_name
    arrays = check_arrays("data", *parts[:2], *parts[-2:])
    if len(parts) == 4:
        return split(
            name,
            arrays,
            validation_split=settings.validation_split,
            seed=settings.seed,
            train_limit=settings.train_limit,
        )
    # Checked as the test images are.
    validation = check_arrays("data", *parts[:4])
    limit = settings.train_limit
    labels, y_train = np.unique(arrays.y_train[:limit], return_inverse=True)
    for part, found in (("validation", validation.y_test), ("test", arrays.y_test)):
        unknown = np.setdiff1d(found, labels)
        if len(unknown):
            raise UsageError(
                f"{name}: {part} images have the label {unknown[0]}, which no training image has"
            )
    if len(labels) < 2:
        raise UsageError(
            f"{name}: all training images have the label {labels[0]}; two classes are needed"
        )
    return Dataset(
        name,
        arrays.x_train[:limit],
        y_train.astype(np.int32),
        validation.x_test.astype(arrays.x_train.dtype),
        np.searchsorted(labels, validation.y_test).astype(np.int32),
        arrays.x_test,
        np.searchsorted(labels, arrays.y_test).astype(np.int32),
        tuple(int(label) for label in labels),
        scale_of(name, arrays.x_train),
    )


def split(
    name: str, arrays: Arrays, *, validation_split: float, seed: int, train_limit: int | None = None
) -> Dataset:
    """Split the training images into training and validation images.

    Args:
      name: the name of the dataset.
      arrays: the dataset as it was loaded.
      validation_split: fraction of the N training images to draw, stratified by class; exactly
        round(validation_split × N) are drawn.
      seed: the seed of the draw.
      train_limit: use only the first `train_limit` training images; None for all.

    Raises:
      UsageError: fewer than two classes, a class that is absent from a part, or a test label
        that no training image has.
    """
    x, y = arrays.x_train[:train_limit], arrays.y_train[:train_limit]
    labels, classes, counts = np.unique(y, return_inverse=True, return_counts=True)
    if len(labels) < 2:
        raise UsageError(
            f"{name}: all training images have the label {labels[0]}; two classes are needed"
        )
    unknown = np.setdiff1d(arrays.y_test, labels)
    if len(unknown):
        raise UsageError(
            f"{name}: test images have the label {unknown[0]}, which no training image has"
        )
    validation = _stratified_draw(classes, counts, round(validation_split * len(y)), seed)
    for part, drawn in (("validation", validation), ("training", ~validation)):
        absent = np.setdiff1d(np.arange(len(labels)), classes[drawn])
        if len(absent):
            raise UsageError(
                f"--validation-split {validation_split} leaves no {part} image of label"
                f" {labels[absent[0]]}, which has {counts[absent[0]]} of {len(y)} images"
            )
    return Dataset(
        name,
        x[~validation],
        classes[~validation].astype(np.int32),
        x[validation],
        classes[validation].astype(np.int32),
        arrays.x_test,
        np.searchsorted(labels, arrays.y_test).astype(np.int32),
        tuple(int(label) for label in labels),
        scale_of(name, arrays.x_train),  # of all training images, regardless of the limit
    )


def _stratified_draw(classes: np.ndarray, counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Draw `size` images, from each class in proportion: bool[N].

    Numbers are rounded by largest remainders; of equal remainders the larger class comes first.
    """
    sizes, remainders = np.divmod(counts * size, len(classes))
    for k in np.lexsort((-counts, -remainders))[: size - sizes.sum()]:
        sizes[k] += 1
    generator = np.random.default_rng([seed, 3])
    drawn = np.zeros(len(classes), bool)
    for k, wanted in enumerate(sizes):
        members = np.flatnonzero(classes == k)
        drawn[generator.permutation(members)[:wanted]] = True
    return drawn
