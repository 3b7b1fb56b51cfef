"""Which way of stacking trials is fastest on this device: measured once, then remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jaxmnist.engine.lanes import Stacking, lanes_for, round_up
from jaxmnist.errors import SurroundingsError, UsageError
from jaxmnist.whole_files import LARGEST_JSON, read_bytes, write_bytes

MEMORY = "stacking.json"


def candidates(
    platform: str,
    devices: int,
    trials: int,
    lanes: int | None,
    padding: Mapping[str, int] | None = None,
) -> list[Stacking]:
    """The ways of stacking to choose from, for programs that at most `trials` trials can share.

    On a TPU there is nothing to choose: its compiler expects other ways than one trial after
    another to take 1.1 to 3.5 times the cycles, and each candidate takes seconds to compile.

    lanes: what a person asked for, on all devices together.
    padding: of the network on this platform.
    """
    alone = Stacking("alone", devices, padding or {})
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
        for way in ("products", "grouped", "map")
        if number > devices
    ]
    return stacks if lanes is not None and stacks else [alone, *stacks]


def choose(
    ways: list[Stacking], measure: Callable[[Stacking], float], memory: Path | None, device: str
) -> tuple[Stacking, dict[str, float]]:
    """The fastest of `ways`, and the rates that were measured, by name; none if remembered.

    Args:
      ways: to choose from.
      measure: steps a second of all lanes together; a way that raises is none for this device.
      memory: the folder that remembers earlier choices; None to remember nothing.
      device: what a choice is remembered for.
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
            # Memory that runs out, or an operation that the device lacks.
            rate = 0.0
        rates[f"{way.way} {way.lanes}"] = rate
        if rate > fastest:
            best, fastest = way, rate
    if path and fastest:
        _write(path, {**known, question: asdict(best)})
    return best, rates


def _read(path: Path) -> dict[str, Any]:
    """What is remembered; nothing where the file is missing or damaged."""
    try:
        content = json.loads(read_bytes(path, LARGEST_JSON))
    except (UsageError, SurroundingsError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, Any]) -> None:
    # A cache that can't be written costs a second measurement, no more.
    with suppress(OSError, UsageError, SurroundingsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(content, indent=1).encode())
