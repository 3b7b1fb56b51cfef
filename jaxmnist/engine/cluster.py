"""The process that speaks with a Ray cluster, beside the one that the user started.

Ray ends a process whose cluster is lost, and takes over its signals: so this one, which has nothing
to lose, is apart. It gives trials to nodes, and hands on what they say; it ends when the other end
of its connection does, and Ray ends its tasks with it.

    python -m jaxmnist.engine.cluster FILE-DESCRIPTOR
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import ray
from ray.exceptions import RayError

from jaxmnist.engine import nodes
from jaxmnist.engine.dispatch import BEGUN, Cluster, Failed
from jaxmnist.engine.jobs import Job
from jaxmnist.errors import one_line

JOIN = 20.0  # seconds for joining the cluster
CONNECT = 5.0  # seconds for the cluster's head to accept a connection
CHECK_EVERY = 1.0  # seconds between two connections to the head
LOST_AFTER = 3  # connections in a row that the head refuses


def _connect(address: str) -> None:
    """Open and close a connection; OSError if nothing answers there."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()


def train_there(*arguments: Any) -> Iterator[Any]:
    """`remote.train`, imported on the node only: JAX isn't needed here.

    A process' first task says at once that it has begun, which importing JAX would delay.
    """
    if "jaxmnist.engine.remote" not in sys.modules:
        yield [(BEGUN, None, b"")]
    from jaxmnist.engine.remote import train

    yield from train(*arguments)


def main(connection: Connection, task: Callable[..., Iterator[Any]] = train_there) -> None:
    """Receive a `Job`, do it, and say how it ended.

    task: the remote function, unless a measurement has another one.
    """
    job: Job = connection.recv()
    # Ray waits without end for a server that isn't its own, and can't be interrupted.
    nothing = f"no Ray cluster answers at {job.address}: nothing Ray understands in {JOIN:g} s"
    late = threading.Timer(JOIN, _give_up, (connection, nothing))
    late.start()
    watch: threading.Thread | None = None
    try:
        address = _join(job.address)
        late.cancel()
        watch = threading.Thread(target=_watch, args=(address, connection), daemon=True)
        watch.start()
        Cluster(job, address, connection, task).run()
        connection.send(("done",))
    except EOFError:
        pass  # the search has ended
    except Failed as problem:
        _give_up(connection, str(problem))
    except Exception as problem:
        # Often a consequence of the head's loss, which the watch then says.
        if watch is not None:
            watch.join((LOST_AFTER + 1) * CHECK_EVERY)
        _give_up(connection, f"Ray on this machine has failed: {one_line(problem, named=True)}")
    os._exit(0)  # Ray's own end may wait for a head that is gone; it ends the tasks by itself


def _watch(address: str, connection: Connection) -> None:
    """End this process when the head answers no more: Ray itself would wait for a minute."""
    misses = 0
    while misses < LOST_AFTER:
        time.sleep(CHECK_EVERY)
        try:
            _connect(address)
            misses = 0
        except OSError:
            misses += 1
    _give_up(connection, f"the head of the Ray cluster at {address} is lost")


def _give_up(connection: Connection, line: str) -> None:
    """Say why, and end this process at once: its main thread may wait for Ray."""
    with suppress(OSError):
        connection.send(("failed", line))
    os._exit(0)


def _join(address: str) -> str:
    """Join a cluster; returns the address of its head. Raises `Failed`."""
    nowhere = (
        "no Ray cluster runs on this machine: `ray start --head` starts one, and `ray start"
        " --address HOST:6379` lets another machine join it"
    )
    try:
        if address != "auto":
            _connect(address)
        ray.cloudpickle.register_pickle_by_value(nodes)
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        found: str = ray.get_runtime_context().gcs_address
        return found
    except (OSError, RayError, RuntimeError, ValueError) as problem:
        if address == "auto" and isinstance(problem, ConnectionError):
            raise Failed(nowhere) from None
        what = one_line(problem)
        raise Failed(f"no Ray cluster answers at {address}: {what}") from None


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
