"""Starting JAX: its platform, thread pool and cache of programs; the address of a cluster.

Every command reports an error at JAX's start in one line.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from enum import Enum
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs

from jaxmnist.errors import (
    EnvironmentFailure,
    Named,
    SettingError,
    UsageError,
    local_path,
    one_line,
    wrong,
)
from jaxmnist.machine import check_threads, cores, is_inherited, processor

# --- Starting JAX: its platform, the size of XLA's thread pool, settings that break training ---

# XLA's variables for the size of its thread pool on a CPU; the first one that is set is used
# (`DefaultThreadPoolSize` in its sources; undocumented).
POOL_SIZE = ("PJRT_NPROC", "NPROC")
# Beside versions and devices, results depend on these: variables that XLA and libraries below it
# read, those that NumPy and its library read for one processor, and settings of JAX, whether it has
# them from the environment or from the program.
OF_XLA = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
)
OF_NUMPY = ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES")
SETTINGS = (
    "jax_allow_f16_reductions",
    "jax_bcoo_cusparse_lowering",
    "jax_compiler_enable_remat_pass",
    "jax_default_device",
    "jax_default_dtype_bits",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_disable_most_optimizations",
    "jax_eager_constant_folding",
    "jax_enable_custom_prng",
    "jax_enable_pgle",
    "jax_enable_x64",
    "jax_exec_time_optimization_effort",
    "jax_explicit_x64_dtypes",
    "jax_high_dynamic_range_gumbel",
    "jax_memory_fitting_effort",
    "jax_memory_fitting_level",
    "jax_numpy_dtype_promotion",
    "jax_optimization_level",
    "jax_random_seed_offset",
    "jax_softmax_custom_jvp",
    "jax_threefry_gpu_kernel_lowering",
    "jax_threefry_partitionable",
    "jax_use_direct_linearize",
    "jax_use_shardy_partitioner",
    "jax_xla_profile_version",
)
NAMED = "tf_"  # how the names of threads of XLA begin, where it names them
ANSWER = 10.0  # seconds for a small computation
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
        raise wrong("precision", "bfloat16 is for GPUs and TPUs, and this is a CPU")


def start_jax() -> str:
    """Start JAX if necessary, and return its platform: 'cpu', 'gpu' or 'tpu'.

    Raises:
      UsageError: this process was forked from one in which JAX had started.
      EnvironmentFailure: the platform can't be started, or has too few threads to work with.
    """
    jax = import_jax()
    was_started = _is_started()
    if not was_started:
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
    if was_started and (is_inherited(client) or not _has_threads(os.getpid(), platform)):
        raise UsageError(
            "this process was forked after JAX had started, so JAX would hang here: use"
            " multiprocessing's method 'spawn', or fork before JAX starts"
        )
    return platform


@lru_cache(maxsize=1)
def _has_threads(process: int, platform: str) -> bool:
    """Whether XLA has its threads in this process, which lacks them if a fork came between.

    A forked process begins with the thread that forked, and other libraries start theirs again.
    Some versions of XLA name their threads; on a CPU where none has such a name, a small
    computation decides.
    """
    try:
        threads = {int(name) for name in os.listdir("/proc/self/task")}
    except OSError:  # not Linux
        return True
    known = {thread.native_id for thread in threading.enumerate()}
    if threads <= known | {threading.get_native_id()}:
        return False
    return platform != "cpu" or any(map(_is_of_xla, threads)) or _answers()


def _is_of_xla(thread: int) -> bool:
    """Whether the name of a thread of this process says that it is one of XLA's."""
    try:
        with open(f"/proc/self/task/{thread}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().startswith(NAMED)
    except OSError:  # it has ended
        return False


def _answers() -> bool:
    """Whether JAX computes a product so large that it takes threads of XLA's pool."""
    jax = import_jax()
    done = threading.Event()

    def compute() -> None:
        try:
            matrix = jax.numpy.ones((512, 512), "float32")
            jax.jit(lambda x: x @ x)(matrix).block_until_ready()
        except Exception:  # of a setting; what matters is that it comes
            pass
        done.set()

    threading.Thread(target=compute, daemon=True).start()
    return done.wait(ANSWER)


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


def environment() -> dict[str, Any]:
    """What results depend on: variables, and settings that this JAX has; None where none is set."""
    names = (*OF_XLA, *OF_NUMPY)
    variables = {name: " ".join(os.environ.get(name, "").split()) or None for name in names}
    values = import_jax().config.values
    return variables | {name: _plain(values[name]) for name in SETTINGS if name in values}


def variables_for_nodes() -> dict[str, str]:
    """The variables of this process that the tasks of a cluster need for the same results.

    Those of NumPy and its library are for one processor, and stay here.
    """
    names = (*OF_XLA, *map(str.upper, SETTINGS))
    return {name: os.environ[name] for name in names if name in os.environ}


def _plain(value: Any) -> bool | int | float | str | None:
    """A setting as JSON has it."""
    if isinstance(value, Enum):
        return str(value.name)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def debugging_settings() -> str:
    """JAX's debugging settings that differ from their defaults: 'jax_disable_jit=True, …'."""
    values = import_jax().config.values
    changed = {
        name: values[name]
        for name, usual in DEBUGGING.items()
        if name in values and values[name] not in (usual, "allow")
    }
    return ", ".join(f"{name}={value}" for name, value in changed.items())


# --- The address of a Ray cluster, checked before anything else is loaded ---


def check_ray(address: str) -> None:
    """Raise `UsageError` if Ray isn't installed, or if the address can't be that of a cluster."""
    if find_spec("ray") is None:
        raise wrong(
            "ray", "needs Ray, which isn't installed here: python -m pip install 'ray>=2.60'"
        )
    if "://" in address:
        raise wrong(
            "ray",
            f"{address}: give the address of the cluster's head as host:port, on a machine that is"
            " a node of the cluster",
        )
    host, _, port = address.rpartition(":")
    possible = host and port.isdecimal() and 0 < int(port) < 65536
    if address != "auto" and not possible:
        raise wrong("ray", f"must be auto or the head's host:port, not {address!r}")


# --- The cache folder, which keeps compiled programs between runs ---

VARIABLE = "JAXMNIST_CACHE"
OFF = "off"
MOST_BYTES = 2**30  # upper limit on the size of the compiled programs
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
JAX_LOG_LEVEL = "1"  # JAX sets this if the variable is unset; child processes inherit it


def cache_folder(given: str | None) -> Path | None:
    """The cache folder from `--cache`, else `$JAXMNIST_CACHE`, else the user's; None for 'off'.

    Each kind of processor has its own subfolder: machines may share a home folder, and a program
    compiled for one processor may crash on another.
    """
    chosen = given or os.environ.get(VARIABLE)
    if chosen == OFF:
        return None
    if chosen:
        folder = Path(local_path(chosen, Named("cache") if given else VARIABLE))
    else:
        folder = Path(platformdirs.user_cache_dir("jaxmnist", appauthor=False))
        if not folder.is_absolute():  # the user has no home folder, so `~` was not expanded
            return None
    return folder / processor()


def keep_programs(folder: Path | None, wanted: bool = False) -> str | None:
    """Make JAX cache compiled programs in `folder`, unless the user has configured JAX's cache.

    Call it before JAX is imported if possible. Whenever XLA loads a cached program for a CPU, it
    logs a 4 kB warning that the processor lacks two 'features', which are only tuning hints for the
    compiler, and the log level can't be changed later. If JAX is already imported, CPU programs are
    not cached.

    Args:
      folder: the cache folder; None to cache nothing.
      wanted: whether the user asked for this folder.

    Returns:
      A note for the user if the folder can't be used, else None.

    Raises:
      UsageError: the folder that the user asked for can't be used.
    """
    late = "jax" in sys.modules
    if os.environ.get(LOG_LEVEL, JAX_LOG_LEVEL) == JAX_LOG_LEVEL and not late:
        os.environ[LOG_LEVEL] = "3"
    jax = import_jax()
    settings = jax.config.values
    own = settings["jax_compilation_cache_dir"] is not None
    if folder is None or own or not settings["jax_enable_compilation_cache"]:
        return None
    programs = folder / "programs"
    problem = None
    try:
        programs.mkdir(parents=True, exist_ok=True)
        if not os.access(programs, os.W_OK | os.X_OK):
            problem = os.strerror(errno.EACCES)
    except OSError as error:
        problem = error.strerror
    if problem:
        failed = f"{programs}: can't keep compiled programs: {problem}"
        if wanted:
            raise SettingError(
                "{failed} (choose another folder for {cache}, or off for none)", failed=failed
            )
        return f"note: {failed} (choose another folder with --cache, or --cache {OFF})"
    if late and os.environ.get(LOG_LEVEL) != "3" and start_jax() == "cpu":
        return None
    _drop_oldest(programs)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return None


def _drop_oldest(programs: Path) -> None:
    """Delete the least recently used programs until the rest take at most `MOST_BYTES` bytes."""
    try:
        entries = [(path.stat(), path) for path in programs.iterdir() if path.is_file()]
        total = sum(status.st_size for status, _ in entries)
        for status, path in sorted(entries, key=lambda entry: entry[0].st_atime):
            if total <= MOST_BYTES:
                break
            path.unlink(missing_ok=True)
            total -= status.st_size
    except OSError:
        # Another process may be deleting files at the same time.
        return
