"""How the engine for Ray clusters scales, with trials that only wait, on simulated nodes.

    python experiments/ray_scale.py --trials 2000 --seconds 0.05 --nodes 1 2 4 8 --cores 2
    python experiments/ray_scale.py --bytes

Each node is a raylet on this machine whose cores are simulated: a trial sleeps, and hands on the
events of a real one (a start, five epochs, an end with weights of 400 kB). Shown are the trials a
second beside what the cores could do at most, and what a trial costs the two processes of the
search itself: CPU time, and how their memory grows from the first tenth of the trials to the last.
The cores of this machine, which also run all raylets and their tasks, are the limit: real nodes
bring their own. With `--bytes`, what the trials of the study's whole space send is reckoned.
"""

from __future__ import annotations

import argparse
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from raylets import Raylets

from jaxmnist.runs.trial import Key

WEIGHTS = 400_000  # bytes


def waits(trials: list[bytes], *others: Any) -> Iterator[list[tuple[str, Key | None, bytes]]]:
    """What a task yields that trains for the seconds in its trials' content."""
    import sys
    import time

    first = "jaxmnist.engine.ray" not in sys.modules  # as in `cluster.train_there`
    from jaxmnist.engine.ray import together

    def events() -> Iterator[tuple[float, tuple[str, Key, bytes]]]:
        """The events, each with its seconds after the one before."""
        for content in trials:
            index, seconds = content.decode().split()
            key = Key(int(index))
            yield 0.0, ("TrialStarted", key, b"")
            for _ in range(5):
                yield float(seconds) / 5, ("EpochFinished", key, bytes(1000))
            yield 0.0, ("TrialFinished", key, bytes(WEIGHTS))

    coming = events()
    pending: list[tuple[float, tuple[str, Key, bytes]]] = []

    def take(patience: float | None) -> tuple[str, Key, bytes] | None:
        if not pending:
            pending.append(next(coming))
        seconds, event = pending.pop()
        if patience is not None and patience < seconds:
            time.sleep(patience)
            pending.append((seconds - patience, event))
            return None
        time.sleep(seconds)
        return event

    if first:
        yield [("begun", None, b"")]
    yield from together(take)


def cpu_seconds(process: int) -> float:
    """The CPU time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> int:
    """The memory of its own that a process has now, in bytes: without what it shares."""
    resident, shared = Path(f"/proc/{process}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def measure(address: str, trials: int, seconds: float) -> dict[str, float]:
    """Run trials that wait on a cluster; returns seconds, CPU ms a trial, and MB of growth."""
    ours, theirs = Pipe()
    command = [sys.executable, __file__, "--speak", str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    waiting = [(Key(i), f"{i} {seconds}".encode(), 0.0) for i in range(trials)]
    job = {"work": b"", "buffers": [], "environment": {"CPU": {}}, "lanes": None}
    ours.send({**job, "address": address, "trials": waiting, "consecutive": False})
    began = cpu = own = first = 0.0
    ended = 0
    while True:
        kind, *content = ours.recv()
        if kind == "failed":
            raise SystemExit(content[0])
        if kind != "events":
            if kind == "done":
                break
            continue
        if not began:
            began, cpu, own = time.perf_counter(), cpu_seconds(process.pid), time.process_time()
        ends = sum(len(event) == WEIGHTS for event in content[0])
        ended += ends
        if ended == trials // 10 and not first:
            first = memory(process.pid)
        if ended == trials and ends:
            last = memory(process.pid)
            wall = time.perf_counter() - began
            spent = cpu_seconds(process.pid) - cpu + time.process_time() - own
    ours.close()
    process.wait()
    return {"seconds": wall, "cpu": 1000 * spent / trials, "growth": (last - first) / 1e6}


def reckon() -> None:
    """Print what the study's whole space sends over the network, from the sizes of its events."""
    import itertools

    import jax
    import numpy as np

    from jaxmnist.engine.events import Checkpoint, EpochFinished, StepsFinished, TrialFinished
    from jaxmnist.engine.training import first_state
    from jaxmnist.models.interface import DataSpec
    from jaxmnist.models.network import STUDY
    from jaxmnist.models.space import Space
    from jaxmnist.runs.trial import Metrics
    from jaxmnist.settings import RECIPES

    data, training = DataSpec((28, 28, 1), 10), RECIPES["study"]
    bits, epoch = bytes(6000 // 8), Metrics(0.1, 0.9, 0.1, 0.9)
    history, validation = (epoch,) * 5, (bits,) * 5
    sizes = []
    for drawn in itertools.islice(Space(STUDY.definition).draws(0), 357):
        bound = STUDY.bind(drawn, data)
        weights = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), bound.shapes)
        state = jax.tree.map(np.asarray, first_state(bound, training, weights))
        events = (
            TrialFinished(Key(0), history, weights, 100.0, validation=validation),
            Checkpoint(Key(0), state, 4, 0, history[:4], 100.0, validation[:4]),
        )
        sizes.append([len(pickle.dumps(event)) for event in events])
    finished, checkpoint = np.mean(sizes, axis=0)
    steps = len(pickle.dumps(StepsFinished(Key(0), 1, 128, 0.9, 1.0)))
    ended = len(pickle.dumps(EpochFinished(Key(0), 1, epoch, 1.0, bits)))
    print("| event | mean bytes | largest |")
    print("| --- | --- | --- |")
    largest = np.max(sizes, axis=0)
    print(f"| end of a trial, with its weights | {finished:,.0f} | {largest[0]:,} |")
    print(f"| checkpoint | {checkpoint:,.0f} | {largest[1]:,} |")
    print(f"| end of an epoch | {ended:,} | |")
    print(f"| progress, twice a second | {steps:,} | |")
    print(
        f"all ends of 357 trials and of their epochs: {357 * (finished + 5 * ended) / 1e6:.0f} MB"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=0.05, help="of a trial")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--cores", type=int, default=2, help="of each node, simulated")
    parser.add_argument("--bytes", action="store_true", help="reckon what the study's space sends")
    parser.add_argument("--speak", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.speak is not None:
        from jaxmnist.engine import cluster

        cluster.main(Connection(given.speak), waits)
    if given.bytes:
        reckon()
        return
    print("| nodes | trials/s | at most | CPU ms a trial | memory grows by |")
    print("| --- | --- | --- | --- | --- |")
    for nodes in given.nodes:
        with Raylets() as raylets:
            for node in range(nodes):
                raylets.add(str(node), num_cpus=given.cores)
            found = measure(raylets.address, given.trials, given.seconds)
        rate, most = given.trials / found["seconds"], nodes * given.cores / given.seconds
        cells = [nodes, f"{rate:.1f}", f"{most:.0f}", f"{found['cpu']:.1f}"]
        print(*["", *cells, f"{found['growth']:.1f} MB", ""], sep=" | ", flush=True)


if __name__ == "__main__":
    main()
