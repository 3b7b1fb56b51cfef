"""The wall time of each stage of a search, stored beside its winner."""

from __future__ import annotations

import time
from typing import Any

from jaxmnist.errors import UsageError
from jaxmnist.runs.directory import RunDirectory
from jaxmnist.runs.writing import WritableRunDirectory
from jaxmnist.whole_files import read_json

TIMES_SHAPE = {"sessions": [{"finished": str, "seconds": {str: float}}]}


def write_times(directory: WritableRunDirectory, seconds: dict[str, float]) -> None:
    """Record the wall time, in seconds, of each stage of a search that has just ended."""
    session = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }
    before = directory.mended(lambda: _read(directory)) or []
    directory.write_json(directory.times_path, {"sessions": [*before, session]})


def read_times(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the records of `write_times`, oldest first; none if they can't be read."""
    try:
        return _read(directory)
    except UsageError:
        return []


def _read(directory: RunDirectory) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = read_json(directory.times_path, TIMES_SHAPE)["sessions"]
    return sessions
