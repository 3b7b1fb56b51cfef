"""A thousand tiny trials, with failures and kills mixed in; nothing may be lost, and nothing leak.

Claim: a search of hundreds of trials, of which some diverge, some raise, some raise only once, and
which is killed or stopped every few seconds, ends with exactly the results of the same search left
alone; its run directory then has the files of a finished run and no others, no temporary file is
left anywhere, and within a process neither file descriptors nor memory grow with the trials.

The search is run twice: once in one process, whose file descriptors and memory are watched; once
ended at random moments by SIGKILL (half of the time), SIGINT, SIGTERM or SIGHUP, and resumed. It
runs on Linux only.

    python tests/robustness/soak.py --trials 1000
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from growth import resident_megabytes
from tiny import facts, flags, search_options, start

import jaxmnist

# How trials fail, by their index modulo PERIOD.
PERIOD, DIVERGES, RAISES, RAISES_ONCE = 50, 2, 5, 7
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDINGS = (signal.SIGKILL,) * len(SIGNALS) + SIGNALS
# The search's command; trials are made to fail through their weights, as only those are their own.
PROGRAM = """
import signal, sys
from pathlib import Path
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a shell may have them ignored in the background
    signal.signal(getattr(signal, name), signal.SIG_DFL)
from jaxmnist.engine.devices import cache_folder, keep_programs
from jaxmnist.commands import parser as command, search
keep_programs(cache_folder(sys.argv[2]))
from jaxmnist.models.network import BoundNetwork
import soak

marks, drawn = Path(sys.argv[1]), BoundNetwork.initial_weights

def bad(network, seed, index):
    weights = drawn(network, seed, index)
    kind, mark = index % soak.PERIOD, marks / str(index)
    if kind == soak.DIVERGES:
        for layer in weights["params"].values():
            layer["kernel"] *= 1e30
    if kind == soak.RAISES:
        raise MemoryError("as if there were no room")
    if kind == soak.RAISES_ONCE and not mark.exists():
        mark.touch()
        raise RuntimeError("as if the device had gone")
    return weights

