"""The settings of a search: frozen dataclasses that check themselves.

Each field of `SearchSettings` is an option of the command line and of `random_search`; its help
text is defined only here. Only the standard library is imported, so that `--help` is fast.
"""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from jaxmnist.errors import UsageError, local_path
from jaxmnist.hyperparameters import plain, shown, text

# --- Checks of values that a person gives, each with one line for what it refuses ---

LARGEST_NUMBER = 10**9  # the largest value of any count; a larger one is a typing error
# Smaller limits, where memory or time would run out earlier.
LARGEST_VALUES = {
    "max_trials": 10**5,
    "lanes": 10**4,
    "random_shift": 1000,  # pixels: more than an image has
    "reruns": 1000,
    "svm_search": 10**4,
}


def flag(name: str) -> str:
    """Return the command-line flag of a setting: `--max-trials` for `max_trials`."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a misspelt one; None if none is like it.

    >>> nearest("--max-trails", ["--max-trials", "--epochs"])
    '--max-trials'
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int; `UsageError` unless it is a whole number from `low` to `high`.

    Without `high` the bound is that of `LARGEST_VALUES`, or else `LARGEST_NUMBER`.
    """
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    high = LARGEST_VALUES.get(name, LARGEST_NUMBER) if high is None else high
    if isinstance(value, int) and value > high:
        bounds = f"from {low} to {high}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise UsageError(f"{flag(name)} must be a whole number {bounds}, not {shown(value)}")
    return number


def check_number(name: str, value: Any, accepts: Callable[[float], bool], wanted: str) -> float:
    """Return `value` as a float; `UsageError` unless it is finite and `accepts` is true for it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= 3e38 or not accepts(value):  # the largest float32
        raise UsageError(f"{flag(name)} must be a number {wanted}, not {shown(value)}")
    return float(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{flag(name)} must be one of {', '.join(choices)}, not {shown(value)}")


def canonical(given: Any) -> Any:
    """Return a given range as JSON can represent it: a tuple becomes text, a list stays a list.

    Raises ValueError unless it can be a range, values or one value; the caller prefixes the
    message with a name.
    """
    if isinstance(given, tuple):
        if not 1 <= len(given) <= 3:
            raise ValueError(
                f"must be a range (first, last[, step or 'log']) as a tuple, not {shown(given)}"
            )
        if any(isinstance(part, bool | list | tuple) for part in given):
            raise ValueError(f"must be a range of numbers as a tuple, not {shown(given)}")
        return ":".join(text(plain(part)) for part in given)
    if isinstance(given, list):
        if not given:
            raise ValueError("must have at least one value, but the list is empty")
        return [plain(member) for member in given]
    if given is None:
        raise ValueError("must be a range, values or one value, not None")
    return plain(given)


def checked_ranges(given: Any) -> dict[str, Any]:
    """Return the ranges as `canonical` gives them; raise `UsageError` for an invalid one."""
    if not isinstance(given, Mapping):
        raise UsageError(f"ranges must be a mapping of names to ranges, not {shown(given)}")
    found = {}
    for name, value in given.items():
        try:
            found[name] = canonical(value)
        except ValueError as problem:
            raise UsageError(f"{flag(str(name))} {problem}") from None
    return found


def is_plain_name(name: Any) -> bool:
    """Return whether `name` can name a single folder, and can't be any other path."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set(name) & {"/", "\\", "\0", os.sep}
        and name.isprintable()
    )


# --- How each trial is trained: settings that check themselves, and the recipes by name ---

OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd", "lion")
DECAYING = ("adamw", "lion")  # optimizers that have a weight decay
SCHEDULES = ("constant", "cosine", "linear", "one-cycle")
# Settings of training that may be hyperparameters: of a network that asks for them, or of any
# network where a person gives a range.
TRAINING = (
    "learning_rate",
    "weight_decay",
    "batch_size",
    "optimizer",
    "schedule",
    "label_smoothing",
    "ema_momentum",
    "random_shift",
    "random_rotation",
)
# Those of them that an optimizer of a network's own has in it.
OF_OPTIMIZER = ("learning_rate", "weight_decay", "optimizer", "schedule")
PRECISIONS = ("default", "highest", "bfloat16")
TRAINING_NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("learning_rate", lambda value: value > 0, "above 0"),
    ("weight_decay", lambda value: value >= 0, "of at least 0"),
    ("label_smoothing", lambda value: 0 <= value < 1, "of at least 0 and below 1"),
    ("ema_momentum", lambda value: 0 <= value < 1, "of at least 0 and below 1"),
    ("random_rotation", lambda value: 0 <= value <= 180, "from 0 to 180"),
)


