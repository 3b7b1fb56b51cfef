"""What a node of a cluster runs: a task that trains a few trials and hands on their events."""

from __future__ import annotations

import math
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.cache import cache_folder, keep_programs
from jaxmnist.engine.devices import start_jax
from jaxmnist.engine.events import Checkpoint
from jaxmnist.engine.local import Engine
from jaxmnist.engine.stacking import Stacking
from jaxmnist.engine.workers import Events
from jaxmnist.errors import UsageError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import Network
from jaxmnist.runs.keys import TrialKey
from jaxmnist.training_settings import TrainingSettings

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


Trials = list[tuple[TrialKey, Hyperparameters]]
# What a task says of an event: its class' name, its trial, and the event itself, pickled.
Told = tuple[str, TrialKey | None, bytes]
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
    checkpoints: Mapping[TrialKey, Checkpoint] = {
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
        memory=cache_folder(common.cache),
        checkpoint_every=common.checkpoint_every,
        consecutive=common.consecutive,
    )
    running = engine.run([(key, drawn) for key, drawn, _ in own], checkpoints)
    with running as events, _listening(events, signals):

        def take(seconds: float | None) -> Told | None:
            event = events.within(seconds)
            if event is None:
                return None
            return type(event).__name__, getattr(event, "index", None), pickle.dumps(event)

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
