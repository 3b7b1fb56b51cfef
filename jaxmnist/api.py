"""The search as Python and the command line call it, connected to what displays it."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from jaxmnist.errors import UsageError
from jaxmnist.models.space import Space
from jaxmnist.models.study.space import DEFINITION
from jaxmnist.settings import SearchSettings, flag

if TYPE_CHECKING:
    from jaxmnist.models.network import Network
    from jaxmnist.results.run import Run

logger = logging.getLogger("jaxmnist")


def random_search(
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
    max_trials: int = 10,
    epochs: int = 5,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
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
    keep: int = 3,
    jobs: int | None = None,
    lanes: int | None = None,
    precision: str = "default",
    cache: str | None = None,
    svm: bool = True,
    svm_backend: str = "auto",
    svm_search: int = 0,
    report: bool = True,
    tensorboard: bool = True,
    quiet: bool = False,
    **ranges: Any,
) -> Run:
    """Search, test the winner, fit and test the SVM; or resume the same call where it stopped.

    Args:
      dataset, …, quiet: the options of the command line; its `--help` explains them.
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
    space = Space(DEFINITION)
    try:
        return run_search(settings_of(options, space), silent=quiet)
    except UsageError as problem:
        line = with_keywords(str(problem), [*options, *space.parameters])
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
    ranges = {name: options[name] for name in space.parameters if name in options}
    for name in options:
        if name not in known and name not in ranges:
            near = difflib.get_close_matches(name, [*known, *space.parameters], 1)
            raise UsageError(
                f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    others = {name: value for name, value in options.items() if name not in ranges}
    return SearchSettings(**others, ranges=ranges)


def run_search(
    settings: SearchSettings, network: Network | None = None, *, silent: bool = False
) -> Run:
    """Search with these settings and display the progress.

    network: the network to search over; by default the study's.
    """
    # NumPy and JAX take a second to import; --help and errors in flags should not wait for them.
    from jaxmnist.search.start import prepare

    note = prepare(settings, network.definition if network else DEFINITION)
    # These modules import JAX, which `prepare` has to configure first.
    from jaxmnist.models.study.network import STUDY
    from jaxmnist.report.console import notes_on
    from jaxmnist.report.show import Show, open_console
    from jaxmnist.search.loop import search

    console = open_console(settings.quiet, silent)
    with notes_on(console):
        if note:
            logger.info(note)
        run = search(settings, network or STUDY, Show(console))
    page = ", including report.html" if settings.report else ""
    console.result(f"\n{console.times()}; results are in {run.directory.path}{page}")
    return run
