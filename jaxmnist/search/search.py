"""The random search: its trials, then the winner, its test-set evaluation and the SVM."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import Event
from jaxmnist.engine.lanes import Stacking
from jaxmnist.engine.local import Engine, Events
from jaxmnist.engine.ray import RayEngine, RayEvents, load_ray
from jaxmnist.errors import EnvironmentFailure, signals_call
from jaxmnist.files import DamagedFile, read_bytes, sha256
from jaxmnist.models.network import Network
from jaxmnist.results import comparisons, evaluation, svm
from jaxmnist.results.evaluation import evaluate_ensemble
from jaxmnist.results.ranking import finalist_records
from jaxmnist.results.run import Run
from jaxmnist.results.table import Laid
from jaxmnist.runs.records import File, Winner
from jaxmnist.runs.store import Store, begin_run
from jaxmnist.runs.trial import REFIT, Key
from jaxmnist.search.beginning import begin, describe_end, describe_search
from jaxmnist.search.schedule import Schedule
from jaxmnist.settings import SearchSettings

# --- The interface of listeners, which show a search: console, page, TensorBoard ---


class Listener:
    """Receives the stages and results of a search; this base class shows nothing."""

    def stage(self, name: str) -> None:
        """A stage begins: 'training', 'test', 'ensemble' or 'SVM'."""

    def training(
        self,
        store: Store,
        network: Network,
        settings: SearchSettings,
        dataset: Dataset,
        budget: int,
    ) -> AbstractContextManager[TrialListener]:
        """Training begins; the context ends with the search."""
        return nullcontext(TrialListener())

    def ranked(self, run: Run) -> None:
        """All trials are done and ranked."""

    def detail(self, lines: Sequence[str]) -> None:
        """A long report, whose content lies in the run's files.

        It is the network's summary, the report of the test-set evaluation, of the ensemble or the
        SVM, or how these compare.
        """


class TrialListener:
    """Receives the events of trials; this base class shows nothing."""

    def event(self, event: Event) -> None:
        """An event of the engine has happened."""

    def again(self, reruns: Collection[Key], ended: Collection[Key], images: int) -> None:
        """Reruns follow; some may have ended in an earlier session.

        images: their training images of an epoch.
        """

    def stopping(self) -> None:
        """A signal asks the trials to stop; called in its handler, and may not raise."""

    def trained(self) -> None:
        """All trials are done."""


# --- The steps after the trials: the winner, its test-set evaluation, the SVM on its features ---

logger = logging.getLogger("jaxmnist")


def finish(run: Run, settings: SearchSettings, dataset: Dataset, listener: Listener) -> None:
    """Write and show the winner, its single test-set evaluation and the SVM on its features.

    And of the best trials' ensemble, if that is wanted; then how these compare.
    """
    listener.stage("test")
    keep_winner(run)
    listener.detail(["", Laid(run.best_model.summary()), ""])
    kept = run.store.mended(lambda: evaluation.kept_look(run))
    test = kept or evaluation.look(run, dataset, "winner")
    listener.detail(evaluation.describe_evaluation(run, test))
    if settings.selection.ensemble is not None:
        _test_ensemble(run, settings.selection.ensemble, dataset, listener)
    if settings.output.svm:
        listener.stage("SVM")
        content = svm.fit_on_run(
            run,
            dataset,
            wanted=settings.output.svm_backend,
            draws=settings.output.svm_search,
        )
        listener.detail(["", *svm.describe_svm(run, content)])
    if lines := comparisons.describe_comparisons(
        comparisons.write_comparisons(
            run.store, run.ranking.ranked, run.ranking.tested_sha256, dataset.y_test
        )
    ):
        listener.detail(["", *lines])


def _test_ensemble(run: Run, count: int, dataset: Dataset, listener: Listener) -> None:
    """Evaluate the ensemble, and show it; a warning if too many trials have failed for it."""
    if len(run.ranking.ranked) < count:
        logger.warning(
            f"no ensemble of {count} is made: only {len(run.ranking.ranked)} trials have completed"
        )
        return
    listener.stage("ensemble")
    description = comparisons.describe_ensemble(evaluate_ensemble(run, dataset, count))
    listener.detail(["", description, evaluation.looks_at_test(run)])


def keep_winner(run: Run) -> None:
    """Write best/: the winner's weights, their description and the network's summary."""
    best, trial, store = run.best_trial, run.ranking.final, run.store
    assert trial is not None  # the search is finished
    model = run.load_model(trial)
    ranking, corrected = run.ranking, run.ranking.corrected
    assert best.score is not None  # it is the winner
    assert trial.weights_sha256 is not None  # the model was loaded
    winner = Winner(
        trial=trial.index,
        hyperparameters=trial.hyperparameters,
        image_shape=model.image_shape,
        labels=model.labels,
        class_names=model.class_names,
        scale=model.scale,
        preparation=model.preparation,
        score=best.score,
        corrected_score=corrected.score,
        corrected_interval=corrected.interval,
        indistinguishable=corrected.indistinguishable,
        finalists=finalist_records(ranking.finals) if ranking.finals else None,
        selection=f"{ranking.why()} {ranking.about_score()}" if ranking.finals else ranking.why(),
        rerun=best.rerun,
        refit=run.settings.selection.refit,
        model_sha256=trial.weights_sha256,
    )
    weights = read_bytes(run.store.file(File.WEIGHTS, trial.key))
    summary = (model.summary() + "\n").encode()

    def check() -> None:
        """Raise `DamagedFile` unless best/ is intact; it may hold an earlier winner."""
        before = store.read(Winner)
        known = (before.model_sha256, trial.weights_sha256)  # killed between two writes
        if sha256(read_bytes(store.file(File.MODEL))) not in known:
            raise DamagedFile(
                store.file(File.MODEL), "its SHA-256 differs from the one in config.json"
            )
        if before.trial == trial.index and read_bytes(store.file(File.SUMMARY)) != summary:
            raise DamagedFile(store.file(File.SUMMARY), "is not the winner's summary")

    store.mended(check)
    store.write_bytes(File.MODEL, weights)
    store.write_bytes(File.SUMMARY, summary)
    store.write(winner)


# --- The random search: draws, trials, winner ---


def search(
    settings: SearchSettings,
    network: Network,
    listener: Listener,
    dataset: Dataset | None = None,
) -> Run:
    """Run the whole search, from settings to the finished run.

    Args:
      settings: the settings of the search, for which JAX was started (`api.start`).
      network: the network whose configurations are trained.
      listener: receives stages, events and results.
      dataset: the data, where they are not those that the settings name.
    """
    first = begin(settings, network, dataset)
    settings, dataset, draws = first.settings, first.dataset, first.draws
    description = describe_search(settings, dataset, network.definition.name, first.space)
    with begin_run(
        settings.run_directory, description, overwrite=settings.output.overwrite
    ) as store:
        schedule = Schedule(store, network, dataset, settings, draws)
        for line in store.write_search():
            logger.info("note: %s", line)
        logger.info(
            f"{len(draws)} of {first.space.size_text} configurations on {dataset.name}:"
            f" {len(dataset.y_train)} training, {len(dataset.y_validation)} validation and"
            f" {len(dataset.y_test)} test images; {description.device['kind']};"
            f" {store.path}"
        )
        listener.stage("training")
        if settings.running.ray is not None:
            load_ray()
        with (
            ThreadPoolExecutor(1) as beside,
            listener.training(store, network, settings, dataset, len(draws)) as trial_listener,
        ):
            # Runs beside the trials to save time afterwards. Leaving the context waits for it,
            # because modules can't be imported while Python shuts down.
            beside.submit(evaluation.prepare)
            train(schedule, network, settings, trial_listener)
            if schedule.left:
                logger.info(describe_end(settings.selection.max_seconds, len(draws), schedule.left))
            if not schedule.ranking.ranked and schedule.left:
                raise EnvironmentFailure(
                    f"no trial has completed in the time of {settings.selection.max_seconds:g} s;"
                    " the same command goes on"
                )
            if not schedule.ranking.ranked:
                error = schedule.trial(Key(0)).error
                raise EnvironmentFailure(f"every trial failed; trial 0: {error}")
            train_again(schedule, network, settings, trial_listener)
            trial_listener.trained()
            run = Run(store, network, checked=True)
            listener.ranked(run)
            finish(run, settings, dataset, listener)
    return run


def train(
    schedule: Schedule,
    network: Network,
    settings: SearchSettings,
    listener: TrialListener,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Train what is scheduled and not done; each event is recorded and passed to the listener.

    With `max_seconds` no trial starts after that time, except the first ones; trials are left then.
    """
    limit = math.inf if settings.selection.max_seconds is None else settings.selection.max_seconds
    until = clock() + limit
    in_time = True
    engine = engine_of(settings, network, schedule.dataset, schedule.stacking)
    while True:
        pending = schedule.pending() if in_time else {}
        if not pending:
            schedule.clean_up()
            pending = schedule.without_weights()
        if not pending:
            return
        for key in pending:
            if line := schedule.why_again(key):
                logger.info(line)
        checkpoints = schedule.set_aside_damaged_checkpoints(pending)
        running = engine.run(pending.items(), checkpoints)
        with running as events, signals_call(partial(_stop, events, listener)):
            if in_time:
                events.end_when(lambda: clock() >= until)
            try:
                for event in events:
                    schedule.record(event)
                    listener.event(event)
            except BaseException:
                # For example, the disk is full or the terminal is closed: record what is possible.
                events.stop()
                with suppress(Exception):  # of the engine itself
                    for event in events:
                        with suppress(Exception):
                            schedule.record(event)
                with suppress(Exception):
                    schedule.stopped()
                raise
            if events.stopping:
                schedule.stopped()
        in_time = clock() < until


