"""Which training makes the best network in five epochs, judged on validation images.

Trains the study's network by candidate recipes, from several seeds, on MNIST, on MNIST's first
5,000 images and on Fashion-MNIST, and prints the mean validation accuracy of each. What a file of
results has is not trained again, so that the script can be stopped and goes on:

    python experiments/recipe.py --results recipe.jsonl --fashion FOLDER
    python experiments/recipe.py --results recipe.jsonl --recipes study fast --networks reference \
        drawn-1 drawn-2 --seeds 5

`--weights FOLDER` keeps the trained weights; with `--judge validation` and, once, `--judge test`
they are judged on these images, and with `--svm` so is an SVM on their features. `--time ROUNDS`
times steps. `--runs` tells what searches by a recipe have: falls between epochs, what seeds do to
finalists, and with `--svm` SVMs:

    python -m jaxmnist.search --keep 10 --finalists 10 --directory fast --recipe fast
    python -m jaxmnist.search --keep 10 --finalists 10 --directory study --recipe study
    python experiments/recipe.py --runs fast/mnist study/mnist --svm
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import spearmanr

from jaxmnist.data.dataset import Dataset, dataset_in_memory, load_arrays, load_dataset
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.lanes import Stacking
from jaxmnist.engine.local import Engine
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec, by_path, from_paths, is_kernel
from jaxmnist.models.network import STUDY, Network
from jaxmnist.models.space import Space
from jaxmnist.models.study import build_model, configuration
from jaxmnist.results.evaluation import calibration
from jaxmnist.results.run import Run
from jaxmnist.results.selection import rule_of
from jaxmnist.results.svm import Fitting, fit
from jaxmnist.results.trained import TrainedModel
from jaxmnist.runs.trial import Key
from jaxmnist.settings import DataSettings, SearchSettings

FEW = 5_000  # images of the small set
VALIDATED = 5_000  # images that follow them, which validate the small set
STEPS = 16  # that are timed at once
TOLERANCES = (None, 0.0, 0.001)  # largest falls that don't count; None for the default's test
ADAMW: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 1e-2}
CYCLE: dict[str, Any] = {**ADAMW, "schedule": "one-cycle", "learning_rate": 4e-3}
SMOOTH: dict[str, Any] = {**CYCLE, "schedule": "linear", "label_smoothing": 0.1}
# Settings that differ from the study's, by the name of the recipe.
RECIPES: dict[str, dict[str, Any]] = {
    "study": {},
    "rate-2e-3": {"learning_rate": 2e-3},
    "adamw": ADAMW,
    "one-cycle-2e-3": {**CYCLE, "learning_rate": 2e-3},
    "one-cycle": CYCLE,
    "one-cycle-6e-3": {**CYCLE, "learning_rate": 6e-3},
    "cosine": {**ADAMW, "schedule": "cosine", "learning_rate": 2e-3},
    "linear-2e-3": {**CYCLE, "schedule": "linear", "learning_rate": 2e-3},
    "linear": {**CYCLE, "schedule": "linear"},
    "adam-linear": {"schedule": "linear", "learning_rate": 2e-3},
    "nadam-linear": {"optimizer": "nadam", "schedule": "linear", "learning_rate": 2e-3},
    "lion-linear": {
        "optimizer": "lion",
        "schedule": "linear",
        "learning_rate": 4e-4,
        "weight_decay": 0.1,
    },
    "sgd-linear": {"optimizer": "sgd", "schedule": "linear", "learning_rate": 0.1},
    "decay-0.1": {**CYCLE, "schedule": "linear", "weight_decay": 0.1},
    "decay-0": {**CYCLE, "schedule": "linear", "weight_decay": 0.0},
    "batch-64": {**CYCLE, "schedule": "linear", "batch_size": 64, "learning_rate": 3e-3},
    "smoothing-0.05": {**CYCLE, "schedule": "linear", "label_smoothing": 0.05},
    "smoothing": {**CYCLE, "schedule": "linear", "label_smoothing": 0.1},
    "average": {"ema_momentum": 0.99},
    "linear-average": {**CYCLE, "schedule": "linear", "ema_momentum": 0.98},
    "shift-1": {**CYCLE, "schedule": "linear", "random_shift": 1},
    "shift-2": {**CYCLE, "schedule": "linear", "random_shift": 2},
    "rotation": {**CYCLE, "schedule": "linear", "random_rotation": 10.0},
    "shift-rotation": {
        **CYCLE,
        "schedule": "linear",
        "random_shift": 1,
        "random_rotation": 10.0,
    },
    # `--recipe fast`
    "smoothing-decay": {**SMOOTH, "weight_decay": 0.1},
    "glorot-uniform": {**SMOOTH, "weight_decay": 0.1},
    "smoothing-decay-2e-3": {**SMOOTH, "weight_decay": 0.1, "learning_rate": 2e-3},
    "smoothing-decay-6e-3": {**SMOOTH, "weight_decay": 0.1, "learning_rate": 6e-3},
    "smoothing-decay-0.3": {**SMOOTH, "weight_decay": 0.3},
    "smoothing-0.05-decay": {**SMOOTH, "weight_decay": 0.1, "label_smoothing": 0.05},
    "smoothing-decay-average": {**SMOOTH, "weight_decay": 0.1, "ema_momentum": 0.98},
    "smoothing-decay-shift-1": {**SMOOTH, "weight_decay": 0.1, "random_shift": 1},
    "smoothing-batch-64": {**SMOOTH, "batch_size": 64, "learning_rate": 3e-3},
    "smoothing-shift-1": {**SMOOTH, "random_shift": 1},
    "smoothing-shift-rotation": {**SMOOTH, "random_shift": 1, "random_rotation": 10.0},
}


def glorot_uniform(shapes: Any, seed: int, index: int) -> dict[str, Any]:
    """The study's initial variables of the distribution that Keras' layers have by default."""
    random = np.random.default_rng([seed, index, 1])

    def draw(path: Any, x: Any) -> np.ndarray:
        if not is_kernel(path, x):
            return np.zeros(x.shape, x.dtype)
        limit = np.sqrt(6 / (math.prod(x.shape[:-2]) * (x.shape[-2] + x.shape[-1])))
        return random.uniform(-limit, limit, x.shape).astype(x.dtype)

    found: dict[str, Any] = jax.tree_util.tree_map_with_path(draw, shapes)
    return found


assert STUDY.known is not None
# Of recipes with another one than the study's.
NETWORKS = {
    "glorot-uniform": Network(build_model, known=replace(STUDY.known, draw=glorot_uniform)),
}


def networks() -> dict[str, Hyperparameters]:
    """The reference network, and draws 1 and 2 of seed 0: draw 0 is nearly the reference."""
    draws = Space(STUDY.definition, {}).draws(0)
    drawn = {f"drawn-{i}": draw for i, draw in enumerate(islice(draws, 3)) if i}
    return {"reference": configuration(112, 2, 1, 224), **drawn}


def load(name: str, fashion: str | None) -> Dataset:
    """The set 'mnist', 'few' or 'fashion'; `fashion` is a folder in place of a download."""
    if name == "fashion":
        return load_dataset(DataSettings(dataset="fashion_mnist", data_dir=fashion), 0)
    if name == "mnist":
        return load_dataset(DataSettings(), 0)
    whole = load_arrays()
    x, y, train, validation = whole.x_train, whole.y_train, slice(FEW), slice(FEW, FEW + VALIDATED)
    parts = (x[train], y[train], x[validation], y[validation], whole.x_test, whole.y_test)
    return dataset_in_memory(parts, DataSettings(dataset=name), 0)


@dataclass(frozen=True)
class Task:
    """A training: a network by a recipe on a set, from a seed that counts from 1."""

    set: str
    network: str
    recipe: str
    seed: int

    @property
    def name(self) -> str:
        """A name that can be a file's."""
        return f"{self.set}_{self.network}_{self.recipe}_{self.seed}"

    @property
    def key(self) -> Key:
        """What its initial weights and its order of images depend on."""
        return Key(zlib.crc32(f"{self.network} {self.recipe}".encode()), self.seed)


