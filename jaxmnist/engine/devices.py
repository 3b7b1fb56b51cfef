"""Starting JAX: its platform, the size of XLA's thread pool, settings that break training.

Every command reports an error at JAX's start in one line.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from functools import lru_cache
from types import ModuleType
from typing import Any

from jaxmnist.errors import EnvironmentFailure, UsageError, one_line
from jaxmnist.runs.machine import cores
from jaxmnist.threads import check_threads

# XLA's variables for the size of its thread pool on a CPU; the first one that is set is used
# (`DefaultThreadPoolSize` in its sources; undocumented).
POOL_SIZE = ("PJRT_NPROC", "NPROC")
THREADS = 20  # that a search starts at least, beside twice the size of the pool
# JAX's debugging settings and their default values.
DEBUGGING = {
    "jax_check_tracer_leaks": False,
    "jax_debug_infs": False,
    "jax_debug_nans": False,
    "jax_disable_jit": False,
    "jax_enable_checks": False,
    "jax_no_tracing": False,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_transfer_guard": None,
    "jax_transfer_guard_device_to_device": None,
    "jax_transfer_guard_device_to_host": None,
    "jax_transfer_guard_host_to_device": None,
}


def import_jax() -> ModuleType:
    """The `jax` module; `EnvironmentFailure` if it can't be imported with the current settings."""
    try:
        import jax
    except Exception as error:
        raise EnvironmentFailure(f"JAX can't be imported: {one_line(error, named=True)}") from None
    return jax


def check_precision(precision: str, platform: str) -> None:
    """Raise `UsageError` unless the platform computes in this precision."""
    if platform == "cpu" and precision == "bfloat16":
        raise UsageError("--precision bfloat16 is for GPUs and TPUs, and this is a CPU")


def start_jax() -> str:
    """Start JAX if necessary, and return its platform: 'cpu', 'gpu' or 'tpu'.

    Raises:
      UsageError: this process was forked from one in which JAX had started.
      EnvironmentFailure: the platform can't be started, or has too few threads to work with.
    """
    jax = import_jax()
    if not _is_started():
        check_threads(THREADS + 2 * pool_size())
    try:
        platform: str = jax.default_backend()
        client = jax.local_devices()[0].client
    except Exception as error:  # RuntimeError, or AssertionError for a missing plugin
        asked = os.environ.get("JAX_PLATFORMS") or jax.config.values.get("jax_platforms")
        named = f" with JAX_PLATFORMS={asked}" if asked else ""
        raise EnvironmentFailure(
            f"JAX has no device to compute on{named}: {one_line(error, named=True)}; install the"
            " packages for that platform, or set JAX_PLATFORMS=cpu"
        ) from None
    if _is_forked(client):
        raise UsageError(
            "this process was forked from one in which JAX had started, and would wait for ever for"
            " JAX's threads, which are not in it: start it by multiprocessing's method 'spawn', or"
            " fork it before JAX starts"
        )
    return platform


@lru_cache(maxsize=1)
def _process_of(client: Any) -> int:
    """The process in which a client of JAX was seen first; a forked one inherits the answer."""
    return os.getpid()


def _is_forked(client: Any) -> bool:
    """Whether a client of JAX was started by another process, from which this one was forked.

    If nobody has looked at it before the fork, no threads but Python's own show it: XLA has ten and
    more, and a forked process begins with the one that forked.
    """
    if _process_of(client) != os.getpid():
        return True
    try:
        threads = {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:  # not Linux
        return False
    known = {thread.native_id for thread in threading.enumerate()}
    return threads <= known | {threading.get_native_id()}


def device_name() -> str:
    """What JAX computes on: 'cpu', 'gpu NVIDIA H100', 'tpu TPU v5 lite'. JAX is started."""
    device = import_jax().local_devices()[0]
    return " ".join(dict.fromkeys((str(device.platform), str(device.device_kind))))


def pool_size() -> int:
    """The number of threads that XLA's CPU pool has, or will have when JAX starts.

    Results depend on it, because XLA splits large matrix products among the threads.
    """
    for name in POOL_SIZE:
        if re.fullmatch(r"\s*\+?\d+\s*", text := os.environ.get(name, "")):
            return int(text)
    return cores()


def set_pool_size(wanted: int) -> None:
    """Set the number of threads of XLA's pool; this has no effect once JAX has started."""
    if wanted != pool_size() and not _is_started():
        os.environ[POOL_SIZE[0]] = str(wanted)


def use_cpu() -> None:
    """Make JAX compute on the CPU, unless it has started or the user has chosen a platform."""
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _is_started() -> bool:
    if "jax" not in sys.modules:
        return False
    try:
        from jax._src import xla_bridge  # there is no public API for this

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):
        return True


def debugging_settings() -> str:
    """JAX's debugging settings that differ from their defaults: 'jax_disable_jit=True, …'."""
    values = import_jax().config.values
    changed = {
        name: values[name]
        for name, usual in DEBUGGING.items()
        if name in values and values[name] not in (usual, "allow")
    }
    return ", ".join(f"{name}={value}" for name, value in changed.items())
