"""Commands, run here or in processes of their own; the facts in which two runs must agree."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxmnist import Run
from jaxmnist.__main__ import main
from jaxmnist.commands.parser import run_command


class Ended(NamedTuple):
    """How a command ended: its exit status, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def command(name: str, *arguments: object, cwd: Path | None = None) -> Ended:
    """Run a command in this process, which is quicker than in one of its own.

    What only a process shows (signals, pipes, environment variables) is for `process`.
    """
    output, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
        forgotten_imports(),
    ):
        status = run_command(main, [name, *map(str, arguments)])
    return Ended(status, output.getvalue(), errors.getvalue())


@contextlib.contextmanager
def forgotten_imports() -> Iterator[None]:
    """Forget a person's network file and what it imports, so that the next command loads it."""
    paths, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        added = {Path(path) for path in sys.path if path not in paths}
        for name in set(sys.modules).difference(modules):
            file = getattr(sys.modules[name], "__file__", None)
            if file and added.intersection(Path(file).parents):
                del sys.modules[name]
        sys.path[:] = paths


def process(name: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; options of `subprocess.run` besides."""
    line = [sys.executable, "-m", "jaxmnist", name, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=240, **options)


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
    return [look.purpose for look in run.store.read_looks(run.store.test_sha256).found]
