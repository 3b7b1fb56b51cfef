"""Which trials are done, tried again, or given up; and where they are resumed."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from conftest import a_trial, bits, history, searched

from jaxmnist import random_search
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import Checkpoint, TrialFinished, TrialStarted
from jaxmnist.engine.local import Engine
from jaxmnist.errors import EnvironmentFailure
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY, BoundNetwork
from jaxmnist.models.study import configuration
from jaxmnist.runs.records import File
from jaxmnist.runs.store import Store, begin_run
from jaxmnist.runs.trial import DEATHS, QUEUE, Key, State, agree, state_of
from jaxmnist.search.schedule import Schedule
from jaxmnist.settings import RECIPES, SearchSettings

DRAWS = {Key(index): configuration(4 - index, 1, 0) for index in range(3)}
SEARCH = searched()


@pytest.fixture(scope="module")
def dataset(small):
    return split("small", load_arrays(None, str(small)), validation_split=0.25, seed=0)


@pytest.fixture
def opened(dataset, tmp_path, said):
    """Opens the run's trials as a new process would; `said` has what it told."""

    @contextmanager
    def run(**settings):
        said.clear()
        with begin_run(tmp_path / "run", SEARCH, overwrite=False) as directory:
            directory.write_search()
            found = SearchSettings(epochs=2, keep=1, **settings)
            trials = Schedule(directory, STUDY, dataset, found, DRAWS)
            trials.said = said
            trials.store = directory
            yield trials

    return run


def pending(trials):
    """The indices of the trials that are to be trained next."""
    return [key.index for key in trials.pending()]


def lost(schedule):
    """The trials whose weights must be made again, when no others will be trained."""
    schedule.clean_up()
    return schedule.without_weights()


def started(index):
    return TrialStarted(Key(index), DRAWS[Key(index)])


def finish(trials, index, accuracy=0.5):
    """Train a trial, as far as its record goes."""
    data = DataSpec((28, 28, 1), 10)
    weights = STUDY.bind(DRAWS[Key(index)], data).initial_weights(seed=0, index=index)
    epochs, right = history(0.4, accuracy), bits(0.4, accuracy)
    trials.record(started(index))
    trials.record(TrialFinished(Key(index), epochs, weights, 1.0, validation=right))


def fail(trials, index, error="MemoryError: no", diverged=False):
    trials.record(started(index))
    trials.record(TrialFinished(Key(index), (), None, 1.0, error, diverged))


def checkpoint(dataset, index):
    """A real one, from the middle of the trial's first epoch."""

    settings = replace(RECIPES["study"], epochs=2, batch_size=8)
    engine = Engine(STUDY, dataset, settings, 0, checkpoint_every=0.0)
    with engine.run([(Key(index), DRAWS[Key(index)])]) as events:
        return next(event for event in events if isinstance(event, Checkpoint))


def test_an_exception_is_tried_again_after_the_others(opened):
    with opened() as trials:
        assert pending(trials) == [0, 1, 2]
        fail(trials, 0)
        assert trials.store.read_trial(Key(0)).failures == 1
        assert pending(trials) == [1, 2]
        finish(trials, 1)
        finish(trials, 2)
        assert pending(trials) == [0]
        assert trials.why_again(Key(0)) == "trial 0 is trained again; it failed: MemoryError: no"
        assert trials.why_again(Key(1)) is None or "weights are missing" in trials.why_again(Key(1))
        fail(trials, 0, "MemoryError: again")
        assert pending(trials) == []
        record = trials.store.read_trial(Key(0))
        assert (record.status, record.attempts, record.failures) == ("failed", 2, 2)
        assert record.error == "MemoryError: again"


def test_a_retry_may_succeed_also_after_a_restart(opened):
    with opened() as trials:
        fail(trials, 0)
    with opened() as trials:
        finish(trials, 0)
        record = trials.store.read_trial(Key(0))
        assert (record.status, record.attempts, record.failures) == ("completed", 2, 1)
        assert record.error is None


@pytest.mark.parametrize("retries", [0, 3])
def test_how_often_it_is_tried_again(opened, retries):
    with opened(max_retries=retries) as trials:
        for _ in range(retries):
            fail(trials, 0)
            finish(trials, 1)
            finish(trials, 2)
            assert 0 in pending(trials)
        fail(trials, 0)
        assert 0 not in pending(trials)
        assert trials.store.read_trial(Key(0)).attempts == retries + 1


