"""Kill a search at every change of its files, and at random; it must end as if undisturbed.

Claim: SIGKILL at any moment loses no finished work. The same command resumes the search, and in the
end every trial's hyperparameters, history and weights, the winner, its test report and its SVM are
those of an undisturbed run, bit for bit; no file is ever found damaged, and none is left behind.

- Boundaries: a small search with finalists and a refit is killed just before its first, second,
  third, … change of its run directory or of the ledger beside it (a file opened for writing,
  renamed or deleted, a folder made), always a new search, then run again to its end. Every other
  time, a file that is about to be renamed is first cut in half, as if the process had died while
  writing it.
- Random: a search with finalists and an ensemble that writes its page and TensorBoard's files too
  is killed at random moments until it finishes, again and again.

    python tests/robustness/kills.py --boundaries all --random 100
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tiny import ENSEMBLE, REFITTED, facts, flags, search_options, start

import jaxmnist
from jaxmnist.runs.records import File

# The search's command, which kills itself before change number MOMENT in a folder; if it was not
# killed, it prints the number of changes.
PROGRAM = """
import os, signal, sys

folder, moment, cut = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "cut"
changes = []

def watch(event, arguments):
    if event == "open":
        if not isinstance(arguments[2], int) or not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
    elif event not in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
        return
    if isinstance(arguments[0], int):  # a file that is open already
        return
    if not os.path.abspath(os.fsdecode(arguments[0])).startswith(folder + os.sep):
        return
    changes.append(event)
    if len(changes) == moment:
        if event == "os.rename" and cut:
            os.truncate(arguments[0], os.stat(arguments[0]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from jaxmnist.runs.records import File
from jaxmnist.commands.parser import run_command
from jaxmnist.commands.search import main
status = run_command(main, sys.argv[4:])
print(len(changes))
sys.exit(status)
"""


class Broken(Exception):
    """The guarantee did not hold; the message says where."""


def session(options: dict[str, Any], moment: int = 0, cut: bool = False) -> subprocess.Popen:
    """Start the search, to be killed at a change of its files; at none if that is 0.

    Its files are those of the run directory and of the ledger beside it.
    """
    folder = str(Path(options["directory"]))
    how = "cut" if cut else "whole"
    return start(
        PROGRAM,
        folder,
        str(moment),
        how,
        *flags(options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(options: dict[str, Any]) -> tuple[jaxmnist.Run, int]:
    """The search run to its end; also how often it changed its folder."""
    process = session(options)
    output, errors = process.communicate()
    if process.returncode:
        raise Broken(f"ended with status {process.returncode}: {errors.strip()[-300:]}")
    path = Path(options["directory"]) / options["project_name"]
    return jaxmnist.Run(path), int(output.splitlines()[-1])


def check(run: jaxmnist.Run, whole: dict[str, Any], images: np.ndarray) -> None:
    """Raise `Broken` unless the run is the undisturbed one, and nothing is left behind."""
    path = run.store.path
    left = [p for p in path.parent.rglob("*") if p.name.endswith(".tmp") or "checkpoint" in p.name]
    if left:
        raise Broken(f"left behind: {left[0].relative_to(path.parent)}")
    kept = [entry.trial for entry in run.ranking.ranked[: run.settings.output.keep]]
    # Of each finalist those of the first rerun, and those of the refit.
    kept += [each.tested for each in run.ranking.finals if each.tested]
    kept += [run.ranking.final] if run.settings.selection.refit and run.ranking.final else []
    expected = sorted({str(run.store.file(File.WEIGHTS, t.key).relative_to(path)) for t in kept})
    weights = sorted(str(p.relative_to(path)) for p in path.glob("trials/**/model.safetensors"))
    if weights != expected:
        raise Broken(f"keeps the weights {weights}, not {expected}")
    if (path / "damaged").exists():
        raise Broken(f"found damaged: {os.listdir(path / 'damaged')}")
    found = facts(run, images)
    different = [key for key in whole if found[key] != whole[key]]
    if different:
        raise Broken(f"not as undisturbed: {', '.join(different)}")
    looks = run.store.read_looks(run.store.test_sha256)
    purposes = ["winner", *(["ensemble"] if run.settings.selection.ensemble else []), "svm"]
    if sorted(look.purpose for look in looks.found) != sorted(purposes) or looks.damaged:
        raise Broken(f"counts {looks.count} looks")


def at_boundary(options: dict[str, Any], moment: int) -> jaxmnist.Run:
    """A search that was killed at a change of its files, and then run to its end."""
    options = {**options, "directory": f"{options['directory']}-{moment}"}
    process = session(options, moment, cut=moment % 2 == 0)
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        raise Broken(f"was not killed: status {process.returncode}")
    return finish(options)[0]


def at_random(options: dict[str, Any], longest: float, rng: np.random.Generator) -> int:
    """Kill a search at random until it is through; how often that was."""
    kills = 0
    while True:
        process = session(options)
        try:
            process.communicate(timeout=float(rng.uniform(0, longest)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            if process.returncode:
                raise Broken(f"ended with status {process.returncode}")
            return kills


def boundaries(
    options: dict[str, Any], whole: dict[str, Any], images: np.ndarray, count: int, chosen: int
) -> list[str]:
    """Kill at `chosen` of `count` boundaries, evenly spread; a line for each broken guarantee."""
    moments = np.unique(np.linspace(1, count, min(chosen, count)).round().astype(int))

    def one(moment: int) -> str | None:
        run = None
        try:
            run = at_boundary(options, int(moment))
            check(run, whole, images)
        except Broken as broken:
            return f"killed before change {moment}: {broken}"
        shutil.rmtree(run.store.path.parent)
        return None

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(one, moments))
    print(
        f"killed at {len(moments)} of {count} boundaries, {sum(map(bool, found))} broken guarantees"
    )
    return [line for line in found if line]


def random_moments(
    options: dict[str, Any], images: np.ndarray, wanted: int, seed: int
) -> list[str]:
    """Kill at random moments, `wanted` times or a few more; a line for each broken guarantee."""
    rng, kills, runs, broken = np.random.default_rng(seed), 0, 0, []
    options = {**options, "report": True, "tensorboard": True, "jobs": 2}
    options["directory"] += "-random"
    path = Path(options["directory"]) / options["project_name"]
    began = time.perf_counter()
    whole = facts(finish(options)[0], images)
    longest = 1.2 * (time.perf_counter() - began)
    while kills < wanted:
        shutil.rmtree(path.parent)
        runs += 1
        try:
            kills += at_random(options, longest, rng)
            check(jaxmnist.Run(path), whole, images)
        except Broken as failure:
            broken.append(f"killed at random, run {runs}: {failure}")
    print(f"killed {kills} times at random in {runs} runs, {len(broken)} broken guarantees")
    return broken


def main() -> int:
    """Kill as often as asked; 1 if a guarantee was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--boundaries", default="all", help="how many of them, or all")
    parser.add_argument("--random", type=int, default=100, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--json", type=Path, help="write the counts to this file as well")
    given = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        options = {**search_options(Path(name)), "checkpoint_every": 0}
        options["directory"] = str(Path(name) / "runs")
        images = jaxmnist.load_arrays("mnist").x_test[:50]
        refitted = {**options, **REFITTED}
        run, count = finish(refitted)
        whole = facts(run, images)
        chosen = count if given.boundaries == "all" else int(given.boundaries)
        broken = boundaries(refitted, whole, images, count, chosen)
        if given.random:
            ensemble = {**options, **ENSEMBLE}
            broken += random_moments(ensemble, images, given.random, given.seed)
    for line in broken:
        print(line)
    print(f"{time.perf_counter() - began:.0f} s")
    if given.json:
        given.json.write_text(json.dumps({"boundaries": count, "broken": broken}) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
