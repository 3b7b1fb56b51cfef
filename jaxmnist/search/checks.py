"""Checks before the first trial for problems that would make trials fail."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from jaxmnist.checked import flag
from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.local import Engine
from jaxmnist.errors import NetworkError, UsageError, one_line
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.models.questions import Questions, answers_of
from jaxmnist.reading import memory
from jaxmnist.results import svm_fit
from jaxmnist.runs.layers import Layer
from jaxmnist.settings import SearchSettings
from jaxmnist.training_settings import OF_OPTIMIZER, RECIPES, TrainingSettings

MOST_TRACED = 16  # configurations of a network that must be traced
MOST_NOTED = 3  # of which a user is told what to know


def check_counts(trials: int, settings: SearchSettings) -> None:
    """Raise `UsageError` if finalists or ensemble need more trials than a small space has."""
    for name in ("finalists", "ensemble"):
        wanted = getattr(settings, name)
        if wanted is not None and wanted > trials:
            raise UsageError(
                f"{flag(name)} {wanted} is more than the {trials} configurations that can be drawn"
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
    if settings.svm:
        fitted = len(dataset.y_train) + settings.refit * len(dataset.y_validation)
        svm_fit.check_memory(svm_fit.Fitting.kind, dataset.classes, fitted)
    # Tracing hundreds of networks would take minutes: then the first ones are looked at.
    most = MOST_TRACED if network.traced else None
    batch_size = settings.training().batch_size
    data = DataSpec.of(dataset, settings.training())
    for draw in itertools.islice(dict.fromkeys(draws), most):
        needed = least_memory(network.layers(draw, data), batch_size)
        if needed > memory():
            raise UsageError(
                f"{draw}: training needs at least {needed / 2**30:.0f} GiB, and this machine has"
                f" {memory() / 2**30:.0f} GiB of memory; choose smaller values"
            )


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
    if not network.traced:
        return
    usual, data = RECIPES[settings.recipe], DataSpec.of(dataset, settings.training())
    given = {
        name
        for name in OF_OPTIMIZER
        if name in settings.ranges or getattr(settings, name) != getattr(usual, name)
    }
    for draw in itertools.islice(dict.fromkeys(draws), MOST_TRACED):
        questions = Questions(
            answers_of(draw),
            image_shape=data.image_shape,
            classes=data.classes,
            steps_of=data.steps,
        )
        try:
            network.definition.ask(questions)
            if network.optimizer(draw, data) is None:
                return
        except Exception:  # its trial fails, and says why
            return
        given -= set(questions.asked)
    if not given:
        return
    flags = " and ".join(flag(name) for name in OF_OPTIMIZER if name in given)
    raise UsageError(
        f"{flags} would have no effect: the network is returned with an optimizer of"
        " its own, which has its numbers in it"
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
            network.check(draw, data)
        except NetworkError as problem:
            first = first or (draw, problem)
            continue
        found.append(draw)
        if not network.traced:
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
        for line in network.notes(draw, data):
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
        with engine.run([(0, hyperparameters)]) as events:
            for event in events:
                if isinstance(event, TrialFinished) and not event.diverged:
                    error = event.error
    except Exception as problem:
        error = one_line(problem, named=True)
    if error:
        raise UsageError(f"nothing can be trained with JAX's {debugging}: {error}")
