"""Commands run as a user runs them, and the facts in which two runs must agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jaxmnist import Run


def command(name: str, *arguments: object, cwd: Path | None = None, **options):
    """Run a command as a user does, in a process of its own."""
    line = [sys.executable, "-m", "jaxmnist", name, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=240, **options)


def flags(options: dict) -> list[str]:
    """A search's options as command-line flags."""
    parts = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if value is False:
            flag = "--no-" + flag.removeprefix("--")
        parts += [flag] if isinstance(value, bool) else [flag, str(value)]
    return parts


def facts(run: Run) -> list:
    """What must be equal of two runs: everything of the trials but the seconds."""
    return [(t.index, t.hyperparameters, t.status, t.history, t.weights_sha256) for t in run.trials]


def looks_of(run: Run) -> list[str]:
    """The purposes of all evaluations of a run's test set, oldest first."""
    return [look.purpose for look in run.directory.read_looks(run.directory.test_sha256).found]
