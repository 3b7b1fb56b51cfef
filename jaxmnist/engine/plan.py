"""Which padding makes a search short: programs that trials share, against the padding's work."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Any

from jaxmnist.engine.builder import Builder
from jaxmnist.engine.estimates import COSTS, Costs
from jaxmnist.engine.lanes import Group
from jaxmnist.engine.stacking import Stacking, candidates, lone_ways
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.keys import TrialKey
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


def ways_of(
    builder: Builder,
    trials: list[tuple[TrialKey, Hyperparameters]],
    lanes: int | None,
    host_cores: int,
    *,
    consecutive: bool = False,
) -> tuple[list[Stacking], Group]:
    """The stackings to choose from for these trials, and the group that measures them.

    Padding and the way of training one trial after another are those with which compiling and
    training are estimated to take least time, on `host_cores` cores. There is only one stacking
    where measuring others wouldn't pay.
    """
    devices, costs = builder.devices.count, COSTS.get(builder.platform, COSTS["gpu"])
    layers = lru_cache(None)(lambda h: builder.network.layers(h, builder.data))
    choices = [
        Stacking(way, devices, padding)
        for way in lone_ways(builder.platform, builder.network.uses_method)
        for padding in paddings(builder.network.multiples)
    ]

    def steps(group: Group) -> int:
        batch_size = builder.settings_of(group.widest).batch_size
        return builder.settings.epochs * -(-len(builder.dataset.y_train) // batch_size)

    def seconds_of(alone: Stacking) -> tuple[float, float]:
        groups = builder.groups(trials, alone, consecutive=consecutive)
        size = builder.settings.batch_size
        return seconds(groups, costs[alone.way], layers, steps, size, host_cores)

    alone = cheapest(choices, seconds_of)
    together = builder.groups(trials, replace(alone, way="map", lanes=len(trials)))
    largest = max(together, key=lambda group: len(group.trials))
    ways = candidates(builder.platform, alone, len(largest.trials), lanes)
    compiling = costs[alone.way].compile_seconds(layers(largest.widest))
    if lanes is None and not pays(seconds_of(alone)[0], compiling, len(ways)):
        ways = ways[:1]
    return ways, largest
