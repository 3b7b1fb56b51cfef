"""The study's network: its layers, weights, gradient and dropout."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import numbered, study_module
from jax import lax
from pages import check
from processes import command

from jaxmnist import Run
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import Checkpoint, TrialFinished, from_arrays, to_arrays
from jaxmnist.engine.local import Engine
from jaxmnist.engine.programs import multiplications
from jaxmnist.files import as_json, from_json
from jaxmnist.models.interface import DataSpec, by_path, from_paths
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.report.tensorboard import columns
from jaxmnist.runs.trial import Key, Layer, count_parameters, summary
from jaxmnist.settings import RECIPES

REFERENCE = configuration(112, 2, 1, 224)
MNIST, CUT = DataSpec((28, 28, 1), 10), DataSpec((12, 12, 1), 10)
SETTINGS = replace(RECIPES["study"], epochs=2, batch_size=4, learning_rate=0.01)
FIRST = Key(0)
TRIALS = dict(numbered(configuration(4, 1, 1, 8, dropout=rate) for rate in (0.2, 0.5)))


def test_summary_of_the_reference():
    text = summary(STUDY.bind(REFERENCE, MNIST).layers)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert rows[3:10] == [
        "Conv_0 (Conv) (None, 24, 24, 112) 2912",
        "max_pool_0 (max_pool) (None, 12, 12, 112) 0",
        "Conv_1 (Conv) (None, 12, 12, 112) 113008",
        "max_pool_1 (max_pool) (None, 6, 6, 112) 0",
        "flatten_0 (flatten) (None, 4032) 0",
        "Dense_0 (Dense) (None, 224) 903392",
        "Dense_1 (Dense) (None, 10) 2250",
    ]
    assert "Total params: 1021562 (3.90 MB)" in text
    assert "Trainable params: 1021562 (3.90 MB)" in text
    assert "Non-trainable params: 0 (0.00 Byte)" in text


@pytest.mark.parametrize(
    "hyperparameters",
    [REFERENCE, configuration(32, 1, 0), configuration(48, 3, 2, 32, dropout=0.1)],
    ids=str,
)
@pytest.mark.parametrize("image_shape", [(28, 28, 1), (33, 20, 3)])
def test_layers_are_those_that_flax_makes(hyperparameters, image_shape):
    data = DataSpec(image_shape, 7)
    module, images = study_module(hyperparameters, data), np.zeros((2, *image_shape), np.float32)
    made = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    bound = STUDY.bind(hyperparameters, data)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), bound.shapes["params"]
    )
    assert count_parameters(bound.layers) == sum(x.size for x in jax.tree.leaves(made))
    outputs = jax.eval_shape(bound.model("tiles", "default").outputs, {"params": made}, images)
    assert outputs.logits.shape == (2, 7)
    flatten = next(row for row in bound.layers if row.kind == "flatten")
    assert outputs.features.shape == (2, *flatten.output_shape) == (2, bound.feature_count)


def plain(parameters, images, factors):
    """Logits and features of images from 0 to 1, as XLA's operations, with dropout's factors."""
    x, dimensions = images, ("NHWC", "HWIO", "NHWC")
    convolutions = sorted(name for name in parameters if name.startswith("Conv"))
    for name in convolutions:
        kernel, padding = parameters[name]["kernel"], "SAME" if name != "Conv_0" else "VALID"
        x = lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=dimensions)
        x = jnp.maximum(x + parameters[name]["bias"], 0)
        x = lax.reduce_window(x, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = features = x.reshape(len(x), -1)
    dense = len(parameters) - len(convolutions)
    for number, factor in zip(range(dense), factors or [1] * dense, strict=True):
        layer = parameters[f"Dense_{number}"]
        x = (x * factor) @ layer["kernel"] + layer["bias"]
        x = jnp.maximum(x, 0) if number < dense - 1 else x
    return x, features


@pytest.mark.parametrize(
    ("method", "kernel_size"),
    [("tiles", 3), ("corners", 3), ("convolution", 3), ("tiles", 4), ("corners", 2), ("tiles", 7)],
)
def test_outputs_equal_those_of_plain_operations(method, kernel_size):
    """With the usual kernels, even ones, and ones wider than the images before the last pooling."""
    bound = STUDY.bind(configuration(12, 3, 2, 9, kernel_size=kernel_size), MNIST)
    weights = bound.initial_weights(seed=3, index=4)
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    ours = jax.jit(bound.model(method, "default").outputs)(weights, images)
    fractions = images.astype(np.float32) / 255
    logits, features = plain(weights["params"], fractions, None)
    np.testing.assert_allclose(ours.features, features, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.logits, logits, rtol=0, atol=1e-5)


def test_initial_weights():
    """Drawn by NumPy from the distributions that the module's own initializers have."""
    bound = STUDY.bind(REFERENCE, MNIST)
    ours = bound.initial_weights(seed=0, index=3)
    theirs = study_module(REFERENCE, MNIST).init(jax.random.key(0), np.zeros((1, 28, 28, 1)))
    found, expected = dict(by_path(ours)), dict(by_path(theirs))
    assert found.keys() == expected.keys()
    for name, drawn in found.items():
        own = expected[name]
        assert (drawn.shape, drawn.dtype) == (own.shape, own.dtype)
        if name.endswith("bias"):
            assert not drawn.any()
            assert not own.any()
            continue
        assert abs(drawn.mean()) < 5 * own.std() / drawn.size**0.5
        quantiles = np.linspace(0, 1, 11)
        scale, count = float(own.std()), min(drawn.size, 10**6)
        np.testing.assert_allclose(
            np.quantile(drawn, quantiles),
            np.quantile(np.asarray(own), quantiles),
            atol=10 * scale / count**0.5,
        )
    again, other = bound.initial_weights(seed=0, index=3), bound.initial_weights(seed=0, index=4)
    kernels = [each["params"]["Dense_0"]["kernel"] for each in (ours, again, other)]
    assert np.array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])


