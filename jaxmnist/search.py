"""The random search: `python -m jaxmnist.search`, or `random_search` in Python."""

from __future__ import annotations

import itertools
import math
import os
import sys
from contextlib import suppress
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from jaxmnist.command import Parser, add_ranges, add_settings, run_command, signals_call
from jaxmnist.config import SearchSettings
from jaxmnist.errors import JaxmnistError, SurroundingsError, UsageError, one_line
from jaxmnist.models.space import Space
from jaxmnist.models.study.space import DEFINITION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from jaxmnist.data import Dataset
    from jaxmnist.models.hyperparameters import Hyperparameters
    from jaxmnist.models.network import Network
    from jaxmnist.models.space import SpaceDescription
    from jaxmnist.report.console import Console
    from jaxmnist.report.live import Reports
    from jaxmnist.run import Run
    from jaxmnist.trials import Trials


def random_search(**options: Any) -> Run:
    """Search, test the winner, fit and test the SVM; or go on where the same call was interrupted.

    Args:
      **options: the fields of `SearchSettings` and the names of hyperparameters, which are the
        words of the command line. A hyperparameter's range is text such as '32:128:16', a tuple
        (first, last[, step or 'log']), a list of values, or one value.

    Returns:
      The run, as it can also be read from its directory later.

    Raises:
      UsageError: a wrong option, a bad file, or a directory that is in use or another search's.
      SurroundingsError: a full disk, no network, or every trial failed.

    >>> random_search(max_trails=3)
    Traceback (most recent call last):
    jaxmnist.errors.UsageError: unknown option 'max_trails'; did you mean 'max_trials'?
    """
    return search(settings_of(options, Space(DEFINITION)))


