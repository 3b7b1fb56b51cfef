"""Which nodes of a cluster have trained the trials of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxmnist.runs.trial import Trial


@dataclass(frozen=True)
class NodeShare:
    """What a node has done for a search.

    devices: what it trained on.
    trials: number of trials and reruns whose last attempt ended there.
    seconds: the sum of their times; trials that run side by side all count.
    share: its fraction of the seconds of all nodes, from 0 to 1.
    """

    node: str
    devices: str
    trials: int
    seconds: float
    share: float


def several(trials: Sequence[Trial]) -> bool:
    """Whether trials ran on more than one machine."""
    return len({trial.node for trial in trials if trial.node}) > 1


def shares_of(trials: Sequence[Trial]) -> list[NodeShare]:
    """The share of each node, the largest first; trials that still run don't count."""
    ended = [trial for trial in trials if trial.node and trial.status != "running"]
    total = sum(trial.seconds for trial in ended)
    found = []
    for node in dict.fromkeys(str(trial.node) for trial in ended):
        there = [trial for trial in ended if trial.node == node]
        seconds = sum(trial.seconds for trial in there)
        devices = ", ".join(sorted({trial.device for trial in there if trial.device}))
        found.append(NodeShare(node, devices, len(there), seconds, seconds / total if total else 0))
    return sorted(found, key=lambda share: -share.seconds)
