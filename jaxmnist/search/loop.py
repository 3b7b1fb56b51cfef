"""The random search: draws, trials, winner."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from jaxmnist.data.dataset import Dataset, joined
from jaxmnist.engine.cache import cache_folder
from jaxmnist.engine.local import Engine
from jaxmnist.engine.ray import RayEngine, RayEvents, load_ray
from jaxmnist.engine.stacking import Stacking
from jaxmnist.engine.workers import Events
from jaxmnist.errors import EnvironmentFailure
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import Network
from jaxmnist.results import evaluation
from jaxmnist.results.finalists import refit_of
from jaxmnist.results.run import Run
from jaxmnist.runs.keys import Rerun, TrialKey
from jaxmnist.runs.writing import begin_run
from jaxmnist.search.again import Reruns, check_refit, check_reruns
from jaxmnist.search.beginning import begin
from jaxmnist.search.description import describe_end, describe_search
from jaxmnist.search.listener import Listener, TrialListener
from jaxmnist.search.trials import Trials
from jaxmnist.search.winner import finish
from jaxmnist.settings import SearchSettings
from jaxmnist.signals import signals_call

logger = logging.getLogger("jaxmnist")


def search(
    settings: SearchSettings,
    network: Network,
    listener: Listener,
    dataset: Dataset | None = None,
) -> Run:
    """Run the whole search, from settings to the finished run.

    Args:
      settings: the settings of the search, for which JAX was started (`start.prepare`).
      network: the network whose configurations are trained.
      listener: receives stages, events and results.
      dataset: the data, where they are not those that the settings name.
    """
    first = begin(settings, network, dataset)
    settings, dataset, draws = first.settings, first.dataset, first.draws
    said = describe_search(settings, dataset, network.definition.name, first.space)
    with begin_run(settings.run_directory, said, overwrite=settings.overwrite) as directory:
        trials = Trials(directory, network, dataset, settings, draws)
        for line in directory.write_search():
            logger.info("note: %s", line)
        logger.info(
            f"{len(draws)} of {first.space.size_text} configurations on {dataset.name}:"
            f" {len(dataset.y_train)} training, {len(dataset.y_validation)} validation and"
            f" {len(dataset.y_test)} test images; {said['device']['kind']};"
            f" {directory.path}"
        )
        listener.stage("training")
        if settings.ray is not None:
            load_ray()
        with (
            ThreadPoolExecutor(1) as beside,
            listener.training(directory, network, settings, dataset, len(draws)) as told,
        ):
            # Runs beside the trials to save time afterwards. Leaving the context waits for it,
            # because modules can't be imported while Python shuts down.
            beside.submit(evaluation.prepare)
            train(trials, network, settings, dataset, told)
            if trials.left:
                logger.info(describe_end(settings.max_seconds, len(draws), trials.left))
            run = Run(directory, network, checked=True)
            if not run.ranked and trials.left:
                raise EnvironmentFailure(
                    f"no trial has completed in the time of {settings.max_seconds:g} s; the same"
                    " command goes on"
                )
            if not run.ranked:
                raise EnvironmentFailure(f"every trial failed; trial 0: {run.trials[0].error}")
            run = train_again(run, settings, dataset, told)
            told.trained()
            listener.ranked(run)
            finish(run, settings, dataset, listener)
    return run


def train(
    trials: Trials,
    network: Network,
    settings: SearchSettings,
    dataset: Dataset,
    listener: TrialListener,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train the trials that are not done; each event is recorded and passed to the listener.

    With `max_seconds` no trial starts after that time, except the first ones; trials are left then.
    """
    limit = math.inf if settings.max_seconds is None else settings.max_seconds
    until = clock() + limit
    in_time = True
    engine = engine_of(settings, network, dataset, trials.stacking)
    while pending := (in_time and trials.pending()) or lost_trials(trials):
        for index in pending:
            if line := trials.why_again(index):
                logger.info(line)
        checkpoints = trials.set_aside_damaged_checkpoints(pending)
        running = engine.run(pending.items(), checkpoints)
        with running as events, signals_call(partial(_stop, events, listener)):
            if in_time:
                events.end_when(lambda: clock() >= until)
            try:
                for event in events:
                    trials.record(event)
                    listener.event(event)
            except BaseException:
                # For example, the disk is full or the terminal is closed: record what is possible.
                events.stop()
                with suppress(Exception):  # of the engine itself
                    for event in events:
                        with suppress(Exception):
                            trials.record(event)
                with suppress(Exception):
                    trials.stopped()
                raise
            if events.stopping:
                trials.stopped()
        in_time = clock() < until


def engine_of(
    settings: SearchSettings, network: Network, dataset: Dataset, stacking: Stacking | None
) -> Engine | RayEngine:
    """The engine of a search: on this machine, or on the nodes of a cluster."""
    common: dict[str, Any] = {
        "network": network,
        "dataset": dataset,
        "settings": settings.training(),
        "seed": settings.seed,
        "lanes": settings.lanes,
        "stacking": stacking,
        "checkpoint_every": settings.checkpoint_every,
        "consecutive": settings.max_seconds is not None,
    }
    if settings.ray is not None:
        return RayEngine(**common, address=settings.ray, cache=settings.cache)
    return Engine(**common, jobs=settings.jobs, memory=cache_folder(settings.cache))


def _stop(events: Events | RayEvents, listener: TrialListener) -> None:
    """What a signal asks for; acknowledged at once, though a block of steps ends first."""
    events.stop()
    listener.stopping()


def train_again(run: Run, settings: SearchSettings, dataset: Dataset, told: TrialListener) -> Run:
    """Train the finalists again, then the winner on all images, as far as the settings ask for it.

    `max_seconds` is the time of the trials before; these are all trained.
    Returns the run as it is then.
    """

    def again(keys: list[Rerun], data: Dataset) -> Run:
        drawn = {trial.index: trial.hyperparameters for trial in run.trials}
        draws: dict[TrialKey, Hyperparameters] = {key: drawn[key.index] for key in keys}
        reruns = Reruns(run.files, run.network, data, settings, draws)
        told.again(keys, reruns.ended, len(data.y_train))
        train(reruns, run.network, replace(settings, max_seconds=None), data, told)
        return Run(run.directory, run.network, checked=True)

    if settings.finalists:
        keys = run.rerun_keys
        finalists = list(dict.fromkeys(key.index for key in keys))
        if len(finalists) < settings.finalists:
            logger.info(
                f"note: --finalists asks for {settings.finalists} trials, and {len(finalists)}"
                " completed"
            )
        names = ", ".join(map(str, finalists))
        logger.info(f"finalists: trials {names}; {settings.reruns} reruns of each")
        run = again(keys, dataset)
        check_reruns(run)
    if settings.refit:
        key = refit_of(run.best_trial)
        data = joined(dataset)
        logger.info(
            f"refit of trial {key.index} on {len(data.y_train)} training and validation images"
        )
        run = again([key], data)
        check_refit(run, key)
    return run


def lost_trials(trials: Trials) -> dict[TrialKey, Hyperparameters]:
    """The best trials whose weights are missing or damaged; deletes leftover files first."""
    trials.set_aside_damaged_weights()
    trials.delete_leftovers()
    return trials.without_weights()
