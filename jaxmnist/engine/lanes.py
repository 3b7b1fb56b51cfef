"""Groups of trials that share a program as its lanes, and the devices they are distributed over.

If a network supports padding (`Network.multiples`), configurations of different widths can share a
program.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmnist.engine.stacking import Stacking, lanes_for, round_up
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.keys import TrialKey, in_order, number_of

# With three, the last trial of ten on two cores ends 2 % after the best order's; with none, 9 %.
TAIL = 3


@dataclass(frozen=True)
class Group:
    """Trials that train together in one program.

    widest: the configuration that all are padded to; its numbers are those of the first trial.
    key: what trials that share a program have in common.
    trials: (key, hyperparameters) of each trial.
    lanes: the number of lanes of the program; those beyond the trials are idle.
    """

    widest: Hyperparameters
    trials: tuple[tuple[TrialKey, Hyperparameters], ...]
    lanes: int
    key: Hashable = None

    @property
    def program(self) -> tuple[Hashable, int]:
        """A key: groups whose keys are equal share their compiled programs."""
        return self.widest if self.key is None else self.key, self.lanes

    def halves(self, devices: int) -> tuple[Group, Group]:
        """Two groups with half of the trials each."""
        middle = len(self.trials) // 2
        parts = self.trials[:middle], self.trials[middle:]
        first, second = (
            Group(self.widest, part, lanes_for(len(part), devices, self.lanes), self.key)
            for part in parts
        )
        return first, second


def group_trials(
    trials: Iterable[tuple[TrialKey, Hyperparameters]],
    stacking: Stacking,
    devices: int,
    positions: Mapping[TrialKey, Hashable] | None = None,
    key_of: Callable[[Hyperparameters], Hashable] = lambda hyperparameters: hyperparameters,
    pads: Callable[[Hyperparameters], bool] = lambda hyperparameters: True,
    consecutive: bool = False,
) -> list[Group]:
    """The trials in groups that `stacking` allows, ordered by the first trial of each group.

    positions: the (epoch, step) from which trials resume, by key; those of a group must be equal,
      because its trials train on the same batches. So must be the numbers of reruns.
    key_of: what trials of a group have in common, once they are padded.
    pads: whether a configuration may be padded.
    consecutive: group only consecutive trials, so that trials start in the order in which they are
      given.
    """

    def widest_of(hyperparameters: Hyperparameters) -> Hyperparameters:
        return stacking.widest(hyperparameters) if pads(hyperparameters) else hyperparameters

    alike: dict[tuple[Hashable, ...], list[tuple[TrialKey, Hyperparameters]]] = {}
    before, stretch = None, 0  # the latest key, and the number of changes of it
    for index, hyperparameters in trials:
        batches = number_of(index), (positions or {}).get(index)
        key = key_of(widest_of(hyperparameters)), *batches
        stretch += key != before
        before = key
        place = (*key, stretch) if consecutive else key
        alike.setdefault(place, []).append((index, hyperparameters))
    most = round_up(stacking.lanes, devices)
    groups = []
    for (shared, *_), members in alike.items():
        for first in range(0, len(members), most):
            part = tuple(members[first : first + most])
            widest = widest_of(part[0][1])
            groups.append(Group(widest, part, lanes_for(len(part), devices, most), shared))
    return sorted(groups, key=lambda group: in_order(group.trials[0][0]))


def with_short_tail(groups: list[Group], jobs: int, work: Callable[[Group], float]) -> list[Group]:
    """The groups in an order in which `jobs` at a time end nearly together.

    The last ones, `TAIL` for each job, come with the longest first. The others keep their places: a
    search that is stopped early should leave out its last trials, not its small ones.

    Reference: Graham, 'Bounds on multiprocessing timing anomalies', 1969.
    """
    kept = max(len(groups) - TAIL * jobs, 0) if jobs > 1 else len(groups)
    return groups[:kept] + sorted(groups[kept:], key=work, reverse=True)


class Devices:
    """The devices that lanes are distributed over with JAX's sharding."""

    def __init__(self, devices: list[jax.Device]) -> None:
        mesh = Mesh(devices, ("lanes",))
        self.count = len(devices)
        self._mesh = mesh
        self.by_lane = NamedSharding(mesh, PartitionSpec("lanes"))
        self.everywhere = NamedSharding(mesh, PartitionSpec())

    def spread(
        self, function: Callable[..., Any], stacking: Stacking, shared: int
    ) -> Callable[..., Any]:
        """`function` of one lane's x and `shared` arrays, for stacks of x over all devices."""
        run = stacking.over_lanes(function)
        if self.count == 1:
            return run
        specs = (PartitionSpec("lanes"), *[PartitionSpec()] * shared)
        return jax.shard_map(
            run, mesh=self._mesh, in_specs=specs, out_specs=PartitionSpec("lanes"), check_vma=False
        )
