"""What a finished run remembers of how it was made: the machine, and the time of each stage."""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Callable
from typing import Any

from jaxmnist.atomic import read_json, write_json
from jaxmnist.config import SearchSettings, flag, text
from jaxmnist.errors import UsageError
from jaxmnist.store import RunDirectory, WritableRunDirectory

TIMES = "times.json"  # in best/
SHAPE = {"sessions": [{"finished": str, "seconds": {str: float}}]}
# What doesn't belong to a repetition elsewhere.
LEFT_OUT = ("overwrite", "quiet", "directory", "cache", "ranges")


def machine() -> dict[str, Any]:
    """The machine that this runs on."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
    }
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory_gib"] = round(memory / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        pass  # a system that doesn't tell
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_times(
    directory: WritableRunDirectory, seconds: dict[str, float], say: Callable[[str], None]
) -> None:
    """Keep the wall time of each stage of a search that has just come to its end.

    `say` is told if what was kept before is damaged, and where it was moved.
    """
    session = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }
    before = directory.mended(lambda: _read(directory), say) or []
    write_json(directory.best / TIMES, {"sessions": [*before, session]})


def read_times(directory: RunDirectory) -> list[dict[str, Any]]:
    """What `write_times` kept, oldest first; nothing where it can't be read."""
    try:
        return _read(directory)
    except UsageError:
        return []


def _read(directory: RunDirectory) -> list[dict[str, Any]]:
    return read_json(directory.best / TIMES, SHAPE)["sessions"]


def command(settings: SearchSettings) -> str:
    """The command line of a search: the flags that differ from their defaults."""
    parts = ["python", "-m", "jaxmnist.search"]
    usual = SearchSettings().to_json()
    for name, value in settings.to_json().items():
        if name in LEFT_OUT or value == usual[name]:
            continue
        if isinstance(value, bool):
            parts.append(flag(name) if value else flag("no_" + name))
        else:
            parts += [flag(name), str(value)]
    for name, given in settings.ranges.items():
        members = given if isinstance(given, list) else [given]
        parts += [flag(name), ",".join(map(text, members))]
    return shlex.join(parts)


def session(settings: SearchSettings) -> str:
    """The same search as a line of Python."""
    usual = SearchSettings().to_json()
    given = [
        f"{name}={value!r}"
        for name, value in settings.to_json().items()
        if name not in LEFT_OUT and value != usual[name]
    ]
    given += [f"{name}={value!r}" for name, value in settings.ranges.items()]
    return f"jaxmnist.random_search({', '.join(given)})"


def settings_rows(search: dict[str, Any]) -> list[tuple[str, Any]]:
    """The settings of search.json as rows of a table, ranges as they were searched."""
    identity, settings = search["identity"], dict(search["settings"])
    settings.pop("ranges", None)
    rows = {**settings, "network": identity["network"], "optimizer": identity["optimizer"]}
    rows |= identity["space"]
    return [(name, "default" if value is None else value) for name, value in rows.items()]
