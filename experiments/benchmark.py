"""Training speed of jaxmnist beside its peers, on this machine.

Each measurement is a process of its own; rounds alternate among the peers, and each figure is
the median of the rounds with the lowest and the highest. The first epoch, which compiles, is
told apart. Every peer trains the same network on the same images with the same batch size, in
float32, with loss and accuracy added up as it goes.

    python experiments/benchmark.py --rounds 5 --json benchmark.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))
from task import Task  # noqa: E402

# filters-conv_layers-dense_layers-units
CONFIGURATIONS = {
    "112-2-1-224": Task(112, 2, 1, 224),
    "64-3-1-128": Task(64, 3, 1, 128),
    "32-1-0": Task(32, 1, 0, None, images=51_200),
}
PEERS = {"jaxmnist": "jaxmnist_engine.py", "plain Flax loop": "plain_flax.py"}


def processors() -> list[int]:
    """The cores that may be used."""
    return sorted(os.sched_getaffinity(0))


def start(script: str, task: Task, core: int | None = None) -> subprocess.Popen:
    """A peer's process, on one core alone where `core` is given."""
    pin = (lambda: os.sched_setaffinity(0, {core})) if core is not None else None
    return subprocess.Popen(
        [sys.executable, str(HERE / "peers" / script), json.dumps(asdict(task))],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=pin,
    )


def measure(script: str, task: Task, arrangement: str) -> dict:
    """One run of a peer: images a second of the whole machine, and the first epoch's seconds.

    arrangement: 'one process' on all cores, or 'one a core', each training a trial.
    """
    if arrangement == "one process":
        running = [start(script, task)]
    else:
        running = [start(script, task, core) for core in processors()]
    answers = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    trials = [seconds for answer in answers for seconds in answer["epoch_seconds"]]
    steady = [task.images * (len(seconds) - 1) / sum(seconds[1:]) for seconds in trials]
    return {
        "images_per_second": sum(steady),
        "first_epoch_seconds": max(seconds[0] for seconds in trials),
        "import_seconds": max(answer["import_seconds"] for answer in answers),
        "versions": answers[0]["versions"],
    }


def compare(
    configurations: list[str], peers: list[str], rounds: int, images: int | None
) -> list[dict]:
    """All measurements, a row for each configuration, peer and arrangement."""
    rows: dict[tuple, list[dict]] = {}
    for _ in range(rounds):
        for name in configurations:
            task = CONFIGURATIONS[name]
            task = task if images is None else replace(task, images=images)
            for peer in peers:
                # Several trials at once in one process are jaxmnist's default.
                at_once = len(processors()) if peer == "jaxmnist" else 1
                arrangements = (
                    ["one process"] if peer == "jaxmnist" else ["one process", "one a core"]
                )
                for arrangement in arrangements:
                    result = measure(PEERS[peer], replace(task, trials=at_once), arrangement)
                    rows.setdefault((name, peer, arrangement), []).append(result)
                    rate = result["images_per_second"]
                    print(f"{name}: {peer}, {arrangement}: {rate:.0f}", file=sys.stderr)
    table = []
    for (name, peer, arrangement), results in rows.items():
        rates = [result["images_per_second"] for result in results]
        table.append(
            {
                "configuration": name,
                "peer": peer,
                "arrangement": arrangement,
                "images_per_second": statistics.median(rates),
                "lowest": min(rates),
                "highest": max(rates),
                "first_epoch_seconds": statistics.median(
                    result["first_epoch_seconds"] for result in results
                ),
                "versions": results[0]["versions"],
            }
        )
    return table


def main() -> None:
    """Measure, and print a table with the ratio of jaxmnist to each peer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    names = list(CONFIGURATIONS)
    parser.add_argument("--configurations", nargs="+", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, help="images of an epoch (default: by configuration)")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    table = compare(given.configurations, given.peers, given.rounds, given.images)
    machine = platform.processor() or platform.machine()
    print(f"{machine}, {len(processors())} cores, Python {platform.python_version()}\n")
    ours = {r["configuration"]: r["images_per_second"] for r in table if r["peer"] == "jaxmnist"}
    print("| configuration | peer | images/s (lowest to highest) | jaxmnist / it | first epoch |")
    print("| --- | --- | --- | --- | --- |")
    for row in table:
        ratio = ours.get(row["configuration"], float("nan")) / row["images_per_second"]
        versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
        print(
            f"| {row['configuration']} | {row['peer']}, {row['arrangement']} ({versions})"
            f" | {row['images_per_second']:.0f} ({row['lowest']:.0f} to {row['highest']:.0f})"
            f" | {ratio:.2f} | {row['first_epoch_seconds']:.1f} s |"
        )
    if given.json:
        given.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
