"""The settings of a search: each is declared once, as a field of the part that it belongs to.

Flags and `--help`, the keywords of `random_search` and their documentation, the keys of a TOML
file, a run's identity, the command that repeats it and the reference follow from the declaration.
Only the standard library is imported, so that `--help` is fast.
"""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal

from jaxmnist.errors import NOT_LOCAL, SettingError, UsageError, is_url, wrong
from jaxmnist.hyperparameters import plain, shown, text

# --- Checks of values: each returns the value to store, or raises ValueError ---

Check = Callable[[Any], Any]
LARGEST_NUMBER = 10**9  # the largest value of any count; a larger one is a typing error
LARGEST_SEED = 2**32 - 1


def checked(name: str, value: Any, check: Check) -> Any:
    """Return `value` as `check` returns it; raise `SettingError` with what it says of the value."""
    try:
        return check(value)
    except ValueError as problem:
        raise wrong(name, str(problem)) from None


def whole(low: int, most: int = LARGEST_NUMBER) -> Check:
    """A whole number of at least `low`; one above `most` would exhaust memory or time."""

    def check(value: Any) -> int:
        above = isinstance(value, int) and value > most
        bounds = f"from {low} to {most}" if above else f"of at least {low}"
        try:
            count = None if isinstance(value, bool) else operator.index(value)
        except TypeError:
            count = None
        if count is None or not low <= count <= most:
            raise ValueError(f"must be a whole number {bounds}, not {shown(value)}")
        return count

    return check


