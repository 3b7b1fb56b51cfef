"""Hyperparameters and settings: frozen dataclasses that check themselves.

Each field of `SearchSettings` is a word of the command line and of `random_search`; its help
text stands here once. Only the standard library is imported, so that `--help` is quick.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from jaxmnist.errors import UsageError, local_path

LARGEST_SEED = 2**32 - 1
PRECISIONS = ("default", "highest", "bfloat16")
SELECTIONS = ("steady", "best")
SVM_BACKENDS = ("auto", "sklearn", "sklearnex", "cuml")
LARGEST_NUMBER = 10**9  # of anything that is counted here; larger is a slip of the hand
# Of some less, where memory or time would end before.
LARGEST = {
    "max_trials": 10**5,
    "lanes": 10**4,
    "svm_search": 10**4,
    "filters": 10**5,
    "units": 10**6,
    "conv_layers": 100,
    "dense_layers": 100,
}


def _shown(value: Any) -> str:
    """A value as a message shows it: not at any length."""
    try:
        text = repr(value)
    except ValueError:  # Python doesn't write out a number of thousands of digits
        text = "a number of very many digits"
    return text if len(text) <= 100 else text[:100] + "…"


def flag(name: str) -> str:
    """The command-line flag of a setting: `max_trials` is `--max-trials`."""
    return "--" + name.replace("_", "-")


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """`value` as an int; `UsageError` unless it is a whole number from `low` to `high`.

    Without `high` the bound is that of `LARGEST`, or `LARGEST_NUMBER`.
    """
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    high = LARGEST.get(name, LARGEST_NUMBER) if high is None else high
    if isinstance(value, int) and value > high:
        bounds = f"from {low} to {high}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise UsageError(f"{flag(name)} must be a whole number {bounds}, not {_shown(value)}")
    return number


def check_number(name: str, value: Any, accepts: Callable[[float], bool], wanted: str) -> None:
    """Raise `UsageError` unless `value` is a finite number that `accepts` holds for."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= 3e38 or not accepts(value):  # the largest float32
        raise UsageError(f"{flag(name)} must be a number {wanted}, not {_shown(value)}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{flag(name)} must be one of {', '.join(choices)}, not {_shown(value)}")


@dataclass(frozen=True)
class Hyperparameters:
    """One configuration of the search.

    filters: filters of every convolution, at least 1.
    conv_layers: convolutions, at least 1.
    dense_layers: hidden dense layers, at least 0.
    units: units of every hidden dense layer; None, whatever was given, when there are none.

    >>> print(Hyperparameters(filters=112, conv_layers=2, dense_layers=1, units=224))
    filters=112 conv_layers=2 dense_layers=1 units=224
    """

    filters: int
    conv_layers: int
    dense_layers: int
    units: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("filters", 1), ("conv_layers", 1), ("dense_layers", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), low))
        units = check_whole("units", self.units, 1) if self.dense_layers else None
        object.__setattr__(self, "units", units)

    def to_json(self) -> dict[str, int | None]:
        """The hyperparameters as JSON's object."""
        return asdict(self)

    def __str__(self) -> str:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return " ".join(f"{name}={value}" for name, value in given.items())


@dataclass(frozen=True)
class Range:
    """The whole numbers start, start + step, … up to stop, included where a step lands on it."""

    start: int
    stop: int
    step: int = 1

    @classmethod
    def parse(cls, name: str, value: Any) -> Range | Values:
        """Read what a person can say of a hyperparameter's values.

        `32:128:16` and `(32, 128, 16)` are a range, `1:3` and `(1, 3)` one of step 1, `112` and an
        int one value, `32,64,128` and a list values.

        Raises `UsageError` that names the hyperparameter if it is empty, negative or none of these.
        """
        if isinstance(value, Range):
            parts: list[Any] = [value.start, value.stop, value.step]
        elif isinstance(value, Values):
            parts = list(value.values)
        elif isinstance(value, str):
            parts = value.split("," if "," in value else ":")
        elif isinstance(value, list | tuple):
            parts = list(value)
        else:
            parts = [value]
        are_values = isinstance(value, list | Values) or (isinstance(value, str) and "," in value)
        wanted = (
            f"{flag(name)} must be a number, a range such as 32:128:16 (in Python also a tuple) or"
            f" values such as 32,64,128 (in Python also a list), not {_shown(value)}"
        )
        try:
            numbers = [int(part) for part in parts if not isinstance(part, bool | float)]
        except (TypeError, ValueError):
            raise UsageError(wanted) from None
        if len(numbers) != len(parts) or not numbers or (len(numbers) > 3 and not are_values):
            raise UsageError(wanted)
        check_whole(name, max(map(abs, numbers)), 0)
        if are_values and len(numbers) > 1:
            return Values.of(name, numbers)
        start = numbers[0]
        stop = numbers[1] if len(numbers) > 1 else start
        step = numbers[2] if len(numbers) > 2 else 1
        low = least(name)
        if start < low:
            raise UsageError(f"{flag(name)} must start at {low} or more, not at {start}")
        if stop < start:
            raise UsageError(
                f"{flag(name)} is empty: its last number {stop} is below its first, {start}"
            )
        if step < 1:
            raise UsageError(f"{flag(name)} must have a step of at least 1, not {step}")
        check_whole(name, stop, low)
        return cls(start, stop, step)

    @property
    def values(self) -> range:
        """Its members, ascending."""
        return range(self.start, self.stop + 1, self.step)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return str(self.start)
        return f"{self.start}:{self.stop}" + (f":{self.step}" if self.step != 1 else "")


