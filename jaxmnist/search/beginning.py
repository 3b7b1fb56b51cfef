"""What a search begins with: its data, space and draws, checked before any trial; and a dry run."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from jaxmnist import __version__
from jaxmnist.data.dataset import Dataset, load_dataset
from jaxmnist.engine.devices import debugging_settings, device_name, environment, pool_size
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.local import Engine, Pace, measure, relative
from jaxmnist.errors import (
    EnvironmentFailure,
    JaxmnistError,
    NetworkError,
    SettingError,
    UsageError,
    local_path,
    one_line,
    wrong,
)
from jaxmnist.files import as_json, memory
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.machine import instructions, machine
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import Network
from jaxmnist.models.questions import Questions, answers_of
from jaxmnist.models.space import Space, SpaceDescription, ranges_of
from jaxmnist.results import svm
from jaxmnist.results.pipeline import choose_backend
from jaxmnist.runs.records import Search, SearchedData
from jaxmnist.runs.store import Store, check_same, exists
from jaxmnist.runs.trial import DONE, Key, Layer, count_parameters, state_of
from jaxmnist.settings import (
    KEEP,
    OF_OPTIMIZER,
    SearchSettings,
    SelectionSettings,
    TrainingSettings,
)

# --- The description of a search in search.json, and the notes shown before it begins ---

MOST_CLASSES = 10  # that are named at the start of a search


def describe_narrowed(
    declared: Space, found: Space, image_shape: tuple[int, int, int]
) -> str | None:
    """A note on ranges that are narrower for these images than for MNIST's, or None."""
    before, now = ranges_of(declared.explored), ranges_of(found.explored)
    different = [
        f"{name} {now[name]}" + (f", not {before[name]}" if name in before else "")
        for name in now
        if now[name] != before.get(name)
    ]
    if not different:
        return None
    height, width = image_shape[:2]
    return f"ranges for images of {height}×{width} pixels: {'; '.join(different)}"


def describe_class_counts(dataset: Dataset) -> str:
    """The classes, the first ten by name, with their numbers of training images."""
    counts = np.bincount(dataset.y_train, minlength=dataset.classes)
    named = zip(dataset.class_names[:MOST_CLASSES], counts.tolist(), strict=False)
    more = dataset.classes - MOST_CLASSES
    return (
        f"{dataset.classes} classes (training images): "
        + ", ".join(f"{name} ({count})" for name, count in named)
        + (f" and {more} more" if more > 0 else "")
    )


def describe_budget(drawn: int, wanted: int, space: SpaceDescription) -> str | None:
    """A note if fewer configurations were drawn than trials were requested, or None."""
    if drawn == wanted:
        return None
    if space.size == drawn:
        return f"the space has {drawn} configurations, fewer than {wanted}: all are trained"
    return (
        f"after {drawn} configurations, 1,000 consecutive draws gave no new one: the search trains"
        " only these"
    )


def describe_kept(settings: SearchSettings) -> str | None:
    """A note if the weights of more trials are kept for an ensemble than without it, or None."""
    if settings.selection.ensemble is None or settings.selection.ensemble <= KEEP:
        return None
    return f"weights of the best {settings.output.keep} trials are kept"


def describe_end(seconds: float | None, trials: int, left: int) -> str:
    """A line on a search that its time has ended with trials left.

    Args:
      seconds: `max_seconds`.
      trials: number of trials of the budget.
      left: how many of them are not done.
    """
    return (
        f"the time of {seconds:g} s is over: {trials - left} of {trials} trials have ended; the"
        " same command goes on. If that finds another winner, its test is one more evaluation of"
        " the test set"
    )


def describe_search(
    settings: SearchSettings, dataset: Dataset, network: str, space: SpaceDescription
) -> Search:
    """What search.json says; a search with a different `identity` is a different run."""
    here = machine()
    return Search(
        identity={
            "data": dataset.fingerprint,
            "network": network,
            "space": space.ranges(),
            **settings.identity(),
        },
        space=as_json(space),
        settings=settings.to_json(),
        given=dict(settings.given),
        data=SearchedData(
            name=dataset.name,
            in_memory=dataset.in_memory,
            train=len(dataset.y_train),
            validation=len(dataset.y_validation),
            validation_different=dataset.different_validation,
            test=len(dataset.y_test),
            test_sha256=dataset.test_sha256,
            dtype="uint8" if dataset.x_train.dtype == np.uint8 else "float32",
            image_shape=dataset.image_shape,
            labels=dataset.labels,
            class_names=dataset.class_names,
            scale=dataset.scale,
            notes=dataset.notes,
            preparation=as_json(dataset.preparation),
        ),
        versions={
            "jaxmnist": __version__,
            **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        },
        device={
            "kind": device_name(),
            "devices": jax.local_device_count(),
            "machine": platform.machine(),
            "processor": here["processor"],
            "instructions": instructions(),
        },
        environment=environment(),
        threads=pool_size(),
        machine=here,
    )