def test_parameters_by_kernel_size():
    """Of the convolutions after the first, K² · F · F + F each."""
    for size in (1, 3, 5):
        rows = STUDY.bind(configuration(6, 3, 0, kernel_size=size), MNIST).layers
        counts = [row.parameters for row in rows if row.kind == "Conv"]
        assert counts == [25 * 6 + 6, *[size * size * 36 + 6] * 2]


def test_the_work_of_a_network():
    """28×28 pixels: 24×24 and 12×12 outputs of the convolutions, 6·6·112 features."""
    convolutions = 24 * 24 * (5 * 5 + 1) * 112 + 12 * 12 * (3 * 3 * 112 + 1) * 112
    dense = (6 * 6 * 112 + 1) * 224 + (224 + 1) * 10
    assert multiplications(STUDY.bind(REFERENCE, MNIST).layers) == convolutions + dense


def test_layers_survive_json():
    rows = STUDY.bind(REFERENCE, MNIST).layers
    assert from_json(tuple[Layer, ...], as_json(rows)) == rows
    with pytest.raises(ValueError, match="kind"):
        from_json(Layer, {"name": "dense"})


def test_paths_of_a_tree():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert dict(by_path(tree)) == {"a/b/c": 1, "a/d": 2, "e": 3}
    assert from_paths(dict(by_path(tree)), tree) == tree
    # Names that are numbers or have slashes, as in NNX' lists and Flax's WeightNorm.
    strange = {"layers": {0: {"kernel/scale": 1}, 2: {"kernel": 2}}}
    assert from_paths(dict(by_path(strange)), strange) == strange
    with pytest.raises(KeyError):
        from_paths({"a/d": 2}, tree)


def test_dropout_is_inverted_dropout():
    """About the rate of all values is 0, and the others grow to keep the mean."""
    h = configuration(8, 1, 0, dropout=0.25)
    module, image = study_module(h, MNIST), np.full((64, 28, 28, 1), 0.5, np.float32)
    weights = STUDY.bind(h, MNIST).initial_weights(seed=0, index=0)
    weights["params"]["Conv_0"]["bias"] += 1  # all features are positive
    evaluated, sown = module.apply(weights, image, mutable=["intermediates"])
    features = np.asarray(sown["intermediates"]["features"][0])
    kernel = np.zeros_like(weights["params"]["Dense_0"]["kernel"])
    kernel[:10] = np.eye(10)  # the logits are the first ten features
    weights["params"]["Dense_0"]["kernel"] = kernel
    logits = module.apply(weights, image, True, rngs={"dropout": jax.random.key(0)})
    factors = np.asarray(logits) / features[:, :10]
    assert set(np.round(factors, 4).ravel()) == {0.0, np.float32(1.3333)}
    assert abs((factors == 0).mean() - 0.25) < 5 * (0.25 * 0.75 / factors.size) ** 0.5
    assert evaluated.shape == (64, 10)


# --- In the engine ---


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


def test_a_trial_with_dropout_goes_on_from_every_checkpoint(dataset):
    """Bit for bit, though a checkpoint has no random numbers."""
    trial = {FIRST: TRIALS[FIRST]}
    ended, kept = run(Engine(STUDY, dataset, SETTINGS, 0, checkpoint_every=0.0), trial)
    assert [(c.epoch, c.step) for c in kept] == [(e, s) for e in (0, 1) for s in (16, 19)]
    for checkpoint in kept:
        arrays, content = to_arrays(checkpoint)
        again = from_arrays(arrays, content, FIRST, STUDY.bind(TRIALS[FIRST], CUT), 25, SETTINGS)
        went_on, _ = run(Engine(STUDY, dataset, SETTINGS, 0), trial, {FIRST: again})
        assert equal(went_on[FIRST], ended[FIRST])


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
    without = STUDY.bind(h, MNIST).model("convolution", "default")
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
