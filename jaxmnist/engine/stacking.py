"""The ways of computing the lanes of a program, and the choice of the fastest one on a device.

The choice is measured once and stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax import lax

from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method, best_method
from jaxmnist.whole_files import LARGEST_JSON, read_bytes, write_bytes

MEMORY = "stacking.json"


@dataclass(frozen=True)
class Way:
    """A way of computing lanes.

    description: the way in words, for messages.
    over: maps (a function of one lane, a tree whose arrays have a leading axis of lanes) to the
      function's values for all lanes.
    method: how training computes convolutions; None for the platform's usual method.
    """

    description: str
    over: Callable[[Callable[[Any], Any], Any], Any]
    method: Method | None = None


def _only_lane(function: Callable[[Any], Any], lanes: Any) -> Any:
    value = function(jax.tree.map(lambda x: x[0], lanes))
    return jax.tree.map(lambda x: x[None], value)


def _at_once(function: Callable[[Any], Any], lanes: Any) -> Any:
    return jax.vmap(function)(lanes)


WAYS = {
    "alone": Way("one after another", _only_lane),
    # On a TPU: half of the cycles, and twice as long to compile.
    "corners": Way("one after another, each corner of pooling apart", _only_lane, "corners"),
    "map": Way("one after another in one program", lax.map),
    # The method 'tiles', which suits a CPU's cache, computes one lane at a time.
    "grouped": Way("together, by grouped convolution", _at_once, "convolution"),
    "products": Way("together, by stacked matrix products", _at_once, "patches"),
}


@dataclass(frozen=True)
class Stacking:
    """How trials share compiled programs.

    way: 'alone' and 'corners', one lane on each device; 'map', the lanes of a device one after
      another in one program; 'products' and 'grouped', all lanes at once, with convolutions as
      stacked products of patches or as XLA's grouped convolution.
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
        return WAYS[self.way].method or best_method(platform)

    def evaluation_method(self, platform: str) -> Method:
        """The method in evaluation: for one lane the one that is quickest to compile."""
        return best_method(platform) if self.alone else self.method(platform)

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


def lone_ways(platform: str, uses_method: bool) -> list[str]:
    """The ways of training one trial after another on a platform, told apart by estimates.

    uses_method: whether the network computes convolutions by the method that it is given.
    """
    return ["alone", "corners"] if platform == "tpu" and uses_method else ["alone"]


def candidates(platform: str, alone: Stacking, trials: int, lanes: int | None) -> list[Stacking]:
    """The stackings to choose from, for programs that at most `trials` trials can share.

    On a TPU there is only one: its compiler estimates that the others take 1.1 to 3.5 times the
    cycles of training one trial after another, and each candidate takes seconds to compile. On a
    GPU, grouped convolution was faster than the others with every number of lanes, or equal, where
    that was measured; the others are tried for a number of lanes that the user asks for.

    alone: the stacking that trains one trial after another on each device.
    lanes: the number of lanes that the user asked for, on all devices together.
    """
    devices = alone.lanes
    if platform == "tpu":
        if lanes is None or lanes <= devices:
            return [alone]
        return [replace(alone, way="map", lanes=round_up(lanes, devices))]
    if lanes is None:
        wanted = [8 * devices, 32 * devices]
        most = lanes_for(trials, devices, wanted[-1])
        wanted = sorted({min(number, most) for number in wanted})
    else:
        wanted = [round_up(lanes, devices)]
    stacks = [
        replace(alone, way=way, lanes=number)
        for number in wanted
        for way in (("grouped",) if lanes is None else ("products", "grouped", "map"))
        if number > devices
    ]
    return stacks if lanes is not None and stacks else [alone, *stacks]


def choose(
    ways: list[Stacking], measure: Callable[[Stacking], float], memory: Path | None, device: str
) -> tuple[Stacking, dict[str, float]]:
    """The fastest of `ways`, and the measured rates by name, empty if the choice was stored.

    Args:
      ways: the stackings to choose from.
      measure: returns the steps per second, summed over all lanes; a stacking for which it raises
        is not used.
      memory: the folder that stores earlier choices; None to store nothing.
      device: the description of the device and task that a choice is stored for.
    """
    if len(ways) == 1:
        return ways[0], {}
    path = memory / MEMORY if memory else None
    question = json.dumps([device, *[asdict(way) for way in ways]])
    known = _read(path) if path else {}
    for way in ways:
        if known.get(question) == asdict(way):
            return way, {}
    rates: dict[str, float] = {}
    best, fastest = ways[0], 0.0
    for way in ways:
        try:
            rate = measure(way)
        except Exception:
            # Memory ran out, or the device doesn't support an operation.
            rate = 0.0
        rates[f"{way.way} {way.lanes}"] = rate
        if rate > fastest:
            best, fastest = way, rate
    if path and fastest:
        _write(path, {**known, question: asdict(best)})
    return best, rates


def _read(path: Path) -> dict[str, Any]:
    """The stored choices; empty if the file is missing or damaged."""
    try:
        content = json.loads(read_bytes(path, LARGEST_JSON))
    except (UsageError, EnvironmentFailure, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    # If the cache can't be written, the measurement is only repeated next time.
    with suppress(OSError, UsageError, EnvironmentFailure):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(content, indent=1).encode())
