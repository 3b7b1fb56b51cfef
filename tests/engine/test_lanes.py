"""Trials that share a program: padded, stacked, spread over devices."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.export
import numpy as np
import pytest
from conftest import begin, float64, numbered, slow_after

from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import (
    EpochFinished,
    StackingChosen,
    StepsFinished,
    TrialFinished,
    TrialStarted,
)
from jaxmnist.engine.lanes import (
    Group,
    Stacking,
    choose,
    group_trials,
    lanes_for,
    with_short_tail,
)
from jaxmnist.engine.local import Engine
from jaxmnist.engine.training import (
    batches,
    epoch_order,
    frozen_where_diverged,
    start_epoch,
    train_block,
)
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY, BoundNetwork
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION, PADDINGS, configuration, pads, resize
from jaxmnist.runs.trial import Key
from jaxmnist.settings import RECIPES

SHAPE, CLASSES = (12, 13, 2), 4
DATA = DataSpec(SHAPE, CLASSES)
PADDING = {"filters": 8, "units": 8}
SETTINGS = replace(RECIPES["study"], epochs=2, batch_size=32, learning_rate=1e-3)


@pytest.fixture(scope="module")
def dataset(small):
    return split("small", load_arrays(None, str(small)), validation_split=0.25, seed=0)


def narrow(conv_layers: int, dense_layers: int) -> list[Hyperparameters]:
    """Configurations of one depth, none as wide as WIDE in both."""
    return [configuration(f, conv_layers, dense_layers, u) for f, u in ((3, 8), (6, 2))]


def widest_of(conv_layers: int, dense_layers: int) -> Hyperparameters:
    return configuration(6, conv_layers, dense_layers, 8)


def start(hyperparameters, index, dtype):
    drawn = STUDY.bind(hyperparameters, DATA).initial_weights(seed=0, index=index)
    return jax.tree.map(lambda x: x.astype(dtype), drawn["params"])


def resized(parameters, before, after):
    return resize(parameters, STUDY.bind(after, DATA).shapes["params"], before, after)


def model(h, method, precision="default"):
    return STUDY.bind(h, DATA).model(method, precision)


def difference(ours, theirs) -> float:
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


@pytest.mark.parametrize("layers", slow_after(1, [(1, 2), (1, 0), (3, 0), (3, 2)]))
def test_a_padded_trial_is_the_unpadded_one(layers):
    """50 steps in float64: lanes of one stack against each trial alone, computed otherwise."""
    conv_layers, dense_layers = layers
    settings = replace(RECIPES["study"], batch_size=8, learning_rate=1e-2)
    widest = widest_of(conv_layers, dense_layers)
    rng = np.random.default_rng(0)
    with float64():
        images = rng.integers(0, 256, (80, *SHAPE)).astype(np.float64)
        labels = rng.integers(0, CLASSES, 80).astype(np.int32)
        orders = [batches(epoch_order(80, 0, epoch), 8, 8) for epoch in range(5)]
        lanes, alone = [], []
        for index, h in enumerate(narrow(conv_layers, dense_layers)):
            parameters = start(h, index, np.float64)
            lanes.append(resized(parameters, h, widest))
            train = jax.jit(train_block(model(h, "convolution"), settings))
            state = begin(parameters, settings)
            sums = []
            for order in orders:
                state = train(start_epoch(state), images, labels, order, 0, 10)
                sums.append((float(state.loss_sum), int(state.correct)))
            alone.append((jax.device_get(state.parameters), sums))
        stack = jax.tree.map(
            lambda *arrays: np.stack(arrays), *[begin(lane, settings) for lane in lanes]
        )
        block = frozen_where_diverged(train_block(model(widest, "convolution"), settings))
        train = jax.jit(Stacking("grouped", 2).over_lanes(block))
        sums = []
        for order in orders:
            stack = train(start_epoch(stack), images, labels, order, 0, 10)
            sums.append((np.asarray(stack.loss_sum), np.asarray(stack.correct)))
        for lane, h in enumerate(narrow(conv_layers, dense_layers)):
            padded = jax.tree.map(lambda x, lane=lane: np.asarray(x[lane]), stack.parameters)
            own = resized(padded, widest, h)
            assert difference(own, alone[lane][0]) < 1e-10
            # The padding is still zero.
            assert difference(resized(own, h, widest), padded) == 0
            for (loss, correct), (own_loss, own_correct) in zip(sums, alone[lane][1], strict=True):
                assert abs(loss[lane] - own_loss) < 1e-10
                assert correct[lane] == own_correct


@pytest.mark.parametrize("precision", slow_after(1, ["default", "highest", "bfloat16"]))
def test_the_first_gradient_of_a_padded_trial(precision):
    """In float32, and in the ways of computing that are offered, over the corners of widths."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, *SHAPE), np.uint8)
    labels = rng.integers(0, CLASSES, 16)
    close = 2e-2 if precision == "bfloat16" else 1e-6
    widest = configuration(16, 2, 1, 24)
    for h in (
        configuration(2, 2, 1, 3),
        configuration(16, 2, 1, 3),
        configuration(2, 2, 1, 24),
    ):
        widest = configuration(16, 2, 1, 24)

        def loss(parameters, h=h):
            logits = (
                model(h, "convolution", precision).outputs({"params": parameters}, images).logits
            )
            assert logits.dtype == np.float32
            return -jax.nn.log_softmax(logits)[np.arange(16), labels].mean()

        parameters = start(h, 0, np.float32)
        value, gradient = jax.jit(jax.value_and_grad(loss))(parameters)
        padded = resized(parameters, h, widest)
        wide = functools.partial(loss, h=widest)
        wide_value, wide_gradient = jax.jit(jax.value_and_grad(wide))(padded)
        assert abs(value - wide_value) < close
        own = resized(wide_gradient, widest, h)
        assert difference(own, gradient) < close