def train(
    tasks: list[Task], data: Dataset, epochs: int, weights: Path | None, lanes: int | None
) -> Iterator[dict[str, Any]]:
    """Train tasks of one set, `lanes` in a program; yields what is known of each as it ends."""
    drawn = networks()
    for own in {NETWORKS.get(task.recipe, STUDY) for task in tasks}:
        here = {task.key: task for task in tasks if NETWORKS.get(task.recipe, STUDY) is own}
        trials = [
            (key, drawn[task.network].replace(**RECIPES[task.recipe])) for key, task in here.items()
        ]
        settings = SearchSettings(recipe="study", epochs=epochs).training
        engine = Engine(own, data, settings, seed=0, lanes=lanes, consecutive=True)
        with engine.run(trials) as events:
            for event in events:
                if not isinstance(event, TrialFinished):
                    continue
                task = here[event.key]
                if weights and event.parameters:
                    arrays = dict(by_path(event.parameters))
                    np.savez(weights / f"{task.name}.npz", **arrays)
                yield {
                    **asdict(task),
                    "settings": RECIPES[task.recipe],
                    "history": [asdict(metrics) for metrics in event.history],
                    "seconds": event.seconds,
                    "error": event.error,
                }
                print(task.name, event.history[-1] if event.history else event.error, flush=True)


