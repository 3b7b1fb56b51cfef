"""The search as Python and the command line call it, connected to what displays it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from jaxmnist.errors import JaxmnistError, UsageError
from jaxmnist.machine import enough_threads
from jaxmnist.models.space import Space
from jaxmnist.models.study_space import DEFINITION
from jaxmnist.settings import (
    DECAYING,
    IN_MEMORY,
    TRAINING,
    USUAL_RECIPE,
    SearchSettings,
    flag,
    nearest,
    usual_settings,
)

if TYPE_CHECKING:
    from jaxmnist.models.flax_network import FlaxNetwork
    from jaxmnist.models.network import Network
    from jaxmnist.models.questions import Definition
    from jaxmnist.results.run import Run

logger = logging.getLogger("jaxmnist")
# What a hyperparameter takes beside one value; a string of one value is a value.
Range = str | tuple[Any, ...] | list[Any]


def random_search(
    build_model: Callable[[Any], Any] | None = None,
    *,
    data: Any = None,
    listener: Callable[[Any], object] | None = None,
    dataset: str | None = None,
    data_dir: str | None = None,
    transpose: bool = False,
    model: str | None = None,
    max_trials: int = 10,
    max_seconds: float | None = None,
    epochs: int = 5,
    recipe: str = USUAL_RECIPE,
    batch_size: int | Range | None = None,
    learning_rate: float | Range | None = None,
    optimizer: str | Range | None = None,
    weight_decay: float | Range | None = None,
    schedule: str | Range | None = None,
    label_smoothing: float | Range | None = None,
    ema_momentum: float | Range | None = None,
    random_shift: int | Range | None = None,
    random_rotation: float | Range | None = None,
    validation_split: float = 0.1,
    train_limit: int | None = None,
    seed: int = 0,
    directory: str = "runs",
    project_name: str | None = None,
    overwrite: bool = False,
    select: str = "steady",
    tolerance: float | None = None,
    checkpoint_every: float = 60.0,
    max_retries: int = 1,
    finalists: int | None = None,
    reruns: int | None = None,
    refit: bool = False,
    keep: int | None = None,
    ensemble: int | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    lanes: int | None = None,
    precision: str = "default",
    cache: str | None = None,
    svm: bool = True,
    svm_backend: str = "auto",
    svm_search: int = 0,
    report: bool = True,
    tensorboard: bool = True,
    quiet: bool = False,
    verbose: bool = False,
    **ranges: Any,
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
      dataset, …, verbose: the options of the command line; its `--help` explains them.
      **ranges: ranges of hyperparameters by name: text such as '32:128:16', a tuple (first, last[,
        step or 'log']), a list of values, or one value.

    Returns:
      The run, which can also be read from its directory later.

    Raises:
      UsageError: an invalid option or file, or a directory that is in use or holds another search.
      EnvironmentFailure: a full disk, no network, or every trial failed.

    >>> random_search(max_trails=3)
    Traceback (most recent call last):
    jaxmnist.errors.UsageError: unknown option 'max_trails'; did you mean 'max_trials'?
    """
    options = dict(locals())
    options |= options.pop("ranges")
    for name in ("build_model", "data", "listener"):
        options.pop(name)
    names = list(options)
    try:
        network = own_network(model, build_model)
        space = Space(network.definition if network else DEFINITION)
        names += space.explored
        if data is not None:
            if data_dir is not None:
                raise UsageError("data and data_dir are two datasets: give one of them")
            options["dataset"] = dataset or IN_MEMORY
        for name in TRAINING:  # one that isn't given is the network's own, or the recipe's
            if options[name] is None:
                del options[name]
        settings = settings_of(options, space)
        with enough_threads():
            return run_search(settings, network, data=data, listener=listener, silent=quiet)
    except UsageError as problem:
        line = with_keywords(str(problem), names)
        if type(problem) is not UsageError or line == str(problem):
            raise
        raise UsageError(line) from None