def test_highest_precision_reaches_products_and_their_gradients():
    h = configuration(4, 2, 1, 8)
    train = jax.jit(train_block(model(h, "convolution", "highest"), SETTINGS))
    state = begin(start(h, 0, np.float32), SETTINGS)
    images, labels = np.zeros((8, *SHAPE), np.uint8), np.zeros(8, np.int32)
    text = train.lower(state, images, labels, np.zeros((1, 1, 8), np.int32), 0, 1).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(products) >= 10
    assert all("HIGHEST" in line for line in products)


def test_the_whole_space_needs_few_programs():
    """357 configurations, padded to one or two widths of convolutions."""
    trials = numbered(Space(DEFINITION).draws(0))
    for multiple, buckets in ((64, 2), (128, 1)):
        stacking = Stacking("grouped", 16, {"filters": multiple, "units": 256})
        groups = group_trials(trials, stacking, 1)
        assert sorted(trial for group in groups for trial in group.trials) == trials
        assert len({group.widest for group in groups}) == 9 * buckets
        for group in groups:
            assert len(group.trials) <= group.lanes <= 16
            for _, h in group.trials:
                assert h.keys() == group.widest.keys()
                assert all(h[name] <= group.widest[name] for name in h)


def test_trials_that_start_in_order_share_programs_with_their_neighbours():
    trials = numbered(Space(DEFINITION).draws(0))[:60]
    stacking = Stacking("grouped", 4, {"filters": 128, "units": 256})
    groups = group_trials(trials, stacking, 1, consecutive=True)
    assert [trial for group in groups for trial in group.trials] == trials
    assert max(len(group.trials) for group in groups) > 1
    assert len(groups) > len(group_trials(trials, stacking, 1))
    assert {group.program[0] for group in groups} == {
        group.program[0] for group in group_trials(trials, stacking, 1)
    }


def test_the_last_groups_start_with_the_longest():
    """Only the last three for each job change places, and only where several run at once."""
    work = [5, 1, 9, 2, 8, 2, 7, 3]
    drawn = configuration(32, 1, 0)
    groups = [Group(drawn, (trial,), 1) for trial in numbered([drawn] * 8)]

    def order(jobs):
        found = with_short_tail(groups, jobs, lambda group: work[group.trials[0][0].index])
        return [group.trials[0][0].index for group in found]

    assert order(1) == list(range(8))
    assert order(2) == [0, 1, 2, 4, 6, 7, 3, 5]
    assert order(3) == order(100) == [2, 4, 6, 0, 7, 3, 5, 1]


