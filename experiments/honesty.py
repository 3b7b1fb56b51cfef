"""How often what the program says of a search is true, by repetition.

Claim: what is said of the winner, with 95 % where that is said, is true as often as it says.

20 real searches of 10 small trials, each on its own part of MNIST's training images, are scored on
one pool of 20,000 others. Of the pool a search sees `--validation` images, drawn anew, and as many
test images; the remaining ones are the truth. So all is judged by the functions of the program, on
the bits that its runs keep. Beside the 20 searches as they were, `--simulated` ones draw ten of
all 200 trained trials, and their validation and test images from the pool with replacement, so that
the pool is the truth exactly. Every trial is trained twice again, for the finalists. KerasTuner's
number is the highest validation accuracy of any epoch, taken as it is; its interval is Wilson's.

The runs lie in `--directory`, and are gone on with.

    python experiments/honesty.py --directory runs/honesty
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import jaxmnist
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.dataset import load_arrays
from jaxmnist.machine import machine
from jaxmnist.results.confusion import judge
from jaxmnist.results.evaluation import gap_between
from jaxmnist.results.importance import (
    FEWEST_FOR_IMPORTANCE,
    importances,
    most_gain,
    tuning_curve,
)
from jaxmnist.results.ranking import Corrected, choose_finalist, corrected
from jaxmnist.results.selection import Rule, rule_of, wilson
from jaxmnist.runs.trial import Key, Trial, pack_right, unpack_right
from jaxmnist.settings import RECIPES, USUAL_RECIPE

POOL = 20_000
TRAINING = 2_000  # images of a search
SEARCHES, TRIALS = 20, 10
FINALISTS, RERUNS = 3, 2
SPACE = {
    "filters": "4:12:4",
    "conv_layers": "1:2",
    "dense_layers": "0:1",
    "units": "16:32:16",
    "learning_rate": "5e-4:1e-2:log",
}


@dataclass(frozen=True)
class Trained:
    """A trial, which pool images it has right after each epoch, and its reruns after the last.

    right: bool[E, POOL]. reruns: bool[RERUNS, POOL].
    """

    trial: Trial
    right: np.ndarray
    reruns: np.ndarray


# By sentence: whether it was true; nothing where it was not said.
Judged = dict[str, bool]


def train(directory: Path, recipe: str) -> list[list[Trained]]:
    """The trials of all searches, trained or read."""
    mnist = load_arrays("mnist")
    order = np.random.default_rng(0).permutation(len(mnist.x_train))
    pool, rest = np.split(order, [POOL])
    searches = []
    for number in range(SEARCHES):
        own = rest[TRAINING * number : TRAINING * (number + 1)]
        few = rest[-100:]  # a test set must be there; what the program finds on it isn't used
        run = jaxmnist.random_search(
            data=Arrays(
                *(mnist.x_train[own], mnist.y_train[own], mnist.x_train[few], mnist.y_train[few]),
                x_validation=mnist.x_train[pool],
                y_validation=mnist.y_train[pool],
            ),
            directory=str(directory),
            project_name=str(number),
            seed=number,
            max_trials=TRIALS,
            epochs=3,
            recipe=recipe,
            batch_size=64,
            finalists=TRIALS,
            reruns=RERUNS,
            svm=False,
            report=False,
            tensorboard=False,
            quiet=True,
            **SPACE,
        )
        again = {trial.key: trial for trial in run.reruns}
        searches.append(
            [
                Trained(
                    trial,
                    np.stack([unpack_right(bits, POOL) for bits in trial.validation]),
                    np.stack(
                        [
                            unpack_right(again[Key(trial.index, r)].validation[-1], POOL)
                            for r in range(1, RERUNS + 1)
                        ]
                    ),
                )
                for trial in run.trials
            ]
        )
        print(f"search {number}: {run.results_table().texts[0][1]}", flush=True)
    return searches


def seen(trial: Trial, right: np.ndarray, index: int) -> Trial:
    """The record of a trial whose validation images are some of the pool: bool[E, n]."""
    history = tuple(
        replace(epoch, val_accuracy=float(bits.mean()))
        for epoch, bits in zip(trial.history[-len(right) :], right, strict=True)
    )
    packed = tuple(map(pack_right, right))
    return replace(trial, index=index, history=history, validation=packed)


def judged(
    trials: list[Trained],
    validation: np.ndarray,
    test: np.ndarray,
    truth: np.ndarray,
    errors: dict[str, list[float]],
) -> Judged:
    """Whether what would be said of a search is true.

    Args:
      trials: of the search, in the order of their draws.
      validation, test, truth: indices of images of the pool.
      errors: of each estimate of an accuracy, to which these are added.
    """
    images = len(validation)
    rule = rule_of("steady", images)
    records = [seen(t.trial, t.right[:, validation], i) for i, t in enumerate(trials)]
    true = np.array([t.right[-1, truth].mean() for t in trials])
    ranked = rule.rank(records)
    winner = ranked[0].trial.index
    found = corrected(ranked, rule)
    low, high = found.interval
    said: Judged = {"interval of the corrected score": low <= true[winner] <= high}
    errors["corrected score"].append(found.score - true[winner])
    errors["raw score"].append(found.raw - true[winner])
    said["Wilson's interval of the raw score"] = inside(true[winner], found.raw, images)
    said |= keras_tuner(trials, validation, truth, errors)
    told = set(range(len(trials))) - {winner, *found.indistinguishable}
    if told:
        said["the trials told from the winner are worse"] = bool(
            (true[list(told)] < true[winner]).all()
        )
    said |= finalists(trials, [entry.trial for entry in ranked], validation, truth, errors)
    said["no gap beyond chance is seen, and there is none"] = not gap_is_seen(
        found, trials[winner].right[-1, test]
    )
    return said


def inside(truth: float, score: float, images: int) -> bool:
    """Whether Wilson's interval of a score contains the truth."""
    low, high = wilson(score, images)
    return low <= truth <= high