def number(accepts: Callable[[float], bool], wanted: str) -> Check:
    """A finite number for which `accepts` is true; `wanted` says which these are."""

    def check(value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= 3e38 or not accepts(value):  # the largest float32
            raise ValueError(f"must be a number {wanted}, not {shown(value)}")
        return float(value)

    return check


at_least_0 = number(lambda value: value >= 0, "of at least 0")
above_0 = number(lambda value: value > 0, "above 0")
part_below_1 = number(lambda value: 0 <= value < 1, "of at least 0 and below 1")


def one_of(choices: tuple[str, ...]) -> Check:
    """One of some words."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, not {shown(value)}")
        return value

    return check


def yes_or_no(value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def name_or_path(value: Any) -> str:
    """A name, or a path on this machine, in which `~` is expanded."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"must be a name or a path, not {shown(value)}")
    if is_url(value):
        raise ValueError(f"{value} {NOT_LOCAL}")
    return os.path.expanduser(value)


def folder_name(value: Any) -> Any:
    """The name of a single folder, which can't be any other path."""
    if not is_plain_name(value):
        raise ValueError(f"must be the name of a folder, without slashes, not {shown(value)}")
    return value


def is_plain_name(name: Any) -> bool:
    """Return whether `name` can name a single folder, and can't be any other path."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set(name) & {"/", "\\", "\0", os.sep}
        and name.isprintable()
    )


def address(value: Any) -> Any:
    """The address of a cluster; which addresses there can be is checked where one is used."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(f"must be auto or an address, not {shown(value)}")
    return value


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


# --- The declaration of a setting ---


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting: everything but its effect.

    default: its value if none is given. recipes: the defaults of recipes that have others, by name.
    help: a phrase for the user. metavar: the placeholder of its value in `--help`.
    check: returns the value to store, or raises ValueError with what it must be.
    choices: the words that it accepts; then it needs no other check.
    range: if it may be searched, the range that it is declared with, as a network's hyperparameters
      are: (first, last) or (first, last, "log") of numbers, or else its choices.
    identifies: whether a run with another value is another run.
    shares_program: whether trials with different values share a compiled program, which has it as
      an argument; 'above 0' if 0 has a program of its own, without the argument.
    of_optimizer: whether it has no effect on an optimizer that a network brings itself.
    scope: what it belongs to. The command that repeats a search has only settings of the search;
      a search.json that is read as a configuration gives all but those of a session.
    names_code: whether it names code to run, which somebody else's file may not do.
    name, part, type: its name, the part that declares it, and the text of its type.
    """

    default: Any
    help: str
    metavar: str | None = None
    check: Check = yes_or_no
    choices: tuple[str, ...] = ()
    range: tuple[Any, ...] = ()
    identifies: bool = False
    shares_program: bool | Literal["above 0"] = False
    of_optimizer: bool = False
    scope: Literal["search", "machine", "session"] = "search"
    names_code: bool = False
    recipes: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    part: str = ""
    type: str = ""

    @property
    def kind(self) -> str:
        """'bool', 'int', 'float' or 'str'."""
        return self.type.removesuffix(" | None")

    @property
    def may_be_none(self) -> bool:
        """Whether None means that no value is given."""
        return bool(self.range) or self.type.endswith(" | None")

    @property
    def described(self) -> str:
        """Its help with the words that it accepts, and its default in each recipe."""
        said = self.help
        if not all(choice in said for choice in self.choices):
            said += f" [{', '.join(self.choices)}]"
        if self.kind == "bool":
            return f"{said} (default: yes)" if self.default else said
        # The help of a setting without a default, and of one called 'default', says what happens.
        if self.default in (None, "default"):
            return said
        others = [f"{name}: {_text(value)}" for name, value in self.recipes.items()]
        return f"{said} (default {'; '.join([_text(self.default), *others])})"


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def setting(
    default: Any, help: str, metavar: str | None = None, check: Check | None = None, **more: Any
) -> Any:
    """Declare a setting as a field of a part; see `Setting`."""
    choices = more.get("choices")
    check = check or (one_of(choices) if choices else yes_or_no)
    declared = Setting(default, help, metavar, check, **more)
    return field(default=default, metadata={"setting": declared})


def flag(name: str) -> str:
    """Return the command-line flag of a setting: `--max-trials` for `max_trials`."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a misspelt one; None if none is like it.

    >>> nearest("--max-trails", ["--max-trials", "--epochs"])
    '--max-trials'
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def unknown_option(name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that no setting has."""
    near = nearest(name, known)
    return UsageError(f"unknown option {name!r}" + (f"; did you mean {near!r}?" if near else ""))


# --- The settings, in the parts and the order in which `--help` lists them ---


@dataclass(frozen=True, kw_only=True)
class Part:
    """A group of settings; an invalid value raises `SettingError`.

    title: its heading in `--help`.
    """

    title: ClassVar[str]

    def __post_init__(self) -> None:
        for item in fields(self):
            declared, value = item.metadata["setting"], getattr(self, item.name)
            if value is not None or not item.type.endswith(" | None"):
                # The check converts the value: NumPy's numbers become Python's.
                object.__setattr__(self, item.name, checked(item.name, value, declared.check))


@dataclass(frozen=True, kw_only=True)
class DataSettings(Part):
    """The data, and how they are split."""

    title = "data"

    dataset: str | None = setting(
        None,
        "mnist (default), fashion_mnist, kmnist, or with the extra [tfds] a name of"
        " tensorflow-datasets",
        "NAME",
        name_or_path,
    )
    data_dir: str | None = setting(
        None,
        "data to read: .npz, .mat or CSV file, or folder of IDX, .npy or CSV files or of pictures"
        " in a folder for each class",
        "PATH",
        name_or_path,
    )
    transpose: bool = setting(
        False, "swap rows and columns of the images (EMNIST's lie on their side)"
    )
    validation_split: float = setting(
        0.1,
        "fraction of the training images for validation",
        "FRACTION",
        number(lambda value: 0 < value < 1, "above 0 and below 1"),
        identifies=True,
    )
    train_limit: int | None = setting(
        None,
        "use only N training images, in proportion of each class",
        "N",
        whole(1),
        identifies=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if is_plain_name(self.dataset_name):
            return
        if self.dataset is None:
            raise SettingError(
                "{data_dir} {given} gives no valid name: add {dataset} NAME",
                given=shown(self.data_dir),
            )
        raise wrong("dataset", f"must be the name of a dataset, not {shown(self.dataset)}")

    @property
    def dataset_name(self) -> str:
        """The name of the data: `dataset`, or else the name of their folder or file."""
        if self.dataset is None and self.data_dir is not None:
            name = os.path.basename(os.path.abspath(self.data_dir))
            for ending in (".gz", ".npz", ".csv", ".mat"):
                name = name.removesuffix(ending)
            return name or "data"
        return (self.dataset or "mnist").replace("/", "_")


@dataclass(frozen=True, kw_only=True)
class SpaceSettings(Part):
    """What is searched beside the ranges of hyperparameters: the network, and the seed."""

    title = "space"

    model: str | None = setting(
        None,
        "Python file of a network of your own, with a function build_model",
        "FILE[:FUNCTION]",
        name_or_path,
        names_code=True,
    )
    seed: int = setting(
        0,
        "seed of draws, initial weights, image order and split",
        "N",
        whole(0, LARGEST_SEED),
        identifies=True,
    )


OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd", "lion")
DECAYING = ("adamw", "lion")  # optimizers that have a weight decay
SCHEDULES = ("constant", "cosine", "linear", "one-cycle")
PRECISIONS = ("default", "highest", "bfloat16")
USUAL_RECIPE = "fast"  # whose values are the defaults
of_training = partial(setting, identifies=True)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(Part):
    """How each trial is trained: the settings that `engine.training` needs, and no others.

    learning_rate is the optimizer's step size, which the schedule changes step by step;
    weight_decay is that of the optimizers in `DECAYING`; batch_size counts images. precision:
    'default' is JAX's own for the device, 'highest' computes products in full float32, 'bfloat16'
    computes the network in bfloat16 with weights and loss in float32. recipe: whose values those
    are that weren't given; a run is known by the values alone.
    """

    title = "training"

    epochs: int = of_training(5, "epochs of each trial", "N", whole(1))
    recipe: str = setting(
        USUAL_RECIPE,
        "how trials are trained unless the following flags say otherwise: fast (AdamW, a rate that"
        " falls to zero, smoothed labels) or study (Adam at a constant rate)",
        "NAME",
        choices=("study", "fast"),
    )
    batch_size: int = of_training(
        128, "images per batch, or a range of it", "N", whole(1), range=(1, 1024)
    )
    learning_rate: float = of_training(
        4e-3,
        "learning rate, the highest of the schedule, or a range of it",
        "RATE",
        above_0,
        range=(1e-4, 1e-2, "log"),
        shares_program=True,
        of_optimizer=True,
        recipes={"study": 1e-3},
    )
    optimizer: str = of_training(
        "adamw",
        "optimizer, or several to choose from",
        "NAME",
        choices=OPTIMIZERS,
        range=OPTIMIZERS,
        of_optimizer=True,
        recipes={"study": "adam"},
    )
    weight_decay: float = of_training(
        0.1,
        "weight decay of adamw and lion, or a range of it",
        "DECAY",
        at_least_0,
        range=(0, 1),
        shares_program=True,
        of_optimizer=True,
        recipes={"study": 1e-4},
    )
    schedule: str = of_training(
        "linear",
        "how the learning rate changes over a trial, or several ways to choose from",
        "NAME",
        choices=SCHEDULES,
        range=SCHEDULES,
        of_optimizer=True,
        recipes={"study": "constant"},
    )
    label_smoothing: float = of_training(
        0.1,
        "part of a label that is spread over all classes in training, or a range of it",
        "PART",
        part_below_1,
        range=(0, 0.3),
        shares_program="above 0",
        recipes={"study": 0.0},
    )
    ema_momentum: float = of_training(
        0.0,
        "momentum of a moving average of the weights, which is what is validated and kept, or a"
        " range of it; 0 for none",
        "MOMENTUM",
        part_below_1,
        range=(0, 0.9999),
        shares_program="above 0",
    )
    random_shift: int = of_training(
        0,
        "largest shift of a training image in rows and columns, drawn anew each time, or a range of"
        " it",
        "PIXELS",
        whole(0, 1000),  # more than an image has
        range=(0, 4),
    )
    random_rotation: float = of_training(
        0.0,
        "largest angle either way by which a training image is turned, drawn anew each time, or a"
        " range of it",
        "DEGREES",
        number(lambda value: 0 <= value <= 180, "from 0 to 180"),
        range=(0, 30),
        shares_program="above 0",
    )
    precision: str = of_training(
        "default",
        "numeric precision: default (JAX's own for the device), highest (float32) or bfloat16 (GPU,"
        " TPU)",
        "NAME",
        choices=PRECISIONS,
    )

    def for_trial(self, hyperparameters: Mapping[str, Any]) -> TrainingSettings:
        """Return these settings with a trial's own hyperparameters of training in their place."""
        own = {name: hyperparameters[name] for name in RANGED if name in hyperparameters}
        return replace(self, **own) if own else self


SELECTIONS = ("steady", "best")
RERUNS = 3  # of each finalist, unless a number is given


@dataclass(frozen=True, kw_only=True)
class SelectionSettings(Part):
    """How many trials there are, and how the winner is chosen from them."""

    title = "selection and budget"

    max_trials: int = setting(10, "number of configurations to train", "N", whole(1, 10**5))
    max_seconds: float | None = setting(
        None,
        "time after which no further trial starts; the same command goes on (default: no limit)",
        "SECONDS",
        above_0,
    )
    select: str = setting(
        "steady",
        "how the winner is chosen: steady (trials whose validation accuracy never falls, beyond"
        " what chance explains, come first) or best (by validation accuracy alone)",
        "RULE",
        choices=SELECTIONS,
    )
    tolerance: float | None = setting(
        None,
        "largest fall of validation accuracy that counts as steady (default: a test of each fall)",
        "FALL",
        number(lambda value: 0 <= value <= 1, "from 0 to 1"),
    )
    finalists: int | None = setting(
        None,
        "number of the first trials to train again; the best mean of such reruns wins",
        "K",
        whole(2),
    )
    reruns: int | None = setting(
        None, f"how often each finalist is trained again (default {RERUNS})", "R", whole(1, 1000)
    )
    refit: bool = setting(
        False,
        "train the winner again on training and validation images together, and test that network",
    )
    ensemble: int | None = setting(
        None,
        "also test the mean of the probabilities of the best K trials, whose weights are kept",
        "K",
        whole(2),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        trials, finalists, members = self.max_trials, self.finalists, self.ensemble
        if finalists is None and self.reruns is not None:
            raise SettingError("{reruns} needs {finalists}, the number of trials to train again")
        if finalists is not None and finalists > trials:
            raise SettingError(
                "{finalists} {wanted} is more than the {trials} trials of {max_trials}",
                wanted=finalists,
                trials=trials,
            )
        if members is not None and self.refit:
            raise SettingError(
                "{ensemble} and {refit} test different networks, as the ensemble's members are not"
                " refitted: give one of them"
            )
        if members is not None and members > trials:
            raise SettingError(
                "{ensemble} {members} needs as many trials, and {max_trials} is {trials}",
                members=members,
                trials=trials,
            )


@dataclass(frozen=True, kw_only=True)
class RunningSettings(Part):
    """Where trials train, and what happens if they are interrupted."""

    title = "running"

    jobs: int | None = setting(
        None, "trials to train at once (default: one per core)", "N", whole(1)
    )
    lanes: int | None = setting(
        None,
        "trials stacked in one program (default: 1; 32 on a GPU for 100 trials or more)",
        "N",
        whole(1, 10**4),
    )
    ray: str | None = setting(
        None,
        "train on the nodes of a Ray cluster: the address of its head, or auto for the cluster that"
        " this machine is in",
        "HOST:PORT",
        address,
        scope="machine",
        names_code=True,  # a cluster's pickles are loaded
    )
    checkpoint_every: float = setting(
        60.0, "interval between checkpoints of a running trial", "SECONDS", at_least_0
    )
    max_retries: int = setting(
        1, "retries after a trial raises; five more if the process dies", "N", whole(0)
    )
    cache: str | None = setting(
        None,
        "folder for compiled programs, or off"
        " (default: $JAXMNIST_CACHE, else the user's cache folder)",
        "PATH",
        name_or_path,
        scope="machine",
        names_code=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ray is not None and self.jobs is not None:
            raise SettingError(
                "{jobs} is for one machine: with {ray}, each core of a node trains a trial"
            )


SVM_BACKENDS = ("auto", "sklearn", "cuml")
KEEP = 3  # trials whose weights are kept, unless more are needed or a person says otherwise


@dataclass(frozen=True, kw_only=True)
class OutputSettings(Part):
    """What is written, where, and what is printed."""

    title = "output"

    directory: str = setting(
        "runs", "folder that holds all runs", "PATH", name_or_path, scope="machine"
    )
    project_name: str | None = setting(
        None, "name of this run's folder (default: the name of the dataset)", "NAME", folder_name
    )
    overwrite: bool = setting(
        False,
        "delete the run in this folder and start over; the ledger beside it stays",
        scope="session",
    )
    keep: int | None = setting(
        None,
        f"number of the best trials whose weights are kept (default {KEEP}; more for an ensemble)",
        "N",
        whole(1),
    )
    svm: bool = setting(True, "fit an SVM on the winner's features")
    svm_backend: str = setting(
        "auto",
        "library that fits the SVM; auto is cuml on a GPU where it is installed, else sklearn",
        "NAME",
        choices=SVM_BACKENDS,
    )
    svm_search: int = setting(
        0, "number of pairs of C and gamma to try for the SVM", "N", whole(0, 10**4)
    )
    report: bool = setting(True, "write the report page report.html")
    tensorboard: bool = setting(True, "write files for TensorBoard")
    quiet: bool = setting(False, "print only the result", scope="session")
    verbose: bool = setting(
        False,
        "also print layers, reports by class and comparisons, which are in files otherwise",
        scope="session",
    )


# --- All settings, and what follows from their declarations ---

PARTS: Mapping[str, type[Part]] = {
    "data": DataSettings,
    "space": SpaceSettings,
    "training": TrainingSettings,
    "selection": SelectionSettings,
    "running": RunningSettings,
    "output": OutputSettings,
}
SETTINGS: Mapping[str, Setting] = {
    item.name: replace(item.metadata["setting"], name=item.name, part=part, type=str(item.type))
    for part, kind in PARTS.items()
    for item in fields(kind)
}
# Settings of training that may be hyperparameters: of a network that asks for them, or of any
# network where a person gives a range.
RANGED = tuple(name for name, item in SETTINGS.items() if item.range)
# Those of them that have no effect on an optimizer that a network brings itself.
OF_OPTIMIZER = tuple(name for name, item in SETTINGS.items() if item.of_optimizer)
# The defaults of training, by the name of the recipe.
RECIPES: Mapping[str, TrainingSettings] = {
    recipe: TrainingSettings(
        recipe=recipe,
        **{name: item.recipes[recipe] for name, item in SETTINGS.items() if recipe in item.recipes},
    )
    for recipe in SETTINGS["recipe"].choices
}
IN_MEMORY = "arrays"  # the name of a dataset that is given as arrays without a name
# Names of command-line options, which no hyperparameter may have.
RESERVED = frozenset(
    {"build_model", "config", "data", "dry_run", "help", "listener", "ranges", "version"}
    | (SETTINGS.keys() - {*RANGED})
    | {f"no_{name}" for name, item in SETTINGS.items() if item.kind == "bool"}
)


def check_training(hyperparameters: Mapping[str, Any]) -> None:
    """Raise `SettingError` for a hyperparameter of training that training can't have."""
    for name in RANGED:
        if name in hyperparameters:
            checked(name, hyperparameters[name], SETTINGS[name].check)


@dataclass(frozen=True, init=False)
class SearchSettings:
    """The settings of a search, in parts, by the names of the keywords of `random_search`.

    Raises `UsageError` with one line that names the setting, the value and what is accepted.

    Args:
      ranges: ranges of hyperparameters, by name, in place of the default ones. The network defines
        which names there are and what the ranges mean.
      **given: values by name; None stands for none, where that is the default.

    Attributes:
      data, space, training, selection, running, output: the values of all settings, in parts.
      given: those that were given, as they are kept.

    >>> settings = SearchSettings(epochs=3)
    >>> settings.training.epochs, settings.selection.max_trials, settings.run_directory
    (3, 10, 'runs/mnist')
    >>> settings.given
    {'epochs': 3}
    """

    data: DataSettings
    space: SpaceSettings
    training: TrainingSettings
    selection: SelectionSettings
    running: RunningSettings
    output: OutputSettings
    ranges: Mapping[str, Any]
    given: Mapping[str, Any] = field(compare=False)

    def __init__(self, *, ranges: Mapping[str, Any] | None = None, **given: Any) -> None:
        for name in given:
            if name not in SETTINGS:
                raise unknown_option(name, SETTINGS)
        names = [
            name
            for name, item in SETTINGS.items()
            if name in given and not (given[name] is None and item.may_be_none)
        ]
        recipe = checked("recipe", given.get("recipe", USUAL_RECIPE), SETTINGS["recipe"].check)
        values = {**asdict(RECIPES[recipe]), **{name: given[name] for name in names}}
        parts: dict[str, Any] = {}
        for part, kind in PARTS.items():
            own = {item.name for item in fields(kind)}
            parts[part] = kind(**{name: values[name] for name in values if name in own})
        parts |= _completed(parts["selection"], parts["output"])
        kept = {name: getattr(parts[SETTINGS[name].part], name) for name in names}
        # As a frozen dataclass's own __init__ may.
        vars(self).update(
            parts, ranges=_checked_ranges({} if ranges is None else ranges), given=kept
        )

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], given: Iterable[str]) -> SearchSettings:
        """The settings in search.json, without those that this version doesn't know.

        given: the names of those that were given.
        """
        known = {name: value for name, value in settings.items() if name in SETTINGS}
        found = cls(**known, ranges=settings.get("ranges"))
        vars(found).update(given={name: found[name] for name in given if name in known})
        return found

    def replace(self, **changes: Any) -> SearchSettings:
        """These settings with some others given; what follows from them is set anew."""
        return SearchSettings(**{"ranges": self.ranges, **self.given, **changes})

    def __getitem__(self, name: str) -> Any:
        return getattr(getattr(self, SETTINGS[name].part), name)

    @property
    def run_directory(self) -> str:
        """The path of the run directory."""
        return os.path.join(
            self.output.directory, self.output.project_name or self.data.dataset_name
        )

    def identity(self) -> dict[str, Any]:
        """Return the settings that identify a run."""
        return {name: self[name] for name, item in SETTINGS.items() if item.identifies}

    def to_json(self) -> dict[str, Any]:
        """Return all settings as a JSON object."""
        return {**{name: self[name] for name in SETTINGS}, "ranges": dict(self.ranges)}


def _checked_ranges(given: Any) -> dict[str, Any]:
    """Return the ranges as `canonical` gives them; raise `UsageError` for an invalid one."""
    if not isinstance(given, Mapping):
        raise UsageError(f"ranges must be a mapping of names to ranges, not {shown(given)}")
    return {name: checked(str(name), value, canonical) for name, value in given.items()}


def _completed(selection: SelectionSettings, output: OutputSettings) -> dict[str, Part]:
    """Check these parts together, and fill in what follows from settings that were given."""
    members, kept = selection.ensemble, output.keep
    if members is not None and kept is not None and kept < members:
        raise SettingError(
            "{ensemble} {members} needs the weights of as many trials, and {keep} is {kept}: leave"
            " it out or raise it",
            members=members,
            kept=kept,
        )
    if selection.finalists is not None and selection.reruns is None:
        selection = replace(selection, reruns=RERUNS)
    if kept is None:
        output = replace(output, keep=max(KEEP, members or 0))
    return {"selection": selection, "output": output}
