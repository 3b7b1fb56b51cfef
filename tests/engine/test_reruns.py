"""Reruns: fresh weights, orders of images that finalists share, training without validation."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import slow_after

from jaxmnist.data.dataset import joined, load_arrays, split
from jaxmnist.engine.events import EpochFinished, TrialFinished
from jaxmnist.engine.lanes import Group, Stacking, group_trials
from jaxmnist.engine.local import Engine
from jaxmnist.engine.training import order_seed, weights_seed
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import REFIT, Key
from jaxmnist.settings import RECIPES

SETTINGS = replace(RECIPES["study"], epochs=2, batch_size=32, learning_rate=0.01)
SMALL = configuration(4, 1, 0)
RERUNS = [Key(3, 1), Key(5, 1), Key(3, 2)]


@pytest.fixture(scope="module")
def dataset(small):
    return split("small", load_arrays(None, str(small)), validation_split=0.25, seed=0)


def run(dataset, keys, **options):
    """How each training ended, and how many epochs it told."""
    ended, epochs = {}, dict.fromkeys(keys, 0)
    with Engine(STUDY, dataset, SETTINGS, 0, **options).run((key, SMALL) for key in keys) as events:
        for event in events:
            if isinstance(event, EpochFinished):
                epochs[event.key] += 1
            elif isinstance(event, TrialFinished):
                ended[event.key] = event
    assert all(event.error is None for event in ended.values())
    return ended, epochs


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a.parameters, b.parameters))


def test_seeds():
    """A trial's are the search's; others are pinned, as runs are gone on with."""
    assert weights_seed(7, Key(3)) == order_seed(7, Key(3)) == 7
    assert weights_seed(0, Key(3, 1)) == np.random.SeedSequence([0, 3, 1, 4]).generate_state(1)[0]
    assert [weights_seed(0, key) for key in RERUNS] == [257007797, 1309318003, 3923955012]
    assert [order_seed(0, key) for key in RERUNS] == [3507651262, 3507651262, 3608231367]
    keys = [Key(index, number) for index in range(20) for number in range(20)]
    assert len({weights_seed(seed, key) for seed in (0, 1) for key in keys}) == 800
    assert len({order_seed(seed, key) for seed in (0, 1) for key in keys}) == 40


def test_orders_are_those_of_the_number(dataset):
    """Equal for the finalists of one rerun; others in each epoch, each rerun and the search."""
    engine = Engine(STUDY, dataset, SETTINGS, 0)

    def order(key, epoch=0):
        batches = engine.builder.batches_of(Group(SMALL, ((key, SMALL),), 1), epoch)
        found = batches[batches >= 0]
        assert np.array_equal(np.sort(found), np.arange(300))
        return found

    assert np.array_equal(order(Key(3, 1)), order(Key(5, 1)))
    assert np.array_equal(order(Key(3)), order(Key(5)))
    others = [order(Key(3)), order(Key(3, 1)), order(Key(3, 2)), order(Key(3, REFIT))]
    others.append(order(Key(3, 1), epoch=1))
    assert len({found.tobytes() for found in others}) == 5


def test_only_reruns_of_one_number_share_a_group():
    keys = [Key(3), Key(5), *RERUNS]
    groups = group_trials([(key, SMALL) for key in keys], Stacking("map", 8), 1)
    members = [{key for key, _ in group.trials} for group in groups]
    assert members == [{Key(3), Key(5)}, {Key(3, 1), Key(5, 1)}, {Key(3, 2)}]
    assert len({group.key for group in groups}) == 1  # so that they share compiled programs


@pytest.mark.slow
def test_a_rerun_is_a_training_of_its_own_alone_or_stacked(dataset):
    alone, epochs = run(dataset, [Key(3), *RERUNS], jobs=2)
    assert epochs == dict.fromkeys([Key(3), *RERUNS], 2)
    assert len({event.history for event in alone.values()}) == 4
    stacked = run(dataset, RERUNS[:2], lanes=2)[0]
    for key, event in stacked.items():
        for one, other in zip(event.history, alone[key].history, strict=True):
            assert np.isclose(one.loss, other.loss, rtol=1e-4)


def test_a_refit_trains_on_the_validation_images_too(dataset):
    """As a training on both parts, put together here, with any images for validation."""
    data = joined(dataset)
    by_hand = replace(
        dataset,
        x_train=np.array([*dataset.x_train, *dataset.x_validation]),
        y_train=np.array([*dataset.y_train, *dataset.y_validation]),
        x_validation=dataset.x_test[:10],
        y_validation=dataset.y_test[:10],
    )
    assert (len(data.y_train), len(data.y_validation)) == (400, 0)
    key = Key(3, REFIT)
    (refit, epochs), (expected, _) = run(data, [key]), run(by_hand, [key])
    assert epochs == {key: 2}
    assert same(refit[key], expected[key])
    for ours, theirs in zip(refit[key].history, expected[key].history, strict=True):
        assert (ours.loss, ours.accuracy) == (theirs.loss, theirs.accuracy)
        assert np.isnan([ours.val_loss, ours.val_accuracy]).all()
    assert refit[key].validation == (b"", b"")


def test_a_refit_that_diverges_is_an_error(dataset):
    wild = replace(SETTINGS, learning_rate=1e30)
    with Engine(STUDY, joined(dataset), wild, 0).run([(Key(3, REFIT), SMALL)]) as events:
        *_, last = events
    assert last.error == "the loss stopped being finite in epoch 1"


@pytest.mark.parametrize("lanes", slow_after(1, [None, 2]))
def test_a_refit_that_diverges_in_its_last_step_is_an_error(dataset, lanes):
    """With one step an epoch, the training loss is that before the step: it is finite."""
    wild = replace(SETTINGS, epochs=1, batch_size=400, learning_rate=1e30)
    keys = [Key(3, REFIT), Key(5, REFIT)]
    with Engine(STUDY, joined(dataset), wild, 0, lanes=lanes).run((k, SMALL) for k in keys) as run:
        ended = [event for event in run if isinstance(event, TrialFinished)]
    assert {event.key for event in ended} == set(keys)
    for event in ended:
        assert event.error == "the loss after the last step stopped being finite in epoch 1"
        assert (event.diverged, event.parameters) == (True, None)
        assert np.isfinite(event.history[0].loss)