def keras_tuner(
    trials: list[Trained], validation: np.ndarray, truth: np.ndarray, errors: dict[str, list[float]]
) -> Judged:
    """The best validation accuracy of any epoch of any trial, and the weights of that epoch."""
    scores = np.array([t.right[:, validation].mean(1) for t in trials])
    best, epoch = divmod(int(scores.argmax()), scores.shape[1])
    true = trials[best].right[epoch, truth].mean()
    errors["KerasTuner's best score"].append(scores.max() - true)
    return {
        "KerasTuner's best score, Wilson's interval": inside(true, scores.max(), len(validation))
    }


def finalists(
    trials: list[Trained],
    ranked: list[Trial],
    validation: np.ndarray,
    truth: np.ndarray,
    errors: dict[str, list[float]],
) -> Judged:
    """The interval over images of the mean of the chosen finalist's reruns."""
    first = ranked[:FINALISTS]
    records = {
        Key(trial.index, number): replace(
            seen(trial, trials[trial.index].reruns[number - 1, None][:, validation], trial.index),
            rerun=number,
        )
        for trial in first
        for number in range(1, RERUNS + 1)
    }
    chosen = choose_finalist(first, records, RERUNS, len(validation))[0]
    true = trials[chosen.trial.index].reruns[:, truth].mean()
    errors["mean of the chosen finalist's reruns"].append(chosen.mean - true)
    errors["the same, corrected"].append(chosen.corrected - true)
    low, high = chosen.interval
    return {"interval of the chosen finalist's mean": low <= true <= high}


def gap_is_seen(found: Corrected, right: np.ndarray) -> bool:
    """Whether the gap to the test images is called more than chance; right: bool[m]."""
    # Two classes, right and wrong, have the same accuracy as ten.
    test = judge(np.ones(len(right), int), right.astype(int), (0, 1), ("wrong", "right"))
    gap = gap_between(found, test)
    return gap.low > 0 or gap.high < 0


def judged_budget(
    trials: list[Trained],
    later: list[Trained],
    everybody: list[Trained],
    validation: np.ndarray,
) -> Judged:
    """The tuning curve's band, and what as many trials again add at most.

    Args:
      trials: of the search. later: as many others. everybody: those that both are drawn from.
      validation: indices of images of the pool.
    """
    rule = rule_of("steady", len(validation))
    curve = tuning_curve(standings(trials, rule, validation))
    known = np.arange(1, len(trials) + 1)
    ordered = sorted(standings(everybody, rule, validation))
    # The median winner of k is as far from the top as 1 − (1/2)^(1/k) of all trials.
    places = np.floor((1 - 0.5 ** (1 / known)) * len(ordered)).astype(int)
    true = np.array([ordered[place].score for place in places])
    said = {"band of the tuning curve": bool(((curve.low <= true) & (true <= curve.high)).all())}
    bound = most_gain(standings(trials, rule, validation), len(trials), len(later))
    if bound is not None:
        before = min(standings(trials, rule, validation))
        after = min(standings(trials + later, rule, validation))
        said["gain of twice the budget"] = after.score - before.score <= bound
    return said


