"""The engine that trains trials on the nodes of a Ray cluster.

It takes trials and yields events like the local engine, which each task runs on its node. What
speaks with Ray is a process of its own: see `cluster`.
"""

from __future__ import annotations

import logging
import math
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.devices import (
    LOG_LEVEL,
    POOL_SIZE,
    cache_folder,
    keep_programs,
    pool_size,
    start_jax,
    variables_for_nodes,
)
from jaxmnist.engine.events import Checkpoint, Event, StackingChosen, TrialLost, TrialStarted
from jaxmnist.engine.lanes import Stacking
from jaxmnist.engine.local import Engine, Events
from jaxmnist.engine.programs import multiplications
from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import Network
from jaxmnist.runs.trial import Key
from jaxmnist.settings import TrainingSettings

# --- What a node runs: a task that trains a few trials and passes on their events ---

ASK_EVERY = 0.5  # seconds between two questions whether to stop


@dataclass(frozen=True)
class Work:
    """What all tasks of a search have in common; the fields are those of `Engine`."""

    network: Network
    dataset: Dataset
    settings: TrainingSettings
    seed: int
    lanes: int | None
    stacking: Stacking | None
    checkpoint_every: float | None
    consecutive: bool
    cache: str | None


# What a task says of an event: its class' name, its trial, and the event itself, pickled.
Told = tuple[str, Key | None, bytes]
TOGETHER = 0.2  # seconds between two lists of events
LARGE = 8_000_000  # bytes of events that wait no longer


def train(
    trials: list[bytes], signals: Any, kind: str, work: bytes, *buffers: Any
) -> Iterator[list[Told]]:
    """Train trials on this node with the local engine; yields lists of events.

    Args:
      trials: each a pickled (key, hyperparameters, checkpoint or None).
      signals: the actor whose `state` says 'stop' or 'end', or nothing.
      kind: of the node, 'CPU', 'GPU' or 'TPU'.
      work: the pickled `Work`, whose arrays are in `buffers`.
    """
    common: Work = pickle.loads(work, buffers=buffers)
    with suppress(UsageError):  # the folder is the user's machine's, and can't be made here
        keep_programs(cache_folder(common.cache))
    if kind != "CPU" and start_jax() == "cpu":
        raise RuntimeError(f"JAX finds no {kind} that Ray says is there: install jax for it")
    own = [pickle.loads(trial) for trial in trials]
    checkpoints: Mapping[Key, Checkpoint] = {
        key: checkpoint for key, _, checkpoint in own if checkpoint is not None
    }
    engine = Engine(
        common.network,
        common.dataset,
        common.settings,
        common.seed,
        jobs=1 if kind == "CPU" else None,
        lanes=common.lanes,
        stacking=common.stacking,
        checkpoint_every=common.checkpoint_every,
        consecutive=common.consecutive,
    )
    running = engine.run([(key, drawn) for key, drawn, _ in own], checkpoints)
    with running as events, _listening(events, signals):

        def take(seconds: float | None) -> Told | None:
            event = events.within(seconds)
            if event is None:
                return None
            return type(event).__name__, getattr(event, "key", None), pickle.dumps(event)

        yield from together(take)


def together(
    take: Callable[[float | None], Told | None], clock: Callable[[], float] = time.monotonic
) -> Iterator[list[Told]]:
    """Events in lists: each list costs the search some milliseconds.

    An event waits until `TOGETHER` seconds have passed since the last list.

    take: returns the next event, or None if none comes within the given seconds; raises
    StopIteration after the last one.
    """
    waiting: list[Told] = []
    last = -math.inf
    over = False
    while not over:
        left = max(0.0, last + TOGETHER - clock()) if waiting else None
        try:
            event = take(left)
        except StopIteration:
            event, over = None, True
        if event is not None:
            waiting.append(event)
        size = sum(len(content) for _, _, content in waiting)
        if waiting and (event is None or size >= LARGE or clock() - last >= TOGETHER):
            yield waiting
            waiting, last = [], clock()