def test_more_retries_may_be_allowed_later(opened):
    with opened(max_retries=0) as trials:
        fail(trials, 0)
        assert 0 not in pending(trials)
    with opened(max_retries=1) as trials:
        finish(trials, 1)
        finish(trials, 2)
        assert pending(trials) == [0]


def test_divergence_is_never_tried_again(opened):
    with opened(max_retries=9) as trials:
        fail(trials, 0, "the loss stopped being finite in epoch 1", diverged=True)
        assert pending(trials) == [1, 2]
        assert trials.store.read_trial(Key(0)).failures == 0
    with opened(max_retries=9) as trials:
        assert pending(trials) == [1, 2]


def test_an_attempt_is_written_down_before_it_is_made(opened):
    with opened() as trials:
        trials.record(started(1))
        record = trials.store.read_trial(Key(1))
        assert (record.status, record.attempts) == ("running", 1)


def test_who_kills_the_process_comes_last_and_alone_and_is_given_up(opened):
    with opened() as trials:
        trials.record(started(0))
        trials.record(started(1))
    with opened() as trials:  # one kill is not held against a trial
        assert pending(trials) == [0, 1, 2]
        trials.record(started(0))
        trials.record(started(1))
    with opened() as trials:
        assert pending(trials) == [2]
        finish(trials, 2)
        assert pending(trials) == [0]
        finish(trials, 0)
        assert pending(trials) == [1]
        trials.record(started(1))
    for _ in range(DEATHS - 2):
        with opened() as trials:
            assert pending(trials) == [1]
            trials.record(started(1))
    with opened() as trials:
        assert pending(trials) == []
        record = trials.store.read_trial(Key(1))
        assert (record.status, record.attempts) == ("failed", DEATHS + 1)
        assert record.error.startswith(f"the process died {DEATHS + 1} times while")
    with opened() as trials:
        assert pending(trials) == []  # given up until more retries are allowed
    with opened(max_retries=2) as trials:
        assert pending(trials) == [1]
        finish(trials, 1)
        assert trials.store.read_trial(Key(1)).deaths == 0


def test_who_kills_the_process_is_alone_also_among_those_that_failed(opened):
    with opened() as trials:
        fail(trials, 0)
        fail(trials, 1)
        finish(trials, 2)
    for _ in range(2):
        with opened() as trials:
            assert pending(trials) == [0, 1]
            trials.record(started(0))  # kills the process, while trial 1 waits
    with opened() as trials:
        assert pending(trials) == [1]
        finish(trials, 1)
        assert pending(trials) == [0]


def test_who_failed_once_and_then_kills_the_process_is_given_up_too(opened):
    with opened() as trials:
        fail(trials, 0)
        finish(trials, 1)
        finish(trials, 2)
    for _ in range(DEATHS + 1):
        with opened() as trials:
            assert pending(trials) == [0]
            trials.record(started(0))
    with opened() as trials:
        assert pending(trials) == []
        record = trials.store.read_trial(Key(0))
        assert (record.status, record.failures, record.deaths) == ("failed", 1, DEATHS + 1)


def test_who_stops_where_it_began_does_not_get_on(opened, dataset):
    found = checkpoint(dataset, 0)
    with opened() as trials:
        trials.record(started(0))
        trials.record(found)
    for _ in range(2):
        with opened() as trials:
            trials.set_aside_damaged_checkpoints(DRAWS)
            trials.record(started(0))  # kills the process
    with opened() as trials:
        trials.set_aside_damaged_checkpoints(DRAWS)
        trials.record(started(0))
        trials.record(found)  # stopped while it compiles
        trials.stopped()
        assert trials.store.read_trial(Key(0)).deaths == 2


