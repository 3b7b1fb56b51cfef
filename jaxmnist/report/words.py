"""The sentences of the page: numbers, and how certain they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmnist.results.classes import SENTENCE, confusions
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.layout import shortened
from jaxmnist.results.statistics import (
    FEWEST_FOR_IMPORTANCE,
    Importance,
    chance_of_new_best,
    distribution,
    standard_error,
)

if TYPE_CHECKING:
    from jaxmnist.report.facts import Facts

MORE = 10  # trials that a reader may consider adding


def accuracy(value: float | None) -> str:
    """An accuracy with four decimals; a dash if there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.4f}"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign: +0.81, −0.25."""
    return f"{value:+.{digits}f}".replace("-", "−")


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


def state(facts: Facts, running: bool) -> dict[str, str]:
    """The state of the search: one word for it, and a sentence."""
    budget = facts.budget
    done = sum(t.status in ("completed", "failed") and t.index < budget for t in facts.trials)
    if running:
        sentence = f"{done} of {count(budget, 'trial')} are done; this page reloads itself."
        return {"word": "running", "sentence": sentence}
    if not facts.trials:
        return {"word": "started", "sentence": "No trial has begun yet."}
    if done < budget:
        left = f"{done} of {count(budget, 'trial')} are done. The same command goes on from here."
        return {"word": "unfinished", "sentence": left}
    if not facts.ranked:
        return {"word": "failed", "sentence": "Every trial failed, so there is no winner."}
    if facts.tested is None:
        sentence = "All trials are done; the winner has not been tested yet."
        if "test" in facts.notes:
            sentence = "All trials are done; the results on the test set can't be read."
        return {"word": "untested", "sentence": sentence}
    failed = facts.count("failed")
    sentence = f"{count(done, 'trial')}" + (f", {failed} of them failed." if failed else ".")
    return {"word": "finished", "sentence": sentence}


def about_scores(facts: Facts) -> list[str]:
    """Sentences: the winner's place among the scores, and whether the best is an outlier."""
    scores, winner = facts.scores, facts.winner
    if winner is None or winner.score is None:
        return []
    found = distribution(scores)
    place = 1 + sum(score > winner.score for score in scores)
    said = [f"By score alone the winner is number {place} of {len(scores)}."]
    if found is None:
        said.append("There are too few different scores to say how they are distributed.")
    else:
        verdict = (
            "so the best is not shown to be an outlier"
            if found.p_value >= 0.05
            else "so the best stands out from the others"
        )
        said.append(
            f"The scores have mean {found.mean:.4f}, standard deviation {found.deviation:.4f} and"
            f" skewness {signed(found.skewness)} (0 is symmetric). The highest lies"
            f" {found.distance:.2f} standard deviations above the mean; in a normal sample of"
            f" {found.count} the highest lies at least that far out with probability"
            f" {found.p_value:.2f} (Grubbs' test), {verdict}. The test assumes that scores are"
            f" normally distributed, which {found.count} trials can't show."
        )
    return said


def about_importance(
    found: Sequence[Importance], scores: Sequence[float], unordered: Sequence[str] = ()
) -> str:
    """What the importances show, or why they show nothing.

    unordered: hyperparameters whose values have no order, and so no rank correlation.
    """
    said = _about_importance(found, scores)
    if unordered:
        names = ", ".join(unordered)
        said += f" The values of {names} have no order: see the bars above for their scores."
    return said


def _about_importance(found: Sequence[Importance], scores: Sequence[float]) -> str:
    trials = len(scores)
    if trials < FEWEST_FOR_IMPORTANCE:
        return (
            f"With {count(trials, 'completed trial')} the importance of hyperparameters can't be"
            f" estimated; at least {FEWEST_FOR_IMPORTANCE} are needed."
        )
    if len(set(scores)) == 1:
        return "All trials have the same score, so no hyperparameter made a difference."
    known = [item for item in found if item.known]
    few = [item.name for item in found if item.trials < FEWEST_FOR_IMPORTANCE]
    if not known:
        only = f" (Too few trials have {', '.join(few)} to tell.)" if few else ""
        return (
            f"{trials} trials do not show that any hyperparameter matters, with all"
            f" {len(found)} tested together. That does not mean that none does.{only}"
        )
    parts = [f"{item.name} ({'larger' if item.rho > 0 else 'smaller'} is better)" for item in known]
    others = len(found) - len(known)
    rest = "" if not others else f" For the other {others}, {trials} trials show no clear effect."
    return f"These matter more than chance explains: {', '.join(parts)}.{rest}"


def about_budget(facts: Facts, expected: np.ndarray) -> list[str]:
    """Sentences: whether ten more trials would help, from the expected best of each number."""
    scores, images = facts.scores, facts.validation_images
    ended = len(scores) + facts.count("failed")
    size = facts.space.size
    more = MORE if size is None else min(MORE, size - ended)
    if len(scores) < 2:
        return ["One score says nothing about what more trials would bring."]
    half = len(scores) // 2
    gain = float(expected[-1] - expected[half - 1])
    error = max(standard_error(max(scores), images), 1 / images)
    said = [
        f"Going from {half} to {len(scores)} completed trials raised the expected best by"
        f" {gain:.4f}. One standard error of the best score is {error:.4f}."
    ]
    if more <= 0:
        return [*said, "The search has tried its whole space: there are no more trials to run."]
    chance = chance_of_new_best(ended, more)
    verdict = (
        "no more than one standard error: these validation images can hardly show it, and more of"
        " them may help more than more trials"
        if gain <= error
        else "more than one standard error, so more trials may be worthwhile"
    )
    said.append(
        f"Would {more} more help? If trials come from the same distribution, the best of all"
        f" {ended + more} is among the {more} new ones with probability"
        f" {more}/{ended + more} = {chance:.2f} at most. The gain from going from {half} to"
        f" {len(scores)} trials is {verdict}."
    )
    return said


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
