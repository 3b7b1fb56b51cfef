"""Trials that share a program as its lanes: how lanes are computed, and on which devices.

If a network supports padding (`models.network.Known`), configurations of different widths can share
a program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method, usual_method
from jaxmnist.runs.trial import Key

# --- The small arrays of a network's weights as one vector ---

# The elements of an array that is not packed, as copying its gradient would take time.
LARGE = 2**18


State = Any  # a `TrainingState`, whose module imports this one


class Packed(NamedTuple):
    """A tree of arrays.

    vector: float32[P], the P elements of the small ones. others: the arrays that are not small.
    """

    vector: Any
    others: tuple[Any, ...]


@dataclass(frozen=True)
class Packing:
    """How the arrays of a tree of this structure are packed.

    shapes: of all arrays, in the tree's order. decays: whether weight decay applies to each.
    small: whether each stands in the vector.
    """

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    decays: tuple[bool, ...]
    small: tuple[bool, ...]

    @classmethod
    def of(cls, parameters: Any, decayed: Any) -> Packing | None:
        """The packing of trees like `parameters`; None where it would save nothing.

        decayed: a tree of the same structure, which says what weight decay applies to.
        """
        leaves, structure = jax.tree.flatten(parameters)
        small = tuple(x.dtype == np.float32 and math.prod(x.shape) < LARGE for x in leaves)
        shapes, decays = tuple(x.shape for x in leaves), tuple(jax.tree.leaves(decayed))
        return cls(structure, shapes, decays, small) if sum(small) > 1 else None

    @property
    def order(self) -> list[int]:
        """The places of the small arrays as the vector has them: those that decay come first."""
        small = [place for place, small in enumerate(self.small) if small]
        return sorted(small, key=lambda place: not self.decays[place])

    @property
    def decayed(self) -> Packed:
        """What weight decay applies to, packed: bool[P], and a bool for each other array."""
        sizes = {place: math.prod(self.shapes[place]) for place in self.order}
        decaying = sum(size for place, size in sizes.items() if self.decays[place])
        others = (d for d, small in zip(self.decays, self.small, strict=True) if not small)
        return Packed(jnp.arange(sum(sizes.values())) < decaying, tuple(others))

    def pack(self, tree: Any) -> Packed:
        """A tree of this structure, packed; arrays on the host or in a program."""
        leaves = jax.tree.leaves(tree)
        flat = [leaves[place].reshape(-1) for place in self.order]
        on_host = isinstance(flat[0], np.ndarray)
        vector = np.concatenate(flat) if on_host else jnp.concatenate(flat)
        others = (leaf for leaf, small in zip(leaves, self.small, strict=True) if not small)
        return Packed(vector, tuple(others))

    def unpack(self, packed: Packed) -> Any:
        """The inverse of `pack`, of one tree or of a stack of them."""
        stack = packed.vector.shape[:-1]
        parts, start = {}, 0
        for place in self.order:
            shape = self.shapes[place]
            end = start + math.prod(shape)
            parts[place] = packed.vector[..., start:end].reshape((*stack, *shape))
            start = end
        others = iter(packed.others)
        leaves = [parts[i] if small else next(others) for i, small in enumerate(self.small)]
        return self.structure.unflatten(leaves)

    def packed(self, state: State) -> State:
        """A training state with its parameters and moments packed; collections stay as they are."""
        return self._replaced(
            state, lambda part: jax.tree.structure(part) == self.structure, self.pack
        )

    def unpacked(self, state: State) -> State:
        """The inverse of `packed`."""
        return self._replaced(state, lambda part: isinstance(part, Packed), self.unpack)

    def _replaced(
        self, state: State, chosen: Callable[[Any], bool], new: Callable[[Any], Any]
    ) -> State:
        def each(tree: Any) -> Any:
            return jax.tree.map(
                lambda part: new(part) if chosen(part) else part, tree, is_leaf=chosen
            )

        return state._replace(
            parameters=each(state.parameters), optimizer_state=each(state.optimizer_state)
        )


# --- The ways of computing the lanes of a program ---


@dataclass(frozen=True)
class Way:
    """A way of computing lanes.

    description: the way in words, for messages.
    over: maps (a function of one lane, a tree whose arrays have a leading axis of lanes) to the
      function's values for all lanes.
    """

    description: str
    over: Callable[[Callable[[Any], Any], Any], Any]


def _only_lane(function: Callable[[Any], Any], lanes: Any) -> Any:
    value = function(jax.tree.map(lambda x: x[0], lanes))
    return jax.tree.map(lambda x: x[None], value)


def _at_once(function: Callable[[Any], Any], lanes: Any) -> Any:
    return jax.vmap(function)(lanes)


WAYS = {
    "alone": Way("one after another", _only_lane),
    # On a TPU: half of the cycles, and twice as long to compile.
    "corners": Way("one after another, each corner of pooling apart", _only_lane),
    "map": Way("one after another in one program", lax.map),
    "grouped": Way("together, by grouped convolution", _at_once),
}


@dataclass(frozen=True)
class Stacking:
    """How trials share compiled programs.

    way: 'alone' and 'corners', one lane on each device, on a TPU with another method; 'map', the
      lanes of a device one after another in one program; 'grouped', all lanes at once, by XLA's
      grouped convolution.
    lanes: trials in one program, on all devices together; a multiple of the number of devices.
    padding: the multiples that hyperparameters are padded to, by name.
    """

    way: str = "alone"
    lanes: int = 1
    padding: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.way not in WAYS or min(self.lanes, 1, *self.padding.values()) < 1:
            raise ValueError(f"invalid stacking: {self!r}")

    @property
    def alone(self) -> bool:
        """Whether a device trains one trial at a time."""
        return WAYS[self.way].over is _only_lane

    def method(self, platform: str) -> Method:
        """The method that computes the convolutions of one lane in training."""
        return "corners" if self.way == "corners" else usual_method(platform)

    def over_lanes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` of (x, *shared), extended to a stack of x with a leading axis of lanes."""

        def run(lanes: Any, *shared: jax.Array) -> Any:
            return WAYS[self.way].over(lambda lane: function(lane, *shared), lanes)

        return run

    def widest(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """The padded configuration, whose program this configuration shares."""
        return hyperparameters.replace(
            **{
                name: round_up(hyperparameters[name], multiple)
                for name, multiple in self.padding.items()
                if name in hyperparameters
            }
        )

    def __str__(self) -> str:
        return f"up to {self.lanes} trials at a time, {WAYS[self.way].description}"


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not less than `number`."""
    return -(-number // multiple) * multiple


def lanes_for(trials: int, devices: int, most: int) -> int:
    """The lanes of a program for `trials` trials: a power of two per device, at most `most`."""
    each = -(-trials // devices)
    lanes: int = 2 ** (each - 1).bit_length() * devices
    return min(lanes, max(most, devices))


# --- Groups of trials that share a program as its lanes ---

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
    trials: tuple[tuple[Key, Hyperparameters], ...]
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
    trials: Iterable[tuple[Key, Hyperparameters]],
    stacking: Stacking,
    devices: int,
    positions: Mapping[Key, Hashable] | None = None,
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

    alike: dict[tuple[Hashable, ...], list[tuple[Key, Hyperparameters]]] = {}
    before, stretch = None, 0  # the latest key, and the number of changes of it
    for index, hyperparameters in trials:
        batches = index.rerun, (positions or {}).get(index)
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
    return sorted(groups, key=lambda group: group.trials[0][0])


# --- The rule by which trials share programs ---

# Trials from which on a TPU and a GPU take the way that trains faster and compiles longer: on a TPU
# it saves a trial half a second and costs a program 30 core-seconds; on an H200 32 lanes made 4345
# steps a second in place of 2730.
MANY = 100
GPU_LANES = 32
# Programs that a core of the host may compile before trials are padded to share programs.
EACH_CORE = 2


def choose(
    platform: str,
    devices: int,
    trials: int,
    lanes: int | None,
    paddings: Sequence[Mapping[str, int]],
    groups_of: Callable[[Stacking], Sequence[Group]],
    cores: int,
) -> Stacking:
    """How trials share programs, by rule.

    On a CPU and a TPU one trial trains after another on a device. So it does on a GPU, but if there
    are `MANY` that may be padded, as many at once as share a program. Trials are padded as little
    as lets the host compile their programs, `EACH_CORE` on a core at most, or else as much as they
    may be; on a CPU they are not.

    Args:
      platform: 'cpu', 'gpu' or 'tpu'.
      devices: their number.
      trials: their number.
      lanes: trials in one program, if the user chose that.
      paddings: that may be chosen from, the narrowest first.
      groups_of: the groups of the trials by a stacking.
      cores: of the host.
    """
    paddings = () if platform == "cpu" else paddings
    padding: Mapping[str, int] = {}
    for wider in paddings:
        programs = {group.program for group in groups_of(Stacking("alone", devices, padding))}
        if len(programs) <= EACH_CORE * cores:
            break
        padding = wider
    together = "grouped" if platform == "gpu" else "map"
    if lanes is not None and lanes > devices:
        return Stacking(together, round_up(lanes, devices), padding)
    if lanes is None and platform == "gpu" and paddings and trials >= MANY:
        most = Stacking(together, GPU_LANES * devices, padding)
        largest = max(len(group.trials) for group in groups_of(most))
        if largest > devices:
            return replace(most, lanes=lanes_for(largest, devices, most.lanes))
    way = "corners" if platform == "tpu" and trials >= MANY else "alone"
    return Stacking(way, devices, padding)


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