@pytest.mark.parametrize(
    ("trials", "devices", "most", "lanes"),
    [(1, 1, 8, 1), (3, 1, 8, 4), (8, 1, 8, 8), (5, 4, 8, 8), (3, 8, 8, 8), (1, 2, 1, 2)],
)
def test_lanes_are_a_power_of_two_on_each_device(trials, devices, most, lanes):
    assert lanes_for(trials, devices, most) == lanes


TRIALS = {
    Key(0): configuration(4, 1, 0),
    Key(1): configuration(8, 1, 0),
    Key(2): configuration(3, 2, 1, 8),
    Key(4): configuration(4, 2, 1, 5),
    Key(7): configuration(2, 2, 1, 8),
}


def run(engine, trials=TRIALS):
    found = {key: [] for key in trials}
    chosen = []
    with engine.run(trials.items()) as events:
        for event in events:
            if isinstance(event, StackingChosen):
                chosen.append(event)
            elif not isinstance(event, StepsFinished):
                found[event.key].append(event)
    return found, chosen


@pytest.fixture(scope="module")
def alone(dataset):
    return run(Engine(STUDY, dataset, SETTINGS, 0, jobs=1))[0]


def stacked(dataset, way="grouped", lanes=4, settings=SETTINGS, **options):
    stacking = Stacking(way, lanes, PADDING)
    return Engine(STUDY, dataset, settings, 0, lanes=lanes, stacking=stacking, **options)


def same(ours, theirs, close=1e-3):
    """Whether two runs tell the same of every trial, within rounding."""
    for key, events in theirs.items():
        assert [type(event) for event in ours[key]] == [type(event) for event in events]
        for a, b in zip(ours[key][-1].history, events[-1].history, strict=True):
            assert abs(a.loss - b.loss) < close
            assert abs(a.val_loss - b.val_loss) < close
            assert abs(a.accuracy - b.accuracy) <= 2.5 / 300
            assert abs(a.val_accuracy - b.val_accuracy) <= 2 / 100
        if events[-1].parameters is not None:
            assert difference(ours[key][-1].parameters, events[-1].parameters) < 20 * close


@pytest.mark.parametrize("way", slow_after(0, ["grouped", "map"]))
def test_stacked_trials_go_as_they_do_alone(dataset, alone, way):
    engine = stacked(dataset, way)
    found, _ = run(engine)
    same(found, alone)
    assert engine.compiled == 2  # two depths, whatever the widths


@pytest.mark.slow
def test_numbers_of_training_are_arguments_of_a_shared_program(dataset):
    small = TRIALS[Key(0)]
    trials = {
        Key(i): small.replace(
            label_smoothing=0.1 * i, ema_momentum=0.3 * i, random_rotation=5.0 * i
        )
        for i in (1, 2, 3)
    }
    trials[Key(4)] = small.replace(label_smoothing=0.0, ema_momentum=0.0, random_rotation=0.0)
    alone = run(Engine(STUDY, dataset, SETTINGS, 0, jobs=1), trials)[0]
    engine = stacked(dataset, "map")
    same(run(engine, trials)[0], alone)
    assert engine.compiled == 2  # the last one has none of these


def test_a_lane_that_diverges_hurts_nobody(dataset, alone, monkeypatch):
    drawn = BoundNetwork.initial_weights

    def wild(*args, index, **options):
        parameters = drawn(*args, index=index, **options)
        return jax.tree.map(lambda x: x * 1e30, parameters) if index == 4 else parameters

    monkeypatch.setattr(BoundNetwork, "initial_weights", wild)
    found, _ = run(stacked(dataset))
    assert found[Key(4)][-1].error == "the loss stopped being finite in epoch 1"
    assert found[Key(4)][-1].parameters is None
    assert len(found[Key(4)][-1].history) == 1
    same(found, {key: events for key, events in alone.items() if key != Key(4)})


