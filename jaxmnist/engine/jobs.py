"""What the engine for clusters wants of the process that speaks with Ray."""

from __future__ import annotations

from dataclasses import dataclass

from jaxmnist.runs.keys import TrialKey


@dataclass(frozen=True)
class Assignment:
    """A trial to train.

    content: what `remote.train` gets of it.
    work: how long it takes, in any unit.
    """

    key: TrialKey
    content: bytes
    work: float = 0.0


@dataclass(frozen=True)
class Job:
    """What the other process wants of this one.

    work, buffers: the pickled `remote.Work`, and its arrays.
    trials: the trials, in their order.
    environment: variables of the tasks, by a node's kind.
    lanes: trials in one program, if the user chose that.
    consecutive: whether trials start in the order in which they are given.
    """

    address: str
    work: bytes
    buffers: list[bytes]
    trials: list[Assignment]
    environment: dict[str, dict[str, str]]
    lanes: int | None
    consecutive: bool
