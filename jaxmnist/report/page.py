"""The page of a run: one HTML file that opens without a network connection.

It is made from the run's files; the test set is not evaluated again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmnist.data.dataset import Dataset
from jaxmnist.data.labels import class_names_of
from jaxmnist.report import figures, inspection, quality, repeat, trial_table, words
from jaxmnist.report.curves import curves, how_to_read
from jaxmnist.report.drawing import Figure
from jaxmnist.report.evaluated import MOST_CLASSES, test_context
from jaxmnist.report.facts import Facts
from jaxmnist.report.nodes import several, shares_of
from jaxmnist.report.parallel import parallel
from jaxmnist.report.rendering import render
from jaxmnist.results import finalists
from jaxmnist.results.finalists import Finalist
from jaxmnist.results.importance import FEWEST_FOR_IMPORTANCE, Importance, importances
from jaxmnist.results.run import Run
from jaxmnist.results.tuning import tuning_curve
from jaxmnist.runs.layers import summary
from jaxmnist.runs.ledger import Looks
from jaxmnist.runs.times import read_times
from jaxmnist.runs.trial import History, Trial
from jaxmnist.whole_files import write_bytes, write_together

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
    path = run.directory.page_path
    run.directory.check_there()
    write_together({path: content})  # creates no folder: the run may have vanished with its disk
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
        "hyperparameters": facts.space.varied,
        "summary": facts.attempt("network", summary, winner.layers) if winner else None,
    }


def table_context(facts: Facts, running: bool) -> dict[str, Any]:
    """Variables of the section on all trials: their table, its CSV, and the configurations."""
    index = facts.winner.index if facts.winner else None
    varied = {name: facts.space.parameters[name] for name in facts.space.varied}
    trials = [entry.trial for entry in facts.ranked]
    content = facts.attempt("trials", trial_table.as_csv, facts)
    return {
        "rule": facts.run.rule,
        "trial_heads": trial_table.heads(facts),
        "trial_rows": trial_table.rows(facts, running),
        "trial_csv": trial_table.data_url(content) if content else None,
        "unranked": [trial for trial in facts.trials if trial.status != "completed"],
        "parallel": facts.attempt(
            "trials", parallel, varied, trials, index, facts.validation_images
        ),
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
    order = [entry.trial.index for entry in facts.ranked]
    learning = [
        facts.attempt("curves", curves, trials, order, metric, counted.get(metric, images), index)
        for metric in ("val_accuracy", "accuracy", "val_loss", "loss")
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
    enough = len(done) >= FEWEST
    if winner_score is not None and enough:
        histogram = facts.attempt("scores", quality.histogram, scores, winner_score)
    return {
        "curves": [picture for picture in learning if picture],
        "about_curves": how_to_read(trials, index),
        "quality": [picture for picture in values if picture],
        "about_quality": quality.how_to_read("a value's"),
        "histogram": histogram,
        "about_scores": facts.place_by_score,
        "too_few": words.too_few(len(done), FEWEST),
        "importance": facts.attempt("importance", quality.importances, found or []),
        "importances": found or [],
        "about_importance": None if found is None else words.about_importance(found, scores),
        "cost": [picture for picture in costs if picture],
        "budget_figure": facts.attempt("budget", _budget, facts) if enough else None,
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
    trained = [*run.trials, *run.further_trials]
    looks = facts.attempt("record", lambda: run.directory.read_looks(run.directory.test_sha256))
    objects = repeat.in_python_only(run.search)
    changed, defaults = repeat.settings_rows(run.search)
    return {
        "settings": changed,
        "defaults": defaults,
        "fingerprint": run.search["identity"].get("data"),
        "sessions": run.search.get("sessions", []),
        "times": times,
        "nodes": shares_of(trained) if several(trained) else [],
        "machine": run.search.get("machine", {}),
        "looks": looks or Looks(),
        "objects": objects,
        "command": repeat.command(run.settings),
        "python": repeat.session(run.settings, objects),
        "directory": str(run.directory.path),
        "class_names": facts.attempt("record", _class_names, run.search["data"]),
    }
