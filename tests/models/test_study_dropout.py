"""Dropout and the kernel size of the study's network, which stay fixed unless a user opens them."""

from __future__ import annotations

import functools
import zlib
from dataclasses import replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import float64, numbered
from jax import lax
from pages import check
from processes import command

from jaxmnist import Run
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import Checkpoint, TrialFinished, from_arrays, to_arrays
from jaxmnist.engine.lanes import Stacking, group_trials
from jaxmnist.engine.local import Engine
from jaxmnist.engine.training import NO_IMAGE, constants_of, key_of
from jaxmnist.models.network import DataSpec, StepInputs
from jaxmnist.models.study import LEVELS, STUDY, dropout_factors
from jaxmnist.models.study_space import configuration
from jaxmnist.report.tensorboard import columns
from jaxmnist.runs.trial import Key
from jaxmnist.settings import RECIPES

SHAPE, CLASSES = (13, 12, 2), 4
DATA, CUT, MNIST = DataSpec(SHAPE, CLASSES), DataSpec((12, 12, 1), 10), DataSpec((28, 28, 1), 10)
SETTINGS = replace(RECIPES["study"], epochs=2, batch_size=4, learning_rate=0.01)
FIRST = Key(0)
TRIALS = dict(numbered(configuration(4, 1, 1, 8, dropout=rate) for rate in (0.2, 0.5)))
NARROWER, WITHOUT = configuration(3, 1, 1, 8, dropout=0.5), configuration(4, 1, 1, 8)


def step_inputs(rate, *, seed=0, index=0, step=0):
    constants = constants_of(SETTINGS, seed, index, np.result_type(1.0), {"dropout": rate})
    return StepInputs({}, key_of(constants, step), constants["network"])


def factors_by_hand(rate, seed, index, step, images, widths):
    """The factors of each image, from the bits that its own key gives."""
    key = jax.random.key(seed, impl="threefry2x32")
    for number in (index, step, zlib.crc32(b"dropout")):
        key = jax.random.fold_in(key, number)
    levels, found = round(rate * LEVELS), []
    for place in range(images):
        words = jax.random.bits(jax.random.fold_in(key, place), (-(-sum(widths) // 2),), "uint32")
        halves = [
            half for word in np.asarray(words).tolist() for half in (word % 2**16, word >> 16)
        ]
        found.append([0 if half < levels else LEVELS / (LEVELS - levels) for half in halves])
    return np.split(np.array(found)[:, : sum(widths)], np.cumsum(widths)[:-1], axis=1)


def plain_loss(parameters, images, labels, factors):
    """The mean loss of two convolutions and a hidden dense layer, as XLA's own operations."""
    x = images / 255
    for name, padding in (("conv2d", "VALID"), ("conv2d_1", "SAME")):
        kernel, dimensions = parameters[name]["kernel"], ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dimensions)
        x = jax.nn.relu(x + parameters[name]["bias"])
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = x.reshape(len(x), -1) * factors[0]
    x = jax.nn.relu(x @ parameters["dense"]["kernel"] + parameters["dense"]["bias"]) * factors[1]
    logits = x @ parameters["dense_1"]["kernel"] + parameters["dense_1"]["bias"]
    return -jax.nn.log_softmax(logits)[np.arange(len(labels)), labels].mean()


def test_the_gradient_is_that_of_plain_jax():
    """In float64, for a batch in blocks, with masks that the images' places in it determine."""
    h = configuration(5, 2, 1, 7, kernel_size=4, dropout=0.3)
    rng = np.random.default_rng(0)
    with float64():
        parameters = STUDY.initial_parameters(h, DATA, seed=0, index=0)
        parameters = jax.tree.map(lambda x: x.astype(np.float64), parameters)
        images = jnp.asarray(rng.integers(0, 256, (8, *SHAPE)), float)
        labels = jnp.asarray(rng.integers(0, CLASSES, 8))
        factors = factors_by_hand(0.3, 1, 2, 3, 8, [parameters["dense"]["kernel"].shape[0], 7])
        wanted = jax.jit(jax.grad(plain_loss))(parameters, images, labels, factors)

        def loss(logits, block):
            losses = -jax.nn.log_softmax(logits)[np.arange(len(block)), labels[block]]
            return jnp.where(block == NO_IMAGE, 0, losses).sum() / 8, ()

        inputs = step_inputs(0.3, seed=1, index=2, step=3)
        model = STUDY.model(h, DATA, "tiles", "default")
        batch = np.array([*range(8), NO_IMAGE], np.int32).reshape(3, 3)
        found = jax.jit(lambda p: model.gradient(p, lambda i: images[i], loss, batch, inputs)[0])(
            parameters
        )
        for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.9, 0.9999999])
