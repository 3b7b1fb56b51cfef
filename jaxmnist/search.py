"""The random search: `python -m jaxmnist.search`, or `random_search` in Python."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import platform
import sys
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxmnist.command import Parser, add_settings, run_command
from jaxmnist.config import Hyperparameters, SearchSettings
from jaxmnist.errors import SurroundingsError, UsageError

if TYPE_CHECKING:
    from jaxmnist.data import Dataset
    from jaxmnist.engine import TrialFinished
    from jaxmnist.report.console import Console
    from jaxmnist.run import Run
    from jaxmnist.store import RunDirectory, Trial


def random_search(**options: Any) -> Run:
    """Search, test the winner once, fit the SVM; or go on where the same call was interrupted.

    Args:
      **options: the fields of `SearchSettings`, which are the words of the command line.

    Returns:
      The run, as it can also be read from its directory later.

    Raises:
      UsageError: a wrong option, a bad file, or a directory that is in use or another search's.
      SurroundingsError: a full disk, no network, or every trial failed.

    >>> run = random_search(max_trials=3, epochs=1, train_limit=6000)   # doctest: +SKIP
    >>> print(run.results_summary())                                    # doctest: +SKIP
    """
    known = [item.name for item in fields(SearchSettings)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"{name} is no option of a search" + (f"; {near[0]} is" if near else "")
            )
    return search(SearchSettings(**options))


def search(settings: SearchSettings) -> Run:
    """The whole way of the data, from settings to the finished run."""
    from jaxmnist.data import load_arrays, split
    from jaxmnist.report.console import Console
    from jaxmnist.run import Run
    from jaxmnist.space import fit_to_images
    from jaxmnist.store import RunDirectory

    console = Console(settings.quiet)
    if settings.data_dir is not None:
        # The run is read again from other folders.
        settings = replace(settings, data_dir=str(Path(settings.data_dir).resolve()))
    if settings.svm:
        from jaxmnist.svm import choose_backend

        choose_backend(settings.svm_backend, "cpu")  # complain before the search, not after it
    dataset = split(
        settings.dataset_name,
        load_arrays(settings.dataset, settings.data_dir),
        validation_split=settings.validation_split,
        seed=settings.seed,
        train_limit=settings.train_limit,
    )
    space, narrowed = fit_to_images(settings, *dataset.image_shape[:2])
    if narrowed:
        console.note(narrowed)
    budget = min(settings.max_trials, space.size)
    draws = dict(enumerate(itertools.islice(space.draws(settings.seed), budget)))
    with RunDirectory(settings.run_directory).locked() as directory:
        description = describe_search(settings, dataset, space.to_json())
        for line in directory.start(description, overwrite=settings.overwrite):
            console.note(f"note: {line}")
        console.note(
            f"{budget} of {space.size} configurations on {dataset.name}:"
            f" {len(dataset.y_train)} training, {len(dataset.y_validation)} validation and"
            f" {len(dataset.y_test)} test images; {description['device']['kind']}; {directory.path}"
        )
        console.stage("training")
        train_all(settings, dataset, draws, directory, console)
        run = Run(directory.path)
        if not run.ranked:
            raise SurroundingsError(f"every trial failed; trial 0: {run.trials[0].error}")
        console.result("\n" + run.results_summary() + "\n\n" + run.why())
        finish(run, settings, dataset, console)
    console.result(f"\n{console.times()}; results are in {directory.path}")
    return run


def describe_search(
    settings: SearchSettings, dataset: Dataset, space: dict[str, str]
) -> dict[str, Any]:
    """What search.json says; its `identity` makes the run what it is."""
    import jax

    device = jax.devices()[0]
    return {
        "identity": {
            "data": dataset.fingerprint(),
            **space,
            "seed": settings.seed,
            "epochs": settings.epochs,
            "batch_size": settings.batch_size,
            "learning_rate": settings.learning_rate,
            "optimizer": settings.training().optimizer,
            "validation_split": settings.validation_split,
            "train_limit": settings.train_limit,
        },
        "settings": settings.to_json(),
        "data": {
            "name": dataset.name,
            "train": len(dataset.y_train),
            "validation": len(dataset.y_validation),
            "test": len(dataset.y_test),
            "image_shape": list(dataset.image_shape),
            "labels": list(dataset.labels),
        },
        "versions": {name: version(name) for name in ("jaxmnist", "jax", "flax", "optax", "numpy")},
        "device": {
            "kind": f"{device.platform} {device.device_kind}",
            "devices": jax.local_device_count(),
            "machine": platform.machine(),
        },
    }


def train_all(
    settings: SearchSettings,
    dataset: Dataset,
    draws: dict[int, Hyperparameters],
    directory: RunDirectory,
    console: Console,
) -> None:
    """Train every draw that the run has no finished trial of, and keep the best weights."""
    from jaxmnist.engine import Engine, TrialFinished, TrialStarted
    from jaxmnist.selection import rank

    trials = read_trials(directory, draws, console)
    done = {index: trial for index, trial in trials.items() if trial.status != "running"}
    if done:
        console.note(f"{len(done)} trials are finished already")

    def ranking() -> list[int]:
        ranked = rank(
            [*done.values()], len(dataset.y_validation), settings.select, settings.tolerance
        )
        return [entry.trial.index for entry in ranked]

    def keep_best() -> None:
        directory.keep_weights({*ranking()[: settings.keep]})

    engine = Engine(dataset, settings.training(), settings.seed, settings.jobs)
    while pending := unfinished(draws, done, ranking()[: settings.keep], directory, console):
        with engine.run(pending.items()) as events:
            for event in events:
                console.event(event, draws, settings.epochs)
                before = trials.get(event.index)
                if isinstance(event, TrialStarted):
                    attempts = 1 + (before.attempts if before else 0)
                    trials[event.index] = started(
                        draws[event.index], event.index, dataset, attempts
                    )
                    directory.write_trial(trials[event.index])
                elif isinstance(event, TrialFinished):
                    assert before is not None
                    trial = write_finished(before, event, dataset, directory)
                    done[event.index] = trials[event.index] = trial
                    keep_best()


def unfinished(
    draws: dict[int, Hyperparameters],
    done: dict[int, Trial],
    best: list[int],
    directory: RunDirectory,
    console: Console,
) -> dict[int, Hyperparameters]:
    """The draws to train: those not done, and when all are, the best whose weights are gone.

    Weights may have been lost, or were not kept because other rules ranked the trials then.
    """
    missing = {index: draw for index, draw in draws.items() if index not in done}
    if missing:
        return missing
    lost = {index: draws[index] for index in best if not weights_match(directory, done[index])}
    for index in lost:
        console.note(f"trial {index} is among the best, but its weights are gone: once more")
    return lost


def read_trials(
    directory: RunDirectory, draws: dict[int, Hyperparameters], console: Console
) -> dict[int, Trial]:
    """The records that the run has already; damaged ones are set aside."""
    from jaxmnist.store import DamagedFile

    trials = {}
    for index in directory.trial_indices():
        try:
            trial = directory.read_trial(index)
            if trial is not None and trial.hyperparameters != draws.get(
                index, trial.hyperparameters
            ):
                raise DamagedFile(
                    f"trial {index}: its hyperparameters are not those of draw {index}"
                )
        except DamagedFile as problem:
            moved = directory.set_aside(directory.trial_folder(index) / "trial.json")
            console.note(f"note: {problem}; moved to {moved}, and the trial is run again")
            continue
        if trial is not None:
            trials[index] = trial
    beyond = [
        index for index, trial in trials.items() if index not in draws and trial.status != "running"
    ]
    if beyond:
        raise UsageError(
            f"--max-trials {len(draws)} is less than the {max(beyond) + 1} trials that this run"
            " has finished"
        )
    return trials


def started(draw: Hyperparameters, index: int, dataset: Dataset, attempts: int) -> Trial:
    """The record of a trial that begins."""
    from jaxmnist.model import count_parameters
    from jaxmnist.store import METRICS, Trial

    count = count_parameters(draw, dataset.image_shape, dataset.classes)
    return Trial(index, draw, "running", {key: [] for key in METRICS}, count, attempts=attempts)


def write_finished(
    trial: Trial, event: TrialFinished, dataset: Dataset, directory: RunDirectory
) -> Trial:
    """Keep what became of a trial: its weights first, then the record that names them."""
    from jaxmnist.store import METRICS, write_bytes
    from jaxmnist.trained import TrainedModel

    sha256 = None
    if event.parameters is not None:
        model = TrainedModel(
            trial.hyperparameters, dataset.image_shape, dataset.labels, event.parameters
        )
        content = model.to_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        write_bytes(directory.weights_path(trial.index), content)
    trial = replace(
        trial,
        status="completed" if event.error is None else "failed",
        history={key: [getattr(metrics, key) for metrics in event.history] for key in METRICS},
        seconds=event.seconds,
        error=event.error,
        weights_sha256=sha256,
    )
    directory.write_trial(trial)
    return trial


def weights_match(directory: RunDirectory, trial: Trial) -> bool:
    """Whether a trial's weights are there, and are the ones that its record names."""
    try:
        content = directory.weights_path(trial.index).read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content).hexdigest() == trial.weights_sha256


