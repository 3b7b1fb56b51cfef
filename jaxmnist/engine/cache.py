"""The cache folder, which keeps compiled programs and measurements between runs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import platformdirs

from jaxmnist.engine.devices import import_jax, start_jax
from jaxmnist.engine.nodes import processor
from jaxmnist.errors import UsageError, local_path

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
        folder = Path(local_path(chosen, "--cache" if given else VARIABLE))
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
        line = (
            f"{programs}: can't keep compiled programs: {problem}"
            f" (choose another folder with --cache, or --cache {OFF})"
        )
        if wanted:
            raise UsageError(line)
        return f"note: {line}"
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
