"""The end of a search in four lines: what won, how good it is, and what to do next."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from jaxmnist.errors import printable
from jaxmnist.models.study.space import DEFINITION
from jaxmnist.results import evaluation
from jaxmnist.results.confusion import Evaluation, beside_constant
from jaxmnist.results.gap import about_labels, score_of
from jaxmnist.results.run import Run
from jaxmnist.results.statistics import wilson
from jaxmnist.runs.keys import REFIT
from jaxmnist.runs.trial import Trial


def verdict(run: Run, command: str = "jaxmnist") -> str:
    """What a finished search has found, from the run's files.

    Its lines say the test accuracy and what won, and what a constant answer has unless that is
    clearly beaten; the validation accuracy, corrected for selection, and what may be wrong if the
    test labels don't fit or if it is far below the training accuracy; what else was tested, and how
    often the test set was evaluated; where the page is. Below these are the commands to type next.

    Args:
      run: a finished run.
      command: how a person starts jaxmnist, for the commands.
    """
    content = run.result("best/test.json")
    test = Evaluation.from_json(content)
    low, high = test.confidence_interval()
    winner = run.final_trial or run.best_trial
    ranked = len(run.ranked)
    of = f" of {ranked}" if ranked > 1 else ""
    return "\n".join(
        [
            f"Test accuracy: {test.accuracy:.4f} (95 % interval {low:.4f} to {high:.4f}) on"
            f" {test.images:,} images; {_named(winner)}{of} won:"
            f" {printable(str(run.space.shown(winner.hyperparameters)))}",
            *beside_constant(test),
            _about_validation(run),
            *about_labels(score_of(run, content), test),
            *_about_training(run.best_trial),
            " ".join([*_others(run, test), evaluation.looks_at_test(run)]),
            *_where(run),
            *_next(run, command),
        ]
    )


def _named(trial: Trial) -> str:
    """The trial whose network was tested."""
    if trial.rerun is None:
        return f"trial {trial.index}"
    again = "the refit" if trial.rerun == REFIT else f"rerun {trial.rerun}"
    return f"{again} of trial {trial.index}"


def _about_validation(run: Run) -> str:
    """The winner's validation accuracy, and what selection has added to it."""
    found = run.corrected
    low, high = found.interval
    what = "Mean validation accuracy of its reruns" if run.finals else "Validation accuracy"
    reach = f"(95 % interval {low:.4f} to {high:.4f})"
    before = " (before the refit)" if run.settings.refit else ""
    if found.trials == 1:
        return f"{what}{before}: {found.score:.4f} {reach}"
    rivals = f"{found.trials} {'finalists' if run.finals else 'trials'}"
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
    content = run.kept_comparisons()
    if content is None:
        return []
    network = content["models"]["network"]["accuracy"] if "network" in content["models"] else None
    told = {
        pair["second"]: pair["significant"]
        for pair in content["comparisons"]
        if pair["first"] == "network"
    }
    said = []
    for name, model in content["models"].items():
        if name == "network":
            continue
        low, high = wilson(model["accuracy"], test.images)
        line = (
            f"{_titled(name, run)}: test accuracy {model['accuracy']:.4f} (95 % interval"
            f" {low:.4f} to {high:.4f})"
        )
        if network is not None and name in told:
            line += f", {_compared(model['accuracy'] - network, told[name])}"
        said += [f"{line}.", *beside_constant(test, model["accuracy"])]
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
    if name == "ensemble" and (content := run.kept_ensemble()):
        return f"Ensemble of the first {len(content['members'])} trials"
    return f"{printable(name)} on its features"


def _where(run: Run) -> list[str]:
    """Where the page is as a link, or where the results are if there is no page."""
    page, folder = run.directory.page_path, run.directory.path
    if run.settings.report and page.exists():
        return [f"Page: {Path(os.path.abspath(page)).as_uri()}"]
    return [f"Results: {printable(str(folder))}"]


def _next(run: Run, command: str) -> list[str]:
    """The commands to type next, with what they do; tables, so that they are not wrapped."""
    folder = shlex.quote(printable(str(run.directory.path)))
    lines = []
    model = run.settings.model
    if model is not None or run.search["identity"]["network"] == DEFINITION.name:
        own = "" if model is None else f" --model {shlex.quote(printable(model))}"
        lines.append((f"{command} predict {folder} picture.png{own}", "classifies a picture"))
    lines.append((f"{command} report {folder}", "makes the page again"))
    width = max(len(line) for line, _ in lines)
    return [f"  {line:{width}}  {what}" for line, what in lines]
