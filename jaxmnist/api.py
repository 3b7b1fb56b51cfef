"""The search as Python and the command line call it, connected to what displays it."""

from __future__ import annotations

import inspect
import logging
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from jaxmnist.errors import JaxmnistError, SettingError, UsageError
from jaxmnist.machine import enough_threads
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION
from jaxmnist.settings import (
    DECAYING,
    IN_MEMORY,
    RANGED,
    SETTINGS,
    SearchSettings,
    checked,
    unknown_option,
)

if TYPE_CHECKING:
    from jaxmnist.models.network import Network
    from jaxmnist.models.questions import Definition
    from jaxmnist.results.run import Run

logger = logging.getLogger("jaxmnist")
# What a setting that may be a hyperparameter takes beside one value.
Range = str | tuple[Any, ...] | list[Any]


def with_settings(function: Callable[..., Run]) -> Callable[..., Run]:
    """Show the settings in a function's signature and documentation, as they are declared."""
    shown = inspect.signature(function)
    *named, ranges = shown.parameters.values()
    keywords = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            # None stands for what the network asks for, or else the recipe has.
            default=None if item.range else item.default,
            annotation=f"{item.type} | Range | None" if item.range else item.type,
        )
        for item in SETTINGS.values()
    ]
    ranges = ranges.replace(name="ranges")
    vars(function)["__signature__"] = shown.replace(parameters=[*named, *keywords, ranges])
    lines = [
        textwrap.fill(
            f"{item.name}: {item.described}.",
            100,
            initial_indent=" " * 6,
            subsequent_indent=" " * 8,
            break_on_hyphens=False,
        )
        for item in SETTINGS.values()
    ]
    before = "      **options:"
    function.__doc__ = (function.__doc__ or "").replace(before, "\n".join([*lines, before]))
    return function


@with_settings
def random_search(
    build_model: Callable[[Any], Any] | None = None,
    *,
    data: Any = None,
    listener: Callable[[Any], object] | None = None,
    **options: Any,
) -> Run:
    """Search, test the winner, fit and test the SVM; or resume the same call where it stopped.

    Args:
      build_model: a network of one's own, as a function of `hp` that returns a Flax module, or a
        module and an Optax optimizer; None for the study's.
      data: (x_train, y_train, x_test, y_test), or with (x_validation, y_validation) between the
        two, or (x, y) alone: images [N, H, W] or [N, H, W, C], and labels [N] as numbers or names;
        None for the dataset's.
      listener: called with every event, after it was recorded. Its `key` is a `runs.trial.Key`
        (index, rerun); `rerun` is None, or the number where a trial is trained again.
      **options: the settings, by the names of the flags of the command line with underscores; and
        ranges of hyperparameters by name: text such as '32:128:16', a tuple (first, last[, step or
        'log']), a list of values, or one value.

    Returns:
      The run, which can also be read from its directory later.

    Raises:
      UsageError: an invalid option or file, or a directory that is in use or holds another search.
      EnvironmentFailure: a full disk, no network, or every trial failed.

    >>> random_search(max_trails=3)
    Traceback (most recent call last):
    jaxmnist.errors.UsageError: unknown option 'max_trails'; did you mean 'max_trials'?
    """
    network = own_network(options.get("model"), build_model)
    space = Space(network.definition if network else DEFINITION)
    if data is not None:
        if options.get("data_dir") is not None:
            raise UsageError("data and data_dir are two datasets: give one of them")
        options["dataset"] = options.get("dataset") or IN_MEMORY
    settings = settings_of(options, space)
    silent = settings.output.quiet
    with enough_threads():
        return run_search(settings, network, data=data, listener=listener, silent=silent)


def settings_of(options: Mapping[str, Any], space: Space) -> SearchSettings:
    """Return the settings for `options`, which may include ranges of hyperparameters by name."""
    # None for a setting that may be a hyperparameter: it is the network's own, or the recipe's.
    given = {name: v for name, v in options.items() if v is not None or name not in RANGED}
    ranges = {name: given.pop(name) for name in space.explored if name in given}
    ranges |= {name: given.pop(name) for name in RANGED if is_range(given.get(name))}
    for name in given:
        if name not in SETTINGS:
            raise unknown_option(name, [*SETTINGS, *space.explored])
    settings = SearchSettings(**given, ranges=ranges)
    optimizer = settings.training.optimizer
    searched = "optimizer" in ranges or "optimizer" in space.explored
    decays = "weight_decay" in {*given, *ranges} - {*space.explored}
    if decays and not searched and optimizer not in DECAYING:
        raise SettingError(
            "{weight_decay} is of the optimizers {decaying}, and {optimizer} is {chosen}",
            decaying=", ".join(DECAYING),
            chosen=optimizer,
        )
    return settings