def step_seconds(recipes: list[str], data: Dataset, rounds: int) -> str:
    """Seconds of a step of the reference network by each recipe, alternating, beside the first."""
    programs: dict[str, list[Any]] = {}
    for recipe in recipes:
        drawn = networks()["reference"].replace(**RECIPES[recipe])
        settings = SearchSettings(recipe="study").training
        engine = Engine(STUDY, data, settings, seed=0, stacking=Stacking())
        (group,) = engine.builder.groups([(Key(0), drawn)], Stacking())
        order = engine.builder.batches_of(group, 0)
        state = engine.builder.start(group, {})
        programs[recipe] = [engine.compilers(group)[0](), state, (*engine.builder.train, order)]
    found: dict[str, list[float]] = {recipe: [] for recipe in recipes}
    for _ in range(rounds + 1):
        for recipe, program in programs.items():
            run, state, arrays = program
            began = time.perf_counter()
            program[1] = jax.block_until_ready(
                run(state, *arrays, np.int32(0), np.int32(STEPS), np.int32(0))
            )
            found[recipe].append((time.perf_counter() - began) / STEPS)
    seconds = {recipe: sorted(times[1:]) for recipe, times in found.items()}
    first = statistics.median(seconds[recipes[0]])
    lines = []
    for recipe, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{1e3 * middle:.3g} ({1e3 * times[0]:.3g} to {1e3 * times[-1]:.3g})"
        lines.append((recipe, spread, f"{middle / first:.3f}"))
    heads = ("recipe", "milliseconds a step (lowest to highest)", "/ the first")
    return markdown(heads, lines)


def judge(task: Task, data: Dataset, given: argparse.Namespace) -> list[float]:
    """Accuracy, loss and calibration error of kept weights on validation or test images.

    The SVM's accuracy comes behind these, where one is asked for.
    """
    images, labels = getattr(data, f"x_{given.judge}"), getattr(data, f"y_{given.judge}")
    with np.load(given.weights / f"{task.name}.npz") as arrays:
        kept = dict(arrays)
    drawn = networks()[task.network]
    shapes = STUDY.bind(drawn, DataSpec(data.image_shape, data.classes, data.scale)).shapes
    parameters = from_paths(kept, shapes)
    model = TrainedModel(drawn, data.image_shape, data.labels, data.scale, parameters)
    found = calibration(labels, model.predict_proba(images))
    row = [sum(each.right for each in found.bins) / found.images, found.loss, found.error]
    return [*row, svm_accuracy(model, data, given.judge)] if given.svm else row