# --- Checks before the first trial for problems that would make trials fail ---

MOST_TRACED = 16  # configurations that are traced before the first trial
LARGEST = 3  # configurations whose memory is estimated before it
MOST_NOTED = 3  # of which a user is told what to know


def check_counts(trials: int, settings: SelectionSettings) -> None:
    """Raise `UsageError` if finalists or ensemble need more trials than a small space has."""
    for name, wanted in (("finalists", settings.finalists), ("ensemble", settings.ensemble)):
        if wanted is not None and wanted > trials:
            raise wrong(
                name, f"{wanted} is more than the {trials} configurations that can be drawn"
            )


def check_memory(
    draws: Iterable[Hyperparameters],
    settings: SearchSettings,
    dataset: Dataset,
    network: Network,
) -> None:
    """Raise `UsageError` if a drawn configuration can't be trained in this machine's memory.

    So it does for the SVM, if there will be one. For the estimate see `least_memory`.
    """
    if settings.output.svm:
        fitted = len(dataset.y_train) + settings.selection.refit * len(dataset.y_validation)
        svm.check_svm_memory(dataset.classes, fitted)
    # Tracing hundreds of networks would take minutes: those with the largest numbers are checked.
    batch_size = settings.training.batch_size
    data = DataSpec.of(dataset, settings.training)
    for draw in heapq.nlargest(LARGEST, dict.fromkeys(draws), key=_product):
        needed = least_memory(network.bind(draw, data).layers, batch_size)
        if needed > memory():
            raise UsageError(
                f"{draw}: training needs at least {needed / 2**30:.0f} GiB, and this machine has"
                f" {memory() / 2**30:.0f} GiB of memory; choose smaller values"
            )


def _product(draw: Hyperparameters) -> int:
    """The product of the whole numbers of a configuration, about which its size grows with."""
    numbers = (value for value in draw.values() if type(value) is int and value > 0)
    return math.prod(numbers)


def least_memory(layers: Sequence[Layer], batch_size: int) -> int:
    """A lower bound of the bytes that training a network takes, beside the images.

    Initial weights as drawn (float64), weights, Adam's two moments and gradients; outputs of all
    layers and their gradients for up to 32 images.
    """
    weights = sum(row.parameters for row in layers)
    outputs = sum(math.prod(row.output_shape) for row in layers)
    return 4 * (6 * weights + 2 * min(batch_size, 32) * outputs)


def check_optimizer_settings(
    draws: Iterable[Hyperparameters],
    settings: SearchSettings,
    dataset: Dataset,
    network: Network,
) -> None:
    """Raise `UsageError` for settings of an optimizer that the network brings itself.

    Only if the first draws all bring one: it may depend on the hyperparameters.
    """
    if network.known:
        return
    data = DataSpec.of(dataset, settings.training)
    given = {name for name in OF_OPTIMIZER if name in {*settings.ranges, *settings.given}}
    for draw in itertools.islice(dict.fromkeys(draws), MOST_TRACED):
        questions = Questions(
            answers_of(draw),
            image_shape=data.image_shape,
            classes=data.classes,
            steps_of=data.steps,
        )
        try:
            network.definition.ask(questions)
            if network.bind(draw, data).optimizer is None:
                return
        except Exception:  # its trial fails, and says why
            return
        given -= set(questions.asked)
    if not given:
        return
    names = " and ".join(f"{{{name}}}" for name in OF_OPTIMIZER if name in given)
    raise SettingError(
        names + " would have no effect: the network is returned with an optimizer of its own, which"
        " has its numbers in it"
    )


def check_network(
    network: Network, draws: Iterable[Hyperparameters], data: DataSpec
) -> list[Hyperparameters]:
    """The first configurations that can be trained, `MOST_NOTED` of `MOST_TRACED` at most.

    Raises `NetworkError` if none of all can be; those that can't fail as trials.
    """
    first: tuple[Hyperparameters, NetworkError] | None = None
    found: list[Hyperparameters] = []
    for number, draw in enumerate(dict.fromkeys(draws)):
        if len(found) == MOST_NOTED or (found and number >= MOST_TRACED):
            break
        try:
            network.bind(draw, data).check()
        except NetworkError as problem:
            first = first or (draw, problem)
            continue
        found.append(draw)
        if network.known:
            break
    if not found and first is not None:
        draw, failure = first
        line = (
            f"no configuration can be trained, such as {draw}: {failure}" if draw else str(failure)
        )
        raise NetworkError(line, failure.traceback) from (failure.__cause__ or failure)
    return found


