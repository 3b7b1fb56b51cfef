"""Preparations that must precede the import of JAX."""

from __future__ import annotations

from jaxmnist.engine.address import check_ray
from jaxmnist.engine.cache import cache_folder, keep_programs
from jaxmnist.engine.devices import check_precision, set_pool_size, start_jax, use_cpu
from jaxmnist.errors import JaxmnistError
from jaxmnist.models.questions import Definition
from jaxmnist.models.space import Space
from jaxmnist.runs.directory import RunDirectory, threads_of
from jaxmnist.settings import SearchSettings


def prepare(settings: SearchSettings, definition: Definition) -> str | None:
    """Check the ranges of the search, then configure and start JAX.

    Returns a note for the user if compiled programs can't be cached, else None.
    """
    Space(definition, settings.ranges)
    if settings.ray is not None:
        check_ray(settings.ray)
        use_cpu()  # an accelerator of this machine is its node's, as far as the cluster has it
    if threads := recorded_threads(settings):
        set_pool_size(threads)
    note = keep_programs(cache_folder(settings.cache), wanted=settings.cache is not None)
    platform = start_jax()
    if settings.ray is None:  # else it depends on each node
        check_precision(settings.precision, platform)
    return note


def recorded_threads(settings: SearchSettings) -> int | None:
    """The size of XLA's thread pool that a resumed run has recorded; None for a new run.

    It is read before the rest of the run, because it can't be set once JAX has started.
    """
    try:
        opened = RunDirectory.open(settings.run_directory)
        return None if settings.overwrite else threads_of(opened.search)
    except JaxmnistError:  # no run, or a damaged one, which is handled later under the lock
        return None