def test_a_diverged_lane_is_frozen():
    """Its weights stay what they were, while the loss says that it diverged."""
    h = configuration(4, 1, 0)
    train = jax.jit(frozen_where_diverged(train_block(model(h, "tiles"), SETTINGS)))
    parameters = jax.tree.map(lambda x: x * np.float32(1e30), start(h, 0, np.float32))
    before = begin(parameters, SETTINGS)
    images, labels = np.full((8, *SHAPE), 255, np.uint8), np.zeros(8, np.int32)
    after = train(before, images, labels, np.arange(8, dtype=np.int32).reshape(1, 1, 8), 0, 1)
    assert not np.isfinite(after.loss_sum)
    assert difference(after.parameters, parameters) == 0
    assert int(after.optimizer_state[0].count) == 0


@pytest.mark.slow
def test_memory_that_runs_out_halves_the_group(dataset, alone, monkeypatch):
    build, asked = Engine.compilers, []

    def small(self, group):
        asked.append(group.lanes)
        if group.lanes > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return build(self, group)

    monkeypatch.setattr(Engine, "compilers", small)
    found, _ = run(stacked(dataset))
    same(found, alone)
    assert set(asked) == {4, 2, 1}  # compiled concurrently, so in any order


def test_one_bad_trial_of_a_group_fails_alone(dataset, alone, monkeypatch):
    drawn = BoundNetwork.initial_weights

    def broken(*args, index, **options):
        if index == 2:
            raise ValueError("no such\nweights")
        return drawn(*args, index=index, **options)

    monkeypatch.setattr(BoundNetwork, "initial_weights", broken)
    found, _ = run(stacked(dataset))
    assert found[Key(2)][-1].error == "ValueError: no such weights"
    assert [type(event) for event in found[Key(2)]] == [TrialStarted, TrialFinished]
    same(found, {key: events for key, events in alone.items() if key != Key(2)})


@pytest.mark.slow
def test_a_number_of_lanes_that_is_asked_for(dataset):
    trials = dict(numbered([configuration(4, 1, 0)] * 3))
    short = replace(RECIPES["study"], epochs=1, batch_size=32)
    engine = Engine(STUDY, dataset, short, 0, lanes=2)
    found, (chosen,) = run(engine, trials)
    assert all(isinstance(events[2], EpochFinished) for events in found.values())
    assert chosen.stacking == engine.stacking == Stacking("map", 2)


SPACE = numbered(Space(DEFINITION).draws(0))


def groups_of(trials):
    """The groups of these trials, as a function of the stacking."""
    return lambda stacking: group_trials(trials, stacking, 1, pads=pads)


def programs(trials, stacking):
    return len({group.program for group in groups_of(trials)(stacking)})


@pytest.mark.parametrize(
    ("platform", "trials", "lanes", "way", "found"),
    [
        ("gpu", 10, None, "alone", 1),
        ("gpu", 357, None, "alone", 1),  # each has a program of its own
        ("gpu", 10, 8, "grouped", 8),
        ("gpu", 100, 1, "alone", 1),
        ("tpu", 10, None, "alone", 1),
        ("tpu", 100, None, "corners", 1),
        ("tpu", 100, 5, "map", 5),
        ("cpu", 10, 4, "map", 4),
    ],
)
def test_the_way_of_lanes_by_platform(platform, trials, lanes, way, found):
    groups = groups_of(SPACE[:trials])
    chosen = choose(platform, 1, trials, lanes, PADDINGS, groups, cores=1000)
    assert (chosen.way, chosen.lanes, chosen.padding) == (way, found, {})


def test_lanes_are_spread_over_devices():
    groups = groups_of(SPACE)
    assert choose("tpu", 4, 357, None, PADDINGS, groups, 1000).lanes == 4
    assert choose("tpu", 4, 357, 5, PADDINGS, groups, 1000).lanes == 8
    assert choose("gpu", 4, 357, None, PADDINGS, groups, 1).lanes == 64  # 56 trials of a depth


def test_lanes_of_a_gpu_are_as_many_as_share_a_program():
    found = choose("gpu", 1, 357, None, PADDINGS, groups_of(SPACE), cores=16)
    assert found == Stacking("grouped", 32, {"filters": 64, "units": 256})
    fewer = choose("gpu", 1, 100, None, PADDINGS, groups_of(SPACE[:100]), cores=40)
    assert fewer.padding == {"units": 256}
    largest = max(len(group.trials) for group in groups_of(SPACE[:100])(replace(fewer, lanes=32)))
    assert 1 < largest <= fewer.lanes < 2 * largest
    # Nobody knows whether a network of a person's own can be computed at once.
    assert choose("gpu", 1, 357, None, (), groups_of(SPACE), cores=1) == Stacking()


