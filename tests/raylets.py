"""A Ray cluster of several nodes on this machine, in a process of its own.

It is told what to do on its standard input, a line each, and answers with a line:

    add NAME RESOURCES    a node joins; RESOURCES is JSON, as `ray.cluster_utils.Cluster` takes them
    kill NAME             the node's processes are killed; NAME may be `head`
    freeze NAME           its processes are stopped: it answers no more, as without a network
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any


class Raylets:
    """A cluster whose head trains nothing; a context that ends it.

    variables: of the environment of all its processes.
    """

    def __init__(self, **variables: str) -> None:
        command = [sys.executable, str(Path(__file__))]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # Ray's workers would give way to all else on this machine, to other tests too.
        environment = {**os.environ, "RAY_worker_niceness": "0", **variables}
        self._process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.address = self._answer()

    def workers(self) -> set[int]:
        """The processes of the cluster that run tasks of a search."""
        return {
            process
            for process in children(self._process.pid)
            if command_line(process).startswith(b"ray::train_there")
        }

    def add(self, name: str, **resources: Any) -> None:
        """A node joins, with one core unless `resources` say otherwise."""
        self._tell(f"add {name} {json.dumps(resources)}")

    def kill(self, name: str) -> None:
        """The processes of a node are killed."""
        self._tell(f"kill {name}")

    def freeze(self, name: str) -> None:
        """A node answers no more, without a word."""
        self._tell(f"freeze {name}")

    def __enter__(self) -> Raylets:
        return self

    def __exit__(self, *problem: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        while line := self._process.stdout.readline():
            if line.startswith("= "):
                return line.removeprefix("= ").strip()
        raise RuntimeError("the cluster has ended")


def children(process: int) -> list[int]:
    """The processes that a process has started, and those that they have."""
    own = []
    for path in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # the thread, or the process, has ended meanwhile
            own += path.read_text().split()
    return [each for child in map(int, own) for each in (child, *children(child))]


def command_line(process: int) -> bytes:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def serve() -> None:
    """Do what standard input says."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = {"head": cluster.head_node}
    frozen = []
    print("=", cluster.address, flush=True)
    for line in sys.stdin:
        said, name, *rest = line.split(maxsplit=2)
        if said == "add":
            nodes[name] = cluster.add_node(**json.loads(rest[0]))
        elif said == "freeze":
            for started in nodes[name].all_processes["raylet"]:
                for process in (*children(started.process.pid), started.process.pid):
                    os.kill(process, signal.SIGSTOP)
                    frozen.append(process)
        else:
            cluster.remove_node(nodes.pop(name), allow_graceful=False)
        print("= done", flush=True)
    cluster.shutdown()
    for process in frozen:  # what Ray ends by asking can't hear it
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    serve()
