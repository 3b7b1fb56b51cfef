"""The sentences of the page, the verdict and the dry run: numbers, and how certain they are."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmnist.errors import printable
from jaxmnist.models.space import SHOWN_VALUES, SpaceDescription
from jaxmnist.models.study import DEFINITION
from jaxmnist.results import evaluation
from jaxmnist.results.confusion import SENTENCE, Evaluation, beside_constant, confusions, shortened
from jaxmnist.results.evaluation import about_labels, score_of
from jaxmnist.results.importance import FEWEST_FOR_IMPORTANCE, Importance, most_gain
from jaxmnist.results.run import Run
from jaxmnist.results.selection import chance_of_new_best, standard_error, wilson
from jaxmnist.results.table import Column, Laid, Table, aligned, duration, with_commas
from jaxmnist.runs.records import File, ModelReport
from jaxmnist.runs.trial import REFIT, Trial
from jaxmnist.search.beginning import Preview

if TYPE_CHECKING:
    from jaxmnist.engine.events import TrialLost


# --- The sentences of the page: numbers, and how certain they are ---


def count(number: int, thing: str) -> str:
    """'1 trial', '3 trials'."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def lost(event: TrialLost) -> str:
    """What has become of a trial that ended without a word."""
    if event.node_lost:
        return f"node {event.node} is lost; the trial goes on elsewhere from its last checkpoint"
    return f"its process on node {event.node} has died; the trial is tried again later"


def too_few(trials: int, fewest: int) -> str:
    """Why a figure of the distribution of scores is not drawn."""
    return (
        f"A figure is drawn from {fewest} completed trials on: {count(trials, 'trial')} would show"
        " chance more than the search."
    )


def about_importance(found: Sequence[Importance], scores: Sequence[float]) -> str:
    """What the importances show, or why they show nothing."""
    trials = len(scores)
    if trials < FEWEST_FOR_IMPORTANCE:
        return (
            f"With {count(trials, 'completed trial')} the importance of hyperparameters can't be"
            f" estimated; at least {FEWEST_FOR_IMPORTANCE} are needed."
        )
    if len(set(scores)) == 1:
        return "All trials have the same score, so no hyperparameter made a difference."
    known = [item for item in found if item.matters]
    if not known:
        return (
            f"{trials} trials do not show that any hyperparameter matters, with all"
            f" {len(found)} tested together. That does not mean that none does."
        )
    parts = [f"{item.name} (about {100 * item.share:.0f} %)" for item in known]
    others = len(found) - len(known)
    rest = "" if not others else f" For the other {others}, {trials} trials show no clear effect."
    return (
        "These explain more of the differences between scores than chance does:"
        f" {', '.join(parts)}.{rest}"
    )


def about_more(run: Run) -> list[str]:
    """Sentences: what twice as many trials, or all that the space has left, would bring.

    The first one says it; what the second one adds is for the page.

    run: a run with completed trials.
    """
    first, standings = run.ranking.ranked[0], run.ranking.standings
    ended = sum(trial.status in ("completed", "failed") for trial in run.trials)
    size = run.space.size
    more = ended if size is None else min(ended, size - ended)
    if more <= 0:
        return ["The search has tried its whole space: there are no more trials to run."]
    if first.score == 1:
        return ["The highest-ranked trial has a validation accuracy of 1: more can't raise it."]
    trials = f"Twice as many trials, {more} more,"
    if more < ended:
        trials = f"The {count(more, 'trial')} that the space has left"
    finds = "find" if more == ended or more > 1 else "finds"
    chance = chance_of_new_best(ended, more)
    said = f"{trials} {finds} a better one with probability {chance:.2f} at most"
    bound = most_gain(standings, ended, more)
    if bound is None:
        return [f"{said}. How much better it would be, these trials can't say."]
    error = standard_error(first.score, run.validation_images)
    return [
        f"{said}: with 95 % probability the highest-ranked trial's validation accuracy,"
        f" {first.score:.4f} with standard error {error:.4f}, rises by no more than {bound:.4f}.",
        "The bound takes the better half of the scores for that of a normal distribution. A part"
        " of every rise is luck, as the best of more scores is picked.",
    ]


def most_confused(evaluation: Evaluation, most: int = 3) -> str:
    """The most frequent confusions as a sentence."""
    names = [shortened(name, SENTENCE) for name in evaluation.class_names]
    parts = [
        f"{names[i]} classified as {names[j]} ({images} times)"
        for i, j, images in confusions(evaluation, most)
    ]
    return (
        f"The most frequent confusions: {', '.join(parts)}."
        if parts
        else "No image is misclassified."
    )


# --- The end of a search in four lines: what won, how good it is, and what to do next ---