def with_keywords(line: str, names: Iterable[str]) -> str:
    """Return a command-line message with its flags replaced by Python's keywords.

    >>> with_keywords("--max-trials must be a whole number", ["max_trials"])
    'max_trials must be a whole number'
    """
    keywords = {flag(name): name for name in names}
    return re.sub(r"--[a-z][A-Za-z0-9-]*", lambda found: keywords.get(found[0], found[0]), line)


def settings_of(options: Mapping[str, Any], space: Space) -> SearchSettings:
    """Return the settings for `options`, which may include ranges of hyperparameters by name."""
    known = [item.name for item in fields(SearchSettings) if item.name != "ranges"]
    ranges = {name: options[name] for name in space.explored if name in options}
    left = [name for name in TRAINING if name in options and name not in space.explored]
    ranges |= {name: options[name] for name in left if is_range(options[name])}
    usual = usual_settings(options.get("recipe"))
    optimizer = options.get("optimizer", usual["optimizer"])
    chosen = "optimizer" in ranges or "optimizer" in space.explored or optimizer in DECAYING
    if "weight_decay" in left and not chosen:
        raise UsageError(
            f"--weight-decay is of the optimizers {', '.join(DECAYING)}, and --optimizer is"
            f" {optimizer}"
        )
    for name in options:
        if name not in known and name not in ranges:
            near = nearest(name, [*known, *space.explored])
            raise UsageError(
                f"unknown option {name!r}" + (f"; did you mean {near!r}?" if near else "")
            )
    others = {name: value for name, value in options.items() if name not in ranges}
    return SearchSettings(**others, ranges=ranges)


def is_range(given: Any) -> bool:
    """Whether a setting of training is given as more than one value."""
    return isinstance(given, tuple | list) or (isinstance(given, str) and bool({*given} & {*":,"}))


def own_network(
    path: str | None, build_model: Callable[[Any], Any] | None = None
) -> FlaxNetwork | None:
    """The network of a function, or of a file; None for the study's."""
    if path is None and build_model is None:
        return None
    if path is not None and build_model is not None:
        raise UsageError("build_model and --model are two networks: give one of them")
    # Flax takes a second to import, which the study's --help doesn't need.
    from jaxmnist.models.flax_network import FlaxNetwork
    from jaxmnist.models.network import load_function

    if path is not None:
        build_model = load_function(path)
    assert build_model is not None
    return FlaxNetwork(build_model, getattr(build_model, "__name__", "build_model"))


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
    if settings.ray is not None:
        check_ray(settings.ray)
        use_cpu()  # an accelerator of this machine is its node's, as far as the cluster has it
    if threads := _recorded_threads(settings):
        set_pool_size(threads)
    note = keep_programs(cache_folder(settings.cache), wanted=settings.cache is not None)
    platform = start_jax()
    if settings.ray is None:  # else it depends on each node
        check_precision(settings.precision, platform)
    return note


def _recorded_threads(settings: SearchSettings) -> int | None:
    """The size of XLA's thread pool that a resumed run has recorded; None for a new run.

    It is read before the rest of the run, because it can't be set once JAX has started.
    """
    from jaxmnist.runs.store import Store, threads_of

    try:
        opened = Store.open(settings.run_directory)
        return None if settings.overwrite else threads_of(opened.search)
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
    from jaxmnist.models.study import STUDY
    from jaxmnist.report.console import notes_on
    from jaxmnist.report.live import Show, open_console
    from jaxmnist.report.sentences import verdict
    from jaxmnist.search.search import search

    console = open_console(settings.quiet, silent, settings.verbose)
    with notes_on(console):
        for line in (*notes, *([note] if note else [])):
            logger.info(line)
        dataset = None if data is None else dataset_in_memory(data, settings)
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
    from jaxmnist.models.study import STUDY
    from jaxmnist.report.console import Console, notes_on
    from jaxmnist.report.sentences import describe_preview
    from jaxmnist.results.layout import fitted
    from jaxmnist.search.beginning import preview

    with notes_on(Console(settings.quiet)):
        for line in (*notes, *([note] if note else [])):
            logger.info(line)
        return fitted(describe_preview(preview(settings, network or STUDY)))