@dataclass(frozen=True)
class Values:
    """Whole numbers that were named one by one, ascending."""

    values: tuple[int, ...]

    @classmethod
    def of(cls, name: str, numbers: list[int]) -> Values:
        """These values of a hyperparameter; `UsageError` if one is wrong or there twice."""
        for number in numbers:
            check_whole(name, number, least(name))
            if numbers.count(number) > 1:
                raise UsageError(f"{flag(name)} names the value {number} twice")
        return cls(tuple(sorted(numbers)))

    def __str__(self) -> str:
        return ",".join(map(str, self.values))


def least(name: str) -> int:
    """The least value of a hyperparameter."""
    return 0 if name == "dense_layers" else 1


DEFAULT_RANGES = {
    "filters": Range(32, 128, 16),
    "conv_layers": Range(1, 3),
    "dense_layers": Range(0, 2),
    "units": Range(32, 256, 32),
}


@dataclass(frozen=True)
class TrainingSettings:
    """How each candidate is trained: what `training` needs and nothing else.

    learning_rate is Adam's step size; batch_size counts images. precision: 'default' is JAX's own
    for the device, 'highest' computes products in full float32, 'bfloat16' the network in
    bfloat16 with weights and loss in float32. weight_decay: of AdamW, times the learning rate.
    """

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 1e-3
    precision: str = "default"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))
        check_number("learning_rate", self.learning_rate, lambda value: value > 0, "above 0")
        check_choice("precision", self.precision, PRECISIONS)
        check_number("weight_decay", self.weight_decay, lambda value: value >= 0, "of at least 0")


def _setting(default: Any, help: str, metavar: str | None = None) -> Any:
    return field(default=default, metadata={"help": help, "metavar": metavar})


def _range(name: str, help: str) -> Any:
    return _setting(None, f"{help} (default {DEFAULT_RANGES[name]})", "RANGE")