def test_masks(rate):
    """The share of zeros, the mean of the factors, and what the random numbers depend on."""
    places = np.arange(64)

    def draw(**options):
        inputs = step_inputs(rate, **options)
        return jax.device_get(dropout_factors(inputs, places, {"a": 301, "b": 300}))

    first = draw()
    both = np.concatenate([first["a"], first["b"]], 1).astype(np.float64)
    assert first["a"].shape == (64, 301)
    exact = min(round(rate * LEVELS), LEVELS - 1) / LEVELS
    assert set(np.unique(both)) <= {0.0, float(np.float32(1 / (1 - exact)))}
    deviation = np.sqrt(exact * (1 - exact) / both.size)
    assert abs((both == 0).mean() - exact) < 5 * deviation
    for other in ({"seed": 1}, {"index": 1}, {"step": 1}):
        found = draw(**other)
        assert rate > 0.999 or not np.array_equal(found["a"], first["a"])
    if rate == 0.5:
        assert len(np.unique(both, axis=0)) == 64
        assert not np.array_equal(first["a"][:, :300], first["b"])


# --- In the engine --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(small):
    """75 training and 25 validation images, cut to 12×12 pixels: an epoch has 19 steps."""
    found = split("small", load_arrays(None, str(small)), validation_split=0.25, seed=0)
    return replace(
        found,
        x_train=found.x_train[:75, 8:20, 8:20],
        y_train=found.y_train[:75],
        x_validation=found.x_validation[:25, 8:20, 8:20],
        y_validation=found.y_validation[:25],
    )


def run(engine, trials=TRIALS, checkpoints=None):
    """How each trial ended, and all checkpoints."""
    ended, kept = {}, []
    with engine.run(trials.items(), checkpoints) as events:
        for event in events:
            if isinstance(event, TrialFinished):
                ended[event.key] = event
            elif isinstance(event, Checkpoint):
                kept.append(event)
    assert not any(event.error for event in ended.values())
    return ended, kept


def equal(a, b):
    return a.history == b.history and jax.tree.all(
        jax.tree.map(np.array_equal, a.parameters, b.parameters)
    )


class Reusing(Engine):
    """An engine that compiles a program once in this module, not once in every run."""

    kept: ClassVar[dict] = {}

    def compilers(self, group):
        if group.program not in self.kept:
            made = super().compilers(group)
            self.kept[group.program] = tuple(map(functools.cache, made))
        return self.kept[group.program]


@pytest.fixture(scope="module")
def alone(dataset):
    """All trials in a CPU's own way, the number of programs, and the checkpoints of trial 0."""
    engine = Reusing(STUDY, dataset, SETTINGS, 0, jobs=1, checkpoint_every=0.0)
    ended, kept = run(engine)
    return ended, engine.compiled, [checkpoint for checkpoint in kept if checkpoint.key == FIRST]


def test_rates_share_a_program(dataset, alone):
    """The rate is an argument of it: another one gives the same trial another result."""
    ended, compiled, _ = alone
    assert compiled == 1
    other, _ = run(Reusing(STUDY, dataset, SETTINGS, 0), {FIRST: TRIALS[Key(1)]})
    assert other[FIRST].history[0].loss != ended[FIRST].history[0].loss


def test_who_shares_a_program():
    """Padding is for trials without dropout alone, to any multiple."""
    trials = numbered([*TRIALS.values(), NARROWER, WITHOUT, configuration(3, 1, 1, 8)])
    for multiple in (32, 64, 128):
        groups = group_trials(
            trials,
            Stacking("map", 8, {"filters": multiple, "units": 256}),
            1,
            key_of=lambda h: STUDY.program_key(h, CUT),
            pads=STUDY.pads,
        )
        members = [[key.index for key, _ in group.trials] for group in groups]
        assert members == [[0, 1], [2], [3, 4]]
        assert [group.widest for group in groups[:2]] == [TRIALS[FIRST], NARROWER]
        assert groups[2].widest["filters"] > 4


