"""The nodes of a Ray cluster: whether and what each can train; and the work for them.

Its functions are sent to nodes by value, as nodes may not have the package: they use nothing but
the standard library.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jaxmnist.runs.trial import Key

# --- What the engine for clusters asks of the process that speaks with Ray ---


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
    """What the engine asks of the process that speaks with Ray.

    work, buffers: the pickled `ray.Work`, and its arrays.
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


# --- The nodes of a Ray cluster: what each can train, and whether it may ---

# Packages whose versions decide what a trial computes.
PACKAGES = ("jaxmnist", "jax", "jaxlib", "flax", "optax")
WIDEST = 32  # trials in one task for an accelerator
LONGEST = 16  # trials in one task for a core


@dataclass(frozen=True)
class Machine:
    """What a node says of itself.

    versions: of `PACKAGES`; None for those that it lacks.
    processor: see `processor`.
    """

    versions: Mapping[str, str | None]
    processor: str


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


def describe_machine() -> Machine:
    """Describe this machine; on a node that lacks the package, too."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return Machine(versions, processor())


def processor() -> str:
    """The processor's architecture, and a hash of its model and instruction-set features."""
    try:
        lines = set(Path("/proc/cpuinfo").read_text().splitlines())
        known = {line for line in lines if line.startswith(("flags", "Features", "model"))}
    except OSError:  # not Linux
        known = {platform.processor()}
    features = hashlib.sha256("\n".join(sorted(known)).encode()).hexdigest()
    return f"{platform.machine() or 'machine'}-{features[:12]}"


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