def describe_network(
    network: Network, draws: Sequence[Hyperparameters], data: DataSpec
) -> list[str]:
    """What a user should know of how these configurations will be trained, each thing once."""
    notes: dict[str, str] = {}
    for draw in draws:
        for line in network.bind(draw, data).notes:
            notes.setdefault(line.partition(" (tried")[0], f"note: {line}")
    return list(notes.values())


def rehearse(
    network: Network, hyperparameters: Hyperparameters, dataset: Dataset, debugging: str
) -> None:
    """Raise `UsageError` if training fails with the current debugging settings of JAX.

    Without this check, every trial would fail with the same error.

    Args:
      network, hyperparameters: the configuration to train.
      dataset: its first two training and validation images are used.
      debugging: the changed settings, for the error message.
    """
    few = replace(
        dataset,
        **{
            name: getattr(dataset, name)[:2]
            for name in ("x_train", "y_train", "x_validation", "y_validation")
        },
    )
    error = None
    try:
        engine = Engine(network, few, TrainingSettings(epochs=1, batch_size=2), seed=0)
        with engine.run([(Key(0), hyperparameters)]) as events:
            for event in events:
                if isinstance(event, TrialFinished) and not event.diverged:
                    error = event.error
    except Exception as problem:
        error = one_line(problem, named=True)
    if error:
        raise UsageError(f"nothing can be trained with JAX's {debugging}: {error}")


# --- The beginning: data, space and draws ---

logger = logging.getLogger("jaxmnist")


@dataclass(frozen=True)
class Beginning:
    """What a search begins with.

    settings: of the search; a path of data in them is absolute.
    dataset: the data, split.
    space: the space for these images.
    draws: the hyperparameters of each trial, by index.
    """

    settings: SearchSettings
    dataset: Dataset
    space: SpaceDescription
    draws: dict[Key, Hyperparameters]


def begin(settings: SearchSettings, network: Network, dataset: Dataset | None = None) -> Beginning:
    """Load the data and draw the trials; notes for the user are logged, and nothing is written.

    Args:
      settings: the settings of the search, for which JAX was started (`api.start`).
      network: the network whose configurations are trained.
      dataset: the data, where they are not those that the settings name.

    Raises:
      UsageError: the data can't be read, or the trials not be trained as the settings say.
    """
    if settings.data.data_dir is not None:
        # The run may later be read from another working directory.
        settings = settings.replace(data_dir=os.path.abspath(settings.data.data_dir))
    if settings.output.svm:
        choose_backend(settings.output.svm_backend, "cpu")  # fail before the search, not after it
    dataset = dataset or load_dataset(settings.data, settings.space.seed)
    data = DataSpec.of(dataset, settings.training)
    declared = Space(network.definition, settings.ranges)
    space = Space(
        network.definition,
        settings.ranges,
        dataset.image_shape,
        dataset.classes,
        data.steps,
        settings.selection.max_trials,
    )
    description = space.describe()
    drawn = itertools.islice(space.draws(settings.space.seed), settings.selection.max_trials)
    draws: dict[Key, Hyperparameters] = {Key(index): draw for index, draw in enumerate(drawn)}
    check_counts(len(draws), settings.selection)
    trainable = check_network(network, draws.values(), data)
    check_memory(draws.values(), settings, dataset, network)
    check_optimizer_settings(draws.values(), settings, dataset, network)
    for line in (
        describe_narrowed(declared, space, dataset.image_shape),
        *dataset.notes,
        dataset.scale_note,
        describe_class_counts(dataset),
        describe_budget(len(draws), settings.selection.max_trials, description),
        *describe_network(network, trainable, data),
        describe_kept(settings),
    ):
        if line:
            logger.info(line)
    if debugging := debugging_settings():
        rehearse(network, trainable[0], dataset, debugging)
    return Beginning(settings, dataset, description, draws)


# --- A dry run: what a search would do, and about how long it would take ---


@dataclass(frozen=True)
class Draw:
    """A trial that a search would train.

    parameters: of its network. memory: at least how many bytes training takes.
    seconds: about how long it would train, compiling included.
    problem: why its network can't be built, so that it would fail; then the numbers are 0.
    """

    key: Key
    hyperparameters: Hyperparameters
    parameters: int
    memory: int
    seconds: float
    problem: str | None = None


@dataclass(frozen=True)
class Preview:
    """What a search would do.

    settings, dataset, space: of the search.
    directory: where it would be, and whether there is a run already.
    trials: the number of trials of the search. done: how many of them an earlier session finished.
    draws: the first trials, of a network whose description takes time only some.
    pace: what the estimates of time come from.
    seconds: about how long all trials that are left would train, several at once.
    """

    settings: SearchSettings
    dataset: Dataset
    space: SpaceDescription
    directory: Path
    trials: int
    done: int
    draws: tuple[Draw, ...]
    pace: Pace
    seconds: float