def engine_of(
    settings: SearchSettings, network: Network, dataset: Dataset, stacking: Stacking | None
) -> Engine | RayEngine:
    """The engine of a search: on this machine, or on the nodes of a cluster."""
    common: dict[str, Any] = {
        "network": network,
        "dataset": dataset,
        "settings": settings.training,
        "seed": settings.space.seed,
        "lanes": settings.running.lanes,
        "stacking": stacking,
        "checkpoint_every": settings.running.checkpoint_every,
        "consecutive": settings.selection.max_seconds is not None,
    }
    if settings.running.ray is not None:
        return RayEngine(**common, address=settings.running.ray, cache=settings.running.cache)
    return Engine(**common, jobs=settings.running.jobs)


def _stop(events: Events | RayEvents, listener: TrialListener) -> None:
    """Stop after a signal, and acknowledge it at once: a block of steps ends first."""
    events.stop()
    listener.stopping()


def train_again(
    schedule: Schedule, network: Network, settings: SearchSettings, listener: TrialListener
) -> None:
    """Train the finalists' reruns and the winner's refit, as far as the settings ask for them.

    `max_seconds` limits the trials before them; reruns and refit are all trained.

    Raises:
      EnvironmentFailure: every rerun failed, or the refit did.
    """

    def again(keys: Sequence[Key]) -> None:
        schedule.add({key: schedule.draws[Key(key.index)] for key in keys})
        listener.again(keys, schedule.ended, len(schedule.dataset.y_train))
        train(schedule, network, settings.replace(max_seconds=None), listener)

    if settings.selection.finalists:
        keys = schedule.ranking.rerun_keys
        finalists = list(dict.fromkeys(key.index for key in keys))
        if len(finalists) < settings.selection.finalists:
            logger.info(
                f"note: --finalists asks for {settings.selection.finalists} trials, and"
                f" {len(finalists)} completed"
            )
        names = ", ".join(map(str, finalists))
        logger.info(f"finalists: trials {names}; {settings.selection.reruns} reruns of each")
        again(keys)
        if not schedule.ranking.finals:
            error = schedule.trial(keys[0]).error
            raise EnvironmentFailure(f"every rerun failed; trial {keys[0]}: {error}")
    if settings.selection.refit:
        key = Key(schedule.ranking.winner.index, REFIT)
        images = len(schedule.dataset.y_train) + len(schedule.dataset.y_validation)
        logger.info(f"refit of trial {key.index} on {images} training and validation images")
        again([key])
        if schedule.ranking.final is None:
            raise EnvironmentFailure(
                f"trial {key} failed: {schedule.trial(key).error}; without a refit the winner"
                " itself is tested"
            )
