"""The process that speaks with a Ray cluster, beside the one that the user started.

Ray ends a process whose cluster is lost, and takes over its signals. That process is therefore this
one, which has nothing to lose. It gives trials to nodes, and passes on their events. It ends when
the other end of its connection does, and Ray ends its tasks with it.

    python -m jaxmnist.engine.cluster FILE-DESCRIPTOR
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jaxmnist import machine
from jaxmnist.errors import one_line
from jaxmnist.machine import Machine, describe_machine
from jaxmnist.runs.trial import Key

# --- What the engine asks for, and the nodes of the cluster ---

WIDEST = 32  # trials in one task for an accelerator
LONGEST = 16  # trials in one task for a core


@dataclass(frozen=True)
class Assignment:
    """A trial to train.

    content: what `ray.train` gets of it.
    work: how long it takes, in any unit.
    """

    key: Key
    content: bytes
    work: float = 0.0


@dataclass(frozen=True)
class Job:
    """What the engine asks for: it sends the fields by their names.

    work, buffers: the pickled `ray.Work`, and its arrays.
    trials: the trials, in their order, each as the fields of an `Assignment`.
    environment: variables of the tasks, by a node's kind.
    lanes: trials in one program, if the user chose that.
    consecutive: whether trials start in the order in which they are given.
    """

    address: str
    work: bytes
    buffers: list[bytes]
    trials: list[tuple[Key, bytes, float]]
    environment: dict[str, dict[str, str]]
    lanes: int | None
    consecutive: bool


@dataclass(frozen=True)
class Node:
    """A node that trains trials.

    name: its host's name, with a number where several nodes have the same.
    kind: 'CPU', 'GPU' or 'TPU'.
    tasks: how many tasks it runs at once: one for each core or GPU, one for all chips of a TPU.
    needs: how much of its `kind` a task takes.
    """

    id: str
    name: str
    kind: str
    tasks: int
    needs: float = 1.0

    def trials(self, waiting: int, tasks: int, lanes: int | None, consecutive: bool = False) -> int:
        """The number of trials of its next task.

        An accelerator gets half of its equal share of what is waiting, so that accelerators that
        are slow or come late end together with the others. A core, which trains one after the
        other, gets a quarter, as a task costs the search some milliseconds.

        Args:
          waiting: number of trials that wait.
          tasks: number of tasks that run at once on all nodes.
          lanes: trials in one program, if the user chose that.
          consecutive: whether trials start in the order in which they are given.
        """
        if self.kind == "CPU":
            share = 1 if consecutive else waiting // (4 * max(tasks, 1))
            return lanes or max(1, min(LONGEST, share))
        return max(lanes or 1, min(WIDEST, -(-waiting // (2 * max(tasks, 1)))))

    def __str__(self) -> str:
        what = {"CPU": "core", "GPU": "GPU"}.get(self.kind)
        if what is None:
            return f"{self.name} (TPU, {self.needs:g} chips)"
        return f"{self.name} ({self.tasks} {what}{'s' * (self.tasks != 1)})"


def refusal(name: str, node: Machine, own: Machine) -> str | None:
    """Why a node can't train for this machine, as a line; None if it can.

    >>> own = Machine({"jaxmnist": "1", "jax": "2"}, "x")
    >>> refusal("b", Machine({"jaxmnist": "1", "jax": "3"}, "x"), own)
    'node b is not used: it has jax 3, and this machine has 2; install the same version there'
    """
    if node.versions["jaxmnist"] is None:
        return (
            f"node {name} is not used: jaxmnist is not installed for the Python that Ray runs there"
        )
    for package, wanted in own.versions.items():
        found = node.versions[package]
        if found != wanted:
            what = f"it has {package} {found}" if found else f"it has no {package}"
            return (
                f"node {name} is not used: {what}, and this machine has {wanted}; install the same"
                " version there"
            )
    return None


def node_of(described: Mapping[str, Any], taken: Collection[str]) -> Node | None:
    """The node that Ray describes, or None if it has nothing to train on.

    Args:
      described: an item of `ray.nodes()`.
      taken: the names of the nodes before it.
    """
    resources, host = described["Resources"], described["NodeManagerHostname"]
    name, number = host, 1
    while name in taken:
        number += 1
        name = f"{host}-{number}"
    if chips := resources.get("TPU"):
        return Node(described["NodeID"], name, "TPU", 1, chips)
    if gpus := int(resources.get("GPU", 0)):
        return Node(described["NodeID"], name, "GPU", gpus)
    if cores := int(resources.get("CPU", 0)):
        return Node(described["NodeID"], name, "CPU", cores)
    return None


# --- Trials given to the nodes of a Ray cluster, and what becomes of them ---

LOOK_EVERY = 1.0  # seconds between two looks at the cluster's nodes
WAIT = 0.1  # seconds to wait for an event before looking at the other things
PATIENCE = 15.0  # seconds after which the user learns what the search waits for
BEGUN = "begun"  # what a task says before all events
TAIL = 3  # the last trials of each task, of which the longest start first
MOST_DEATHS = 3  # of processes that begin no trial, after which a node is not used


class Failed(Exception):
    """The search can't go on on this cluster; the text says why."""


