"""A trial resumed from a checkpoint equals the trial that was never interrupted."""

from __future__ import annotations

import json
import platform
from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import (
    Checkpoint,
    StepsFinished,
    TrialFinished,
    TrialStarted,
    from_arrays,
    to_arrays,
)
from jaxmnist.engine.lanes import Stacking
from jaxmnist.engine.local import Engine
from jaxmnist.files import DamagedFile, read_sealed, sealed_bytes
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import METRICS, Key
from jaxmnist.settings import RECIPES

# 300 images in batches of 8 are 38 steps, so that an epoch has pauses within it.
# All that a step may have is on.
SETTINGS = replace(
    RECIPES["study"],
    epochs=2,
    batch_size=8,
    learning_rate=0.01,
    optimizer="adamw",
    schedule="linear",
    label_smoothing=0.1,
    ema_momentum=0.9,
    random_shift=1,
    random_rotation=10.0,
)
PADDING = {"filters": 8, "units": 8}
HALVES = {key: [0.5] for key in METRICS}
MNIST = DataSpec((28, 28, 1), 10)
FIRST, SECOND = Key(3), Key(5)
TRIALS = {FIRST: configuration(4, 2, 1, 8), SECOND: configuration(3, 2, 1, 5)}


@pytest.fixture(scope="module")
def dataset(small):
    return split("small", load_arrays(None, str(small)), validation_split=0.25, seed=0)


def run(engine, trials, checkpoints=None):
    """Checkpoints by trial, in order, and how each trial ended."""
    kept, ended = {key: [] for key in trials}, {}
    with engine.run(trials.items(), checkpoints) as events:
        for event in events:
            if isinstance(event, Checkpoint):
                kept[event.key].append(event)
            elif isinstance(event, TrialFinished):
                ended[event.key] = event
    return kept, ended


def through_a_file(checkpoint, tmp_path, settings=SETTINGS):
    """The checkpoint after a restart."""
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(sealed_bytes(*to_arrays(checkpoint)))
    arrays, content = read_sealed(path)
    key = checkpoint.key
    return from_arrays(arrays, content, key, STUDY.bind(TRIALS[key], MNIST), 100, settings)


def same(a, b):
    assert a.history == b.history
    assert jax.tree.all(jax.tree.map(np.array_equal, a.parameters, b.parameters))


def test_a_trial_goes_on_from_anywhere(dataset, tmp_path):
    """Bit for bit: from each pause of both epochs, the epoch's running means included."""
    one = {FIRST: TRIALS[FIRST]}
    kept, ended = run(Engine(STUDY, dataset, SETTINGS, 0, checkpoint_every=0.0), one)
    assert [(c.epoch, c.step) for c in kept[FIRST]] == [
        (e, s) for e in (0, 1) for s in (16, 32, 38)
    ]
    assert [len(c.history) for c in kept[FIRST]] == [0, 0, 0, 1, 1, 1]
    same(run(Engine(STUDY, dataset, SETTINGS, 0), one)[1][FIRST], ended[FIRST])
    for checkpoint in kept[FIRST]:
        again = through_a_file(checkpoint, tmp_path)
        assert again.seconds == checkpoint.seconds
        _, went_on = run(Engine(STUDY, dataset, SETTINGS, 0), one, {FIRST: again})
        same(went_on[FIRST], ended[FIRST])
        assert went_on[FIRST].seconds > checkpoint.seconds


@pytest.mark.slow
def test_lanes_go_on_too(dataset, tmp_path):
    """Padded lanes are kept in their own shapes, and those at one place go on together."""

    def engine(**options):
        return Engine(
            STUDY, dataset, SETTINGS, 0, lanes=2, stacking=Stacking("map", 2, PADDING), **options
        )

    kept, ended = run(engine(checkpoint_every=0.0), TRIALS)
    assert kept[SECOND][0].state.parameters["Dense_0"]["kernel"].shape == (6 * 6 * 3, 5)
    middle = {key: through_a_file(checkpoints[1], tmp_path) for key, checkpoints in kept.items()}
    _, went_on = run(engine(), TRIALS, middle)
    for key in TRIALS:
        same(went_on[key], ended[key])
    apart = {FIRST: middle[FIRST]}  # the other trial starts over, in its own program
    _, went_on = run(engine(), TRIALS, apart)
    for key in TRIALS:
        for a, b in zip(went_on[key].history, ended[key].history, strict=True):
            assert a.loss == pytest.approx(b.loss, abs=1e-3)