def test_padding_is_as_narrow_as_the_host_can_compile():
    """The whole space has 357, 63, 36, 18 or 9 programs, of which a core compiles two."""
    expected = [
        (179, {}, 357),
        (178, {"units": 256}, 63),
        (24, {"filters": 32, "units": 256}, 36),
        (9, {"filters": 64, "units": 256}, 18),
        (5, {"filters": 128, "units": 256}, 9),
        (2, {"filters": 128, "units": 256}, 9),  # as much as may be
    ]
    for cores, padding, number in expected:
        chosen = choose("tpu", 1, 357, None, PADDINGS, groups_of(SPACE), cores)
        assert (chosen.padding, programs(SPACE, chosen)) == (padding, number)
    assert choose("tpu", 1, 357, None, (), groups_of(SPACE), 1) == Stacking("corners", 1)
    assert choose("cpu", 1, 357, 4, PADDINGS, groups_of(SPACE), 1) == Stacking("map", 4)


def test_who_may_be_padded():
    """Trials without dropout alone."""
    dropping = configuration(3, 1, 1, 8, dropout=0.5)
    trials = numbered([dropping, configuration(4, 1, 1, 8), configuration(3, 1, 1, 8)])
    groups = group_trials(trials, Stacking("map", 8, {"filters": 32, "units": 256}), 1, pads=pads)
    assert [[key.index for key, _ in group.trials] for group in groups] == [[0], [1, 2]]
    assert groups[0].widest == dropping
    assert groups[1].widest["filters"] == 32


def test_the_program_for_a_tpu(dataset):
    """Lowered for a TPU, where there is none: its own convolution, and no tiles."""
    for way, lanes in (("alone", 1), ("corners", 1), ("grouped", 4)):
        engine = stacked(dataset, way, platform="tpu")
        group = Group(configuration(8, 2, 1, 8), tuple(list(TRIALS.items())[2:]), lanes)
        for function, arguments in engine.builder.functions(group, engine.stacking):
            exported = jax.export.export(function, platforms=["tpu"])(*arguments)
            module = exported.mlir_module()
            assert exported.platforms == ("tpu",)
            assert "stablehlo.convolution" in module
            if way == "grouped":
                assert "feature_group_count = 4" in module


SHARDED = """
import json, sys, jax
from dataclasses import replace
from jaxmnist.settings import RECIPES
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.local import Engine
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.lanes import Stacking, group_trials
from jaxmnist.runs.trial import Key

dataset = split("small", load_arrays(None, sys.argv[1]), validation_split=0.25, seed=0)
settings = replace(RECIPES["study"], epochs=2, batch_size=32, learning_rate=1e-3)
drawn = json.loads(sys.argv[2])
trials = {Key(int(index)): configuration(**given) for index, given in drawn.items()}
padding = {"filters": 8, "units": 8}
for stacking in (Stacking("alone", 8, padding), Stacking("grouped", 16, padding)):
    engine = Engine(STUDY, dataset, settings, 0, lanes=stacking.lanes, stacking=stacking)
    with engine.run(trials.items()) as events:
        ended = [event for event in events if isinstance(event, TrialFinished)]
    state = engine.builder.start(group_trials(trials.items(), stacking, 8)[0], {})
    used = len(state.loss_sum.sharding.device_set)
    found = {event.key.index: [[m.loss, m.val_loss] for m in event.history] for event in ended}
    print(json.dumps([used, jax.local_device_count(), found]))
"""


@pytest.mark.slow
def test_lanes_are_spread_over_all_devices(small, alone):
    trials = {key.index: h.to_json() for key, h in TRIALS.items()}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(small), json.dumps(trials)],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        used, devices, found = json.loads(line)
        assert used == devices == 8
        for key, events in alone.items():
            expected = [[m.loss, m.val_loss] for m in events[-1].history]
            np.testing.assert_allclose(found[str(key)], expected, rtol=0, atol=2e-3)
