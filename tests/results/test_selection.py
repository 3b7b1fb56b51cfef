from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import a_trial, bits, history, write_completed, writing
from scipy.stats import binomtest

from jaxmnist import Run, UsageError
from jaxmnist.models.study import configuration
from jaxmnist.results.selection import RULES, Course, rule_of
from jaxmnist.runs.trial import Key, pack_right
from jaxmnist.settings import SELECTIONS

IMAGES = 6000


def trial(index, *accuracies, status="completed", validation=None):
    """A trial of these accuracies, whose falls lose images and win none."""
    found = bits(*accuracies, images=IMAGES) if validation is None else validation
    record = configuration(32, 1, 0)
    return a_trial(index, record, status, history(*accuracies), validation=found)


def changed(*steps, right=5900):
    """The packed bits of epochs: `steps` are images lost and won from one epoch to the next."""
    now = np.arange(IMAGES) < right
    epochs = [pack_right(now)]
    for lost, won in steps:
        now = now.copy()
        lose, win = np.flatnonzero(now)[:lost], np.flatnonzero(~now)[:won]
        now[lose], now[win] = False, True
        epochs.append(pack_right(now))
    return tuple(epochs)


def rank(trials, select="steady", tolerance=None):
    return rule_of(select, IMAGES, tolerance).rank(trials)


def order(trials, *args):
    return [entry.trial.index for entry in rank(trials, *args)]


def test_every_rule_that_can_be_asked_for_is_there():
    assert tuple(RULES) == SELECTIONS
    with pytest.raises(ValueError, match="rule 'worst'; known rules: steady, best"):
        rule_of("worst", 100)


def test_a_table_marks_a_trial_that_is_not_steady():
    rule = rule_of("steady", IMAGES)
    first, second = rule.rank([trial(0, 0.95, 0.96), trial(1, 0.99, 0.97)])
    assert (rule.cell(first), rule.cell(second)) == ("0.0000", "0.0200 ×")
    assert "chance does not explain" in rule.caption
    assert "above 0.01;" in rule_of("steady", IMAGES, 0.01).caption


@pytest.mark.parametrize("lost", range(30, 60))
def test_a_fall_counts_by_mcnemars_test_with_holms_correction(lost):
    """One fall among four changes: it counts exactly if SciPy's p-value is at most 5 % / 4."""
    (fall,) = rule_of("steady", IMAGES).falls(changed((10, 40), (lost, 20), (5, 5), (0, 3)))
    assert (fall.epoch, fall.lost, fall.won) == (3, lost, 20)
    assert fall.size == (lost - 20) / IMAGES
    p_value = binomtest(lost, lost + 20, alternative="greater").pvalue
    assert fall.counts == (p_value <= 0.05 / 4)


def test_a_second_fall_counts_more_easily():
    """Holm: the second of two changes is tested at 5 % once the first has passed 2.5 %."""
    rule = rule_of("steady", IMAGES)
    assert 0.025 < binomtest(16, 23, alternative="greater").pvalue < 0.05
    assert [fall.counts for fall in rule.falls(changed((90, 10), (16, 7)))] == [True, True]
    assert [fall.counts for fall in rule.falls(changed((16, 7), (5, 9)))] == [False]


def test_the_same_fall_counts_by_the_images_that_changed():
    """A net loss of 20 images: of 20 that changed it is certain, of 1,000 it is noise."""
    rule = rule_of("steady", IMAGES)
    assert rule.falls(changed((20, 0)))[0].counts
    assert not rule.falls(changed((510, 490), right=5000))[0].counts


def test_given_tolerance():
    lost = changed((600, 0))
    assert not rule_of("steady", IMAGES, 0.1).falls(lost)[0].counts
    assert rule_of("steady", IMAGES, 599 / IMAGES).falls(lost)[0].counts
    assert rule_of("steady", IMAGES, 0.0).falls(changed((1, 0)))[0].counts
    for images in (7, 3000, 5999):  # whole images, whatever the rounding
        rule = rule_of("steady", IMAGES, images / IMAGES)
        assert not rule.falls(changed((images, 0), right=IMAGES))[0].counts


def test_steady_trials_come_first_then_smaller_falls():
    trials = [
        trial(0, 0.90, 0.99, 0.97),
        trial(1, 0.90, 0.95, 0.96),
        trial(2, 0.90, 0.80, 0.999),
        trial(3, 0.90, 0.95, 0.96),
        trial(4, 0.99, 0.99, 0.99, status="failed"),
        trial(5, status="running"),
    ]
    assert order(trials) == [1, 3, 0, 2]
    assert order(trials, "best") == [2, 0, 1, 3]
    assert order(trials, "steady", 0.05) == [0, 1, 3, 2]


