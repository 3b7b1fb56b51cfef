"""What a search would do, and about how long it would take: nothing is trained to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.local import Engine
from jaxmnist.engine.pace import Pace, measure, relative
from jaxmnist.errors import (
    EnvironmentFailure,
    JaxmnistError,
    NetworkError,
    UsageError,
    local_path,
    one_line,
)
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.models.space import SpaceDescription
from jaxmnist.runs.directory import RunDirectory, exists
from jaxmnist.runs.keys import TrialKey
from jaxmnist.runs.layers import count_parameters
from jaxmnist.runs.states import DONE, state_of
from jaxmnist.runs.writing import check_same
from jaxmnist.search.beginning import Beginning, begin
from jaxmnist.search.checks import MOST_TRACED, least_memory
from jaxmnist.search.description import describe_search
from jaxmnist.settings import SearchSettings


@dataclass(frozen=True)
class Draw:
    """A trial that a search would train.

    parameters: of its network. memory: at least how many bytes training takes.
    seconds: about how long it would train, compiling included.
    problem: why its network can't be built, so that it would fail; then the numbers are 0.
    """

    index: TrialKey
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
    training = settings.training()
    if settings.ray is not None:  # this machine's device need not have the precision
        training = replace(training, precision="default")
    engine = Engine(network, first.dataset, training, settings.seed, jobs=settings.jobs)
    assert engine.jobs is not None
    described = list(first.draws.items())[: MOST_TRACED if network.traced else None]
    works = {index: _work(engine, draw) for index, draw in described}
    work = {index: found for index, found in works.items() if isinstance(found, float)}
    if not work:
        raise UsageError(f"no trial can be trained; trial 0 ({first.draws[0]}): {works[0]}")
    order = sorted(work, key=work.__getitem__)
    middle = order[len(order) // 2]
    left = len(first.draws) - len(ended)
    # As in a search, as many compile at once as train at once.
    jobs = max(1, min(engine.jobs, left))
    beside = [first.draws[index] for index in order if index != middle][: jobs - 1]
    pace = _measured(engine, first.draws, middle, jobs, beside)
    draws = []
    for index, draw in described:
        found = works[index]
        if not isinstance(found, float):
            draws.append(Draw(index, draw, 0, 0, 0.0, found))
            continue
        layers = network.layers(draw, DataSpec.of(first.dataset, first.settings.training()))
        size = engine.builder.settings_of(draw).batch_size
        seconds = _seconds(first, size, pace.step * found / work[middle]) + pace.compiling
        draws.append(
            Draw(index, draw, count_parameters(layers), least_memory(layers, size), seconds)
        )
    trained = [draw.seconds for draw in draws if draw.index not in ended]
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
        engine.network.check(draw, engine.builder.data)
        return relative(engine, draw)
    except NetworkError as problem:
        return str(problem)
    except Exception as problem:  # a person's own network may raise anything
        return one_line(problem, named=True)


def _measured(
    engine: Engine,
    draws: Mapping[TrialKey, Hyperparameters],
    index: TrialKey,
    jobs: int,
    beside: Sequence[Hyperparameters],
) -> Pace:
    """The pace of a trial; an error in one line if it can't be trained."""
    try:
        return measure(engine, draws[index], jobs, beside)
    except JaxmnistError:
        raise
    except Exception as problem:
        kind = UsageError if engine.network.traced else EnvironmentFailure
        why = one_line(problem, named=True)
        raise kind(f"trial {index} ({draws[index]}) can't be trained: {why}") from None


def _seconds(first: Beginning, batch_size: int, step: float) -> float:
    """About how long a trial trains, without compiling; an evaluation is a third of training."""
    images = len(first.dataset.y_train) + len(first.dataset.y_validation) / 3
    return first.settings.epochs * images / batch_size * step


def _together(trained: list[float], left: int, together: int, settings: SearchSettings) -> float:
    """About how long all trials and their reruns take, which train `together` at a time.

    trained: seconds of trials that are left, of which there may be more; these are then taken for
    the mean of the others.
    """
    if not left:
        return 0.0
    mean = sum(trained) / len(trained)
    again = (settings.finalists or 0) * (settings.reruns or 0) + settings.refit
    return max(max(trained), mean * (left + again) / together)


def _ended(first: Beginning, network: Network) -> set[TrialKey]:
    """The trials that an earlier session of this search has ended; `UsageError` if it is another's.

    Nothing is mended, and no lock is taken.
    """
    path = Path(local_path(first.settings.run_directory))
    if first.settings.overwrite or not exists(path):
        return set()
    said = describe_search(first.settings, first.dataset, network.definition.name, first.space)
    opened = RunDirectory.open(path)
    check_same(path, opened.search["identity"], said["identity"])
    retries = first.settings.max_retries
    return {index for index in first.draws if state_of(opened.read_trial(index), retries) in DONE}
