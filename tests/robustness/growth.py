"""Memory and time over hundreds of trials of distinct configurations in one process.

Claim: after the twentieth trial neither the resident memory nor the time of a trial grows. It runs
on Linux only.

    python tests/robustness/growth.py --trials 300 --json growth.json
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.local import Engine
from jaxmnist.models.network import STUDY
from jaxmnist.models.space import Space
from jaxmnist.runs.trial import Key
from jaxmnist.settings import RECIPES


def resident_megabytes(process: int | str = "self") -> float:
    """Memory of a process that is in RAM, in MB (10⁶ bytes)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(trials: int) -> list[dict[str, float]]:
    """Resident memory and seconds since the start after each trial."""
    ranges = {"filters": "2:41:1", "conv_layers": "1:2", "units": "2:8:1"}
    space = Space(STUDY.definition, ranges)
    dataset = split("tiny", load_arrays("mnist"), validation_split=0.1, seed=0, train_limit=600)
    engine = Engine(STUDY, dataset, replace(RECIPES["study"], epochs=1), seed=0)
    rows, began = [], time.perf_counter()
    drawn = islice(space.draws(0), trials)
    with engine.run((Key(index), each) for index, each in enumerate(drawn)) as events:
        for event in events:
            if isinstance(event, TrialFinished):
                assert event.error is None, event.error
                seconds = time.perf_counter() - began
                rows.append({"megabytes": resident_megabytes(), "seconds": seconds})
    return rows


def slopes(rows: list[dict[str, float]], warm_up: int) -> dict[str, float]:
    """What each trial after the warm-up adds, by least squares, and the largest memory."""
    memory = np.array([row["megabytes"] for row in rows])[warm_up:]
    between = np.diff([row["seconds"] for row in rows])[warm_up - 1 :]
    trial = np.arange(len(memory))
    return {
        "megabytes_per_trial": float(np.polyfit(trial, memory, 1)[0]),
        "megabytes_at_warm_up": float(memory[0]),
        "megabytes_at_most": float(memory.max()),
        "seconds_between_trials": float(np.median(between)),
        "seconds_per_trial_and_trial": float(np.polyfit(trial, between, 1)[0]),
    }


def main() -> None:
    """Measure, and print the curve and its slopes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--warm-up", type=int, default=20, help="trials that the slopes leave out")
    parser.add_argument("--json", type=Path, help="write the curve to this file as well")
    given = parser.parse_args()
    rows = measure(given.trials)
    print("| trials | resident memory | seconds in all |\n| --- | --- | --- |")
    for done in sorted({given.warm_up, len(rows), *range(50, len(rows), 50)}):
        row = rows[done - 1]
        print(f"| {done} | {row['megabytes']:.0f} MB | {row['seconds']:.0f} |")
    for name, value in slopes(rows, given.warm_up).items():
        print(f"{name}: {value:.5g}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