@dataclass(frozen=True)
class TrainingSettings:
    """How each trial is trained: the settings that `engine.training` needs, and no others.

    learning_rate is the optimizer's step size, which the schedule changes step by step;
    weight_decay is that of the optimizers in `DECAYING`; batch_size counts images. precision:
    'default' is JAX's own for the device, 'highest' computes products in full float32, 'bfloat16'
    computes the network in bfloat16 with weights and loss in float32.
    """

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 1e-4
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema_momentum: float = 0.0
    random_shift: int = 0
    random_rotation: float = 0.0
    precision: str = "default"

    def for_trial(self, hyperparameters: Mapping[str, Any]) -> TrainingSettings:
        """Return these settings with a trial's own hyperparameters of training in their place."""
        own = {name: hyperparameters[name] for name in TRAINING if name in hyperparameters}
        return replace(self, **own) if own else self

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))
        object.__setattr__(self, "random_shift", check_whole("random_shift", self.random_shift, 0))
        for name, accepts, wanted in TRAINING_NUMBERS:
            number = check_number(name, getattr(self, name), accepts, wanted)
            object.__setattr__(self, name, number)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)


# How trials are trained where nothing else is said, by name.
RECIPES: Mapping[str, TrainingSettings] = {
    "study": TrainingSettings(),
    "fast": TrainingSettings(
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=0.1,
        schedule="linear",
        label_smoothing=0.1,
    ),
}
USUAL_RECIPE = "fast"


# --- The settings of a search: a frozen dataclass that checks itself ---

LARGEST_SEED = 2**32 - 1
SELECTIONS = ("steady", "best")
SVM_BACKENDS = ("auto", "sklearn", "sklearnex", "cuml")
IN_MEMORY = "arrays"  # the name of a dataset that is given as arrays without a name
KEEP = 3  # trials whose weights are kept, unless more are needed or a person says otherwise
RERUNS = 3  # of each finalist, unless a number is given
# Settings that are numbers, with what each must be; None is no number, where it is allowed.
NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("validation_split", lambda value: 0 < value < 1, "above 0 and below 1"),
    ("checkpoint_every", lambda value: value >= 0, "of at least 0"),
    ("tolerance", lambda value: 0 <= value <= 1, "from 0 to 1"),
    ("max_seconds", lambda value: value > 0, "above 0"),
)


