"""The page of a run: one HTML file that opens without a network connection.

It is made from the run's files; the test set is not evaluated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxmnist.data.dataset import Dataset
from jaxmnist.data.labels import class_names_of
from jaxmnist.hyperparameters import text
from jaxmnist.report import figures, inspection, quality, repeat, words
from jaxmnist.report.confusion import confusion_figure
from jaxmnist.report.drawing import Figure
from jaxmnist.report.facts import Facts
from jaxmnist.results import comparisons, finalists, members
from jaxmnist.results.calibration import Calibration, describe_calibration
from jaxmnist.results.classes import confusions, worst_classes
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.evaluation import looks_at_test
from jaxmnist.results.finalists import Finalist
from jaxmnist.results.gap import about_gap
from jaxmnist.results.importance import FEWEST_FOR_IMPORTANCE, Importance, importances
from jaxmnist.results.layout import short_names, shortened
from jaxmnist.results.run import Run
from jaxmnist.results.tuning import tuning_curve
from jaxmnist.runs.layers import summary
from jaxmnist.runs.ledger import Looks
from jaxmnist.runs.times import read_times
from jaxmnist.runs.trial import History, Trial
from jaxmnist.whole_files import write_bytes

RELOAD = 30  # seconds between reloads while the search runs
NAME = 18  # columns of a class name in a table
MOST_CLASSES = 30  # of a confusion matrix as a table, and of a report with all classes
NO_IMAGES: dict[str, Any] = {"mistakes": None, "features": None}
LATER = "This section comes when the search has finished."


def write_page(run: Run, dataset: Dataset | None = None, **options: Any) -> Path:
    """Write report.html into the run directory; the options are those of `make_page`."""
    path = run.directory.page_path
    write_bytes(path, make_page(run, dataset, **options).encode())
    return path


def make_page(
    run: Run,
    dataset: Dataset | None = None,
    *,
    running: Mapping[int, History] | None = None,
    images: bool = True,
    reload: bool = False,
) -> str:
    """The page as HTML text. The same files give the same page.

    Args:
      run: the run; it may be unfinished, or have only failed trials.
      dataset: the run's dataset; if not given, it is loaded when needed.
      running: the histories so far of running trials.
      images: show the sections that are computed from images.
      reload: make the page reload itself, as the search is running.
    """
    facts = Facts(run, running)
    environment = Environment(
        loader=PackageLoader("jaxmnist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["accuracy"] = words.accuracy
    environment.filters["duration"] = words.duration
    environment.filters["text"] = text
    environment.filters["shortened"] = shortened
    style = resources.files("jaxmnist.report") / "templates" / "page.css"
    return environment.get_template("page.html").render(
        style=style.read_text("utf-8"),
        reload=RELOAD if reload else None,
        **search_context(facts, reload),
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
    state = words.state(facts, running)
    why = run.why() if winner else None
    if why and state["word"] in ("running", "unfinished"):
        why = f"So far: {why}"
    finals = (facts.attempt("winner", lambda: run.finals) or ()) if winner else ()
    found = facts.attempt("winner", lambda: run.corrected) if winner else None
    return {
        "name": run.search["data"]["name"],
        "data": run.search["data"],
        "state": state,
        "winner": winner,
        "corrected": found,
        "about_score": run.about_score() if found else None,
        "finalists": facts.attempt("winner", _finalists, facts, finals) if finals else None,
        "refit": run.settings.refit,
        "why": why,
        "budget": facts.budget,
        "space_size": facts.space.size_text,
        "completed": facts.count("completed"),
        "failed": facts.count("failed"),
        "trial_seconds": sum(trial.seconds for trial in facts.trials),
        "ranked": facts.ranked,
        "rule": run.rule,
        "unranked": [trial for trial in facts.trials if trial.status != "completed"],
        "hyperparameters": facts.space.varied,
    }


def _finalists(facts: Facts, finals: Sequence[Finalist]) -> list[tuple[str, ...]]:
    """The table of finalists with their configurations."""
    head, *rows = finalists.table(finals)
    shown = [str(facts.space.shown(each.trial.hyperparameters)) for each in finals]
    return [
        (*head, "configuration"),
        *((*row, text) for row, text in zip(rows, shown, strict=True)),
    ]


def trial_context(facts: Facts) -> dict[str, Any]:
    """Variables of the sections on trials: figures, and sentences about them."""
    trials, scores, images = facts.trials, facts.scores, facts.validation_images
    done = [trial for trial in trials if trial.status == "completed"]
    index = facts.winner.index if facts.winner else None

    counted = {"accuracy": int(facts.run.search["data"]["train"])}
    curves = [
        facts.attempt("curves", figures.curves, trials, index, metric, counted.get(metric, images))
        for metric in ("accuracy", "val_accuracy", "loss", "val_loss")
    ]
    space = facts.space
    values = [
        facts.attempt("quality", quality.quality, name, space.parameters[name], done, index, images)
        for name in space.varied
    ]
    costs = [
        facts.attempt("cost", figures.against, done, index, cost, images)
        for cost in ("parameters", "seconds")
    ]
    found = facts.attempt("importance", _importances, facts, done)
    winner_score = facts.winner.score if facts.winner else None
    histogram = None
    if winner_score is not None:
        histogram = facts.attempt("scores", quality.histogram, scores, winner_score)
    return {
        "curves": [picture for picture in curves if picture],
        "quality": [picture for picture in values if picture],
        "histogram": histogram,
        "about_scores": words.place_by_score(facts),
        "importance": facts.attempt("importance", quality.importances, found or []),
        "importances": found or [],
        "about_importance": None if found is None else words.about_importance(found, scores),
        "cost": [picture for picture in costs if picture],
        "budget_figure": facts.attempt("budget", _budget, facts) if done else None,
        "about_budget": facts.attempt("budget", words.about_more, facts.run) if done else None,
    }


def _importances(facts: Facts, done: list[Trial]) -> list[Importance]:
    """The importance of each hyperparameter that varies; none where there are too few trials."""
    if len(done) < FEWEST_FOR_IMPORTANCE:
        return []
    configurations = [trial.hyperparameters for trial in done]
    return importances(facts.space.varied, configurations, facts.scores)


def _budget(facts: Facts) -> Figure:
    """The tuning curve of completed trials."""
    standings = facts.run.standings
    return figures.budget(standings, tuning_curve(standings), facts.validation_images)


def test_context(facts: Facts) -> dict[str, Any]:
    """Variables of the sections on the network and the test set, from the run's files."""
    test = facts.tested
    svm = facts.attempt("test", facts.svm)
    names = ("test", "gap", "about_looks", "svm", "summary", "ensemble")
    more = ("confusion", "reliability", "about_calibration")
    context: dict[str, Any] = dict.fromkeys((*names, *more))
    context["comparisons"] = []
    if test:
        context["test"] = facts.attempt("test", _tested, test)
        evaluation = Evaluation.from_json(test)
        context["gap"] = facts.attempt("test", about_gap, facts.run, test, evaluation)
        context["about_looks"] = facts.attempt("test", looks_at_test, facts.run)
        if context["test"] and not context["test"]["matrix"]:
            context["confusion"] = facts.attempt("test", confusion_figure, evaluation)
        found = facts.attempt("test", Calibration.from_json, test)
        if found:
            context["about_calibration"] = describe_calibration(found)
            context["reliability"] = facts.attempt("test", figures.reliability, found)
    if svm:
        context["svm"] = facts.attempt("test", lambda: {**_tested(svm), "of": svm})
    if test:
        kept = facts.attempt("test", facts.run.kept_comparisons)
        context["comparisons"] = facts.attempt("test", comparisons.describe, kept) or []
        ensemble = facts.attempt("test", facts.run.kept_ensemble)
        context["ensemble"] = members.describe(ensemble) if ensemble else None
    if facts.winner:
        context["summary"] = facts.attempt("network", summary, facts.winner.layers)
    return context