def test_stopping_keeps_where_a_trial_is(dataset):
    """Whoever stops early is given checkpoints, though it was not time for any."""
    long = replace(SETTINGS, epochs=10**6)
    kept = []
    with Engine(STUDY, dataset, long, 0, jobs=2, checkpoint_every=1e9).run(
        TRIALS.items()
    ) as events:
        for event in events:
            if isinstance(event, StepsFinished):
                events.stop()
            if isinstance(event, Checkpoint):
                kept.append(event.key)
    assert sorted(kept) == sorted(TRIALS)


def test_a_trial_that_goes_on_tells_what_it_had(dataset):
    one = {FIRST: TRIALS[FIRST]}
    kept, _ = run(Engine(STUDY, dataset, SETTINGS, 0, checkpoint_every=0.0), one)
    with Engine(STUDY, dataset, SETTINGS, 0).run(one.items(), {FIRST: kept[FIRST][4]}) as events:
        first = next(iter(events))
    assert first == TrialStarted(
        FIRST, TRIALS[FIRST], kept[FIRST][4].history, "cpu", platform.node()
    )
    assert len(first.history) == 1


@pytest.fixture(scope="module")
def written(dataset):
    one = {FIRST: TRIALS[FIRST]}
    return run(Engine(STUDY, dataset, SETTINGS, 0, checkpoint_every=0.0), one)[0][FIRST][3]


@pytest.mark.parametrize(
    "change",
    [
        {"index": 4},
        {"epoch": 2},
        {"epoch": -1},
        {"epoch": True},
        {"step": -1},
        {"history": {key: [] for key in METRICS}},
        {"history": {**HALVES, "loss": []}},
        {"history": {**HALVES, "loss": ["1"]}},
        {"history": HALVES},
        {"seconds": None},
    ],
)
def test_what_is_no_checkpoint(written, change):
    arrays, content = to_arrays(written)
    with pytest.raises(
        ValueError,
        match=r"another trial|Expected|isn't numbers|are inconsistent|metrics of|its bits",
    ):
        from_arrays(
            arrays, {**content, **change}, FIRST, STUDY.bind(TRIALS[FIRST], MNIST), 100, SETTINGS
        )


def test_arrays_of_another_configuration(written):
    arrays, content = to_arrays(written)
    other = TRIALS[FIRST].replace(filters=5)
    with pytest.raises(ValueError, match="fit this configuration"):
        from_arrays(arrays, content, FIRST, STUDY.bind(other, MNIST), 100, SETTINGS)
    fewer = {**arrays, "validation": arrays["validation"][:, :-1]}
    with pytest.raises(ValueError, match="its bits don't match"):
        from_arrays(fewer, content, FIRST, STUDY.bind(TRIALS[FIRST], MNIST), 100, SETTINGS)
    del arrays[next(name for name in arrays if ".mu" in name)]
    with pytest.raises(ValueError, match=r"\.mu.* doesn't fit"):
        from_arrays(arrays, content, FIRST, STUDY.bind(TRIALS[FIRST], MNIST), 100, SETTINGS)


def test_a_sealed_file_shows_any_change(written, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    good = sealed_bytes(*to_arrays(written))
    path.write_bytes(good)
    assert read_sealed(path)[1]["index"] == 3
    rng = np.random.default_rng(0)
    header = int.from_bytes(good[:8], "little")
    places = [*rng.integers(0, header + 8, 40), *rng.integers(header + 8, len(good), 40)]
    for place in places:
        changed = bytearray(good)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            arrays, content = read_sealed(path)
        except DamagedFile:
            continue
        # Only changes without meaning are allowed: white space, or how JSON escapes a character.
        expected, said = to_arrays(written)
        assert json.dumps(content) == json.dumps(json.loads(json.dumps(said)))
        assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