class Signals:
    """An actor that tells tasks to stop, or to start no further group of trials."""

    def __init__(self) -> None:
        self._state = ""

    def tell(self, state: str) -> None:
        """Set what tasks are told: 'stop' or 'end'."""
        self._state = state

    def state(self) -> str:
        """What tasks are told."""
        return self._state


@dataclass
class Flight:
    """A task at a node, and those of its trials that have not ended.

    item: the next list of events, which is on its way; None if there is none yet.
    begun: whether the node had room for it.
    started: those of its trials that have started.
    """

    node: Node
    trials: dict[Key, Assignment]
    generator: Any
    item: Any = None
    begun: bool = False
    started: set[Key] = field(default_factory=set)


class Cluster:
    """Gives trials to the nodes of a cluster and hands on their events.

    Args:
      job: what is wanted.
      address: of the cluster's head.
      connection: to the other process.
      task: the remote function that trains.
    """

    def __init__(self, job: Job, address: str, connection: Connection, task: Any) -> None:
        self._job = job
        self._address = address
        self._connection = connection
        self._task = ray.remote(num_returns="streaming", max_retries=0)(task)
        self._waiting = deque(Assignment(*trial) for trial in job.trials)
        self._nodes: dict[str, Node] = {}
        self._tasks: dict[str, Any] = {}  # the remote function as each node takes it
        self._known: set[str] = set()  # identifiers of all nodes seen so far
        self._names: set[str] = set()
        self._asked: dict[Any, Any] = {}  # nodes that are to describe themselves
        self._suspect: dict[Any, Flight] = {}  # tasks that ended without a word
        self._flights: dict[Any, Flight] = {}
        self._expected = 0  # lost trials that the other process will send again
        self._ending = self._stopping = False
        self._began = False  # whether a task has; with a limit of time, one does in any case
        self._own = describe_machine()
        self._deaths: Counter[str] = Counter()
        self._looked = self._idle = time.monotonic()
        self._said_waiting = False
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        signals = ray.remote(num_cpus=0, max_restarts=-1)(Signals)
        self._signals: Any = signals.options(scheduling_strategy=here).remote()
        self._buffers = [ray.put(np.frombuffer(buffer, np.uint8)) for buffer in job.buffers]
        self._describe = ray.remote(num_cpus=0, max_retries=0)(describe_machine)

    def run(self) -> None:
        """Train all trials, or as many as are wanted."""
        self._look()
        while self._open:
            self._obey()
            if time.monotonic() - self._looked >= LOOK_EVERY:
                self._look()
            self._answers()
            self._fill()
            self._events()
            self._say_waiting()

    @property
    def _open(self) -> bool:
        """Whether there is something left to do."""
        return bool(self._flights or self._suspect or self._waiting or self._expected)

    # --- the other process ---

    def _say(self, kind: str, *content: Any) -> None:
        """Tell the other process something; EOFError if it has ended."""
        try:
            self._connection.send((kind, *content))
        except OSError:  # Ray's own connections raise it too, for other reasons
            raise EOFError from None

    def _obey(self) -> None:
        """Do what the other process says; EOFError if it has ended."""
        while self._connection.poll():
            said, content = self._connection.recv()
            if said == "again":
                self._expected -= 1
                self._waiting.appendleft(Assignment(*content))
            else:
                self._end(stop=said == "stop")
        if self._stopping or (self._ending and self._began):
            self._waiting.clear()
            self._expected = 0

    def _end(self, stop: bool) -> None:
        """Start no further trial; with `stop`, also end those that run."""
        self._ending = True
        self._stopping = self._stopping or stop
        self._signals.tell.remote("stop" if self._stopping else "end")
        for flight in list(self._flights.values()):
            if not flight.begun and (stop or self._began):
                ray.cancel(flight.generator)

    # --- nodes ---

    def _look(self) -> None:
        """See which nodes have come and gone."""
        self._looked = time.monotonic()
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for gone in self._nodes.keys() - alive.keys():
            self._say("note", f"node {self._nodes.pop(gone).name} is gone")
        # Their tasks end without a word only when the network is there again.
        for tasks in (self._flights, self._suspect):
            for task in [task for task, flight in tasks.items() if flight.node.id not in alive]:
                self._lose(tasks.pop(task), node_lost=True)
        for identifier in alive.keys() - self._known:
            self._known.add(identifier)
            if node := node_of(alive[identifier], self._names):
                self._names.add(node.name)
                self._asked[self._probe(node)] = node

    def _probe(self, node: Node) -> Any:
        """Ask a node to describe itself."""
        there = NodeAffinitySchedulingStrategy(node.id, soft=False)
        return self._describe.options(scheduling_strategy=there).remote()

    def _answers(self) -> None:
        """Take what nodes have said of themselves: new ones, and those of tasks that broke off."""
        pending = [*self._asked, *self._suspect]
        if not pending:
            return
        for answer in ray.wait(pending, num_returns=len(pending), timeout=0)[0]:
            try:
                found = ray.get(answer)
            except RayError:
                found = None
            if answer in self._suspect:
                self._lose(self._suspect.pop(answer), node_lost=found is None)
            elif found is not None:
                self._admit(self._asked.pop(answer), found)
            else:
                self._asked.pop(answer)

    def _admit(self, node: Node, found: Machine) -> None:
        """Use a node from now on, unless it computes something else."""
        if line := refusal(node.name, found, self._own):
            self._say("note", line)
            self._check_nodes(line)
            return
        self._nodes[node.id] = node
        self._tasks[node.id] = self._task_of(node)
        self._say("note", f"trials run on node {node}")
        if node.kind == "CPU" and found.processor != self._own.processor:
            self._say(
                "note",
                f"note: node {node.name} has another processor than this machine: its histories"
                " agree with those of other nodes within rounding only",
            )

    def _check_nodes(self, line: str) -> None:
        """Raise `Failed` if a node is not used, for the reason in `line`, and there is no other."""
        if not self._nodes and not self._asked:
            raise Failed(f"no node of the Ray cluster at {self._address} can train: {line}")

    # --- trials ---

    def _fill(self) -> None:
        """Give trials to nodes that have room for them."""
        if self._ending and self._began:
            return
        running: dict[str, int] = {}
        for flight in self._flights.values():
            running[flight.node.id] = running.get(flight.node.id, 0) + 1
        tasks = sum(node.tasks for node in self._nodes.values())
        in_order = self._job.consecutive
        if not in_order and len(self._waiting) <= TAIL * tasks:  # as in `lanes.with_short_tail`
            self._waiting = deque(sorted(self._waiting, key=lambda trial: -trial.work))
        for node in self._nodes.values():
            for _ in range(node.tasks - running.get(node.id, 0)):
                if not self._waiting:
                    return
                count = node.trials(len(self._waiting), tasks, self._job.lanes, in_order)
                trials = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
                self._submit(node, trials)

    def _task_of(self, node: Node) -> Any:
        """The remote function with what it needs of a node; making it costs a millisecond."""
        needs: dict[str, Any] = {"num_cpus": 1 if node.kind == "CPU" else 0}
        if node.kind == "GPU":
            needs["num_gpus"] = 1
        elif node.kind == "TPU":
            needs["resources"] = {"TPU": node.needs}
        return self._task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            runtime_env={"env_vars": self._job.environment[node.kind]},
            **needs,
        )

    def _submit(self, node: Node, trials: list[Assignment]) -> None:
        task = self._tasks[node.id]
        contents = [trial.content for trial in trials]
        generator = task.remote(contents, self._signals, node.kind, self._job.work, *self._buffers)
        flight = Flight(node, {trial.key: trial for trial in trials}, generator)
        self._flights[generator] = flight

    def _events(self) -> None:
        """Hand on events of the tasks, or wait for one for a moment."""
        if not self._flights:
            time.sleep(WAIT)
            return
        # Of each task the next list of events, or the notice that there is one.
        awaited = {flight.item or flight.generator: flight for flight in self._flights.values()}
        for ready in ray.wait(list(awaited), num_returns=1, timeout=WAIT)[0]:
            self._hear(awaited[ready])

    def _hear(self, flight: Flight) -> None:
        """Hand on the next event of a task, or end it."""
        try:
            if flight.item is None:
                flight.item = next(flight.generator)
            # It may be long in coming, if its node is lost: the others don't wait for it.
            told = ray.get(flight.item, timeout=0)
            flight.item = None
        except GetTimeoutError:
            return
        except StopIteration:
            del self._flights[flight.generator]
            if flight.trials and not self._stopping and not self._ending:
                raise Failed(f"node {flight.node.name} has left trials without an end") from None
            return
        except TaskCancelledError:
            del self._flights[flight.generator]
            return
        except RayTaskError as error:
            line = one_line(error.cause or error, named=True)
            raise Failed(f"node {flight.node.name} can't train: {line}") from None
        except RayError:
            # The process that trained has ended, or its node has. The node itself says which.
            del self._flights[flight.generator]
            self._suspect[self._probe(flight.node)] = flight
            return
        flight.begun = self._began = True
        self._idle = time.monotonic()
        for kind, key, _ in told:
            if kind == "TrialStarted":
                flight.started.add(key)
                self._deaths.pop(flight.node.id, None)
            elif kind == "TrialFinished":
                flight.trials.pop(key)
        if events := [event for kind, _, event in told if kind != BEGUN]:
            self._say("events", events, flight.node.name)

    def _lose(self, flight: Flight, node_lost: bool) -> None:
        """Say that trials have ended without a word; those of a lost node come again."""
        node = flight.node
        if node_lost:
            self._nodes.pop(node.id, None)
        elif not flight.started:
            self._deaths[node.id] += 1
            if self._deaths[node.id] >= MOST_DEATHS and node.id in self._nodes:
                del self._nodes[node.id]
                line = f"node {node.name} is not used: its processes die before they train"
                self._say("note", line)
                self._check_nodes(line)
        started = [key for key in flight.trials if key in flight.started]
        fresh = [trial for key, trial in flight.trials.items() if key not in flight.started]
        self._waiting.extendleft(reversed(fresh))
        for key in started:
            self._expected += node_lost
            self._say("lost", key, node.name, node_lost)

    def _say_waiting(self) -> None:
        """Say once what the search waits for, if no trial runs for a while."""
        if any(flight.begun for flight in self._flights.values()):
            self._idle = time.monotonic()
        if self._said_waiting or time.monotonic() - self._idle < PATIENCE:
            return
        self._said_waiting = True
        if not self._nodes:
            self._say("note", "waiting for a node that can train: the cluster has none")
            return
        where = ", ".join(str(node) for node in self._nodes.values())
        self._say("note", f"waiting: everything is in use on the nodes {where}")


# --- The process ---

JOIN = 20.0  # seconds for joining the cluster
CONNECT = 5.0  # seconds for the cluster's head to accept a connection
CHECK_EVERY = 1.0  # seconds between two connections to the head
LOST_AFTER = 3  # connections in a row that the head refuses


def _connect(address: str) -> None:
    """Open and close a connection; OSError if nothing answers there."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()


def train_there(*arguments: Any) -> Iterator[Any]:
    """`ray.train`, imported on the node only: JAX isn't needed here.

    A process' first task says at once that it has begun, which importing JAX would delay.
    """
    if "jaxmnist.engine.ray" not in sys.modules:
        yield [(BEGUN, None, b"")]
    from jaxmnist.engine.ray import train

    yield from train(*arguments)


def main(connection: Connection, task: Callable[..., Iterator[Any]] = train_there) -> None:
    """Receive the fields of a `Job`, do it, and say how it ended.

    task: the remote function, unless a measurement has another one.
    """
    job = Job(**connection.recv())
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
        ray.cloudpickle.register_pickle_by_value(machine)
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
