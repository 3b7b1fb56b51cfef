"""Stacks of trials: which trials share a compiled program, as its lanes, and in which way.

Where a network can be padded (`Network.padding`), configurations of unequal widths share one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmnist.engine.training import Way, over_lanes
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method, best_method

DESCRIPTIONS = {
    "alone": "one after another",
    "map": "one after another in one program",
    "grouped": "together, by grouped convolution",
    "products": "together, by stacked matrix products",
}


@dataclass(frozen=True)
class Stacking:
    """How trials share compiled programs.

    way: 'alone', a lane on each device; 'map', the lanes of a device one after another in one
      program; 'products' and 'grouped', all lanes at once, convolutions being stacked products of
      patches or XLA's grouped convolution.
    lanes: trials in one program, on all devices together; a multiple of the devices.
    padding: hyperparameters that are padded to multiples of these numbers, by name.
    """

    way: Literal["alone", "map", "grouped", "products"] = "alone"
    lanes: int = 1
    padding: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.way not in DESCRIPTIONS or min(self.lanes, 1, *self.padding.values()) < 1:
            raise ValueError(f"no way of stacking trials: {self!r}")

    def method(self, platform: str) -> Method:
        """How one lane's convolutions are computed."""
        if self.way == "products":
            return "patches"
        # Tiles in blocks that stay in a CPU's cache are for one lane at a time.
        return "convolution" if self.way == "grouped" else best_method(platform)

    @property
    def loop(self) -> Way:
        """How a program goes over the lanes of a device."""
        return self.way if self.way in ("alone", "map") else "stack"

    def widest(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """The padded configuration of whose program this one is a lane."""
        return hyperparameters.replace(
            **{
                name: round_up(hyperparameters[name], multiple)
                for name, multiple in self.padding.items()
                if name in hyperparameters
            }
        )

    def __str__(self) -> str:
        return f"up to {self.lanes} trials at a time {DESCRIPTIONS[self.way]}"


def round_up(number: int, multiple: int) -> int:
    """The next multiple of `multiple` from `number` on."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class Group:
    """Trials that train at once in one program.

    widest: the configuration that all are padded to.
    trials: (index, hyperparameters) of each.
    lanes: of the program; those beyond the trials are idle.
    """

    widest: Hyperparameters
    trials: tuple[tuple[int, Hyperparameters], ...]
    lanes: int

    @property
    def program(self) -> tuple[Hyperparameters, int]:
        """Groups with equal ones share their compiled programs."""
        return self.widest, self.lanes

    def halves(self, devices: int) -> tuple[Group, Group]:
        """Two groups of half as many trials each."""
        middle = len(self.trials) // 2
        parts = self.trials[:middle], self.trials[middle:]
        first, second = (
            Group(self.widest, part, lanes_for(len(part), devices, self.lanes)) for part in parts
        )
        return first, second


def lanes_for(trials: int, devices: int, most: int) -> int:
    """Lanes of a program for so many trials: a power of two on each device, at most `most`."""
    each = -(-trials // devices)
    return min(2 ** (each - 1).bit_length() * devices, max(most, devices))


def group_trials(
    trials: Iterable[tuple[int, Hyperparameters]],
    stacking: Stacking,
    devices: int,
    positions: Mapping[int, Hashable] | None = None,
) -> list[Group]:
    """The trials in groups that `stacking` allows, each in the order of its first trial.

    positions: where trials go on; those of a group take the same batches, so must be at one place.
    """
    alike: dict[tuple[Hyperparameters, Hashable], list[tuple[int, Hyperparameters]]] = {}
    for index, hyperparameters in trials:
        key = stacking.widest(hyperparameters), (positions or {}).get(index)
        alike.setdefault(key, []).append((index, hyperparameters))
    most = round_up(stacking.lanes, devices)
    groups = []
    for (widest, _), members in alike.items():
        for first in range(0, len(members), most):
            part = tuple(members[first : first + most])
            groups.append(Group(widest, part, lanes_for(len(part), devices, most)))
    return sorted(groups, key=lambda group: group.trials[0][0])


class Devices:
    """The devices that lanes are spread over, by JAX's own sharding."""

    def __init__(self, devices: list[jax.Device]) -> None:
        mesh = Mesh(devices, ("lanes",))
        self.count = len(devices)
        self._mesh = mesh
        self.by_lane = NamedSharding(mesh, PartitionSpec("lanes"))
        self.everywhere = NamedSharding(mesh, PartitionSpec())

    def spread(self, function: Callable[..., Any], way: Way, shared: int) -> Callable[..., Any]:
        """`function` of one lane's x and of `shared` arrays, for stacks of x over all devices."""
        run = over_lanes(function, way)
        if self.count == 1:
            return run
        specs = (PartitionSpec("lanes"), *[PartitionSpec()] * shared)
        return jax.shard_map(
            run, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec("lanes"), check_vma=False
        )