def svm_accuracy(model: TrainedModel, data: Dataset, part: str) -> float:
    """The accuracy on validation or test images of an SVM on the features of training images."""
    images, labels = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
    batches = partial(model.batches, "features")
    parts = (data.x_train, data.y_train), (data.x_validation, data.y_validation)
    svm = fit(batches, model.feature_count, *parts, how=Fitting("sklearn"), seed=0).svm
    projected = np.concatenate([svm.project(values) for _, values in batches(images)])
    return float(np.mean(svm.classifier.predict(projected) == labels))


def effects(folder: str) -> tuple[object, ...]:
    """A row on the trials of a search: scores, falls, and how many count by each tolerance.

    Judged on validation images.
    """
    run = Run(folder)
    scores = [entry.score for entry in run.ranking.ranked]
    falls = [max((fall.size for fall in e.falls), default=0.0) for e in run.ranking.ranked]
    trials = [entry.trial for entry in run.ranking.ranked]
    rules = [rule_of("steady", run.validation_images, tolerance) for tolerance in TOLERANCES]
    ranked = [rule.rank(trials) for rule in rules]
    unsteady = (f"{sum(not e.steady for e in each)} ({each[0].score:.4f})" for each in ranked)
    return folder, mean(scores), sum(fall > 0 for fall in falls), f"{max(falls):.4f}", *unsteady


def reruns(folder: str) -> tuple[object, ...] | None:
    """A row on a search's finalists: how seeds move the accuracy. None if it has none.

    A finalist's first training counts among its seeds, but not in the mean of its reruns.
    """
    run = Run(folder)
    finals = [f for f in run.ranking.finals if f.reruns]
    if not finals:
        return None
    first = {f.trial.index: f.trial.metric("val_accuracy")[-1] for f in finals}
    means = {f.trial.index: f.mean for f in finals}
    variances = [statistics.variance([first[f.trial.index], *f.scores]) for f in finals]
    winner = run.ranking.ranked[0].trial.index
    return (
        folder,
        len(finals),
        f"{statistics.mean(variances) ** 0.5:.4f}",
        f"{statistics.stdev(means.values()):.4f}",
        f"{spearmanr(list(first.values()), list(means.values())).statistic:.2f}",
        f"{first[winner]:.4f}, {means[winner]:.4f}",
        f"{max(means.values()):.4f}",
    )


def svms(folder: str) -> tuple[object, ...]:
    """A row on SVMs on the features of a search's trials, whose weights must be kept.

    Judged on validation images.
    """
    run = Run(folder)
    data = load_dataset(run.settings.data, run.settings.space.seed)
    found = [svm_accuracy(run.load_model(e.trial), data, "validation") for e in run.ranking.ranked]
    scores = [entry.score for entry in run.ranking.ranked]
    above = sum(svm > score for svm, score in zip(found, scores, strict=True))
    return folder, mean(scores), mean(found), above


def told(folders: list[str], with_svms: bool) -> str:
    """What searches have, as tables."""
    named = ("by a test" if t is None else f"above {t}" for t in TOLERANCES)
    counted = (f"trials whose fall counts {name} (the winner's score)" for name in named)
    heads = ("run", "mean score", "trials that fall", "largest fall", *counted)
    tables = [markdown(heads, map(effects, folders))]
    rows = [row for folder in folders if (row := reruns(folder))]
    if rows:
        deviations = ("deviation over seeds", "deviation of the means of reruns")
        of_one = ("rank correlation with the first score", "first winner's score, and mean")
        heads = ("run", "finalists", *deviations, *of_one, "best mean")
        tables.append(markdown(heads, rows))
    if with_svms:
        heads = ("run", "mean score", "the SVM's accuracy", "SVMs above their network")
        tables.append(markdown(heads, map(svms, folders)))
    return "\n\n".join(tables)