def preview(settings: SearchSettings, network: Network) -> Preview:
    """Load the data, draw the trials, and time some steps of one of them.

    Nothing is written, and the test set isn't evaluated; a cluster isn't asked. Raises `UsageError`
    where the search would.
    """
    first = begin(settings, network)
    settings = first.settings
    ended = _ended(first, network)
    training = settings.training
    if settings.running.ray is not None:  # this machine's device need not have the precision
        training = replace(training, precision="default")
    engine = Engine(
        network, first.dataset, training, settings.space.seed, jobs=settings.running.jobs
    )
    assert engine.jobs is not None
    described = list(first.draws.items())[:MOST_TRACED]
    works = {key: _work(engine, draw) for key, draw in described}
    work = {key: found for key, found in works.items() if isinstance(found, float)}
    if not work:
        raise UsageError(
            f"no trial can be trained; trial 0 ({first.draws[Key(0)]}): {works[Key(0)]}"
        )
    order = sorted(work, key=work.__getitem__)
    middle = order[len(order) // 2]
    left = len(first.draws) - len(ended)
    # As in a search, as many compile at once as train at once.
    jobs = max(1, min(engine.jobs, left))
    beside = [first.draws[key] for key in order if key != middle][: jobs - 1]
    pace = _measured(engine, first.draws, middle, jobs, beside)
    draws = []
    for key, draw in described:
        found = works[key]
        if not isinstance(found, float):
            draws.append(Draw(key, draw, 0, 0, 0.0, found))
            continue
        layers = engine.builder.bind(draw).layers
        size = engine.builder.settings_of(draw).batch_size
        seconds = _seconds(first, size, pace.step * found / work[middle]) + pace.compiling
        draws.append(Draw(key, draw, count_parameters(layers), least_memory(layers, size), seconds))
    trained = [draw.seconds for draw in draws if draw.key not in ended]
    return Preview(
        settings,
        first.dataset,
        first.space,
        Path(local_path(settings.run_directory)),
        len(first.draws),
        len(ended),
        tuple(draws),
        pace,
        _together(trained or [draw.seconds for draw in draws], left, pace.together, settings),
    )


def _work(engine: Engine, draw: Hyperparameters) -> float | str:
    """About how long a step takes, or why the network can't be built: its trial would fail."""
    try:
        engine.builder.bind(draw).check()
        return relative(engine, draw)
    except NetworkError as problem:
        return str(problem)
    except Exception as problem:  # a person's own network may raise anything
        return one_line(problem, named=True)


def _measured(
    engine: Engine,
    draws: Mapping[Key, Hyperparameters],
    key: Key,
    jobs: int,
    beside: Sequence[Hyperparameters],
) -> Pace:
    """The pace of a trial; an error in one line if it can't be trained."""
    try:
        return measure(engine, draws[key], jobs, beside)
    except JaxmnistError:
        raise
    except Exception as problem:
        kind = EnvironmentFailure if engine.network.known else UsageError
        why = one_line(problem, named=True)
        raise kind(f"trial {key} ({draws[key]}) can't be trained: {why}") from None


def _seconds(first: Beginning, batch_size: int, step: float) -> float:
    """About how long a trial trains, without compiling; an evaluation is a third of training."""
    images = len(first.dataset.y_train) + len(first.dataset.y_validation) / 3
    return first.settings.training.epochs * images / batch_size * step


def _together(trained: list[float], left: int, together: int, settings: SearchSettings) -> float:
    """About how long all trials and their reruns take, which train `together` at a time.

    trained: seconds of trials that are left, of which there may be more; these are then taken for
    the mean of the others.
    """
    if not left:
        return 0.0
    mean = sum(trained) / len(trained)
    chosen = settings.selection
    again = (chosen.finalists or 0) * (chosen.reruns or 0) + chosen.refit
    return max(max(trained), mean * (left + again) / together)


def _ended(first: Beginning, network: Network) -> set[Key]:
    """The trials that an earlier session of this search has ended; `UsageError` if it is another's.

    Nothing is mended, and no lock is taken.
    """
    path = Path(local_path(first.settings.run_directory))
    if first.settings.output.overwrite or not exists(path):
        return set()
    said = describe_search(first.settings, first.dataset, network.definition.name, first.space)
    opened = Store.open(path)
    check_same(path, opened.search.identity, said.identity)
    retries = first.settings.running.max_retries
    return {key for key in first.draws if state_of(opened.read_trial(key), retries) in DONE}