def _tested(content: dict[str, Any]) -> dict[str, Any]:
    """Variables of one evaluation."""
    evaluation = Evaluation.from_json(content)
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
        "confused": words.most_confused(evaluation),
    }


def _class_names(data: dict[str, Any]) -> str:
    """The names of the classes in search.json; of many classes the first ones."""
    names = class_names_of(data["labels"], data["class_names"])
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
        points, classes, shares = inspection.features_in_two(facts.run, data)
        return figures.scatter(points, classes, data.class_names, shares)

    return {
        "mistakes": facts.attempt("mistakes", inspection.mistakes, facts.run, data),
        "features": facts.attempt("features", features),
    }


def record_context(facts: Facts) -> dict[str, Any]:
    """Variables of the sections on how the run was made, and how to repeat it."""
    run = facts.run
    times = read_times(run.directory)
    looks = facts.attempt("record", lambda: run.directory.read_looks(run.directory.test_sha256))
    objects = repeat.in_python_only(run.search)
    return {
        "settings": repeat.settings_rows(run.search),
        "fingerprint": run.search["identity"].get("data"),
        "sessions": run.search.get("sessions", []),
        "times": times,
        "machine": run.search.get("machine", {}),
        "looks": looks or Looks(),
        "objects": objects,
        "command": repeat.command(run.settings),
        "python": repeat.session(run.settings, objects),
        "directory": str(run.directory.path),
        "class_names": facts.attempt("record", _class_names, run.search["data"]),
    }