def judgement(tasks: list[Task], given: argparse.Namespace) -> str:
    """What kept weights make of validation or test images, as a table of means."""
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for name in dict.fromkeys(task.set for task in tasks):
        data = load(name, given.fashion)
        for task in tasks:
            if task.set == name and (given.weights / f"{task.name}.npz").exists():
                row = judge(task, data, given)
                found.setdefault((name, task.network, task.recipe), []).append(row)
    heads = ["set", "network", "recipe", "seeds", f"{given.judge} accuracy", "loss"]
    heads += ["calibration error", *["the SVM's accuracy"] * given.svm]
    lines = []
    for place, rows in found.items():
        accuracies, losses, errors, *svms = zip(*rows, strict=True)
        means = (f"{np.mean(values):.4f}" for values in (losses, errors))
        lines.append((*place, len(rows), mean(accuracies), *means, *map(mean, svms)))
    return markdown(heads, lines)


def mean(values: Sequence[float]) -> str:
    """The mean of values with its standard error, which a single one has not."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


def markdown(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [list(heads), *(list(map(str, row)) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Mean of the last epoch's validation accuracy, its standard error, and the mean loss."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["set"], row["network"], row["recipe"]), []).append(row)

    def place(item: tuple[tuple[str, str, str], list[dict[str, Any]]]) -> tuple[str, str, float]:
        (name, network, _), runs = item
        return name, network, -float(np.mean([last(run, "val_accuracy") for run in runs]))

    lines = []
    for names, runs in sorted(found.items(), key=place):
        loss = np.mean([last(run, "val_loss") for run in runs])
        scores = [last(run, "val_accuracy") for run in runs]
        lines.append((*names, len(runs), mean(scores), f"{loss:.4f}"))
    heads = ("set", "network", "recipe", "seeds", "validation accuracy", "loss")
    return markdown(heads, lines)


def last(row: dict[str, Any], name: str) -> float:
    """A metric after the last epoch; NaN if the training failed."""
    return float(row["history"][-1][name]) if row["error"] is None else float("nan")


def main() -> None:
    """Train what the results lack, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sets = ("mnist", "few", "fashion")
    parser.add_argument(
        "--results", type=Path, default=Path("recipe.jsonl"), help="a JSON object a line"
    )
    parser.add_argument("--sets", nargs="+", choices=sets, default=sets)
    parser.add_argument("--networks", nargs="+", choices=list(networks()), default=["reference"])
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lanes", type=int, help="trainings in a program (default: 1 on a CPU)")
    parser.add_argument("--fashion", help="a folder with Fashion-MNIST's four files")
    parser.add_argument("--weights", type=Path, help="a folder for the trained weights")
    parts = ("validation", "test")
    parser.add_argument("--judge", choices=parts, help="judge the kept weights instead")
    parser.add_argument("--svm", action="store_true", help="judge an SVM on their features too")
    parser.add_argument("--runs", nargs="+", help="tell falls and finalists of searches instead")
    parser.add_argument("--time", type=int, metavar="ROUNDS", help="time steps instead")
    given = parser.parse_args()
    if given.time:
        print(step_seconds(given.recipes, load("few", None), given.time))
        return
    if given.runs:
        print(told(given.runs, given.svm))
        return
    tasks = [
        Task(name, network, recipe, seed)
        for seed in range(1, given.seeds + 1)
        for name in given.sets
        for network in given.networks
        for recipe in given.recipes
    ]
    if given.judge:
        print(judgement(tasks, given))
        return
    if given.weights:
        given.weights.mkdir(parents=True, exist_ok=True)
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    rows = [json.loads(line) for line in lines]
    known = {tuple(row[name] for name in ("set", "network", "recipe", "seed")) for row in rows}
    for name in given.sets:
        left = [task for task in tasks if task.set == name and astuple(task) not in known]
        if not left:
            continue
        with given.results.open("a") as file:
            for row in train(
                left, load(name, given.fashion), given.epochs, given.weights, given.lanes
            ):
                rows.append(row)
                file.write(json.dumps(row) + "\n")
                file.flush()
    print(table(rows))


if __name__ == "__main__":
    main()
