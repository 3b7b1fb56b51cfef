"""The engine that trains trials on the nodes of a Ray cluster.

It takes trials and yields events like the local engine, which each task runs on its node. What
speaks with Ray is a process of its own: see `cluster`.
"""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.cache import LOG_LEVEL
from jaxmnist.engine.devices import POOL_SIZE, pool_size, variables_for_nodes
from jaxmnist.engine.estimates import multiplications
from jaxmnist.engine.events import Checkpoint, Event, StackingChosen, TrialLost, TrialStarted
from jaxmnist.engine.jobs import Assignment, Job
from jaxmnist.engine.remote import Work
from jaxmnist.engine.stacking import Stacking
from jaxmnist.errors import EnvironmentFailure
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.runs.keys import TrialKey
from jaxmnist.training_settings import TrainingSettings

logger = logging.getLogger("jaxmnist")
WAIT = 0.2  # seconds between two looks at what the user wants
ENDING = 10.0  # seconds for the process beside this one to end


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
        trials: Iterable[tuple[TrialKey, Hyperparameters]],
        checkpoints: Mapping[TrialKey, Checkpoint] | None = None,
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
            self.network.layers(hyperparameters, DataSpec.of(self.dataset, self.settings))
        )

    def _job(self, assignments: Iterable[Assignment]) -> Job:
        """What the process beside this one gets."""
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
        # XLA's warnings of programs from the cache are silenced as in `cache.keep_programs`.
        pool = {POOL_SIZE[0]: str(pool_size()), LOG_LEVEL: "3", **variables_for_nodes()}
        return Job(
            self.address,
            packed,
            [bytes(buffer.raw()) for buffer in buffers],
            list(assignments),
            {"CPU": {**pool, "JAX_PLATFORMS": "cpu"}, "GPU": pool, "TPU": pool},
            self.lanes,
            self.consecutive,
        )


class RayEvents:
    """An iterator over the events of a run's trials, in the order in which they arrive."""

    def __init__(
        self,
        connection: Connection,
        trials: dict[TrialKey, Hyperparameters],
        checkpoints: Mapping[TrialKey, Checkpoint],
        work: Callable[[Hyperparameters], float],
    ) -> None:
        self._connection = connection
        self._work = work
        self._trials = trials
        self._checkpoints = checkpoints
        self._over: Callable[[], bool] = lambda: False
        self._lost: TrialKey | None = None
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

    def assignment(self, key: TrialKey) -> Assignment:
        """What the other process gets of a trial."""
        hyperparameters = self._trials[key]
        content = key, hyperparameters, self._checkpoints.get(key)
        return Assignment(key, pickle.dumps(content), self._work(hyperparameters))

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
            self._lost = lost.index if lost.node_lost else None
            return lost
        if kind == "note":
            logger.info(content[0])
        elif kind == "failed":
            self._done = True
            raise EnvironmentFailure(
                f"{content[0]}; what is finished is kept, and the same command goes on (without"
                " --ray, on this machine alone)"
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
