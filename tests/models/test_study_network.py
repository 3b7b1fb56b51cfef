from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxmnist.engine.programs import multiplications
from jaxmnist.files import as_json, from_json
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, by_path, from_paths
from jaxmnist.models.questions import Questions, answers_of
from jaxmnist.models.study import STUDY, build_model
from jaxmnist.models.study_space import configuration
from jaxmnist.runs.trial import Layer, count_parameters, summary

REFERENCE = configuration(112, 2, 1, 224)
MNIST = DataSpec((28, 28, 1), 10)


def test_summary_of_the_reference():
    text = summary(STUDY.layers(REFERENCE, MNIST))
    rows = [line.split() for line in text.splitlines()]
    expected = [
        ("conv2d (Conv2D)", "(None, 24, 24, 112)", "2912"),
        ("max_pooling2d (MaxPooling2D)", "(None, 12, 12, 112)", "0"),
        ("conv2d_1 (Conv2D)", "(None, 12, 12, 112)", "113008"),
        ("max_pooling2d_1 (MaxPooling2D)", "(None, 6, 6, 112)", "0"),
        ("flatten (Flatten)", "(None, 4032)", "0"),
        ("dense (Dense)", "(None, 224)", "903392"),
        ("dense_1 (Dense)", "(None, 10)", "2250"),
    ]
    for cells in expected:
        assert " ".join(cells).split() in rows
    assert "Total params: 1021562 (3.90 MB)" in text
    assert "Trainable params: 1021562 (3.90 MB)" in text
    assert "Non-trainable params: 0 (0.00 Byte)" in text


@pytest.mark.parametrize(
    "hyperparameters",
    [REFERENCE, configuration(32, 1, 0), configuration(48, 3, 2, 32)],
    ids=str,
)
@pytest.mark.parametrize("image_shape", [(28, 28, 1), (33, 20, 3)])
def test_layers_are_those_that_flax_makes(hyperparameters, image_shape):
    model = build_model(hyperparameters, 7)
    images = np.zeros((2, *image_shape), np.uint8)
    made = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    data = DataSpec(image_shape, 7)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), STUDY.shapes(hyperparameters, data)
    )
    rows = STUDY.layers(hyperparameters, data)
    assert count_parameters(rows) == sum(x.size for x in jax.tree.leaves(made))
    outputs = jax.eval_shape(model.apply, {"params": made}, images)
    assert outputs.logits.shape == (2, 7)
    flatten = next(row for row in rows if row.kind == "Flatten")
    assert outputs.features.shape == (2, *flatten.output_shape)
    assert outputs.features.shape == (2, STUDY.feature_count(hyperparameters, data))


class Plain(nn.Module):
    """The network of the study, written with Flax's own layers."""

    hyperparameters: Hyperparameters

    @nn.compact
    def __call__(self, x):
        h = self.hyperparameters
        for i in range(h["conv_layers"]):
            size, padding = (5, "VALID") if i == 0 else (h["kernel_size"], "SAME")
            x = nn.relu(nn.Conv(h["filters"], (size, size), padding=padding, name=f"c{i}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = features = x.reshape(len(x), -1)
        for i in range(h["dense_layers"]):
            x = nn.relu(nn.Dense(h["units"], name=f"d{i}")(x))
        return nn.Dense(10, name=f"d{h['dense_layers']}")(x), features


@pytest.mark.parametrize(
    ("method", "kernel_size"),
    [("tiles", 3), ("patches", 3), ("convolution", 3), ("tiles", 4), ("patches", 2), ("tiles", 7)],
)
def test_outputs_equal_plain_flax(method, kernel_size):
    """With the usual kernels, even ones, and ones wider than the images before the last pooling."""
    hyperparameters = configuration(12, 3, 2, 9, kernel_size=kernel_size)
    parameters = STUDY.initial_parameters(hyperparameters, MNIST, seed=3, index=4)
    names = {"conv2d": "c0", "conv2d_1": "c1", "conv2d_2": "c2"}
    names |= {"dense": "d0", "dense_1": "d1", "dense_2": "d2"}
    renamed = {names[name]: arrays for name, arrays in parameters.items()}
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    ours = jax.jit(build_model(hyperparameters, 10, method).apply)({"params": parameters}, images)
    logits, features = jax.jit(Plain(hyperparameters).apply)(
        {"params": renamed}, images.astype(np.float32) / 255
    )
    np.testing.assert_allclose(ours.features, features, rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours.logits, logits, rtol=0, atol=1e-5)


def test_initial_parameters():
    parameters = STUDY.initial_parameters(REFERENCE, MNIST, seed=0, index=3)
    for name, fans in (("conv2d", 25 + 25 * 112), ("dense", 4032 + 224), ("dense_1", 224 + 10)):
        kernel, limit = parameters[name]["kernel"], np.sqrt(6 / fans)
        assert kernel.dtype == np.float32
        assert 0.97 * limit < np.abs(kernel).max() <= limit
        assert abs(kernel.std() - limit / np.sqrt(3)) < 0.05 * limit
        assert not parameters[name]["bias"].any()
    again = STUDY.initial_parameters(REFERENCE, MNIST, seed=0, index=3)
    other = STUDY.initial_parameters(REFERENCE, MNIST, seed=0, index=4)
    assert np.array_equal(parameters["dense"]["kernel"], again["dense"]["kernel"])
    assert not np.array_equal(parameters["dense"]["kernel"], other["dense"]["kernel"])


def test_a_model_is_built_by_asking():
    """What `hp` answers, and how many classes it knows of, is the module."""
    hp = Questions(answers_of(REFERENCE), classes=7)
    assert build_model(hp) == build_model(REFERENCE, 7)
    assert list(hp.asked) == list(REFERENCE)


def test_a_configuration_without_what_is_fixed():
    """It has the fixed values, as the network had before they could be opened."""
    short = Hyperparameters(filters=112, conv_layers=2, dense_layers=1, units=224)
    assert build_model(short) == build_model(REFERENCE)
    assert STUDY.layers(short, MNIST) == STUDY.layers(REFERENCE, MNIST)


def test_parameters_by_kernel_size():
    """Of the convolutions after the first, K² · F · F + F each."""
    for size in (1, 3, 5):
        rows = STUDY.layers(configuration(6, 3, 0, kernel_size=size), MNIST)
        counts = [row.parameters for row in rows if row.kind == "Conv2D"]
        assert counts == [25 * 6 + 6, *[size * size * 36 + 6] * 2]


def test_the_work_of_a_network():
    """28×28 pixels: 24×24 and 12×12 outputs of the convolutions, 6·6·112 features."""
    convolutions = 24 * 24 * (5 * 5 + 1) * 112 + 12 * 12 * (3 * 3 * 112 + 1) * 112
    dense = (6 * 6 * 112 + 1) * 224 + (224 + 1) * 10
    assert multiplications(STUDY.layers(REFERENCE, MNIST)) == convolutions + dense


def test_layers_survive_json():
    rows = STUDY.layers(REFERENCE, MNIST)
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