@dataclass(frozen=True)
class SearchSettings:
    """Everything that a person can say of a search, under the words of the command line.

    Raises `UsageError` with one line that names the flag, the value and what would be right.

    >>> SearchSettings(filters="32:64:16", epochs=3).run_directory
    'runs/mnist'
    """

    dataset: str | None = _setting(
        None,
        "mnist (default), fashion_mnist, kmnist or another name of tensorflow-datasets",
        "NAME",
    )
    data_dir: str | None = _setting(None, "read this folder of IDX files, or this .npz", "PATH")
    filters: Any = _range("filters", "filters of each convolution")
    conv_layers: Any = _range("conv_layers", "number of convolutions")
    dense_layers: Any = _range("dense_layers", "number of hidden dense layers")
    units: Any = _range("units", "units of each hidden dense layer")
    max_trials: int = _setting(10, "configurations to try", "N")
    epochs: int = _setting(5, "epochs for each configuration", "N")
    batch_size: int = _setting(128, "images in a batch", "N")
    learning_rate: float = _setting(1e-3, "Adam's step size", "RATE")
    validation_split: float = _setting(
        0.1, "fraction of the training images to validate on", "FRACTION"
    )
    train_limit: int | None = _setting(None, "use the first N training images", "N")
    seed: int = _setting(0, "seed of draws, weights, order and split", "N")
    directory: str = _setting("runs", "folder of all runs", "PATH")
    project_name: str | None = _setting(
        None, "folder of this run in it (default: the dataset's name)", "NAME"
    )
    overwrite: bool = _setting(
        False, "delete the run that is there, but for its ledger, and start anew"
    )
    select: str = _setting(
        "steady",
        "how the winner is chosen: steady (no fall of validation accuracy beyond its standard error"
        " comes first) or best (by validation accuracy alone)",
        "RULE",
    )
    tolerance: float | None = _setting(
        None, "fall of validation accuracy that is still steady", "FALL"
    )
    checkpoint_every: float = _setting(
        60.0, "a running trial's state is kept this often, so that it can go on", "SECONDS"
    )
    max_retries: int = _setting(
        1,
        "how often a trial is tried again that an exception ended (oftener if a kill did)",
        "N",
    )
    keep: int = _setting(3, "how many of the best trials keep their weights", "N")
    jobs: int | None = _setting(None, "trials that train at once (default: one for each core)", "N")
    lanes: int | None = _setting(
        None,
        "trials stacked in one program (default: measured on a GPU; 1 on a CPU and each TPU chip)",
        "N",
    )
    precision: str = _setting(
        "default",
        "numeric precision: default (JAX's own for the device), highest (float32) or bfloat16 (GPU,"
        " TPU)",
        "NAME",
    )
    cache: str | None = _setting(
        None,
        "folder that keeps compiled programs, or off"
        " (default: $JAXMNIST_CACHE, else the user's cache folder)",
        "PATH",
    )
    svm: bool = _setting(True, "fit an SVM on the winner's features")
    svm_backend: str = _setting(
        "auto",
        "library that fits the SVM; auto: cuml on a GPU where installed, else sklearn",
        "NAME",
    )
    svm_search: int = _setting(0, "tune the SVM's C and gamma over N draws", "N")
    report: bool = _setting(True, "make the page, report.html")
    tensorboard: bool = _setting(True, "write TensorBoard's files")
    quiet: bool = _setting(False, "say only the result")

    def __post_init__(self) -> None:
        for name in ("dataset", "data_dir", "directory", "cache"):
            value = getattr(self, name)
            if value is None and name != "directory":
                continue
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            if not isinstance(value, str) or not value or not value.isprintable():
                raise UsageError(f"{flag(name)} must be a name or a path, not {_shown(value)}")
            object.__setattr__(self, name, local_path(value, flag(name)))
        for name in ("overwrite", "svm", "report", "tensorboard", "quiet"):
            if not isinstance(getattr(self, name), bool):
                shown = _shown(getattr(self, name))
                raise UsageError(f"{flag(name)} must be true or false, not {shown}")
        for name in DEFAULT_RANGES:
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Range.parse(name, value))
        if self.project_name is not None and not is_plain_name(self.project_name):
            raise UsageError(
                "--project-name must be the name of a folder, without slashes,"
                f" not {_shown(self.project_name)}"
            )
        for name, low in (("max_trials", 1), ("keep", 1), ("svm_search", 0), ("max_retries", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), low))
        object.__setattr__(self, "seed", check_whole("seed", self.seed, 0, LARGEST_SEED))
        for name in ("train_limit", "jobs", "lanes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))
        training = self.training()
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, getattr(training, name))
        check_number(
            "validation_split",
            self.validation_split,
            lambda value: 0 < value < 1,
            "above 0 and below 1",
        )
        check_number(
            "checkpoint_every", self.checkpoint_every, lambda value: value >= 0, "of at least 0"
        )
        if self.tolerance is not None:
            check_number("tolerance", self.tolerance, lambda value: 0 <= value <= 1, "from 0 to 1")
        check_choice("select", self.select, SELECTIONS)
        check_choice("svm_backend", self.svm_backend, SVM_BACKENDS)
        if not is_plain_name(self.dataset_name):
            if self.dataset is None:
                raise UsageError(
                    f"--data-dir {_shown(self.data_dir)} can't name a run: --dataset NAME does"
                )
            raise UsageError(f"--dataset must be the name of a dataset, not {_shown(self.dataset)}")

    @property
    def dataset_name(self) -> str:
        """What to call the data: by `dataset`, else after the folder or file they lie in."""
        if self.dataset is None and self.data_dir is not None:
            return os.path.basename(os.path.abspath(self.data_dir)).removesuffix(".npz") or "data"
        return (self.dataset or "mnist").replace("/", "_")

    @property
    def run_directory(self) -> str:
        """The folder of the run."""
        return os.path.join(self.directory, self.project_name or self.dataset_name)

    def training(self) -> TrainingSettings:
        """The part that training needs."""
        return TrainingSettings(self.epochs, self.batch_size, self.learning_rate, self.precision)

    def to_json(self) -> dict[str, Any]:
        """All settings as JSON's object; ranges as their text."""
        return {
            item.name: str(value)
            if isinstance(value := getattr(self, item.name), Range | Values)
            else value
            for item in fields(self)
        }


def is_plain_name(name: Any) -> bool:
    """Whether `name` can be one folder below another, and nothing else."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set(name) & {"/", "\\", "\0", os.sep}
        and name.isprintable()
    )