def finish(run: Run, settings: SearchSettings, dataset: Dataset, console: Console) -> None:
    """The winner: its summary, its one look at the test set, its features and the SVM."""
    from jaxmnist import evaluation

    console.stage("test")
    keep_winner(run)
    console.result("\n" + run.best_model.summary() + "\n")
    test = evaluation.kept_look(run) or evaluation.look(run, dataset, "winner")
    console.result(evaluation.describe(test))
    if settings.svm:
        from jaxmnist import svm

        console.stage("SVM")
        content = svm.fit_on_run(
            run, dataset, wanted=settings.svm_backend, draws=settings.svm_search
        )
        console.result("\n" + svm.describe(content))


def keep_winner(run: Run) -> None:
    """Write best/: the winner's weights, what they are, and their summary."""
    from jaxmnist.store import write_bytes, write_json

    trial, best = run.best_trial, run.directory.best
    model = run.load_model(trial)
    write_bytes(best / "model.safetensors", run.directory.weights_path(trial.index).read_bytes())
    write_bytes(best / "summary.txt", (model.summary() + "\n").encode())
    config = {
        "trial": trial.index,
        "hyperparameters": trial.hyperparameters.to_json(),
        "image_shape": list(model.image_shape),
        "labels": list(model.labels),
        "score": trial.score,
        "selection": run.why(),
        "model_sha256": trial.weights_sha256,
    }
    write_json(best / "config.json", config)


def main(arguments: list[str]) -> None:
    """The command."""
    parser = Parser(
        "search", "Random search over small convolutional networks for images like MNIST's."
    )
    add_settings(parser)
    search(SearchSettings(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(run_command(main))
