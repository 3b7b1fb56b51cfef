"""Which padding makes a search short: programs that trials share, against the padding's work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from typing import Any

from jaxmnist.engine.estimates import Costs
from jaxmnist.engine.lanes import Group
from jaxmnist.engine.stacking import Stacking
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.layers import Layer

# Of the time that trials take one after another, what stacking them saved at best, where measured:
# on an H200, 4345 steps a second in place of 2730.
SAVED_BY_STACKING = 0.37


def paddings(multiples: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """All paddings that combine one multiple of each hyperparameter; the last has the largest."""
    names = sorted(multiples)
    combined = product(*(sorted(multiples[name]) for name in names))
    return [dict(zip(names, each, strict=True)) for each in combined]


def seconds(
    groups: Iterable[Group],
    costs: Costs,
    layers_of: Callable[[Hyperparameters], Sequence[Layer]],
    steps_of: Callable[[Group], int],
    batch_size: int,
    cores: int,
) -> tuple[float, float]:
    """The estimated seconds of training and of compiling.

    Args:
      groups: of trials that train together, one group after another, a trial on each device.
      costs: of the platform.
      layers_of: the layers of a configuration.
      steps_of: the steps that a group still has to train.
      batch_size: images of a step.
      cores: of the host, which compile all programs at once.
    """
    training, programs = 0.0, dict[Any, float]()
    for group in groups:
        layers = layers_of(group.widest)
        training += steps_of(group) * costs.step_seconds(layers, batch_size)
        programs[group.program] = costs.compile_seconds(layers)
    longest = max(programs.values(), default=0.0)
    return training, max(sum(programs.values()) / cores, longest)


def cheapest(
    choices: Sequence[Stacking], seconds_of: Callable[[Stacking], tuple[float, float]]
) -> Stacking:
    """The stacking with the least seconds of training and compiling together."""
    return min(choices, key=lambda stacking: sum(seconds_of(stacking)))


def pays(training: float, compiling: float, ways: int) -> bool:
    """Whether measuring `ways` of stacking costs less than the best of them can save.

    training, compiling: the estimated seconds of training one trial after another, and of compiling
      one program.
    """
    return ways * compiling < SAVED_BY_STACKING * training