BoundNetwork.initial_weights = bad
sys.exit(command.run_command(search.main, sys.argv[3:]))
"""


class Soaked:
    """A search in a folder of its own, in as many sessions as it takes."""

    def __init__(self, place: Path, name: str, options: dict[str, Any]) -> None:
        self.options = {**options, "project_name": name}
        self.path = place / name
        self._marks = place / f"{name}-marks"
        self._temporary = place / f"{name}-tmp"
        self._marks.mkdir()
        self._temporary.mkdir()
        self.watched: list[dict[str, float]] = []

    def session(self, seconds: float | None, ending: signal.Signals) -> int:
        """Run the search on, and end it after a while; its exit status."""
        os.environ["TMPDIR"] = str(self._temporary)
        words = [str(self._marks), str(self.options["cache"]), *flags(self.options)]
        process = start(PROGRAM, *words, stderr=subprocess.PIPE, text=True)
        began = time.monotonic()
        while process.poll() is None:
            if seconds is not None and time.monotonic() - began > seconds:
                process.send_signal(ending)
                break
            self._watch(process.pid)
            time.sleep(0.5)
        _, errors = process.communicate()
        if "Traceback" in errors:
            raise SystemExit(errors)
        return process.returncode

    def _watch(self, pid: int) -> None:
        """Take down what a process holds."""
        try:
            self.watched.append(
                {
                    "trials": sum(1 for _ in self.path.glob("trials/*/trial.json")),
                    "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
                    "threads": len(os.listdir(f"/proc/{pid}/task")),
                    "megabytes": resident_megabytes(pid),
                }
            )
        except (OSError, ValueError, IndexError):  # the process has just ended
            return

    def leaked(self) -> list[str]:
        """Files that a finished run has no use for."""
        run = jaxmnist.Run(self.path)
        kept = {
            f"trials/{t.trial.index:04d}" for t in run.ranking.ranked[: run.settings.output.keep]
        }
        expected = {f"trials/{t.index:04d}/trial.json" for t in run.trials}
        completed = [t.index for t in run.trials if t.status == "completed"]
        expected |= {f"trials/{index:04d}/validation.npy" for index in completed}
        raised = [t.index for t in run.trials if t.status == "failed" and t.failures]
        expected |= {f"trials/{index:04d}/error.txt" for index in raised}
        expected |= {f"{folder}/model.safetensors" for folder in kept}
        expected |= {"search.json", "lock", "times.json"}
        found = {
            str(path.relative_to(self.path))
            for path in self.path.rglob("*")
            if path.is_file() and path.relative_to(self.path).parts[0] not in ("best", "svm")
        }
        left = [str(path) for path in self._temporary.iterdir()]
        return sorted(found - expected) + left + sorted(f"no {name}" for name in kept_missing(self))


def kept_missing(soaked: Soaked) -> list[str]:
    """Files of the winner and of its SVM that should be there and are not."""
    names = ("model.safetensors", "config.json", "summary.txt", "test.json")
    return [name for name in names if not (soaked.path / "best" / name).exists()]


def statuses(run: jaxmnist.Run) -> Counter[str]:
    """How the trials ended, by kind; raises where one did not end as it had to."""
    counts: Counter[str] = Counter()
    for trial in run.trials:
        kind = trial.index % PERIOD
        if kind == DIVERGES:
            assert trial.status == "failed", trial
            assert "stopped being finite" in (trial.error or ""), trial
            counts["diverged"] += 1
        elif kind == RAISES:
            assert (trial.status, trial.failures) == ("failed", 2), trial
            counts["raised"] += 1
        else:
            assert trial.status == "completed", trial
            counts["raised once" if kind == RAISES_ONCE else "completed"] += 1
    return counts


def growth(watched: list[dict[str, float]], name: str) -> dict[str, float]:
    """The median of the second, and of the last, tenth of what was watched; and the most."""
    values = [row[name] for row in watched if row["trials"]]
    tenth = max(1, len(values) // 10)
    return {
        "early": float(np.median(values[tenth : 2 * tenth])),
        "late": float(np.median(values[-tenth:])),
        "most": max(values),
    }


def main() -> int:
    """Soak; 1 if anything was lost or leaked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--longest", type=float, default=40.0, help="session in seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the endings")
    parser.add_argument("--json", type=Path, help="write what was watched to this file as well")
    given = parser.parse_args()
    began, rng = time.perf_counter(), np.random.default_rng(given.seed)
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    options = {
        **search_options(place),
        "filters": "2:41:1",
        "conv_layers": "1:2",
        "dense_layers": "0:2",
        "units": "2:8:1",
        "max_trials": given.trials,
        "epochs": 1,
        "checkpoint_every": 1,
        "jobs": 2,
        "keep": 3,
    }
    alone, disturbed = (Soaked(place, name, options) for name in ("alone", "disturbed"))
    assert alone.session(None, signal.SIGTERM) == 0
    ended: Counter[str] = Counter()
    status = 1
    while status:
        ending = ENDINGS[int(rng.integers(len(ENDINGS)))]
        seconds = rng.uniform(0.1, 1) * given.longest
        status = disturbed.session(seconds, ending)
        ended["finished" if status == 0 else ending.name] += 1
        # Before the command has begun, a signal ends Python itself.
        assert status in (0, -ending, 128 + ending), f"{ending.name} ended with {status}"
    images = jaxmnist.load_arrays("mnist").x_test[:50]
    runs = [jaxmnist.Run(soaked.path) for soaked in (alone, disturbed)]
    whole, found = (facts(run, images) for run in runs)
    problems = [f"not as undisturbed: {key}" for key in whole if whole[key] != found[key]]
    problems += alone.leaked() + disturbed.leaked()
    print("trials:", ", ".join(f"{n} {kind}" for kind, n in statuses(runs[1]).items()))
    print("sessions:", ", ".join(f"{n} {kind}" for kind, n in ended.items()))
    for name in ("descriptors", "threads", "megabytes"):
        figures = growth(alone.watched, name)
        print(f"{name} of one process:", ", ".join(f"{k} {v:.0f}" for k, v in figures.items()))
    for problem in problems:
        print("BROKEN:", problem)
    print(f"{len(problems)} broken guarantees, {time.perf_counter() - began:.0f} s")
    if given.json:
        given.json.write_text(json.dumps(alone.watched, indent=1) + "\n")
    shutil.rmtree(place)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