def test_a_trial_with_dropout_goes_on_from_every_checkpoint(dataset, alone):
    """Bit for bit, though a checkpoint has neither rate nor random numbers."""
    ended, _, kept = alone
    assert [(c.epoch, c.step) for c in kept] == [(e, s) for e in (0, 1) for s in (16, 19)]
    for checkpoint in kept:
        arrays, content = to_arrays(checkpoint)
        again = from_arrays(arrays, content, FIRST, TRIALS[FIRST], STUDY, CUT, 25, SETTINGS)
        went_on, _ = run(
            Reusing(STUDY, dataset, SETTINGS, 0), {FIRST: TRIALS[FIRST]}, {FIRST: again}
        )
        assert equal(went_on[FIRST], ended[FIRST])


def test_lanes_have_their_own_rates_and_masks(dataset, alone):
    """Stacked, they go as each does alone, in its own shapes."""
    stacking = Stacking("products", 2, {"filters": 8, "units": 8})
    engine = Engine(STUDY, dataset, SETTINGS, 0, lanes=2, stacking=stacking)
    ended, _ = run(engine)
    assert engine.compiled == 1
    for key, event in ended.items():
        assert event.parameters["conv2d"]["bias"].shape == (4,)
        for a, b in zip(event.history, alone[0][key].history, strict=True):
            assert abs(a.loss - b.loss) < 1e-3
            assert abs(a.val_loss - b.val_loss) < 1e-3


# --- A search -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(small, tmp_path_factory):
    """A search of the command line that opens both."""
    folder = tmp_path_factory.mktemp("opened")
    arguments = ["--data-dir", small, "--directory", folder, "--max-trials", 2, "--epochs", 1]
    arguments += ["--filters", 4, "--conv-layers", 2, "--units", 8, "--batch-size", 32]
    arguments += ["--kernel-size", "3,5", "--dropout", "0:0.5", "--no-svm"]
    done = command("search", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout, Run(folder / "small")


@pytest.mark.slow
def test_a_search_with_both(opened):
    printed, run = opened
    assert run.space.size_text == "infinite"
    assert run.space.varied == ["dense_layers", "kernel_size", "dropout"]
    for trial in run.trials:
        h = trial.hyperparameters
        assert 0 < h["dropout"] < 0.5
        assert h["kernel_size"] in (3, 5)
        size = 25 * 4 + 4 + h["kernel_size"] ** 2 * 4 * 4 + 4
        for inputs, units in zip([144, 8, 8], [8] * h["dense_layers"] + [10], strict=False):
            size += (inputs + 1) * units
        assert trial.parameters == size
        names = [row.kind for row in trial.layers]
        assert names.count("Dropout") == names.count("Dense") == h["dense_layers"] + 1
        assert f"kernel_size={h['kernel_size']} dropout={h['dropout']}" in printed
        assert {"kernel_size", "dropout"} <= columns(run.space, h).keys()
    page = check((run.store.path / "report.html").read_text("utf-8"))
    assert "dropout" in page.text["trials"]


@pytest.mark.slow
def test_evaluation_is_without_dropout(opened, small):
    """What the kept weights give: the recorded accuracy, and the same features each time."""
    model = opened[1].best_model
    images = load_arrays(None, str(small)).x_test[:50]
    assert np.array_equal(model.features(images), model.features(images))
    h = model.hyperparameters.replace(dropout=0.0)
    without = STUDY.model(h, MNIST, "convolution", "default")
    expected = without.outputs(model.parameters, images)
    np.testing.assert_allclose(model.features(images), expected.features, rtol=0, atol=1e-5)


def test_a_search_that_leaves_both_fixed(finished):
    """They stand once, under the settings."""
    assert finished.space.ranges() | {"kernel_size": "3", "dropout": "0.0"} == (
        finished.space.ranges()
    )
    page = check((finished.store.path / "report.html").read_text("utf-8"))
    assert {section for section, text in page.text.items() if "dropout" in text} == {"record"}
    assert "dropout" not in finished.results_summary()
    for trial in finished.trials:
        assert (
            not {"kernel_size", "dropout"} & columns(finished.space, trial.hyperparameters).keys()
        )
    assert "kernel_size 3" in " ".join(finished.search_space_summary().split())