def _setting(
    default: Any,
    help: str,
    metavar: str | None = None,
    *,
    identifies: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a setting; with `identifies`, a run with another value of it is another run."""
    metadata = {"help": help, "metavar": metavar, "identifies": identifies, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class SearchSettings:
    """The settings of a search, named like the flags of the command line.

    Raises `UsageError` with one line that names the flag, the value and what is accepted.

    ranges: ranges of hyperparameters, by name, in place of the default ones. The network defines
      which names there are and what the ranges mean.

    >>> SearchSettings(epochs=3).run_directory
    'runs/mnist'
    """

    dataset: str | None = _setting(
        None,
        "mnist (default), fashion_mnist, kmnist or another name of tensorflow-datasets",
        "NAME",
    )
    data_dir: str | None = _setting(
        None,
        "data to read: .npz, .mat or CSV file, or folder of IDX, .npy or CSV files or of pictures"
        " in a folder for each class",
        "PATH",
    )
    transpose: bool = _setting(
        False, "swap rows and columns of the images (EMNIST's lie on their side)"
    )
    model: str | None = _setting(
        None, "Python file of a network of your own, with a function build_model", "FILE[:FUNCTION]"
    )
    max_trials: int = _setting(10, "number of configurations to train", "N")
    max_seconds: float | None = _setting(
        None,
        "time after which no further trial starts; the same command goes on (default: no limit)",
        "SECONDS",
    )
    epochs: int = _setting(5, "epochs of each trial", "N")
    recipe: str = _setting(
        USUAL_RECIPE,
        "how trials are trained unless the following flags say otherwise: fast (AdamW, a rate that"
        " falls to zero, smoothed labels) or study (Adam at a constant rate)",
        "NAME",
        choices=tuple(RECIPES),
    )
    batch_size: int | None = _setting(None, "images per batch, or a range of it", "N")
    learning_rate: float | None = _setting(
        None, "learning rate, the highest of the schedule, or a range of it", "RATE"
    )
    optimizer: str | None = _setting(
        None, "optimizer, or several to choose from", "NAME", choices=OPTIMIZERS
    )
    weight_decay: float | None = _setting(
        None, "weight decay of adamw and lion, or a range of it", "DECAY"
    )
    schedule: str | None = _setting(
        None,
        "how the learning rate changes over a trial, or several ways to choose from",
        "NAME",
        choices=SCHEDULES,
    )
    label_smoothing: float | None = _setting(
        None,
        "part of a label that is spread over all classes in training, or a range of it",
        "PART",
    )
    ema_momentum: float | None = _setting(
        None,
        "momentum of a moving average of the weights, which is what is validated and kept, or a"
        " range of it; 0 for none",
        "MOMENTUM",
    )
    random_shift: int | None = _setting(
        None,
        "largest shift of a training image in rows and columns, drawn anew each time, or a range of"
        " it",
        "PIXELS",
    )
    random_rotation: float | None = _setting(
        None,
        "largest angle either way by which a training image is turned, drawn anew each time, or a"
        " range of it",
        "DEGREES",
    )
    validation_split: float = _setting(
        0.1, "fraction of the training images for validation", "FRACTION", identifies=True
    )
    train_limit: int | None = _setting(
        None, "use only N training images, in proportion of each class", "N", identifies=True
    )
    seed: int = _setting(
        0, "seed of draws, initial weights, image order and split", "N", identifies=True
    )
    directory: str = _setting("runs", "folder that holds all runs", "PATH")
    project_name: str | None = _setting(
        None, "name of this run's folder (default: the name of the dataset)", "NAME"
    )
    overwrite: bool = _setting(
        False, "delete the run in this folder and start over; the ledger beside it stays"
    )
    select: str = _setting(
        "steady",
        "how the winner is chosen: steady (trials whose validation accuracy never falls, beyond"
        " what chance explains, come first) or best (by validation accuracy alone)",
        "RULE",
        choices=SELECTIONS,
    )
    tolerance: float | None = _setting(
        None,
        "largest fall of validation accuracy that counts as steady (default: a test of each fall)",
        "FALL",
    )
    checkpoint_every: float = _setting(
        60.0, "interval between checkpoints of a running trial", "SECONDS"
    )
    max_retries: int = _setting(
        1,
        "retries after a trial raises; five more if the process dies",
        "N",
    )
    finalists: int | None = _setting(
        None,
        "number of the first trials to train again; the best mean of such reruns wins",
        "K",
    )
    reruns: int | None = _setting(
        None, f"how often each finalist is trained again (default {RERUNS})", "R"
    )
    refit: bool = _setting(
        False,
        "train the winner again on training and validation images together, and test that network",
    )
    keep: int | None = _setting(
        None,
        f"number of the best trials whose weights are kept (default {KEEP}; more for an ensemble)",
        "N",
    )
    ensemble: int | None = _setting(
        None,
        "also test the mean of the probabilities of the best K trials, whose weights are kept",
        "K",
    )
    jobs: int | None = _setting(None, "trials to train at once (default: one per core)", "N")
    ray: str | None = _setting(
        None,
        "train on the nodes of a Ray cluster: the address of its head, or auto for the cluster that"
        " this machine is in",
        "HOST:PORT",
    )
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
        choices=PRECISIONS,
    )
    cache: str | None = _setting(
        None,
        "folder for compiled programs, or off"
        " (default: $JAXMNIST_CACHE, else the user's cache folder)",
        "PATH",
    )
    svm: bool = _setting(True, "fit an SVM on the winner's features")
    svm_backend: str = _setting(
        "auto",
        "library that fits the SVM; auto is cuml on a GPU where it is installed, else sklearn",
        "NAME",
        choices=SVM_BACKENDS,
    )
    svm_search: int = _setting(0, "number of pairs of C and gamma to try for the SVM", "N")
    report: bool = _setting(True, "write the report page report.html")
    tensorboard: bool = _setting(True, "write files for TensorBoard")
    quiet: bool = _setting(False, "print only the result")
    verbose: bool = _setting(
        False, "also print layers, reports by class and comparisons, which are in files otherwise"
    )
    ranges: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("dataset", "data_dir", "model", "directory", "cache"):
            value = getattr(self, name)
            if value is None and name != "directory":
                continue
            value = os.fspath(value) if isinstance(value, os.PathLike) else value
            if not isinstance(value, str) or not value or not value.isprintable():
                raise UsageError(f"{flag(name)} must be a name or a path, not {shown(value)}")
            object.__setattr__(self, name, local_path(value, flag(name)))
        for item in fields(self):
            if isinstance(item.default, bool) and not isinstance(getattr(self, item.name), bool):
                what = shown(getattr(self, item.name))
                raise UsageError(f"{flag(item.name)} must be true or false, not {what}")
        object.__setattr__(self, "ranges", checked_ranges(self.ranges))
        if self.project_name is not None and not is_plain_name(self.project_name):
            raise UsageError(
                "--project-name must be the name of a folder, without slashes,"
                f" not {shown(self.project_name)}"
            )
        self._check_ensemble()
        for name, low in (("max_trials", 1), ("keep", 1), ("svm_search", 0), ("max_retries", 0)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), low))
        object.__setattr__(self, "seed", check_whole("seed", self.seed, 0, LARGEST_SEED))
        self._check_finalists()
        for name in ("train_limit", "jobs", "lanes"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))
        if self.ray is not None and (not isinstance(self.ray, str) or not self.ray.isprintable()):
            raise UsageError(f"--ray must be auto or an address, not {shown(self.ray)}")
        if self.ray is not None and self.jobs is not None:
            raise UsageError(
                "--jobs is for one machine: with --ray, each core of a node trains a trial"
            )
        check_choice("recipe", self.recipe, tuple(RECIPES))
        training = self.training()
        for item in fields(training):
            if item.name in self.__dict__:
                object.__setattr__(self, item.name, getattr(training, item.name))
        for name, accepts, wanted in NUMBERS:
            if getattr(self, name) is not None:
                number = check_number(name, getattr(self, name), accepts, wanted)
                object.__setattr__(self, name, number)
        for item in fields(self):
            if choices := item.metadata.get("choices"):
                check_choice(item.name, getattr(self, item.name), choices)
        if not is_plain_name(self.dataset_name):
            if self.dataset is None:
                raise UsageError(
                    f"--data-dir {shown(self.data_dir)} gives no valid name: add --dataset NAME"
                )
            raise UsageError(f"--dataset must be the name of a dataset, not {shown(self.dataset)}")

    def _check_finalists(self) -> None:
        """Check the finalists and their reruns, of which there are 3 by default."""
        if self.finalists is None:
            if self.reruns is not None:
                raise UsageError("--reruns needs --finalists, the number of trials to train again")
            return
        finalists = check_whole("finalists", self.finalists, 2)
        if finalists > self.max_trials:
            raise UsageError(
                f"--finalists {finalists} is more than the {self.max_trials} trials of --max-trials"
            )
        object.__setattr__(self, "finalists", finalists)
        reruns = RERUNS if self.reruns is None else self.reruns
        object.__setattr__(self, "reruns", check_whole("reruns", reruns, 1))

    def _check_ensemble(self) -> None:
        """Check `ensemble` against the trials; without a `keep`, set one that suffices for it."""
        members = self.ensemble
        if members is None:
            object.__setattr__(self, "keep", KEEP if self.keep is None else self.keep)
            return
        members = check_whole("ensemble", members, 2)
        object.__setattr__(self, "ensemble", members)
        if self.refit:
            raise UsageError(
                "--ensemble and --refit test different networks, as the ensemble's members are not"
                " refitted: give one of them"
            )
        trials = check_whole("max_trials", self.max_trials, 1)
        if members > trials:
            raise UsageError(
                f"--ensemble {members} needs as many trials, and --max-trials is {trials}"
            )
        if self.keep is None:
            object.__setattr__(self, "keep", max(KEEP, members))
        elif check_whole("keep", self.keep, 1) < members:
            raise UsageError(
                f"--ensemble {members} needs the weights of as many trials, and --keep is"
                f" {self.keep}: leave it out or raise it"
            )

    @property
    def dataset_name(self) -> str:
        """The name of the data: `dataset`, or else the name of their folder or file."""
        if self.dataset is None and self.data_dir is not None:
            name = os.path.basename(os.path.abspath(self.data_dir))
            for ending in (".gz", ".npz", ".csv", ".mat"):
                name = name.removesuffix(ending)
            return name or "data"
        return (self.dataset or "mnist").replace("/", "_")

    @property
    def run_directory(self) -> str:
        """The path of the run directory."""
        return os.path.join(self.directory, self.project_name or self.dataset_name)

    def training(self) -> TrainingSettings:
        """Return the settings that training needs: those of the recipe where none are given."""
        own = {item.name for item in fields(self)}
        names = [item.name for item in fields(TrainingSettings) if item.name in own]
        values = {name: getattr(self, name) for name in names}
        given = {k: value for k, value in values.items() if value is not None or k not in TRAINING}
        return replace(RECIPES[self.recipe], **given)

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a run: those of training, and those marked so."""
        own = {item.name for item in fields(self) if item.metadata.get("identifies")}
        return {
            **{name: value for name, value in self.to_json().items() if name in own},
            **asdict(self.training()),
        }

    def to_json(self) -> dict[str, Any]:
        """Return all settings as a JSON object."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**found, "ranges": dict(self.ranges)}


def usual_settings(recipe: Any) -> dict[str, Any]:
    """All settings as they are where nothing but the recipe is given, and the usual recipe.

    What differs from these must be said to get the same search. An unknown recipe, which
    `SearchSettings` refuses, counts as the usual one.
    """
    known = recipe if isinstance(recipe, str) and recipe in RECIPES else USUAL_RECIPE
    return {**SearchSettings(recipe=known).to_json(), "recipe": USUAL_RECIPE}


# The settings as `--help` lists them, by what they are about; a run's hyperparameters come under
# 'space'.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": ("dataset", "data_dir", "transpose", "validation_split", "train_limit"),
    "space": ("model", "seed"),
    "training": (
        "epochs",
        "recipe",
        "batch_size",
        "learning_rate",
        "optimizer",
        "weight_decay",
        "schedule",
        "label_smoothing",
        "ema_momentum",
        "random_shift",
        "random_rotation",
        "precision",
    ),
    "selection and budget": (
        "max_trials",
        "max_seconds",
        "select",
        "tolerance",
        "finalists",
        "reruns",
        "refit",
        "ensemble",
    ),
    "running": ("jobs", "lanes", "ray", "checkpoint_every", "max_retries", "cache"),
    "output": (
        "directory",
        "project_name",
        "overwrite",
        "keep",
        "svm",
        "svm_backend",
        "svm_search",
        "report",
        "tensorboard",
        "quiet",
        "verbose",
    ),
}
# Names of command-line options, which no hyperparameter may have.
_WORDS = {item.name for item in fields(SearchSettings)} | {
    "build_model",
    "config",
    "data",
    "dry_run",
    "help",
    "listener",
    "version",
}
_NEGATED = {f"no_{item.name}" for item in fields(SearchSettings) if isinstance(item.default, bool)}
RESERVED = frozenset((_WORDS | _NEGATED) - set(TRAINING))
