"""The choice among finalists, against NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import a_trial, history

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.results.ranking import (
    choose_finalist,
    corrected_mean,
    describe_finalists,
    indistinguishable,
    rerun_keys,
)
from jaxmnist.results.selection import wilson
from jaxmnist.results.table import finalists_table
from jaxmnist.runs.trial import Key, pack_right

IMAGES = 203  # no multiple of 8


def trial(index, score=0.5, rerun=None, right=None, status="completed"):
    """A trial or rerun of two epochs, with the images that it has right after the last one."""
    score = score if right is None else float(right.mean())
    made = a_trial(index, Hyperparameters({"width": 8}), status, history(0.3, score))
    packed = () if right is None else (bytes(26), pack_right(right))
    return replace(made, rerun=rerun, validation=packed)


def records(right):
    """Reruns by key, from which images they have right: bool[finalists, reruns, images]."""
    return {
        Key(index, number): trial(index, rerun=number, right=right[index, number - 1])
        for index in range(len(right))
        for number in range(1, right.shape[1] + 1)
    }


@pytest.fixture
def right():
    generator = np.random.default_rng(0)
    return generator.random((4, 3, IMAGES)) < np.array([0.7, 0.9, 0.8, 0.85])[:, None, None]


def test_the_best_mean_of_the_reruns_alone_wins(right):
    """Whatever the scores of the trials were."""
    ranked = [trial(index, 0.99 - index / 10) for index in (2, 0, 1, 3)]
    found = choose_finalist(ranked, records(right), 3, IMAGES)
    means = right.mean((1, 2))
    assert [each.trial.index for each in found] == list(np.argsort(-means)) == [1, 3, 2, 0]
    for each in found:
        accuracies = right[each.trial.index].mean(1)
        assert np.isclose(each.mean, means[each.trial.index], rtol=0, atol=1e-15)
        assert np.allclose(each.scores, accuracies)
        assert np.isclose(each.deviation, accuracies.std(ddof=1))
        assert each.tested.key == Key(each.trial.index, 1)
    text = describe_finalists(found)
    assert (
        f"Trial 1 is chosen: the mean validation accuracy of its 3 reruns is {means[1]:.4f}" in text
    )
    assert f"Being the best of 4 means has added about {means[1] - found[0].corrected:.4f}" in text
    assert finalists_table(found).texts[0][:2] == ("1", f"{means[1]:.4f}")


def test_the_best_mean_is_corrected_for_the_choice():
    """By drawing images, within four standard errors; nothing is added where nothing is chosen."""
    generator = np.random.default_rng(3)
    ease = generator.beta(5, 0.5, IMAGES)
    right = generator.random((3, 2, IMAGES)) < ease
    ranked = [trial(index) for index in range(3)]
    chosen = choose_finalist(ranked, records(right), 2, IMAGES)[0]
    means, place, gained = right.mean(1), chosen.trial.index, []
    for _ in range(400):
        drawn = means[:, generator.integers(IMAGES, size=IMAGES)].mean(1) - means.mean(1)
        best = (drawn + means.mean(1)).argmax()
        gained.append(drawn[best] - drawn[place])
    error = np.std(gained) / np.sqrt(400)
    assert abs(chosen.added.once - np.mean(gained)) < 4 * error * np.sqrt(2)
    assert chosen.added.once > 0
    assert chosen.corrected == pytest.approx(chosen.mean - chosen.added.size)
    low, high = chosen.interval
    assert low < chosen.corrected < high
    others = choose_finalist(ranked, records(right), 2, IMAGES)[1:]
    assert all(each.corrected == each.mean for each in others)
    alone = choose_finalist(ranked[:1], records(right), 2, IMAGES)[0]
    equal = choose_finalist(ranked, records(np.repeat(right[:1], 3, axis=0)), 2, IMAGES)[0]
    assert alone.corrected == alone.mean
    assert equal.corrected == equal.mean
    text = describe_finalists([alone])
    assert text.startswith("The only trial was trained again")
    assert "Being the best" not in text
    # The first reruns are compared, not the trials that were selected for their scores.
    fourth = trial(3, right=right[0, 1])
    compared = corrected_mean([chosen, *others], [*ranked, fourth])
    assert (compared.raw, compared.score, compared.trials) == (chosen.mean, chosen.corrected, 3)
    reruns = {i: np.packbits(right[i, 0]) for i in range(3) if i != place}
    left = {**reruns, 3: np.packbits(right[0, 1])}
    assert set(compared.indistinguishable) == set(
        indistinguishable(np.packbits(right[place, 0]), left)
    )


def test_equal_means_rank_as_the_trials_did(right):
    """Also where a sum of accuracies in floating point would differ."""
    right[2] = right[0][::-1, ::-1]
    assert right[2].sum() == right[0].sum()
    for order in ((0, 2), (2, 0)):
        ranked = [trial(index) for index in order]
        found = choose_finalist(ranked, records(right), 3, IMAGES)
        assert tuple(each.trial.index for each in found) == order


def test_failed_reruns_come_last_and_are_never_tested(right):
    ended = records(right)
    failed = {Key(1, 1), Key(0, 1), Key(0, 2), Key(0, 3)}
    for key in failed:
        ended[key] = trial(key.index, rerun=key.rerun, status="failed")
    found = choose_finalist([trial(index) for index in range(4)], ended, 3, IMAGES)
    assert [each.trial.index for each in found] == [3, 2, 1, 0]
    assert [each.failed for each in found] == [0, 0, 1, 3]
    assert found[2].tested.key == Key(1, 2)
    assert np.isclose(found[2].mean, right[1, 1:].mean())
    assert found[3].tested is None
    assert found[0].rivals == 2
    text = describe_finalists(found)
    assert "Being the best of 2 means" in text
    assert "Finalists with failed reruns come after those with fewer" in text
    for key in ended:
        ended[key] = trial(key.index, rerun=key.rerun, status="failed")
    assert choose_finalist([trial(index) for index in range(4)], ended, 3, IMAGES) == ()
    assert finalists_table(found).texts[3] == ("0", "–", "–", "–", "failed failed failed")


def test_the_interval_is_over_images(right):
    """Of one network Wilson's; no narrower for equal networks; as a formula by hand says else."""
    one = choose_finalist([trial(0)], records(right[:, :1]), 1, IMAGES)[0]
    assert np.allclose(one.interval, wilson(right[0, 0].mean(), IMAGES))
    assert np.isnan(one.deviation)
    same = np.repeat(right[:, :1], 3, axis=1)
    equal = choose_finalist([trial(0)], records(same), 3, IMAGES)[0]
    assert np.allclose(equal.interval, one.interval)
    assert equal.deviation == 0
    found = choose_finalist([trial(0)], records(right), 3, IMAGES)[0]
    share = right[0].mean(0)
    p, z = share.mean(), 1.959963984540054
    n = p * (1 - p) / (share.var() / IMAGES)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert np.allclose(found.interval, (middle - reach, middle + reach))
    assert found.interval[1] - found.interval[0] < one.interval[1] - one.interval[0]


def test_which_reruns_are_wanted():
    ranked = [trial(index) for index in (7, 2, 4)]
    assert rerun_keys(ranked, 2, 2) == [Key(7, 1), Key(2, 1), Key(7, 2), Key(2, 2)]
    assert set(rerun_keys(ranked, 2, 1)) < set(rerun_keys(ranked, 3, 2))
    assert rerun_keys(ranked, 0, 0) == []
    assert [key.index for key in rerun_keys(ranked, 9, 1)] == [7, 2, 4]