def settings_of(options: Mapping[str, Any], space: Space) -> SearchSettings:
    """The settings that options say, some of which are ranges of hyperparameters."""
    known = [item.name for item in fields(SearchSettings) if item.name != "ranges"]
    ranges = {name: options[name] for name in space.parameters if name in options}
    for name in options:
        if name not in known and name not in ranges:
            import difflib

            near = difflib.get_close_matches(name, [*known, *space.parameters], 1)
            raise UsageError(
                f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    others = {name: value for name, value in options.items() if name not in ranges}
    return SearchSettings(**others, ranges=ranges)


def search(settings: SearchSettings, network: Network | None = None) -> Run:
    """The whole way of the data, from settings to the finished run.

    network: whose configurations are tried; by default the study's.
    """
    definition = network.definition if network else DEFINITION
    declared = Space(definition, settings.ranges).describe()  # complain before data are loaded
    from concurrent.futures import ThreadPoolExecutor

    from jaxmnist.cache import cache_folder, keep_programs
    from jaxmnist.devices import debugging_settings, set_pool_size, start_jax

    if threads := recorded_threads(settings):
        set_pool_size(threads)
    folder = cache_folder(settings.cache)
    cache_note = keep_programs(folder, wanted=settings.cache is not None)
    start_jax()
    from jaxmnist import evaluation
    from jaxmnist.data import load_dataset
    from jaxmnist.models.study.network import STUDY
    from jaxmnist.report.console import open_console
    from jaxmnist.report.live import Reports
    from jaxmnist.run import Run
    from jaxmnist.store import begin_run
    from jaxmnist.trials import Trials

    network = network or STUDY
    console = open_console(settings.quiet)
    if settings.data_dir is not None:
        # The run is read again from other folders.
        settings = replace(settings, data_dir=os.path.abspath(settings.data_dir))
    if settings.svm:
        from jaxmnist.svm import choose_backend

        choose_backend(settings.svm_backend, "cpu")  # complain before the search, not after it
    dataset = load_dataset(settings)
    space = Space(definition, settings.ranges, dataset.image_shape, dataset.classes)
    description = space.describe()
    draws = dict(enumerate(itertools.islice(space.draws(settings.seed), settings.max_trials)))
    for line in (
        cache_note,
        describe_narrowed(declared, description, dataset.image_shape),
        dataset.scale_note,
        describe_budget(len(draws), settings.max_trials, description),
    ):
        if line:
            console.note(line)
    check_memory(draws.values(), settings, dataset, network)
    if debugging := debugging_settings():
        rehearse(network, draws[0], dataset, debugging)
    said = describe_search(settings, dataset, definition.name, description)
    with begin_run(
        settings.run_directory, said, overwrite=settings.overwrite, say=console.note
    ) as directory:
        trials = Trials(directory, network, dataset, settings, draws, console.note)
        for line in directory.write_search():
            console.note(f"note: {line}")
        console.note(
            f"{len(draws)} of {description.size_text} configurations on {dataset.name}:"
            f" {len(dataset.y_train)} training, {len(dataset.y_validation)} validation and"
            f" {len(dataset.y_test)} test images; {said['device']['kind']};"
            f" {directory.path}"
        )
        console.stage("training")
        with (
            ThreadPoolExecutor(1) as beside,
            Reports(directory, network, settings, dataset, len(draws), console) as reports,
        ):
            # Beside the trials, so that nobody waits for it afterwards; but whatever ends this
            # waits until it is done, as modules can't be imported while Python shuts down.
            beside.submit(evaluation.prepare)
            train(trials, network, settings, dataset, reports, console.note)
            reports.trained()
            run = Run(directory, network)
            if not run.ranked:
                raise SurroundingsError(f"every trial failed; trial 0: {run.trials[0].error}")
            console.results(run)
            finish(run, settings, dataset, console)
    page = ", report.html among them" if settings.report else ""
    console.result(f"\n{console.times()}; results are in {directory.path}{page}")
    return run


def describe_narrowed(
    declared: SpaceDescription, found: SpaceDescription, image_shape: tuple[int, int, int]
) -> str | None:
    """What to tell a person of ranges that are narrower for these images than for MNIST's."""
    before, now = declared.ranges(), found.ranges()
    different = [
        f"{name} {now[name]}" + (f", not {before[name]}" if name in before else "")
        for name in now
        if now[name] != before.get(name)
    ]
    if not different:
        return None
    height, width = image_shape[:2]
    return f"images of {height}×{width} pixels have room for {'; '.join(different)}"


def describe_budget(drawn: int, wanted: int, space: SpaceDescription) -> str | None:
    """What to tell a person where fewer configurations were drawn than trials were wanted."""
    if drawn == wanted:
        return None
    if space.size == drawn:
        return f"the space has {drawn} configurations, fewer than {wanted}: all are trained"
    return (
        f"after {drawn} configurations 1,000 draws in a row gave one of them again: the search ends"
        " with these"
    )


def check_memory(
    draws: Iterable[Hyperparameters],
    settings: SearchSettings,
    dataset: Dataset,
    network: Network,
) -> None:
    """Raise `UsageError` if a network that was drawn can't be trained in this machine's memory.

    Counted is the least that it takes: weights as they are drawn (float64), trained, averaged
    twice by Adam, and their gradients; outputs and gradients of all layers for 32 images.
    """
    from jaxmnist.files import memory
    from jaxmnist.models.network import DataSpec

    images = min(settings.batch_size, 32)
    for draw in set(draws):
        rows = network.layers(draw, DataSpec.of(dataset))
        weights = sum(row.parameters for row in rows)
        outputs = sum(math.prod(row.output_shape) for row in rows)
        needed = 4 * (6 * weights + 2 * images * outputs)
        if needed > memory():
            raise UsageError(
                f"{draw}: training it takes {needed / 2**30:.0f} GiB or more, and there are"
                f" {memory() / 2**30:.0f} GiB of memory; smaller values take less"
            )


def recorded_threads(settings: SearchSettings) -> int | None:
    """The size of XLA's thread pool in the run that goes on; None for a new one.

    It is needed before anything else of the run is read, as it can't be set once JAX has started.
    """
    from jaxmnist.store import RunDirectory, threads_of

    try:
        opened = RunDirectory.open(settings.run_directory)
        return None if settings.overwrite else threads_of(opened.search)
    except JaxmnistError:  # nothing there, or damage, which is met again under the lock
        return None


def rehearse(
    network: Network, hyperparameters: Hyperparameters, dataset: Dataset, debugging: str
) -> None:
    """Raise `UsageError` if nothing can be trained with JAX's settings for finding faults.

    Every trial would fail otherwise, each with the same error.

    Args:
      network, hyperparameters: what is trained.
      dataset: whose first two images it is trained on.
      debugging: the settings, for the error.
    """
    from jaxmnist.config import TrainingSettings
    from jaxmnist.engine import Engine
    from jaxmnist.events import TrialFinished

    few = replace(
        dataset,
        **{
            name: getattr(dataset, name)[:2]
            for name in ("x_train", "y_train", "x_validation", "y_validation")
        },
    )
    error = None
    try:
        engine = Engine(network, few, TrainingSettings(epochs=1, batch_size=2), seed=0)
        with engine.run([(0, hyperparameters)]) as events:
            for event in events:
                if isinstance(event, TrialFinished) and not event.diverged:
                    error = event.error
    except Exception as problem:
        error = one_line(problem, named=True)
    if error:
        raise UsageError(f"nothing can be trained with JAX's {debugging}: {error}")


def train(
    trials: Trials,
    network: Network,
    settings: SearchSettings,
    dataset: Dataset,
    reports: Reports,
    say: Callable[[str], None],
) -> None:
    """Train what is not finished, and tell what happens as it happens."""
    from jaxmnist.cache import cache_folder
    from jaxmnist.engine import Engine

    engine = Engine(
        network,
        dataset,
        settings.training(),
        settings.seed,
        jobs=settings.jobs,
        lanes=settings.lanes,
        stacking=trials.stacking,
        memory=cache_folder(settings.cache),
        checkpoint_every=settings.checkpoint_every,
    )
    while pending := trials.pending() or lost_trials(trials):
        for index in pending:
            if line := trials.why_again(index):
                say(line)
        checkpoints = trials.set_aside_damaged_checkpoints(pending)
        running = engine.run(pending.items(), checkpoints)
        with running as events, signals_call(events.stop):
            try:
                for event in events:
                    trials.record(event)
                    reports.event(event)
            except BaseException:
                # The disk is full, or the terminal gone: what can be kept is.
                events.stop()
                for event in events:
                    with suppress(Exception):
                        trials.record(event)
                with suppress(Exception):
                    trials.stopped()
                raise
            if events.stopping:
                trials.stopped()


def lost_trials(trials: Trials) -> dict[int, Hyperparameters]:
    """The best trials whose weights are gone or damaged; what was left behind is tidied up."""
    trials.set_aside_damaged_weights()
    trials.delete_leftovers()
    return trials.without_weights()


def describe_search(
    settings: SearchSettings, dataset: Dataset, network: str, space: SpaceDescription
) -> dict[str, Any]:
    """What search.json says; its `identity` makes the run what it is."""
    import platform
    from importlib.metadata import version

    import jax

    from jaxmnist import __version__
    from jaxmnist.devices import pool_size
    from jaxmnist.report.record import machine

    device = jax.devices()[0]
    return {
        "identity": {
            "data": dataset.fingerprint,
            "network": network,
            "space": space.ranges(),
            **settings.identity(),
        },
        "space": space.to_json(),
        "settings": settings.to_json(),
        "data": {
            "name": dataset.name,
            "train": len(dataset.y_train),
            "validation": len(dataset.y_validation),
            "test": len(dataset.y_test),
            "image_shape": list(dataset.image_shape),
            "labels": list(dataset.labels),
            "scale": dataset.scale,
        },
        "versions": {
            "jaxmnist": __version__,
            **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        },
        "device": {
            "kind": f"{device.platform} {device.device_kind}",
            "devices": jax.local_device_count(),
            "machine": platform.machine(),
        },
        "threads": pool_size(),
        "machine": machine(),
    }


def finish(run: Run, settings: SearchSettings, dataset: Dataset, console: Console) -> None:
    """The winner: its summary, its one look at the test set, its features and the SVM."""
    from jaxmnist import evaluation

    console.stage("test")
    keep_winner(run, console)
    console.result("\n" + run.best_model.summary() + "\n")
    kept = run.files.mended(lambda: evaluation.kept_look(run), console.note)
    test = kept or evaluation.look(run, dataset, "winner")
    run.files.complete_ledger(test, dataset.fingerprint, console.note)
    unreadable = sum(look["purpose"] == "unreadable" for look in run.directory.read_looks())
    if unreadable:
        console.note(f"note: {unreadable} looks in ledger.jsonl can't be read; they count as looks")
    console.result(evaluation.describe(test))
    if settings.svm:
        from jaxmnist import svm

        console.stage("SVM")
        content = svm.fit_on_run(
            run,
            dataset,
            wanted=settings.svm_backend,
            draws=settings.svm_search,
            say=console.note,
        )
        console.result("\n" + svm.describe(content))


def keep_winner(run: Run, console: Console) -> None:
    """Write best/: the winner's weights, what they are, and their summary."""
    from jaxmnist.atomic import DamagedFile, read_bytes, read_json, sha256, write_bytes, write_json
    from jaxmnist.run import CONFIG

    trial, best = run.best_trial, run.directory.best
    model = run.load_model(trial)
    config = {
        "trial": trial.index,
        "hyperparameters": trial.hyperparameters.to_json(),
        "image_shape": list(model.image_shape),
        "labels": list(model.labels),
        "scale": model.scale,
        "score": trial.score,
        "selection": run.why(),
        "model_sha256": trial.weights_sha256,
    }
    weights = read_bytes(run.directory.weights_path(trial.index))
    summary = (model.summary() + "\n").encode()

    def check() -> None:
        """What is there may be of an earlier winner, but not damaged."""
        before = read_json(best / "config.json", CONFIG)
        known = (before["model_sha256"], trial.weights_sha256)  # killed between the two files
        if sha256(read_bytes(best / "model.safetensors")) not in known:
            raise DamagedFile(best / "model.safetensors", "its SHA-256 is not config.json's")
        if before["trial"] == trial.index and read_bytes(best / "summary.txt") != summary:
            raise DamagedFile(best / "summary.txt", "is not the winner's summary")

    run.files.mended(check, console.note)
    write_bytes(best / "model.safetensors", weights)
    write_bytes(best / "summary.txt", summary)
    write_json(best / "config.json", config)


def main(arguments: list[str]) -> None:
    """The command."""
    parser = Parser(
        "search", "Random search over small convolutional networks for images like MNIST's."
    )
    add_settings(parser)
    space = Space(DEFINITION)
    add_ranges(parser, space.describe().ranges(), DEFINITION.help or {})
    search(settings_of(vars(parser.parse_args(arguments)), space))


if __name__ == "__main__":
    goes_on = "; the same command goes on from here"
    goes_on += " (without --overwrite, once trials have begun)" if "--overwrite" in sys.argv else ""
    sys.exit(run_command(main, advice=goes_on))