def no_room(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_trial_whose_record_could_not_be_written_can_be_kept_later(opened, dataset, monkeypatch):
    found = checkpoint(dataset, 0)
    with opened() as trials:
        trials.record(started(1))
        with monkeypatch.context() as full:
            full.setattr(Store, "write_trial", no_room)
            with pytest.raises(OSError, match="No space"):
                trials.record(started(0))
        trials.record(found)
        trials.stopped()
    with opened() as trials:
        assert trials.set_aside_damaged_checkpoints(DRAWS).keys() == {Key(0)}


def test_a_retry_that_diverges_is_the_end(opened):
    with opened(max_retries=3) as trials:
        fail(trials, 0)
        fail(trials, 0, "the loss stopped being finite in epoch 1", diverged=True)
        assert 0 not in pending(trials)


def test_a_process_that_ends_in_good_order_is_no_trials_fault(opened):
    for _ in range(2 * DEATHS):
        with opened() as trials:
            assert pending(trials) == [0, 1, 2]
            trials.record(started(0))
            trials.stopped()
    with opened() as trials:
        finish(trials, 0)
        assert trials.store.read_trial(Key(0)).attempts == 1


def test_a_trial_that_gets_on_is_not_given_up(opened, dataset):
    """Machines that end every hour: each session comes to another checkpoint."""
    found = checkpoint(dataset, 0)
    for _ in range(2 * DEATHS):
        with opened() as trials:
            assert pending(trials) == [0, 1, 2]
            trials.record(TrialStarted(Key(0), DRAWS[Key(0)], found.history))
            trials.record(found)
    with opened() as trials:
        assert trials.store.read_trial(Key(0)).deaths == 0
        assert trials.set_aside_damaged_checkpoints([Key(1), Key(2)]) == {}
        assert trials.set_aside_damaged_checkpoints(DRAWS).keys() == {Key(0)}
        again = trials.set_aside_damaged_checkpoints(DRAWS)[Key(0)]
        assert (again.epoch, again.step) == (found.epoch, found.step)
        finish(trials, 0)
        assert not trials.store.file(File.CHECKPOINT, Key(0)).exists()
        assert trials.set_aside_damaged_checkpoints(DRAWS) == {}


def test_a_damaged_checkpoint_is_set_aside(opened, dataset):
    """It costs the trial what it had done, but is not held against it."""
    found = checkpoint(dataset, 0)
    for _ in range(2 * DEATHS):
        with opened() as trials:
            trials.record(started(0))
            trials.record(found)
    with opened() as trials:
        trials.record(started(0))
        trials.record(found)
        path = trials.store.file(File.CHECKPOINT, Key(0))
        path.write_bytes(path.read_bytes()[:-1])
    with opened() as trials:
        assert trials.set_aside_damaged_checkpoints(DRAWS) == {}
        assert len(trials.said) == 1
        assert "moved to" in trials.said[0]
        assert [p.name.partition("-")[2] for p in path.parents[2].glob("damaged/*")] == [
            "0000-checkpoint.safetensors"
        ]
        assert pending(trials) == [0, 1, 2]


def test_a_checkpoint_of_another_trial_is_set_aside(opened, dataset):
    with opened() as trials:
        trials.record(started(0))
        trials.record(started(1))
        trials.record(checkpoint(dataset, 0))
        source, target = (trials.store.file(File.CHECKPOINT, Key(index)) for index in (0, 1))
        target.write_bytes(source.read_bytes())
    with opened() as trials:
        assert trials.set_aside_damaged_checkpoints(DRAWS).keys() == {Key(0)}
        assert "another trial" in trials.said[-1]


def test_an_exception_in_one_trial_of_a_search(options, tmp_path, monkeypatch, capsys):
    """The search goes on, tries once more, and the winner comes from the others."""
    drawn, tried = BoundNetwork.initial_weights, []

    def bad(*args, index, **kwargs):
        if index == 2:
            tried.append(index)
            raise MemoryError("no room\nfor this one")
        return drawn(*args, index=index, **kwargs)

    monkeypatch.setattr(BoundNetwork, "initial_weights", bad)
    run = random_search(**{**options, "svm": False, "epochs": 1}, directory=str(tmp_path))
    assert tried == [2, 2]
    assert [t.status for t in run.trials] == ["completed", "completed", "failed", "completed"]
    failed = run.trials[2]
    assert (failed.error, failed.attempts) == ("MemoryError: no room for this one", 2)
    assert run.best_trial.index != 2
    assert "MemoryError: no room for this one" in run.results_summary()


def test_a_retry_that_succeeds_is_as_if_it_had_not_failed(options, tmp_path, monkeypatch):
    given = {**options, "svm": False, "epochs": 1, "max_trials": 2}
    whole = random_search(**given, directory=str(tmp_path / "whole"))
    drawn, failures = BoundNetwork.initial_weights, iter([RuntimeError("once")])

    def bad(*args, index, **kwargs):
        if index == 1:
            for failure in failures:
                raise failure
        return drawn(*args, index=index, **kwargs)

    monkeypatch.setattr(BoundNetwork, "initial_weights", bad)
    run = random_search(**given, directory=str(tmp_path / "again"))
    assert [t.history for t in run.trials] == [t.history for t in whole.trials]
    assert (run.trials[1].attempts, run.trials[1].failures) == (2, 1)
    assert run.best_trial.index == whole.best_trial.index


def test_weights_that_can_not_be_made_again(opened):
    """A record that was completed stands: it is the environment that failed."""
    with opened() as trials:
        for index in range(3):
            finish(trials, index, 0.5 + index / 10)
        trials.store.file(File.WEIGHTS, Key(2)).unlink()
        assert pending(trials) == []
        assert list(lost(trials)) == [Key(2)]
        assert trials.why_again(Key(2)) == (
            "trial 2 is among the best, but its weights are missing: trained again"
        )
        with pytest.raises(EnvironmentFailure, match="trial 2 failed when trained again"):
            fail(trials, 2)
        assert trials.store.read_trial(Key(2)).status == "completed"
        assert np.isclose(trials.store.read_trial(Key(2)).score, 0.7)


def test_weights_that_a_killed_process_left_are_deleted(opened):
    with opened() as trials:
        for index in range(3):
            finish(trials, index, 0.5 + index / 10)
        extra = trials.store.file(File.WEIGHTS, Key(0))
        extra.write_bytes(b"weights")
    with opened() as trials:
        assert pending(trials) == []
        assert extra.exists()  # `pending` changes no file
        assert lost(trials) == {}
        assert not extra.exists()
        assert trials.store.file(File.WEIGHTS, Key(2)).exists()


@pytest.mark.parametrize(
    ("status", "failures", "deaths", "retries", "state"),
    [
        ("completed", 0, 0, 1, State.COMPLETED),
        ("completed", 3, 9, 1, State.COMPLETED),
        ("running", 0, DEATHS + 1, 1, State.GIVEN_UP),
        ("failed", 0, DEATHS + 1, 1, State.GIVEN_UP),
        ("failed", 0, DEATHS + 1, 2, State.SUSPECT),
        ("running", 0, 2, 1, State.SUSPECT),
        ("running", 1, 2, 1, State.SUSPECT),
        ("failed", 1, 0, 1, State.RETRY),
        ("failed", 1, 0, 0, State.FAILED),
        ("running", 1, 0, 1, State.RETRY),
        ("running", 2, 0, 1, State.RETRY),
        ("running", 0, 0, 0, State.INTERRUPTED),
        ("running", 0, 1, 1, State.INTERRUPTED),
        ("failed", 0, DEATHS + 1, DEATHS + 1, State.INTERRUPTED),
        ("failed", 2, 0, 1, State.FAILED),
        ("failed", 0, 0, 9, State.FAILED),
    ],
)
def test_the_table_of_states(status, failures, deaths, retries, state):
    record = a_trial(0, DRAWS[Key(0)], status, history(0.5), failures=failures, deaths=deaths)
    assert state_of(record, retries) is state
    assert state_of(None, retries) is State.FRESH


def test_every_state_is_in_the_queue_or_done():
    from jaxmnist.search.schedule import DONE

    assert sorted([*DONE, *(s for states in QUEUE for s in states)], key=str) == sorted(
        State, key=str
    )


def test_which_images_were_right_is_kept(opened):
    with opened() as trials:
        finish(trials, 0, 0.7)
        record = trials.store.read_trial(Key(0))
        found = np.load(trials.store.file(File.VALIDATION, Key(0)))
        assert found.dtype == np.uint8
        right = np.unpackbits(found, axis=1, count=100).astype(bool)
        assert right.mean(1).tolist() == record.metric("val_accuracy") == [0.4, 0.7]
        assert agree(record.history, [row.tobytes() for row in found], 100)


@pytest.mark.parametrize("change", ["gone", "damaged", "of another trial", "of other images"])
def test_a_trial_without_its_bits_is_trained_again(opened, change, dataset):
    with opened() as trials:
        for index in range(3):
            finish(trials, index, 0.5 + index / 10)
        path = trials.store.file(File.VALIDATION, Key(1))
        if change == "gone":
            path.unlink()
        elif change == "damaged":
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        elif change == "of another trial":
            path.write_bytes(trials.store.file(File.VALIDATION, Key(0)).read_bytes())
        else:
            record = trials.store.read_trial(Key(1))
            trials.store.write_trial(replace(record, validation_data_sha256="0" * 64))
    with opened() as trials:
        assert pending(trials) == [1]
        assert any("validation" in line for line in trials.said)
        finish(trials, 1, 0.6)
    with opened() as trials:
        assert pending(trials) == []
