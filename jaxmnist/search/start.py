"""What has to be settled before JAX is imported."""

from __future__ import annotations

from jaxmnist.engine.cache import cache_folder, keep_programs
from jaxmnist.engine.devices import set_pool_size, start_jax
from jaxmnist.errors import JaxmnistError
from jaxmnist.models.space import Definition, Space
from jaxmnist.runs.directory import RunDirectory, threads_of
from jaxmnist.settings import SearchSettings


def prepare(settings: SearchSettings, definition: Definition) -> str | None:
    """Start JAX as the search needs it, once its ranges are known to be right.

    Returns a note for the user if the folder of compiled programs can't be used, else None.
    """
    Space(definition, settings.ranges)
    if threads := recorded_threads(settings):
        set_pool_size(threads)
    note = keep_programs(cache_folder(settings.cache), wanted=settings.cache is not None)
    start_jax()
    return note


def recorded_threads(settings: SearchSettings) -> int | None:
    """The size of XLA's thread pool in the run that goes on; None for a new one.

    It is read before anything else of the run, as it can't be set once JAX has started.
    """
    try:
        opened = RunDirectory.open(settings.run_directory)
        return None if settings.overwrite else threads_of(opened.search)
    except JaxmnistError:  # nothing there, or damage, which is met again under the lock
        return None