@contextmanager
def _listening(events: Events, signals: Any) -> Iterator[None]:
    """While in this context, obey the signals."""
    import ray

    done, ended = threading.Event(), threading.Event()
    events.end_when(ended.is_set)

    def listen() -> None:
        while not done.wait(ASK_EVERY):
            try:
                said = ray.get(signals.state.remote(), timeout=30)
            except ray.exceptions.RayError:
                continue  # if the search is gone, Ray ends this process
            if said == "stop":
                events.stop()
                return
            if said == "end":
                ended.set()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        done.set()
        listener.join()


# --- The engine ---

logger = logging.getLogger("jaxmnist")
WAIT = 0.2  # seconds between two looks at what the user wants
ENDING = 10.0  # seconds for the process beside this one to end
# What the process beside this one gets of a trial: the fields of `cluster.Assignment`.
Assigned = tuple[Key, bytes, float]


def load_ray() -> None:
    """Import what is needed of Ray, while no other thread imports anything.

    Warning filters belong to the whole process, and many libraries change them while they are
    imported: of two imports at once, one can undo the filters of the other, and a warning that a
    library of Ray's silences would reach the user.
    """
    import_module("ray.cloudpickle")  # Ray is for those who use it


@dataclass
class RayEngine:
    """Trains configurations of a network on one dataset, on the nodes of a Ray cluster.

    A core of a node trains a trial at a time; an accelerator trains some in one program. Nodes get
    the network and the data from here, and need no files of the user.

    address: of the cluster's head, 'host:port'; 'auto' for the cluster that this machine is in.
    cache: the setting for the folder of compiled programs on each node.
    Other fields: as in `local.Engine`.
    """

    network: Network
    dataset: Dataset
    settings: TrainingSettings
    seed: int
    address: str
    lanes: int | None = None
    stacking: Stacking | None = None
    cache: str | None = None
    checkpoint_every: float | None = None
    consecutive: bool = False

    @contextmanager
    def run(
        self,
        trials: Iterable[tuple[Key, Hyperparameters]],
        checkpoints: Mapping[Key, Checkpoint] | None = None,
    ) -> Iterator[RayEvents]:
        """Train trials, given as (key, hyperparameters); the context's value iterates events.

        A trial that starts again because its node is lost resumes from what `checkpoints` has then.
        """
        drawn = dict(trials)
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "jaxmnist.engine.cluster", str(theirs.fileno())]
        # In a session of its own, so that a Ctrl-C is only for this process.
        process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        events = RayEvents(ours, drawn, checkpoints or {}, self._work)
        try:
            with suppress(OSError):  # the process has ended, which the events say
                ours.send(self._job(events.assignment(key) for key in drawn))
            yield events
        finally:
            ours.close()  # which ends the process, and Ray the tasks of it
            try:
                process.wait(ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _work(self, hyperparameters: Hyperparameters) -> float:
        """How long a trial takes, in multiplications."""
        return multiplications(
            self.network.bind(hyperparameters, DataSpec.of(self.dataset, self.settings)).layers
        )

    def _job(self, trials: Iterable[Assigned]) -> dict[str, Any]:
        """What the process beside this one gets: the fields of `cluster.Job`."""
        from ray import cloudpickle

        # Nodes need not have the files of a network of the user's own.
        for module in self.network.own_modules():
            cloudpickle.register_pickle_by_value(module)
        data = self.dataset
        work = Work(
            self.network,
            replace(data, x_test=data.x_test[:0], y_test=data.y_test[:0]),
            self.settings,
            self.seed,
            self.lanes,
            self.stacking,
            self.checkpoint_every,
            self.consecutive,
            self.cache,
        )
        buffers: list[pickle.PickleBuffer] = []
        packed = cloudpickle.dumps(work, protocol=5, buffer_callback=buffers.append)
        # XLA's warnings of programs from the cache are silenced as in `keep_programs`.
        pool = {POOL_SIZE[0]: str(pool_size()), LOG_LEVEL: "3", **variables_for_nodes()}
        return {
            "address": self.address,
            "work": packed,
            "buffers": [bytes(buffer.raw()) for buffer in buffers],
            "trials": list(trials),
            "environment": {"CPU": {**pool, "JAX_PLATFORMS": "cpu"}, "GPU": pool, "TPU": pool},
            "lanes": self.lanes,
            "consecutive": self.consecutive,
        }


class RayEvents:
    """An iterator over the events of a run's trials, in the order in which they arrive."""

    def __init__(
        self,
        connection: Connection,
        trials: dict[Key, Hyperparameters],
        checkpoints: Mapping[Key, Checkpoint],
        work: Callable[[Hyperparameters], float],
    ) -> None:
        self._connection = connection
        self._work = work
        self._trials = trials
        self._checkpoints = checkpoints
        self._over: Callable[[], bool] = lambda: False
        self._lost: Key | None = None
        self._come: deque[tuple[bytes, str]] = deque()  # events and their nodes
        self._said = ""  # the last command to the other process
        self._stacked = self._done = False
        self.stopping = False

    def stop(self) -> None:
        """Ask the trials to stop; the events until then can still be iterated over."""
        self.stopping = True

    def end_when(self, over: Callable[[], bool]) -> None:
        """Start no further trials once `over()` is true; those that run finish."""
        self._over = over

    def assignment(self, key: Key) -> Assigned:
        """What the other process gets of a trial."""
        hyperparameters = self._trials[key]
        content = key, hyperparameters, self._checkpoints.get(key)
        return key, pickle.dumps(content), self._work(hyperparameters)

    def __iter__(self) -> RayEvents:
        return self

    def __next__(self) -> Event:
        if self._lost is not None:
            # Its last checkpoint has been stored by now.
            lost, self._lost = self._lost, None
            self._tell("again", self.assignment(lost))
        while not self._done or self._come:
            if self._come:
                if (event := self._from(*self._come.popleft())) is not None:
                    return event
                continue
            wanted = "stop" if self.stopping else "end" if self._over() else ""
            if wanted and wanted != self._said:
                self._said = wanted
                self._tell(wanted)
            if (event := self._receive()) is not None:
                return event
        raise StopIteration

    def _tell(self, command: str, content: Any = None) -> None:
        with suppress(OSError):  # the process has ended, and the next message says why
            self._connection.send((command, content))

    def _receive(self) -> TrialLost | None:
        """Take the next message of the other process, if there is one; a lost trial is an event."""
        try:
            if not self._connection.poll(WAIT):
                return None
            kind, *content = self._connection.recv()
        except (EOFError, OSError):
            self._done = True
            if self.stopping:
                return None
            raise EnvironmentFailure(
                "the process that speaks with the Ray cluster has ended; what is finished is kept"
                " and the same command goes on"
            ) from None
        if kind == "events":
            told, node = content
            self._come.extend((event, node) for event in told)
            return None
        if kind == "lost":
            lost = TrialLost(*content)
            self._lost = lost.key if lost.node_lost else None
            return lost
        if kind == "note":
            logger.info(content[0])
        elif kind == "failed":
            self._done = True
            raise EnvironmentFailure(
                f"{content[0]}; what is finished is kept, and the same command goes on (on this"
                " machine alone, if it names no cluster)"
            )
        else:
            self._done = True
        return None

    def _from(self, content: bytes, node: str) -> Event | None:
        """An event of a node; of several nodes' ways of stacking, the first one is recorded."""
        event: Event = pickle.loads(content)
        if isinstance(event, TrialStarted):
            return replace(event, node=node)
        if isinstance(event, StackingChosen):
            if self._stacked:
                return None
            self._stacked = True
        return event
