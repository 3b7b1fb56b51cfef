"""The sentences of the page: numbers, and how certain they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmnist.results.classes import SENTENCE, confusions
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.importance import FEWEST_FOR_IMPORTANCE, Importance
from jaxmnist.results.layout import shortened
from jaxmnist.results.statistics import chance_of_new_best, standard_error
from jaxmnist.results.tuning import most_gain

if TYPE_CHECKING:
    from jaxmnist.engine.events import TrialLost
    from jaxmnist.results.run import Run


def accuracy(value: float | None) -> str:
    """An accuracy with four decimals; a dash if there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Seconds as readable text: 8.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


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
    first, standings = run.ranked[0], run.standings
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