def verdict(run: Run, command: str = "jaxmnist") -> list[str]:
    """What a finished search has found, from the run's files, in lines.

    Its lines say the test accuracy and what won, and what a constant answer has unless that is
    clearly beaten; the validation accuracy, corrected for selection, and what may be wrong if the
    test labels don't fit or if it is far below the training accuracy; what else was tested, and how
    often the test set was evaluated; where the page is. Below these are the commands to type next.

    Args:
      run: a finished run.
      command: how a person starts jaxmnist, for the commands.
    """
    report = run.result("best/test.json", ModelReport)
    test = Evaluation.of(report)
    low, high = test.confidence_interval()
    winner = run.ranking.final or run.best_trial
    ranked = len(run.ranking.ranked)
    of = f" of {ranked}" if ranked > 1 else ""
    return [
        f"Test accuracy: {test.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on"
        f" {test.images:,} images; {_named(winner)}{of} won:"
        f" {printable(str(run.space.shown(winner.hyperparameters)))}",
        *beside_constant(test),
        _about_validation(run),
        *about_labels(score_of(run, report), test),
        *_about_training(run.best_trial),
        " ".join([*_others(run, test), evaluation.looks_at_test(run)]),
        *_where(run),
        _next(run, command),
    ]


def _named(trial: Trial) -> str:
    """The trial whose network was tested."""
    if trial.rerun is None:
        return f"trial {trial.index}"
    again = "the refit" if trial.rerun == REFIT else f"rerun {trial.rerun}"
    return f"{again} of trial {trial.index}"


def _about_validation(run: Run) -> str:
    """The winner's validation accuracy, and what selection has added to it."""
    found = run.ranking.corrected
    low, high = found.interval
    what = "Mean validation accuracy of its reruns" if run.ranking.finals else "Validation accuracy"
    reach = f"(95 % interval {low:.4f} to {high:.4f})"
    before = " (before the refit)" if run.settings.selection.refit else ""
    if found.trials == 1:
        return f"{what}{before}: {found.score:.4f} {reach}"
    rivals = f"{found.trials} {'finalists' if run.ranking.finals else 'trials'}"
    line = (
        f"{what}{before}: {found.raw:.4f}; without the luck of being chosen among {rivals} about"
        f" {found.score:.4f} {reach}"
    )
    if equal := len(found.indistinguishable):
        others = "1 other trial" if equal == 1 else f"{equal} other trials"
        line += f"; the validation images don't tell {others} from it"
    return line


def _about_training(winner: Trial) -> list[str]:
    """Why validation may fail where training goes well; nothing where it doesn't fail.

    BatchNorm normalises training batches by their own statistics, and validation images by a moving
    average of these, which takes hundreds of steps to forget its initial values.
    """
    last = winner.history[-1]
    if not last.val_accuracy < last.accuracy / 2:
        return []
    return [
        f"The winner's training accuracy is {last.accuracy:.4f}, more than twice its validation"
        " accuracy. Either it has learnt its training images by heart, or it has BatchNorm whose"
        " statistics for validation have not settled: then train longer, or give BatchNorm a"
        " smaller momentum, such as 0.9."
    ]


def _others(run: Run, test: Evaluation) -> list[str]:
    """Sentences on each of what else was tested on the same images: the SVM, an ensemble."""
    found = run.kept_comparisons()
    if found is None:
        return []
    network = found.models.get("network")
    told = {pair.second: pair.significant for pair in found.comparisons if pair.first == "network"}
    said = []
    for name, model in found.models.items():
        if name == "network":
            continue
        low, high = wilson(model.accuracy, test.images)
        line = (
            f"{_titled(name, run)}: test accuracy {model.accuracy:.4f} (95 % interval"
            f" {low:.4f} to {high:.4f})"
        )
        if network is not None and name in told:
            line += f", {_compared(model.accuracy - network.accuracy, told[name])}"
        said += [f"{line}.", *beside_constant(test, model.accuracy)]
    return said


def _compared(difference: float, significant: bool) -> str:
    """An accuracy minus the network's, in words."""
    if difference == 0:
        return "equal to the network's"
    above = "above" if difference > 0 else "below"
    chance = "more than chance explains" if significant else "within chance"
    return f"{abs(difference):.4f} {above} the network's: {chance}"


def _titled(name: str, run: Run) -> str:
    """What was tested, by its name in best/comparisons.json."""
    if name == "ensemble" and (report := run.kept_ensemble()):
        return f"Ensemble of the first {len(report.members)} trials"
    return f"{printable(name)} on its features"


