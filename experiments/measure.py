"""What both comparisons need: cold and pinned processes of peers, the machine, the spread."""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / "peers"
ONE_PROCESS, ONE_A_CORE = "one process", "one a core"
# A process that is pinned to a core must also be told to use one thread, unless it uses JAX.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
# Arguments: a core's number, then a command, which replaces this process and runs on that core
# alone. A fork is no way to do that: JAX may already run in the parent, and can't be forked.
PINNED = [
    sys.executable,
    "-c",
    "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])});"
    " os.execvp(sys.argv[2], sys.argv[2:])",
]


class PeerFailed(Exception):
    """A peer's process ended with an error; the message is its last line."""


@dataclass(frozen=True)
class Peer:
    """Something to compare with.

    script: in peers/.
    arguments: of the script, after its task.
    needs: modules that its Python must have.
    mend: how to get them.
    arrangements: how its processes may share the cores.
    elsewhere: whether it runs in the Python that `--python` names.
    """

    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    mend: str = "pip install '.[bench]'"
    arrangements: tuple[str, ...] = (ONE_PROCESS, ONE_A_CORE)
    elsewhere: bool = True


def processors() -> list[int]:
    """The cores that may be used."""
    return sorted(os.sched_getaffinity(0))


def cold_environment(folder: str) -> dict[str, str]:
    """An environment in which no cache of compiled programs is found: they would be in `folder`."""
    caches = ("JAX_COMPILATION_CACHE_DIR", "JAXMNIST_CACHE")
    kept = {k: v for k, v in os.environ.items() if k not in caches}
    homes = dict.fromkeys(("XDG_CACHE_HOME", "KERAS_HOME"), folder)
    return {**kept, **homes, "TF_CPP_MIN_LOG_LEVEL": "3"}


def run_together(commands: list[list[str]], pinned: bool = False) -> tuple[list[str], float]:
    """Run commands at the same time, each on a core of its own where they are pinned.

    Returns what each printed, and the seconds from the start to the end of the last one.
    Raises `PeerFailed` where one ends with an error.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = cold_environment(folder) | (ONE_THREAD if pinned else {})
        running = []
        began = time.perf_counter()
        for i, command in enumerate(commands):
            output, errors = (Path(folder) / f"{kind}{i}" for kind in ("output", "errors"))
            line = [*PINNED, str(processors()[i]), *command] if pinned else command
            with output.open("w") as standard_output, errors.open("w") as standard_error:
                process = subprocess.Popen(
                    line, stdout=standard_output, stderr=standard_error, env=environment
                )
            running.append((process, output, errors))
        statuses = [process.wait() for process, _, _ in running]
        seconds = time.perf_counter() - began
        for status, (_, _, errors) in zip(statuses, running, strict=True):
            if status:
                lines = errors.read_text(errors="replace").split("\n")
                last = [line for line in lines if line.strip()][-1:]
                raise PeerFailed(f"ended with status {status}: {' '.join(last)}"[:300])
        return [output.read_text() for _, output, _ in running], seconds


def last_json(output: str) -> dict[str, Any]:
    """The JSON object on the last line of what a peer printed; `PeerFailed` if there is none."""
    try:
        return json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        raise PeerFailed(f"printed no JSON on its last line: {output[-100:]!r}") from None


def missing(peer: Peer, python: str) -> str | None:
    """Why a peer can't run, with the mend, or None where it can."""
    look = (
        "import importlib.util as u, sys\n"
        "print(*(name for name in sys.argv[1:] if u.find_spec(name) is None))"
    )
    try:
        done = subprocess.run(
            [python, "-c", look, *peer.needs], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        return f"{python} doesn't run: {error}"
    absent = ", ".join(done.stdout.split())
    return f"{absent} not installed in {python}; {peer.mend}" if absent else None


def present(
    peers: dict[str, Peer], names: Iterable[str], python: str
) -> tuple[list[str], list[str]]:
    """The peers that can run, and a line for each that can't."""
    runnable, left_out = [], []
    for name in names:
        peer = peers[name]
        problem = missing(peer, python if peer.elsewhere else sys.executable)
        if problem is None:
            runnable.append(name)
        else:
            left_out.append(f"{name} is left out: {problem}")
            print(left_out[-1], file=sys.stderr)
    return runnable, left_out


def alternate(
    cases: Iterable[tuple[str, ...]],
    rounds: int,
    measure: Callable[..., dict[str, Any]],
    figure: str,
) -> tuple[dict[tuple[str, ...], list[dict[str, Any]]], list[str]]:
    """Measure all cases in every round, in every other round backwards.

    Args:
      cases: the arguments of `measure`, each a name.
      rounds: how often.
      measure: gives a result, or raises `PeerFailed`; then its case is left out from there on.
      figure: of a result, to be told on the way.

    Returns:
      The results of each case, and a line for each that failed.
    """
    results: dict[tuple[str, ...], list[dict[str, Any]]] = {case: [] for case in cases}
    failed = []
    for i in range(rounds):
        for case in list(results)[:: -1 if i % 2 else 1]:
            try:
                result = measure(*case)
            except PeerFailed as error:
                del results[case]
                failed.append(f"{', '.join(case)} is left out: {error}")
                print(failed[-1], file=sys.stderr)
                continue
            results[case].append(result)
            print(f"round {i + 1}: {', '.join(case)}: {result[figure]:.1f}", file=sys.stderr)
    return results, failed


def matrix_product_peak(side: int = 2048, dtype: str = "float32") -> float:
    """GFLOP/s of a product of square matrices, as JAX computes it on the whole device."""
    script = str(PEERS / "matrix_product.py")
    outputs, _ = run_together([[sys.executable, script, str(side), dtype]])
    return last_json(outputs[0])["gflops"]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    values = list(values)
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean; nan of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else math.nan


def described(versions: dict[str, str]) -> str:
    """Versions on a line."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())
