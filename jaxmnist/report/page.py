"""The page of a run: one HTML file that opens without a network connection.

It is made from the run's files; the test set is not evaluated again.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jaxmnist.data.dataset import Dataset
from jaxmnist.files import write_bytes, write_together
from jaxmnist.report import facts as facts_module
from jaxmnist.report import figures, sentences
from jaxmnist.report.curves import curves, how_to_read, parallel
from jaxmnist.report.drawing import Figure
from jaxmnist.report.facts import Facts, render, several_nodes, shares_of
from jaxmnist.report.figures import confusion_figure
from jaxmnist.results import comparisons
from jaxmnist.results.confusion import (
    Evaluation,
    beside_constant,
    confusions,
    short_names,
    worst_classes,
)
from jaxmnist.results.evaluation import Calibration, about_gap, about_probabilities, looks_at_test
from jaxmnist.results.importance import FEWEST_FOR_IMPORTANCE, Importance, importances, tuning_curve
from jaxmnist.results.ranking import Finalist
from jaxmnist.results.run import Run
from jaxmnist.results.table import Column, Table, finalists_table, trials_table
from jaxmnist.runs.ledger import Looks
from jaxmnist.runs.records import Classification, File
from jaxmnist.runs.store import read_times
from jaxmnist.runs.trial import Trial, summary

# --- Results computed from the images: confident mistakes, and features in two dimensions ---

SHOWN = 24
MOST_DOTS = 1000  # validation images in the figure of the features
MOST_NUMBERS = 10**8  # feature values held in memory


@dataclass(frozen=True)
class Mistake:
    """A test image that the winner misclassified.

    picture: the image as a data URL.
    index: of the image in the test set.
    truth, taken_for: the name of the true class and of the predicted one.
    probability: the probability that the winner gave the predicted label.
    """

    picture: str
    index: int
    truth: str
    taken_for: str
    probability: float


def mistakes(run: Run, dataset: Dataset, count: int = SHOWN) -> list[Mistake]:
    """The winner's most confident mistakes, the most confident first.

    They come from the stored predictions: the test set is not evaluated again.
    """
    probabilities = np.load(run.store.file(File.PROBABILITIES), allow_pickle=False)
    if probabilities.shape != (len(dataset.y_test), dataset.classes):
        raise ValueError("the stored predictions don't match these test images")
    predictions = probabilities.argmax(1)
    surest = probabilities.max(1)
    wrong = np.flatnonzero(predictions != dataset.y_test)
    order = wrong[np.argsort(-surest[wrong], kind="stable")][:count]
    return [
        Mistake(
            picture(dataset.x_test[i], dataset.scale),
            int(i),
            dataset.class_names[dataset.y_test[i]],
            dataset.class_names[predictions[i]],
            float(surest[i]),
        )
        for i in order
    ]


def picture(image: np.ndarray, scale: float) -> str:
    """An image [H, W, C] as a PNG in a data URL; only its first channel unless there are 3.

    Pixels of value 0 are black, of value `scale` white.
    """
    pixels = image if image.shape[2] == 3 else image[..., 0]
    pixels = np.rint(pixels / scale * 255).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def features_in_two(run: Run, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first two principal components of the features of validation images.

    Returns points float64[N, 2], classes int[N], and the fractions of the variance float64[2].
    """
    model = run.best_model
    dots = min(MOST_DOTS, len(dataset.y_validation), max(3, MOST_NUMBERS // model.feature_count))
    # Evenly spread images, as the data may be sorted by class.
    chosen = np.linspace(0, len(dataset.y_validation) - 1, dots).round().astype(int)
    points, shares = two_components(model.features(dataset.x_validation[chosen]))
    return points, dataset.y_validation[chosen], shares


def two_components(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two principal components of features float[N, D].

    Computed from the N×N matrix of inner products, as there are fewer images than features.

    Returns:
      The coordinates float64[N, 2], with signs such that the largest absolute value of each
      component is positive, and the fractions of the variance float64[2] that the two explain.

    References:
      Pearson, 'On lines and planes of closest fit to systems of points in space', 1901.
    """
    centred = features - features.mean(0, dtype=np.float64).astype(features.dtype)
    products = (centred @ centred.T).astype(np.float64)
    values, vectors = np.linalg.eigh(products)
    values, vectors = values[::-1][:2].clip(0), vectors[:, ::-1][:, :2]
    total = np.trace(products)
    largest = np.abs(vectors).argmax(0)
    signs = np.sign(vectors[largest, np.arange(vectors.shape[1])])
    coordinates = vectors * signs * np.sqrt(values)
    return coordinates, values / total if total > 0 else np.zeros(len(values))


# --- Variables of the page's sections on the test set ---

NAME = 18  # columns of a class name in a table
MOST_CLASSES = 30  # of a confusion matrix as a table, and of a report with all classes


def test_context(facts: Facts) -> dict[str, Any]:
    """Variables of these sections; None where nothing was measured."""
    test = facts.tested
    svm = facts.attempt("test", facts.svm)
    names = ("test", "gap", "about_looks", "svm", "ensemble")
    more = ("confusion", "svm_confusion", "reliability", "about_calibration")
    context: dict[str, Any] = dict.fromkeys((*names, *more))
    context["comparisons"] = []
    if test:
        context["test"] = facts.attempt("test", _tested, test)
        context["gap"] = facts.attempt("trust", about_gap, facts.run, test)
        context["about_looks"] = facts.attempt("test", looks_at_test, facts.run)
        if context["test"] and not context["test"]["matrix"]:
            context["confusion"] = facts.attempt(
                "test", confusion_figure, Evaluation.of(test), "confusion", "network"
            )
        context["about_calibration"] = facts.attempt("trust", about_probabilities, facts.run, test)
        context["reliability"] = facts.attempt("trust", figures.reliability, Calibration.of(test))
    if svm:
        context["svm"] = facts.attempt("test", lambda: {**_tested(svm), "of": svm})
        if context["svm"] and not context["svm"]["matrix"]:
            context["svm_confusion"] = facts.attempt(
                "test", confusion_figure, Evaluation.of(svm), "svm-confusion", "SVM"
            )
    if test:
        kept = facts.attempt("trust", facts.run.kept_comparisons)
        context["comparisons"] = (
            facts.attempt("trust", comparisons.describe_comparisons, kept) or []
        )
        ensemble = facts.attempt("trust", facts.run.kept_ensemble)
        context["ensemble"] = comparisons.describe_ensemble(ensemble) if ensemble else None
    return context


def _tested(tested: Classification) -> dict[str, Any]:
    """Variables of one evaluation."""
    evaluation = Evaluation.of(tested)
    matrix = evaluation.confusion_matrix
    wrong = matrix - np.diag(np.diag(matrix))
    low, high = evaluation.confidence_interval()
    names, short = evaluation.class_names, short_names(evaluation.class_names, NAME)
    report, intervals = evaluation.classification_report(), evaluation.recall_intervals()
    few = len(names) <= MOST_CLASSES
    shown = range(len(names)) if few else worst_classes(evaluation)
    return {
        "accuracy": evaluation.accuracy,
        "images": evaluation.images,
        "low": low,
        "high": high,
        "names": short,
        "numbered": evaluation.numbered,
        "matrix": matrix.tolist() if few else None,
        "pairs": [] if few else [(short[i], short[j], n) for i, j, n in confusions(evaluation)],
        "most_wrong": max(1, int(wrong.max())),
        "mistakes": int(wrong.sum()),
        "classes": [(short[k], report[names[k]], intervals[k]) for k in shown],
        "averages": [
            (name, report[name]) for name in ("macro avg", "weighted avg") if name in report
        ],
        "confused": sentences.most_confused(evaluation),
        "constant": beside_constant(evaluation),
    }


# --- The page ---

RELOAD = 30  # seconds between reloads while the search runs
NO_IMAGES: dict[str, Any] = {"mistakes": None, "features": None}
FEWEST = 8  # completed trials from which on a distribution of scores and a tuning curve are drawn
LATER = "This section comes when the search has finished."


def write_page(
    run: Run, dataset: Dataset | None = None, *, output: Path | None = None, **options: Any
) -> Path:
    """Write the page, as report.html of the run unless `output` names a file.

    The other options are those of `make_page`.
    """
    content = make_page(run, dataset, **options).encode()
    if output is not None:
        write_bytes(output, content)
        return output
    path = run.store.file(File.PAGE)
    run.store.check_there()
    write_together({path: content})  # creates no folder: the run may have vanished with its disk
    return path


def make_page(
    run: Run,
    dataset: Dataset | None = None,
    *,
    images: bool = True,
    reload: bool = False,
) -> str:
    """The page as HTML text. The same files give the same page.

    Args:
      run: the run; it may be unfinished, or have only failed trials.
      dataset: the run's dataset; if not given, it is loaded when needed.
      images: show the sections that are computed from images.
      reload: make the page reload itself, as the search is running.
    """
    facts = Facts(run)
    return render(
        "page.html",
        reload=RELOAD if reload else None,
        **search_context(facts, reload),
        **table_context(facts, reload),
        **trial_context(facts),
        **test_context(facts),
        **(image_context(facts, dataset) if images else NO_IMAGES),
        **record_context(facts),
        notes=facts.notes,
        later=LATER,
    )


def search_context(facts: Facts, running: bool) -> dict[str, Any]:
    """Variables of the page's head and ranking: the state of the search, and the winner."""
    run, winner = facts.run, facts.winner
    state = facts.state(running)
    why = run.ranking.why() if winner else None
    if why and state["word"] in ("running", "unfinished"):
        why = f"So far: {why}"
    finals = (facts.attempt("winner", lambda: run.ranking.finals) or ()) if winner else ()
    found = facts.attempt("winner", lambda: run.ranking.corrected) if winner else None
    return {
        "name": run.store.search.data.name,
        "data": run.store.search.data,
        "state": state,
        "winner": winner,
        "corrected": found,
        "about_score": run.ranking.about_score() if found else None,
        "finalists": facts.attempt("winner", _finalists, facts, finals) if finals else None,
        "refit": run.settings.selection.refit,
        "why": why,
        "budget": facts.budget,
        "space_size": facts.space.size_text,
        "completed": facts.count("completed"),
        "failed": facts.count("failed"),
        "trial_seconds": sum(trial.seconds for trial in facts.trials),
        "hyperparameters": facts.space.varied,
        "summary": facts.attempt("network", summary, winner.layers) if winner else None,
    }


def table_context(facts: Facts, running: bool) -> dict[str, Any]:
    """Variables of the section on all trials: their table, its CSV, and the configurations."""
    index = facts.winner.index if facts.winner else None
    varied = {name: facts.space.parameters[name] for name in facts.space.varied}
    trials = [entry.trial for entry in facts.ranked]
    table = facts.attempt("trials", trials_table, facts.run.ranking, facts.space, running)
    return {
        "rule": facts.run.ranking.rule,
        "trial_table": facts_module.trial_columns(facts, table) if table else None,
        "kinds": _kinds(table, index) if table else [],
        "trial_csv": facts_module.data_url(table.as_csv()) if table else None,
        "unranked": [trial for trial in facts.trials if trial.status != "completed"],
        "parallel": facts.attempt(
            "trials", parallel, varied, trials, index, facts.validation_images
        ),
    }


def _kinds(table: Table, winner: int | None) -> list[str]:
    """Of each row its kind, by which it is coloured: 'won', or the trial's status."""
    found = zip(table.columns["trial"].values, table.columns["status"].values, strict=True)
    return ["won" if index == winner else status for index, status in found]


def _finalists(facts: Facts, finals: Sequence[Finalist]) -> Table:
    """The table of finalists with their configurations."""
    shown = Column.of(str(facts.space.shown(each.trial.hyperparameters)) for each in finals)
    return Table({**finalists_table(finals).columns, "configuration": shown})


def trial_context(facts: Facts) -> dict[str, Any]:
    """Variables of the sections on trials: figures, and sentences about them."""
    trials, scores, images = facts.trials, facts.scores, facts.validation_images
    done = [trial for trial in trials if trial.status == "completed"]
    index = facts.winner.index if facts.winner else None

    counted = {"accuracy": facts.run.store.search.data.train}
    order = [entry.trial.index for entry in facts.ranked]
    learning = [
        facts.attempt("curves", curves, trials, order, metric, counted.get(metric, images), index)
        for metric in ("val_accuracy", "accuracy", "val_loss", "loss")
    ]
    space = facts.space
    values = [
        facts.attempt("quality", figures.quality, name, space.parameters[name], done, index, images)
        for name in space.varied
    ]
    costs = [
        facts.attempt("cost", figures.against, done, index, cost, images)
        for cost in ("parameters", "seconds")
    ]
    found = facts.attempt("importance", _importances, facts, done)
    winner_score = facts.winner.score if facts.winner else None
    histogram = None
    enough = len(done) >= FEWEST
    if winner_score is not None and enough:
        histogram = facts.attempt("scores", figures.histogram, scores, winner_score)
    return {
        "curves": [picture for picture in learning if picture],
        "about_curves": how_to_read(trials, index),
        "quality": [picture for picture in values if picture],
        "about_quality": figures.how_to_read("a value's"),
        "histogram": histogram,
        "about_scores": facts.place_by_score,
        "too_few": sentences.too_few(len(done), FEWEST),
        "importance": facts.attempt("importance", figures.importances, found or []),
        "importances": found or [],
        "about_importance": None if found is None else sentences.about_importance(found, scores),
        "cost": [picture for picture in costs if picture],
        "budget_figure": facts.attempt("budget", _budget, facts) if enough else None,
        "about_budget": facts.attempt("budget", sentences.about_more, facts.run) if done else None,
    }


def _importances(facts: Facts, done: list[Trial]) -> list[Importance]:
    """The importance of each hyperparameter that varies; none where there are too few trials."""
    if len(done) < FEWEST_FOR_IMPORTANCE:
        return []
    configurations = [trial.hyperparameters for trial in done]
    return importances(facts.space.varied, configurations, facts.scores)


def _budget(facts: Facts) -> Figure:
    """The tuning curve of completed trials."""
    standings = facts.run.ranking.standings
    return figures.budget(standings, tuning_curve(standings), facts.validation_images)


def _class_names(names: Sequence[str]) -> str:
    """The names of the classes; of many classes the first ones."""
    more = f" … ({len(names)} in all)" if len(names) > MOST_CLASSES else ""
    return ", ".join(names[:MOST_CLASSES]) + more


def image_context(facts: Facts, dataset: Dataset | None) -> dict[str, Any]:
    """Variables of the sections that need the images: mistakes and features."""
    if not facts.tested:
        for section in NO_IMAGES if "test" in facts.notes else ():
            facts.notes[section] = facts.notes["test"]
        return NO_IMAGES
    data = dataset or facts.attempt("features", facts.dataset)
    if data is None:
        facts.notes["mistakes"] = facts.notes["features"]
        return NO_IMAGES

    def features() -> Figure:
        points, classes, shares = features_in_two(facts.run, data)
        return figures.scatter(points, classes, data.class_names, shares)

    return {
        "mistakes": facts.attempt("mistakes", mistakes, facts.run, data),
        "features": facts.attempt("features", features),
    }


def record_context(facts: Facts) -> dict[str, Any]:
    """Variables of the sections on how the run was made, and how to repeat it."""
    run = facts.run
    times = read_times(run.store)
    trained = [*run.trials, *run.reruns]
    looks = facts.attempt("record", lambda: run.store.read_looks(run.store.test_sha256))
    objects = facts_module.in_python_only(run.store.search)
    given, others = facts_module.settings_rows(run.store.search)
    return {
        "settings": given,
        "other_settings": others,
        "fingerprint": run.store.search.identity["data"],
        "sessions": run.store.search.sessions,
        "times": times,
        "nodes": shares_of(trained) if several_nodes(trained) else [],
        "machine": run.store.search.machine,
        "looks": looks or Looks(),
        "objects": objects,
        "command": facts_module.search_command(run.settings),
        "python": facts_module.python_session(run.settings, objects),
        "directory": str(run.store.path),
        "class_names": _class_names(run.store.search.data.class_names),
    }


# --- The page inside a notebook ---


class InNotebook:
    """A page that a notebook shows in an iframe, which keeps the styles of the two separate.

    height: height of the iframe in pixels.
    """

    def __init__(self, text: str, height: int) -> None:
        self._text = text
        self._height = height

    def _repr_html_(self) -> str:
        return (
            # The run's files may have been changed: the sandbox runs no script.
            f'<iframe sandbox="" srcdoc="{html.escape(self._text)}" title="report of a search"'
            f' style="width: 100%; height: {self._height}px; border: 1px solid #8886"></iframe>'
        )


def show(run: Run, *sections: str, height: int = 900) -> InNotebook:
    """Make the page of `run` for a notebook, or only its named sections, such as 'curves'.

    height: height of the page in pixels.
    """
    # Nothing can be saved from the sandbox of the iframe.
    text = make_page(run).replace("</style>", ".save { display: none }\n</style>", 1)
    if sections:
        kept = ", ".join(f"section#{name}" for name in sections)
        rest = f"body > *:not(main), section:not({kept}) {{ display: none }} body {{ padding: 0 }}"
        text = text.replace("</style>", f"{rest} section {{ margin: 0 1rem }}\n</style>", 1)
    return InNotebook(text, height)
