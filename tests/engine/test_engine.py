from __future__ import annotations

import dataclasses
import threading
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import (
    EpochFinished,
    StepsFinished,
    TrialCompiled,
    TrialFinished,
    TrialStarted,
)
from jaxmnist.engine.local import Engine, Events
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import Key
from jaxmnist.settings import RECIPES

SETTINGS = replace(RECIPES["study"], epochs=2, batch_size=32, learning_rate=0.01)
FIRST = Key(0)
TRIALS = {
    FIRST: configuration(4, 1, 0),
    Key(3): configuration(4, 2, 1, 8),
    Key(5): configuration(8, 1, 1, 8),
}


@pytest.fixture(scope="module")
def dataset(small):
    return split("small", load_arrays(None, str(small)), validation_split=0.25, seed=0)


def run(dataset, settings=SETTINGS, trials=TRIALS, **options):
    """The events of each trial, by key."""
    found = {key: [] for key in trials}
    with Engine(STUDY, dataset, settings, 0, **options).run(trials.items()) as events:
        for event in events:
            if not isinstance(event, StepsFinished):  # whose times depend on the clock
                found[event.key].append(event)
    return found


@pytest.fixture(scope="module")
def alone(dataset):
    return run(dataset, jobs=1)


def test_every_trial_tells_its_epochs(alone):
    for events in alone.values():
        kinds = [type(event) for event in events]
        assert kinds == [TrialStarted, TrialCompiled, EpochFinished, EpochFinished, TrialFinished]
        assert [event.epoch for event in events[2:4]] == [1, 2]
        assert events[-1].history == tuple(event.metrics for event in events[2:4])
        assert events[-1].error is None


def test_histories_and_weights_do_not_depend_on_jobs(dataset, alone):
    together = run(dataset, trials=dict(reversed(TRIALS.items())), jobs=3)
    for key, events in alone.items():
        assert together[key][-1].history == events[-1].history
        pair = together[key][-1].parameters, events[-1].parameters
        assert jax.tree.all(jax.tree.map(np.array_equal, *pair))


@pytest.mark.parametrize(("consecutive", "order"), [(False, [3, 5, 0]), (True, [0, 3, 5])])
def test_the_longest_of_the_last_trials_start_first(dataset, consecutive, order):
    with Engine(STUDY, dataset, SETTINGS, 0, jobs=2, consecutive=consecutive).run(
        TRIALS.items()
    ) as events:
        started = [event.key.index for event in events if isinstance(event, TrialStarted)]
    assert {*started[:2]} == {*order[:2]}
    assert started[2] == order[2]


def test_accuracies_are_those_of_the_weights(dataset, alone):
    """Validation accuracy of the last epoch, counted anew with the weights that came back."""
    from jaxmnist.results.trained import TrainedModel

    averaged = run(dataset, dataclasses.replace(SETTINGS, ema_momentum=0.9), jobs=2)
    for key, events in [*alone.items(), *averaged.items()]:
        last = events[-1]
        model = TrainedModel(
            TRIALS[key], dataset.image_shape, dataset.labels, dataset.scale, last.parameters
        )
        right = (
            model.predict(dataset.x_validation) == np.asarray(dataset.labels)[dataset.y_validation]
        )
        assert last.history[-1].val_accuracy == right.mean()


def test_divergence_is_an_error_and_hurts_nobody(dataset):
    wild = replace(RECIPES["study"], epochs=3, batch_size=32, learning_rate=1e30)
    found = run(dataset, wild, jobs=2)
    for events in found.values():
        assert events[-1].parameters is None
        assert "stopped being finite" in events[-1].error
        assert not events[-1].history[-1].finite


def test_divergence_that_only_validation_sees(dataset):
    """One step an epoch: the training loss is that of the weights before it."""
    wild = replace(RECIPES["study"], epochs=2, batch_size=1000, learning_rate=1e30)
    events = run(dataset, wild, {FIRST: TRIALS[Key(3)]})[FIRST]
    assert events[-1].error == "the validation loss stopped being finite in epoch 1"


def test_an_exception_is_the_trials_own(dataset, alone):
    """A network too large for any machine fails; its neighbours don't notice."""
    huge = configuration(10**5, 1, 1, 10**6)
    found = run(dataset, trials={Key(1): huge, **TRIALS}, jobs=2)
    assert found[Key(1)][-1].error is not None
    assert "\n" not in found[Key(1)][-1].error
    for key, events in alone.items():
        assert found[key][-1].history == events[-1].history


def test_leaving_early_stops_the_trials(dataset):
    long = dataclasses.replace(SETTINGS, epochs=10**6)
    before = set(threading.enumerate())
    with Engine(STUDY, dataset, long, 0, jobs=2).run(TRIALS.items()) as events:
        for event in events:
            if isinstance(event, EpochFinished):
                assert len(set(threading.enumerate()) - before) == 2
                break
    assert set(threading.enumerate()) <= before


def test_no_group_starts_once_the_time_is_over():
    """Two workers: the groups that run when it is over finish, and no other starts."""
    both, over = threading.Barrier(2), threading.Event()

    def run_group(group, stop):
        both.wait(10)  # two run at once
        if group == 2:
            over.set()
        both.wait(10)
        yield group

    events = Events(run_group, list(range(6)), 2)
    events.end_when(over.is_set)
    events.start()
    assert sorted(events) == [0, 1, 2, 3]
    events.join()
    first = Events(lambda group, stop: iter([group]), [0, 1], 1)
    first.end_when(lambda: True)
    first.start()
    assert list(first) == [0]


def test_a_failure_of_a_worker_is_raised_after_the_events_before_it():
    """An error of the engine itself, not of a trial."""

    def run_group(group, stop):
        yield group
        raise MemoryError("no more of it")

    events = Events(run_group, [7], 1)
    events.start()
    assert next(events) == 7
    with pytest.raises(MemoryError, match="no more of it"):
        next(events)
    events.join()


def test_fewer_images_than_a_batch(dataset):
    tiny = dataclasses.replace(dataset, x_train=dataset.x_train[:20], y_train=dataset.y_train[:20])
    events = run(tiny, replace(RECIPES["study"], epochs=1, batch_size=128), {FIRST: TRIALS[FIRST]})[
        FIRST
    ]
    assert events[-1].history[0].finite
    huge = run(tiny, replace(RECIPES["study"], epochs=1, batch_size=10**9), {FIRST: TRIALS[FIRST]})[
        FIRST
    ]
    assert huge[-1].history == events[-1].history
