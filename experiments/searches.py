"""Whole searches from a cold start, compared with KerasTuner; imports and compiling count."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import (
    ONE_A_CORE,
    ONE_PROCESS,
    PEERS,
    Peer,
    PeerFailed,
    alternate,
    described,
    last_json,
    processors,
    run_together,
    spread,
)
from steps import OURS, training_flops

import jaxmnist
from jaxmnist.data.dataset import Dataset, load_dataset
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION
from jaxmnist.settings import DataSettings, SearchSettings

SEARCH_PEERS = {
    OURS: Peer("", arrangements=(ONE_PROCESS,), elsewhere=False),
    "KerasTuner on TensorFlow": Peer(
        "keras_tuner_search.py", ("tensorflow",), ("keras_tuner", "tensorflow", "tensorboard")
    ),
    "KerasTuner on JAX": Peer("keras_tuner_search.py", ("jax",), ("keras_tuner", "jax")),
}


# The imports of a search, timed in their own process.
IMPORTS = """
import json, time
started = time.perf_counter()
import jaxmnist.search.search
print(json.dumps({"import_seconds": time.perf_counter() - started}))
"""


@dataclass(frozen=True)
class Search:
    """What both sides search: the same configurations on the same images.

    settings: of jaxmnist's command, whose split makes the images of both sides.
    configurations: draws 0, 1, … of the seed.
    """

    settings: SearchSettings
    dataset: Dataset
    configurations: list[Hyperparameters]


def train_limit(images: int, validation_split: float) -> int:
    """The `--train-limit` that leaves exactly `images` to train on."""
    return next(n for n in itertools.count(images) if n - round(validation_split * n) == images)


def define(trials: int, epochs: int, images: int) -> Search:
    """The search of `trials` draws of seed 0 on `images` training images of MNIST."""
    limit = train_limit(images, DataSettings().validation_split)
    settings = SearchSettings(max_trials=trials, epochs=epochs, train_limit=limit, svm=False)
    configurations = list(itertools.islice(Space(DEFINITION).draws(settings.space.seed), trials))
    return Search(settings, load_dataset(settings.data, settings.space.seed), configurations)


def search_ourselves(search: Search) -> dict[str, Any]:
    """jaxmnist's own command, its look at the test set included."""
    settings = search.settings
    with tempfile.TemporaryDirectory() as folder:
        # KerasTuner's search writes neither a page nor TensorBoard's files.
        command = [sys.executable, "-m", "jaxmnist.search", "--directory", folder]
        command += ["--recipe", "study", "--no-svm", "--no-report", "--no-tensorboard"]
        for flag, value in (
            ("--max-trials", settings.selection.max_trials),
            ("--epochs", settings.training.epochs),
            ("--train-limit", settings.data.train_limit),
            ("--batch-size", settings.training.batch_size),
            ("--seed", settings.space.seed),
        ):
            command += [flag, str(value)]
        _, seconds = run_together([command])
        trials = jaxmnist.Run(Path(folder) / "mnist").trials
        description = json.loads((Path(folder) / "mnist" / "search.json").read_text())
    if description["identity"]["data"] != search.dataset.fingerprint:
        raise PeerFailed("searched on other images")
    if [trial.hyperparameters for trial in trials] != search.configurations:
        raise PeerFailed("searched other configurations")
    outputs, _ = run_together([[sys.executable, "-c", IMPORTS]])
    return {
        "seconds": seconds,
        "import_seconds": last_json(outputs[0])["import_seconds"],
        "scores": [trial.score for trial in trials],
        "versions": description["versions"],
    }


def shares(configurations: list[Hyperparameters], count: int) -> list[list[Hyperparameters]]:
    """The configurations dealt out so that each share has about the same work."""
    dealt: list[list[Hyperparameters]] = [[] for _ in range(count)]
    for configuration in sorted(configurations, key=training_flops, reverse=True):
        min(dealt, key=lambda share: sum(map(training_flops, share))).append(configuration)
    return [share for share in dealt if share]


def search_with_peer(
    peer: Peer, search: Search, arrangement: str, python: str, data: Path
) -> dict[str, Any]:
    """A peer's search; with one process a core, each searches a share of the configurations."""
    pinned = arrangement == ONE_A_CORE
    configurations = search.configurations
    parts = shares(configurations, len(processors())) if pinned else [configurations]
    with tempfile.TemporaryDirectory() as folder:
        commands = []
        for i, part in enumerate(parts):
            task = {
                "backend": peer.arguments[0],
                "data": str(data),
                "configurations": [configuration.to_json() for configuration in part],
                "epochs": search.settings.training.epochs,
                "batch_size": search.settings.training.batch_size,
                "learning_rate": search.settings.training.learning_rate,
                "directory": f"{folder}/{i}",
            }
            commands.append([python, str(PEERS / peer.script), json.dumps(task)])
        outputs, seconds = run_together(commands, pinned)
    answers = [last_json(output) for output in outputs]
    for part, answer in zip(parts, answers, strict=True):
        if [Hyperparameters(c) for c in answer["configurations"]] != part:
            raise PeerFailed("searched other configurations")
    return {
        "seconds": seconds,
        "import_seconds": max(answer["import_seconds"] for answer in answers),
        "scores": [score for answer in answers for score in answer["scores"]],
        "versions": answers[0]["versions"],
    }


def compare(
    search: Search, names: list[str], rounds: int, python: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """All searches: a row for each peer and arrangement, and a line for each that failed."""
    cases = [(name, a) for name in names for a in SEARCH_PEERS[name].arrangements]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.npz"
        parts = ("x_train", "y_train", "x_validation", "y_validation")
        np.savez(data, **{part: getattr(search.dataset, part) for part in parts})

        def one(name: str, arrangement: str) -> dict[str, Any]:
            if name == OURS:
                return search_ourselves(search)
            return search_with_peer(SEARCH_PEERS[name], search, arrangement, python, data)

        results, failed = alternate(cases, rounds, one, "seconds")
    return rows(results), failed


def rows(results: dict[tuple[str, ...], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What the rounds come to; `ratio` is a side's time over jaxmnist's."""
    seconds = {case: [r["seconds"] for r in found] for case, found in results.items()}
    ours = seconds.get((OURS, ONE_PROCESS))
    return [
        {
            "peer": case[0],
            "arrangement": case[1],
            "seconds": spread(seconds[case]),
            "rounds": seconds[case],
            "ratio": statistics.median(seconds[case]) / statistics.median(ours) if ours else None,
            "import_seconds": statistics.median(r["import_seconds"] for r in found),
            "scores": found[0]["scores"],
            "versions": found[0]["versions"],
        }
        for case, found in results.items()
    ]


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The comparison as text: the table, who was faster, the versions."""
    yield (
        "| search | seconds (lowest to highest) | it / jaxmnist | of them imports "
        "| validation accuracy, mean |"
    )
    yield "| --- | --- | --- | --- | --- |"
    for r in rows:
        seconds = r["seconds"]
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        yield (
            f"| {r['peer']}, {r['arrangement']} | {seconds['median']:.1f} "
            f"({seconds['lowest']:.1f} to {seconds['highest']:.1f}) | {ratio} "
            f"| {r['import_seconds']:.1f} s | {statistics.mean(r['scores']):.4f} |"
        )
    yield ""
    for r in rows:
        if r["ratio"] is not None and r["ratio"] < 1:
            yield f"Faster than jaxmnist: {r['peer']}, {r['arrangement']}, by {1 / r['ratio']:.2f}"
    for name, versions in {r["peer"]: r["versions"] for r in rows}.items():
        yield f"{name}: {described(versions)}"