def standings(trials: list[Trained], rule: Rule, validation: np.ndarray) -> list:
    """The standings of trials on these images."""
    return rule.standings(
        rule.rank([seen(t.trial, t.right[:, validation], i) for i, t in enumerate(trials)])
    )


def judged_importance(
    trials: list[Trained],
    everybody: list[Trained],
    validation: np.ndarray,
    generator: np.random.Generator,
) -> Judged:
    """One that doesn't exist doesn't matter; the others' shares are in their intervals."""
    names = list(everybody[0].trial.hyperparameters)

    def of(some: list[Trained], noise: np.ndarray) -> dict:
        given = [
            dict(t.trial.hyperparameters) | {"noise": float(x)}
            for t, x in zip(some, noise, strict=True)
        ]
        scores = [float(t.right[-1, validation].mean()) for t in some]
        return {each.name: each for each in importances([*names, "noise"], given, scores, 199)}

    here = of(trials, generator.random(len(trials)))
    all_ = of(everybody, generator.random(len(everybody)))
    said = {"a hyperparameter without effect is not said to matter": not here["noise"].matters}
    for name in names:
        if here[name].estimable:
            low, high = here[name].low, here[name].high
            said[f"interval of the importance of {name}"] = low <= all_[name].share <= high
    return said


def share(found: list[bool]) -> str:
    """How many are true, with the share."""
    return f"{sum(found)} of {len(found)} ({100 * sum(found) / len(found):.1f} %)"


def table(title: str, judgements: list[Judged], errors: dict[str, list[float]]) -> str:
    """The shares of true sentences, and the bias of estimates, as lines."""
    lines = [title]
    names = dict.fromkeys(name for each in judgements for name in each)
    for name in names:
        lines.append(f"  {name:58} {share([each[name] for each in judgements if name in each])}")
    for name, found in errors.items():
        error = statistics.stdev(found) / math.sqrt(len(found))
        lines.append(f"  bias of: {name:49} {statistics.mean(found):+.5f} ± {2 * error:.5f}")
    return "\n".join(lines)


def repeated(number: int, one: Callable[[int], Judged]) -> list[Judged]:
    """`one` of 0 to `number` − 1."""
    return [one(place) for place in range(number)]


def main() -> None:
    """Train, judge, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--directory", default="runs/honesty", help="of the runs")
    parser.add_argument("--recipe", choices=list(RECIPES), default=USUAL_RECIPE)
    parser.add_argument("--validation", type=int, default=1000, help="validation images")
    parser.add_argument("--simulated", type=int, default=2000, help="searches")
    given = parser.parse_args()
    searches = train(Path(given.directory), given.recipe)
    everybody = [trained for trials in searches for trained in trials]
    generator = np.random.default_rng(1)
    size = given.validation

    real: dict[str, list[float]] = defaultdict(list)

    def as_it_was(number: int) -> Judged:
        validation, test, truth = np.split(generator.permutation(POOL), [size, 2 * size])
        return judged(searches[number], validation, test, truth, real)

    simulated: dict[str, list[float]] = defaultdict(list)

    def drawn(_: int) -> Judged:
        chosen = generator.permutation(len(everybody))[: 2 * TRIALS]
        trials, later = ([everybody[i] for i in part] for part in np.split(chosen, 2))
        validation, test = generator.integers(POOL, size=(2, size))
        said = judged(trials, validation, test, np.arange(POOL), simulated)
        return said | judged_budget(trials, later, everybody, validation)

    def larger(_: int) -> Judged:
        chosen = generator.permutation(len(everybody))[: 2 * FEWEST_FOR_IMPORTANCE]
        validation = generator.integers(POOL, size=size)
        trials = [everybody[i] for i in chosen]
        return judged_importance(trials, everybody, validation, generator)

    print(machine())
    print(table(f"{SEARCHES} real searches", repeated(SEARCHES, as_it_was), real))
    title = f"{given.simulated} simulated searches"
    print(table(title, repeated(given.simulated, drawn), simulated))
    title = f"{given.simulated // 10} simulated searches of {2 * FEWEST_FOR_IMPORTANCE} trials"
    print(table(title, repeated(given.simulated // 10, larger), {}))


if __name__ == "__main__":
    main()
