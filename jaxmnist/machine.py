"""This machine: its processor, cores and memory, and whether it can start threads."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmnist.errors import EnvironmentFailure, JaxmnistError, one_line

# --- A description of the machine that a run uses ---

VECTORS = re.compile("sse|avx|fma|f16c|amx|asimd|sve|bf16|i8mm")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return a description of this machine; memory is in GiB."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": cores(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
    }
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory_gib"] = round(memory / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        pass  # the system doesn't report it
    return found


def instructions() -> str:
    """Return the vector instructions that the processor has, which compilers choose by."""
    words = _cpuinfo("flags", "Features").split()
    return " ".join(sorted({word for word in words if VECTORS.match(word)}))


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*names: str) -> str:
    """Return the first value that Linux has of the processor by one of these names; else ''."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(names):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""


# --- Threads that libraries rely on ---

MEND = (
    "raise the limit on processes of this user (ulimit -u) or container, end other ones, or set"
    " OPENBLAS_NUM_THREADS=1 and PJRT_NPROC=2"
)
REFUSED = "can't start new thread"  # as Python words it
MOST_OF_BLAS = 64  # threads of OpenBLAS, as NumPy's wheels have it
# The clients of JAX that a fork has left without threads. They stay referenced, so that no other
# client gets the identity of one.
_INHERITED: list[Any] = []


def _note_clients() -> None:
    """In a forked process: note the clients of JAX that the other one had started."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    _INHERITED.extend(getattr(bridge, "_backends", {}).values())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_clients)


def is_inherited(client: Any) -> bool:
    """Whether a client of JAX was started before a fork, as far as this module was there to see."""
    return any(client is each for each in _INHERITED)


def blas_threads(cores: int) -> int:
    """The number of threads that OpenBLAS starts while NumPy is imported, beside the first one."""
    wanted = [
        int(found[1])
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
        if (found := re.match(r"\s*\+?0*([1-9]\d*)", os.environ.get(name, "")))
    ]
    return min(cores, MOST_OF_BLAS, *wanted[:1]) - 1


def check_threads(needed: int) -> None:
    """Raise `EnvironmentFailure` unless so many more threads can be started now.

    They are started: XLA and OpenBLAS end the process when they get too few, without an exception.
    """
    over = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise EnvironmentFailure(
            f"{needed} threads are needed, but only {len(started)} can be started: {MEND}"
        ) from None
    finally:
        over.set()
        for thread in started:
            thread.join()


@contextmanager
def enough_threads() -> Iterator[None]:
    """While in this context, an exception for want of threads becomes an `EnvironmentFailure`."""
    try:
        yield
    except JaxmnistError:
        raise
    except Exception as problem:
        # The chain that a traceback shows; it may be a circle.
        chain: list[BaseException] = []
        cause: BaseException | None = problem
        while cause is not None and not any(cause is each for each in chain):
            if isinstance(cause, RuntimeError) and one_line(cause) == REFUSED:
                raise EnvironmentFailure(f"no more threads can be started: {MEND}") from problem
            chain.append(cause)
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
        raise


# --- What must be equal on machines that train together ---

# Packages whose versions decide what a trial computes.
PACKAGES = ("jaxmnist", "jax", "jaxlib", "flax", "optax")


@dataclass(frozen=True)
class Machine:
    """What a machine computes with.

    versions: of `PACKAGES`; None for those that it lacks.
    processor: see `processor`.
    """

    versions: Mapping[str, str | None]
    processor: str


def describe_machine() -> Machine:
    """Describe this machine; a node that may lack this package is sent the function by value."""
    # Imported here: it takes a third of the time in which `--help` answers.
    from importlib.metadata import PackageNotFoundError, version

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