def test_a_small_fall_that_counts_though_a_larger_one_does_not():
    """Trials that are not steady rank by falls that count; that is the one which is shown."""
    noise, sure = changed((530, 490), right=5000), changed((30, 0))
    (entry,) = rank([trial(0, *(0.9,) * 4, validation=(*noise, *sure))])
    falls = {fall.epoch: (fall.size, fall.counts) for fall in entry.falls}
    assert falls == {2: (40 / IMAGES, False), 4: (30 / IMAGES, True)}
    assert not entry.steady
    assert math.isclose(entry.fall, 30 / IMAGES)


def test_many_trials_at_once_have_the_winners_of_each():
    """What resampling uses, against the ranking of records."""
    generator = np.random.default_rng(0)
    for select, tolerance in (("steady", None), ("steady", 0.004), ("best", None)):
        rule = rule_of(select, IMAGES, tolerance)
        for _ in range(20):
            found = [
                changed(*generator.integers(0, 60, (3, 2)).tolist(), right=5880) for _ in range(6)
            ]
            courses = [Course.of(validation, IMAGES) for validation in found]
            counts = (
                np.stack([getattr(course, name) for course in courses])
                for name in ("right", "lost", "won")
            )
            trials = [trial(i, *(0.9,) * 4, validation=bits) for i, bits in enumerate(found)]
            first = rule.rank(trials)[0].trial.index
            assert int(rule.winners(Course(IMAGES, *counts))) == first


def test_one_epoch_has_no_fall():
    rule = rule_of("steady", IMAGES)
    assert rule.falls(bits(0.9, images=IMAGES)) == ()
    assert order([trial(0, 0.9), trial(1, 0.95)]) == [1, 0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"validation_sha256": None}, "does not refer to results on validation images"),
        ({"history": history(0.5, 0.5)}, "does not have the bits of each epoch"),
        ({"history": history(0.5, 0.5, 0.5)}, "do not match validation.npy"),
    ],
)
def test_a_record_that_does_not_fit_its_bits_is_one_line(finished, tmp_path, change, says):
    shutil.copytree(finished.store.path, tmp_path / "run")
    run = writing(tmp_path / "run")
    run.write_trial(replace(run.read_trial(Key(1)), **change))
    with pytest.raises(UsageError, match=says):
        _ = Run(tmp_path / "run").best_trial
    assert len(Run(tmp_path / "run").skipping_damaged().ranking.ranked) == 3


def test_a_completed_trial_of_fewer_epochs_than_the_runs_is_one_line(finished, tmp_path):
    shutil.copytree(finished.store.path, tmp_path / "run")
    run = writing(tmp_path / "run")
    write_completed(run, replace(run.read_trial(Key(1)), history=history(0.5, 0.5)))
    with pytest.raises(UsageError, match=r"0001/trial\.json: does not have 3 epochs; repeat"):
        _ = Run(tmp_path / "run").trials


def test_a_run_without_bits_is_one_line(finished, tmp_path):
    shutil.copytree(finished.store.path, tmp_path / "run")
    (tmp_path / "run" / "trials" / "0002" / "validation.npy").unlink()
    with pytest.raises(UsageError, match=r"validation\.npy: does not exist; repeat the search"):
        _ = Run(tmp_path / "run").trials


def test_explanations_name_the_price():
    rule = rule_of("steady", IMAGES)
    text = rule.reason(rank([trial(0, 0.99, 0.97), trial(1, 0.95, 0.96), trial(2, 0.98, 0.965)]))
    assert "Trial 1 wins" in text
    assert "trial 0" in text
    assert "fell by 0.0200 in epoch 2 (120 images lost, 0 won)" in text
    assert "and 1 more" in text
    assert "cost 0.0100" in text
    assert "highest of all" in rule_of("best", IMAGES).reason(rank([trial(0, 0.9)], "best"))
    assert "no trial scored higher" in rule.reason(rank([trial(0, 0.9)]))
    text = rule.reason(rank([trial(0, 0.99, 0.90), trial(1, 0.999, 0.901)]))
    assert "Trial 0 wins" in text
    assert "no trial was steady, and none fell less than its 0.0900" in text
    assert "cost 0.0010" in text
    given = rule_of("steady", IMAGES, 0.01)
    ranked = given.rank([trial(0, 0.99, 0.97), trial(1, 0.95, 0.96)])
    assert "fell by 0.0200 in epoch 2 (more than 0.01)" in given.reason(ranked)