def _where(run: Run) -> list[str]:
    """Where the page is as a link, or where the results are if there is no page."""
    page, folder = run.store.file(File.PAGE), run.store.path
    if run.settings.output.report and page.exists():
        return [f"Page: {Path(os.path.abspath(page)).as_uri()}"]
    return [f"Results: {printable(str(folder))}"]


def _next(run: Run, command: str) -> Laid:
    """The commands to type next, with what they do."""
    folder = shlex.quote(printable(str(run.store.path)))
    lines = []
    model = run.settings.space.model
    if model is not None or run.store.search.identity["network"] == DEFINITION.name:
        own = "" if model is None else f" --model {shlex.quote(printable(model))}"
        lines.append((f"  {command} predict {folder} picture.png{own}", "classifies a picture"))
    lines.append((f"  {command} report {folder}", "makes the page again"))
    return aligned(lines, left=(0, 1))


# --- What a search would do, as text: the space, the first draws, the time ---

MOST_DRAWS = 10


def describe_preview(found: Preview) -> list[str]:
    """The space with each hyperparameter's range, the first draws, and the estimated time."""
    data = found.dataset
    shape = "×".join(map(str, data.image_shape))
    return [
        f"Data: {printable(data.name)}, {len(data.y_train):,} training,"
        f" {len(data.y_validation):,} validation and {len(data.y_test):,} test images of"
        f" {shape}, {data.classes} classes",
        "",
        *_space(found.space),
        "",
        *_draws(found),
        "",
        _time(found),
        "",
        f"Nothing was written: without --dry-run the search is in"
        f" {printable(str(found.directory))}.",
    ]


def _space(space: SpaceDescription) -> list[str]:
    """The size of the space, and a line for each hyperparameter."""
    rows, ranges = [], space.ranges()
    for name, distributions in space.parameters.items():
        known = len(space.some_values(name))
        size = count(known, "value") + (" or more" if known == SHOWN_VALUES else "")
        if any(each.values is None for each in distributions):
            size = "continuous"
        rows.append((f"  {name}", ranges[name], size))
    lines = aligned(rows, left=(0, 1, 2))
    noun = "configuration" if space.size == 1 else "configurations"
    return [f"Space: {space.size_text} {noun}", lines]


def _draws(found: Preview) -> list[str]:
    """The first trials as a table."""
    shown = found.draws[:MOST_DRAWS]
    well = [None if draw.problem else draw for draw in shown]
    table = Table(
        {
            "trial": Column.of(draw.key.index for draw in shown),
            "parameters": Column.of((draw and draw.parameters for draw in well), with_commas),
            "memory": Column.of(
                (draw and draw.memory / 2**20 for draw in well), lambda size: f"{size:,.0f} MB"
            ),
            "time": Column.of((draw and draw.seconds for draw in well), duration),
            "hyperparameters": Column.of(
                printable(str(found.space.shown(draw.hyperparameters)))
                + (f": would fail: {printable(draw.problem)}" if draw.problem else "")
                for draw in shown
            ),
        }
    )
    lines = [str(table)]
    if len(shown) < found.trials:
        lines.append(f"… and {found.trials - len(shown):,} more trials")
    head = f"{count(found.trials, 'trial')} of {found.space.size_text}"
    return [
        f"Draws: {head}, seed {found.settings.space.seed}; memory is at least what training takes"
        " beside the images",
        *lines,
    ]


def _time(found: Preview) -> str:
    """The estimated time of all trials, and how the estimate was made."""
    settings, pace = found.settings, found.pace
    done = f"; {found.done} of {found.trials} trials have ended already" if found.done else ""
    if found.done == found.trials:
        return f"All {found.trials} trials have ended already: only what follows them is done."
    again = (settings.selection.finalists or 0) * (settings.selection.reruns or 0)
    further = (
        f", {again} reruns of finalists" * bool(again) + ", the refit" * settings.selection.refit
    )
    limit = ""
    if settings.selection.max_seconds is not None:
        limit = (
            f" No trial starts after {duration(settings.selection.max_seconds)} (--max-seconds)."
        )
    if settings.running.ray is not None:
        limit += " That is for this machine alone: the nodes of --ray were not asked."
    at_once = f", {pace.together} at once" if pace.together > 1 else ""
    return (
        f"Time: about {duration(found.seconds)} for training all trials{further}{at_once}{done}."
        f"{limit} This is an estimate: {pace.steps} steps of one configuration"
        f" ({printable(str(found.space.shown(pace.hyperparameters)))}) were timed just now,"
        f" {1000 * pace.step:.1f} ms each, and scaled to the others by their multiplications and"
        " outputs; compiling is counted as it took just now, for as many at once. The test and"
        " the SVM come after that."
    )