def is_range(given: Any) -> bool:
    """Whether a setting of training is given as more than one value."""
    return isinstance(given, tuple | list) or (isinstance(given, str) and bool({*given} & {*":,"}))


def own_network(
    path: str | None, build_model: Callable[[Any], Any] | None = None
) -> Network | None:
    """The network of a function, or of a file; None for the study's."""
    if path is None and build_model is None:
        return None
    if path is not None and build_model is not None:
        raise SettingError("build_model and {model} are two networks: give one of them")
    # Flax takes a second to import, which the study's --help doesn't need.
    from jaxmnist.models.network import Network
    from jaxmnist.models.own_code import load_function

    if path is not None:
        build_model = load_function(checked("model", path, SETTINGS["model"].check))
    assert build_model is not None
    return Network(build_model, getattr(build_model, "__name__", "build_model"))


def start(settings: SearchSettings, definition: Definition) -> str | None:
    """Check the ranges of the search, then configure and start JAX.

    Returns a note for the user if compiled programs can't be cached, else None.
    """
    # NumPy and JAX take a second to import; --help and errors in flags should not wait for them.
    from jaxmnist.engine.devices import (
        cache_folder,
        check_precision,
        check_ray,
        keep_programs,
        set_pool_size,
        start_jax,
        use_cpu,
    )

    Space(definition, settings.ranges)
    if settings.running.ray is not None:
        check_ray(settings.running.ray)
        use_cpu()  # an accelerator of this machine is its node's, as far as the cluster has it
    if threads := _recorded_threads(settings):
        set_pool_size(threads)
    note = keep_programs(
        cache_folder(settings.running.cache), wanted=settings.running.cache is not None
    )
    platform = start_jax()
    if settings.running.ray is None:  # else it depends on each node
        check_precision(settings.training.precision, platform)
    return note


def _recorded_threads(settings: SearchSettings) -> int | None:
    """The size of XLA's thread pool that a resumed run has recorded; None for a new run.

    It is read before the rest of the run, because it can't be set once JAX has started.
    """
    from jaxmnist.runs.store import Store

    try:
        opened = Store.open(settings.run_directory)
        return None if settings.output.overwrite else opened.search.threads
    except JaxmnistError:  # no run, or a damaged one, which is handled later under the lock
        return None


def run_search(
    settings: SearchSettings,
    network: Network | None = None,
    *,
    data: Any = None,
    listener: Callable[[Any], object] | None = None,
    silent: bool = False,
    command: str = "jaxmnist",
    notes: Iterable[str] = (),
) -> Run:
    """Search with these settings and display the progress, and at the end a verdict.

    Args:
      settings: of the search.
      network: the network to search over; by default the study's.
      data, listener: see `random_search`.
      silent: print nothing but warnings.
      command: how a person starts jaxmnist, for the commands that the verdict names.
      notes: lines to show first.
    """
    note = start(settings, network.definition if network else DEFINITION)
    # These modules import JAX, which `start` has to configure first.
    from jaxmnist.data.dataset import dataset_in_memory
    from jaxmnist.models.network import STUDY
    from jaxmnist.report.console import notes_on
    from jaxmnist.report.live import Show, open_console
    from jaxmnist.report.sentences import verdict
    from jaxmnist.search.search import search

    console = open_console(settings.output.quiet, silent, settings.output.verbose)
    with notes_on(console):
        for line in (*notes, *([note] if note else [])):
            logger.info(line)
        dataset = (
            None if data is None else dataset_in_memory(data, settings.data, settings.space.seed)
        )
        run = search(settings, network or STUDY, Show(console, listener), dataset)
        console.note(console.times())
    console.verdict(verdict(run, command))
    return run


def dry_run(
    settings: SearchSettings, network: Network | None = None, notes: Iterable[str] = ()
) -> str:
    """What a search with these settings would do, and about how long it would take, as text.

    Nothing is written in its directory, and the test set isn't evaluated. Raises like
    `random_search`.
    """
    note = start(settings, network.definition if network else DEFINITION)
    from jaxmnist.models.network import STUDY
    from jaxmnist.report.console import Console, fitted, notes_on
    from jaxmnist.report.sentences import describe_preview
    from jaxmnist.search.beginning import preview

    with notes_on(Console(settings.output.quiet)):
        for line in (*notes, *([note] if note else [])):
            logger.info(line)
        return fitted(*describe_preview(preview(settings, network or STUDY)))
