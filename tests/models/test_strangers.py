"""Networks as strangers write them: each kind trains as it is meant, or is refused in one line."""

from __future__ import annotations

import typing
from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import numbered, slow_after
from flax import nnx

from jaxmnist.data.arrays import Arrays
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.local import Engine
from jaxmnist.errors import NetworkError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec, split_weights
from jaxmnist.models.module import FLAGS
from jaxmnist.models.network import Network
from jaxmnist.models.space import Space
from jaxmnist.settings import RECIPES

SHAPE = (8, 8, 1)
DATA = DataSpec(SHAPE, 3)
NOTHING = Hyperparameters()


def network(module, optimizer=None):
    return Network(lambda hp: module if optimizer is None else (module, optimizer))


def refusal(module, data=DATA):
    with pytest.raises(NetworkError) as caught:
        network(module).bind(NOTHING, data).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def dataset():
    """100 images of 8 × 8 pixels, the middle of every third pixel of digits 0 to 2."""
    mnist = load_arrays("mnist")
    few = mnist.y_train < 3
    x, y = mnist.x_train[few][:120, 2:26:3, 2:26:3], mnist.y_train[few][:120]
    return split("few", Arrays(x, y, x[:10], y[:10]), validation_split=0.2, seed=0)


def trained(built, dataset, **settings):
    """The weights of a training, and its data's properties."""
    chosen = replace(RECIPES["study"], **{"epochs": 2, "batch_size": 16, **settings})
    with Engine(built, dataset, chosen, 0).run(numbered([NOTHING])) as events:
        (ended,) = [event for event in events if isinstance(event, TrialFinished)]
    assert ended.error is None
    return ended.parameters, DataSpec.of(dataset, chosen)


# --- The mode: training or evaluation -------------------------------------------------------------


def modes(module):
    """Logits of 64 equal images in training, with two keys, and in evaluation."""
    plain = network(module).bind(NOTHING, DATA).built.plain
    key = jax.random.key(0, impl="threefry2x32")
    variables = jax.jit(plain.init)(key)
    # A layer of zeros would hide dropout.
    image = np.random.default_rng(0).random((1, *SHAPE), np.float32)
    images = jnp.asarray(np.repeat(image, 64, axis=0))
    train = jax.jit(plain.apply_in_training)
    keys = jax.random.split(key)
    first, second = (train(variables, images, each)[0] for each in keys)
    return first, second, jax.jit(plain.apply_in_evaluation)(variables, images)[0]


def assert_follows(module):
    """Dropout is on in training, with a mask of its own for each step, and off in evaluation."""
    first, second, evaluated = modes(module)
    assert not np.allclose(first, second)
    assert not np.allclose(first[0], first[1])
    np.testing.assert_allclose(evaluated, np.repeat(evaluated[:1], 64, axis=0), rtol=1e-6)


def flagged(name, *, default=None, as_field=False):
    """A module whose flag for training has this name."""
    training = FLAGS[name]

    def compute(x, flag):
        train = flag if training else not flag
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(x)

    class ByArgument(nn.Module):
        @nn.compact
        def __call__(self, x, flag):
            return compute(x, flag)

    def call(self, x, **given):
        return compute(x, given.get(name, default))

    if as_field:
        fields = {"__annotations__": {name: bool}, name: default}
        body = {"__call__": nn.compact(lambda self, x: compute(x, getattr(self, name)))}
        return type("ByField", (nn.Module,), {**fields, **body})()
    import inspect

    x = [inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in ("self", "x")]
    own = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
    call.__signature__ = inspect.Signature([*x, own])
    return type("ByArgument", (nn.Module,), {"__call__": nn.compact(call)})()


@pytest.mark.parametrize("as_field", [False, True])
@pytest.mark.parametrize("name", slow_after(0, FLAGS))
def test_each_name_of_the_flag_for_training(name, as_field):
    """Although it has a default, with which BatchNorm and dropout would never train."""
    assert_follows(flagged(name, default=not FLAGS[name], as_field=as_field))


@pytest.mark.parametrize("name", ["is_train", "eval_mode", "inference"])
def test_the_names_of_the_flag_that_were_met(name):
    assert_follows(flagged(name, default=not FLAGS[name]))


class Forgotten(nn.Module):
    """A flag of an unknown name with a default."""

    layer: str
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, phase="test"):
        if self.layer == "norm":
            x = nn.BatchNorm(use_running_average=phase == "test")(x)
        x = x.reshape(x.shape[0], -1)
        if self.layer == "dropout":
            x = nn.Dropout(self.rate, deterministic=phase == "test")(x)
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("layer", "says"),
    [("norm", "layer BatchNorm_0 never"), ("dropout", "layer Dropout_0 (Dropout) has no")],
)
def test_layers_that_never_train_are_refused(layer, says):
    line = refusal(Forgotten(layer))
    assert says in line
    assert "called train" in line


class OneForgotten(nn.Module):
    """The flag is passed to one of two layers."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=True)(x))


def test_one_dropout_layer_of_several_that_never_acts():
    assert "layer Dropout_1" in refusal(OneForgotten())


class Compiled(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(x)


@pytest.mark.parametrize("lift", [nn.jit, nn.remat])
def test_a_flag_is_passed_by_position(lift):
    """As Flax's transformations want it, which name static arguments by number."""
    assert_follows(lift(Compiled, static_argnums=(2,))())


class Noisy(nn.Module):
    """Noise where the stream is served, which Flax doesn't say that it misses."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        if self.has_rng("noise"):
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(3)(x)


def test_streams_that_a_module_only_looks_for_are_served():
    assert_follows(Noisy())


def test_an_unknown_argument_with_a_default_is_noted():
    class Unknown(nn.Module):
        @nn.compact
        def __call__(self, x, enable_noise: bool = False):
            return nn.Dense(3)(x.reshape(x.shape[0], -1))

    (note,) = network(Unknown()).bind(NOTHING, DATA).notes
    assert "argument enable_noise" in note


def test_dropout_of_rate_0_is_ordinary():
    network(Forgotten("dropout", 0.0)).bind(NOTHING, DATA).check()


class Backbone(nn.Module):
    """Statistics that are fixed on purpose, as pretrained ones would be."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(jax.lax.stop_gradient(x))


def test_fixed_statistics_of_fixed_layers_are_meant():
    network(Backbone()).bind(NOTHING, DATA).check()


class AlwaysTraining(nn.Module):
    layer: str

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train)(x)
        if self.layer == "norm":
            x = nn.BatchNorm(use_running_average=False, name="mine")(x)
        x = x.reshape(x.shape[0], -1)
        if self.layer == "dropout":
            x = nn.Dropout(0.5, deterministic=False, name="mine")(x)
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("layer", "remedy"), [("norm", "use_running_average"), ("dropout", "deterministic")]
)
def test_a_layer_that_is_fixed_in_training_mode(layer, remedy):
    line = refusal(AlwaysTraining(layer))
    assert "layer mine" in line
    assert remedy in line


class Tutorial(nnx.Module):
    """As in Flax's tutorials: the mode is set from outside."""

    def __init__(self, rngs: nnx.Rngs, width: int = 8):
        self.conv = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.3)
        self.linear = nnx.Linear(64 * width, 3, rngs=rngs)

    def __call__(self, x, rngs: nnx.Rngs | None = None):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.linear(self.dropout(x.reshape(x.shape[0], -1), rngs=rngs))


class OwnStreams(nnx.Module):
    """Dropout with streams that the module keeps."""

    def __init__(self, *, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.dropout(x.reshape(x.shape[0], -1)))


class Told(OwnStreams):
    """A flag as in Linen."""

    def __call__(self, x, *, train: bool):
        x = self.dropout(x.reshape(x.shape[0], -1), deterministic=not train)
        return self.linear(x)


class Only(nnx.Module):
    """Its constructor takes nothing else."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(64, 3, rngs=rngs)

    def __call__(self, x, rngs):
        return self.linear(self.dropout(x.reshape(x.shape[0], -1), rngs=rngs))


NNX = {
    "a class": lambda: Tutorial,
    "with arguments": lambda: partial(Tutorial, width=4),
    "bridged": lambda: nnx.bridge.to_linen(Tutorial, width=4),
    "streams of its own": lambda: OwnStreams,
    "a flag": lambda: nnx.bridge.to_linen(Told),
    "an instance": lambda: Only(rngs=nnx.Rngs(0)),
    "an instance of another seed": lambda: Only(rngs=nnx.Rngs(7)),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx_modules_follow_the_mode(name):
    assert_follows(NNX[name]())


@pytest.mark.parametrize("name", ["a class", "an instance"])
def test_a_trained_nnx_module_computes_as_by_itself(name, dataset):
    """Statistics move in training, and serve in evaluation, alone for each image."""
    own = Network(lambda hp: NNX[name]())
    weights, data = trained(own, dataset, optimizer="sgd")
    assert own.bind(NOTHING, data).tried.independent
    kept, _ = split_weights(own.bind(NOTHING, data).initial_weights(seed=0, index=0))
    assert not jax.tree.all(jax.tree.map(np.array_equal, kept, weights["params"]))
    if name == "an instance":
        return
    assert np.abs(weights["batch_stats"]["norm"]["mean"]).max() > 0
    module = Tutorial(nnx.Rngs(0))
    nnx.update(module, weights["params"])
    nnx.update(module, weights["batch_stats"])
    module.eval()
    images = dataset.x_validation[:4] / np.float32(255)
    np.testing.assert_allclose(
        module(jnp.asarray(images)), own.bind(NOTHING, data).logits(weights, images), atol=1e-5
    )


def changed():
    module = Only(rngs=nnx.Rngs(0))
    module.linear.kernel[...] += 1
    return module


def with_another_attribute():
    module = Powered(rngs=nnx.Rngs(0))
    module.power = 3
    return module


class Powered(Only):
    """A number and a function as attributes, which an instance may have changed."""

    def __init__(self, *, rngs):
        super().__init__(rngs=rngs)
        self.power = 2
        self.pool = partial(nnx.avg_pool, window_shape=(2, 2))

    def __call__(self, x, rngs):
        return super().__call__(x**self.power, rngs)


def test_an_instance_with_attributes_is_taken():
    network(Powered(rngs=nnx.Rngs(0))).bind(NOTHING, DATA).check()


WITHOUT_SEED = {
    "another attribute": with_another_attribute,
    "arguments": lambda: Tutorial(nnx.Rngs(0), 4),
    "weights of its own": changed,
    "a seed that is not small": lambda: Only(rngs=nnx.Rngs(12345)),
}


@pytest.mark.parametrize("name", WITHOUT_SEED)
def test_an_instance_that_can_not_be_built_again_is_refused(name):
    assert "return the class" in refusal(WITHOUT_SEED[name]())


class AlwaysNnx(nnx.Module):
    def __init__(self, *, rngs, layer):
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.linear = nnx.Linear(64, 3, rngs=rngs)
        self.layer = layer

    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        if self.layer == "norm":
            x = self.norm(x, use_running_average=False)
        if self.layer == "dropout":
            x = self.dropout(x, deterministic=False)
        if self.layer == "never":
            x = self.dropout(x, deterministic=True)
        return self.linear(x)


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        ("norm", "layer norm/mean changes its statistics in evaluation"),
        ("dropout", "uses random numbers in evaluation"),
        ("never", "dropout layer dropout has no effect in training"),
    ],
)
def test_nnx_layers_of_a_fixed_mode(layer, says):
    assert says in refusal(partial(AlwaysNnx, layer=layer))


class Rematerialised(nnx.Module):
    """Dropout within a transformation of Flax's."""

    def __init__(self, *, rngs):
        self.inner = OwnStreams(rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda module, x: module(x))(self.inner, x)


def test_dropout_within_a_transformation_follows_the_mode():
    assert_follows(Rematerialised)


class Gain(nnx.Param):
    pass


class OwnParameter(nnx.Module):
    def __init__(self, *, rngs):
        self.gain = Gain(jnp.ones((64, 8)))
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(x.reshape(x.shape[0], -1) @ self.gain[...])


def test_a_parameter_of_a_type_of_its_own_would_not_be_trained():
    assert "parameter gain is of type Gain" in refusal(OwnParameter)


# --- How images depend on each other --------------------------------------------------------------


class Dependent(nn.Module):
    """Features that depend on their batch, behind a last layer that begins with `head`."""

    how: str
    head: str = "zeros"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        if self.how == "batch":
            x = (x - x.mean(0)) / (x.std(0) + 1e-3)
        if self.how == "place":
            x = x + jnp.arange(len(x))[:, None]
        if self.how == "nan":
            x = jnp.where(x.mean() > 1e9, x, jnp.log(-jnp.abs(x)))
        make = {"zeros": nn.initializers.zeros_init(), "drawn": nn.initializers.lecun_normal()}
        scale = self.param("scale", nn.initializers.constant(1e-6), (8,))
        x = x * scale if self.head == "tiny" else x
        kernel = make["drawn" if self.head == "tiny" else self.head]
        return nn.Dense(3, kernel_init=kernel)(nn.tanh(x))


@pytest.mark.parametrize("head", ["zeros", "tiny", "drawn"])
@pytest.mark.parametrize("how", ["batch", "place", "alone"])
def test_dependence_is_seen_behind_a_head_that_hides_it(how, head):
    tried = network(Dependent(how, head)).bind(NOTHING, DATA).tried
    assert tried.independent == (how == "alone")
    assert tried.batching == ("exact" if how == "batch" else "independent")


class Mixing(nn.Module):
    """Images are mixed with others of their batch, in some steps only."""

    @nn.compact
    def __call__(self, x, train):
        x = x.reshape(x.shape[0], -1)
        if train:
            key = self.make_rng("mixup")
            mixed = (x + x[jax.random.permutation(key, len(x))]) / 2
            x = jnp.where(jax.random.bernoulli(key, 0.3), mixed, x)
        return nn.Dense(3)(x)


def test_images_that_are_mixed_in_some_steps():
    assert network(Mixing()).bind(NOTHING, DATA).batching == "exact"


def test_nan_is_equal_to_nan():
    """Diverged outputs say nothing of how images depend on each other."""
    tried = network(Dependent("nan", "drawn")).bind(NOTHING, DATA).tried
    assert tried.independent
    assert tried.batching == "independent"


# --- Outputs --------------------------------------------------------------------------------------


class Ending(nn.Module):
    end: str
    classes: int = 3

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.classes)(nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1))))
        return {
            "softmax": nn.softmax,
            "sigmoid": nn.sigmoid,
            "relu": nn.relu,
            "softplus": nn.softplus,
            "tanh": nn.tanh,
            "logits": lambda x: x,
            "log_softmax": nn.log_softmax,
            "scaled": lambda x: 30 * nn.tanh(x / 30),
            "tuple": lambda x: (x, {"hidden": x}),
            "dict": lambda x: {"hidden": -x, "logits": x},
            "other dict": lambda x: {"output": x},
            "whole": lambda x: x.astype(int),
            "flat": lambda x: x.sum(-1),
            "nothing": lambda x: None,
        }[self.end](x)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("softmax", "probabilities"),
        ("sigmoid", "between 0 and 1"),
        ("relu", "never negative"),
        ("softplus", "never negative"),
    ],
)
def test_an_activation_behind_the_logits_is_refused(end, says, classes):
    line = refusal(Ending(end, classes), DataSpec(SHAPE, classes))
    assert says in line
    assert "leave out the activation" in line


class InTraining(nn.Module):
    """Several values in training, of which one has the logits."""

    first: bool

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1)))
        logits, more = nn.Dense(3, name="head")(x), nn.Dense(3, name="more")(x)
        if not train:
            return logits
        return (logits, more) if self.first else (more, logits)


def test_other_logits_in_training_are_refused():
    assert "parameter head/bias" in refusal(InTraining(first=False))
    (note,) = network(InTraining(first=True)).bind(NOTHING, DATA).notes
    assert "in training" in note


def test_the_logits_of_an_output_with_names():
    class Named(typing.NamedTuple):
        hidden: typing.Any
        logits: typing.Any

    class Naming(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Dense(8)(x.reshape(x.shape[0], -1)))
            return Named(x, nn.Dense(3)(x))

    network(Naming()).bind(NOTHING, DATA).check()


class Head(nn.Module):
    """A head that exists in training only."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        more = nn.Dense(3, name="more")(x) if train else 0
        return nn.Dense(3)(nn.relu(x)), more


def test_parts_that_exist_in_training_only_are_initialized():
    assert set(network(Head()).bind(NOTHING, DATA).shapes["params"]) == {
        "Dense_0",
        "Dense_1",
        "more",
    }


def test_outputs_that_are_limited_are_noted():
    """As cosines are too, which some want."""
    (note,) = network(Ending("tanh")).bind(NOTHING, DATA).notes
    assert "between -1 and 1" in note


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("end", ["logits", "log_softmax", "scaled"])
def test_logits_of_any_kind_are_taken(end, classes):
    data = DataSpec(SHAPE, classes)
    network(Ending(end, classes)).bind(NOTHING, data).check()
    assert network(Ending(end, classes)).bind(NOTHING, data).notes == []


@pytest.mark.parametrize(("end", "says"), [("tuple", "first of the 2"), ("dict", "'logits'")])
def test_the_logits_among_several_outputs_are_taken_with_a_note(end, says):
    own, plain = network(Ending(end)), network(Ending("logits"))
    notes = own.bind(NOTHING, DATA).notes
    assert [says in note for note in notes] == [True, True]  # in training and in evaluation
    weights = plain.bind(NOTHING, DATA).initial_weights(seed=0, index=0)
    images = np.random.default_rng(0).random((3, *SHAPE), np.float32)
    np.testing.assert_array_equal(
        own.bind(NOTHING, DATA).logits(weights, images),
        plain.bind(NOTHING, DATA).logits(weights, images),
    )


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("other dict", "must have the key 'logits'"),
        ("whole", "must return floats as logits"),
        ("flat", r"returns (2,) for 2 images"),
        ("nothing", "returns NoneType"),
    ],
)
def test_outputs_that_are_no_logits(end, says):
    assert says in refusal(Ending(end))


@pytest.mark.parametrize("training", [True, False])
def test_an_activation_in_one_mode_alone_is_refused(training):
    """Such as probabilities in evaluation, which would be made probabilities twice."""

    class Half(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(3)(x.reshape(x.shape[0], -1))
            return nn.softmax(x) if train == training else x

    assert "probabilities" in refusal(Half())


def test_one_output_for_several_classes():
    assert "must return logits of shape (N, 3)" in refusal(Ending("sigmoid", 1))


class Shrinking(nn.Module):
    how: str

    @nn.compact
    def __call__(self, x):
        if self.how == "kernel":
            x = nn.Conv(4, (9, 9), padding="VALID")(x)
        if self.how == "pool":
            x = nn.max_pool(nn.Conv(4, (3, 3))(x), (9, 9), (9, 9))
        if self.how == "axis":
            x = nn.BatchNorm(use_running_average=False, axis_name="batch")(x)
        if self.how == "psum":
            x = jax.lax.pmean(x, "batch")
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("kernel", ("layer Conv_0 (Conv) with its kernel of (9, 9)", "8×8×1", "smaller kernel")),
        ("pool", ("layer Dense_0 (Dense) gets an empty array of shape 0", "less pooling")),
        ("axis", ("layer BatchNorm_0", "axis_name='batch'", "leave axis_name out")),
        ("psum", ("line ", "in __call__", "leave axis_name out")),
    ],
)
def test_sizes_and_axes_that_do_not_fit_are_told_with_the_layer(how, says):
    line = refusal(Shrinking(how))
    assert all(each in line for each in says), line


# --- State and types ------------------------------------------------------------------------------


class Sowing(nn.Module):
    """Values that are sown in two ways beside state that is read again."""

    how: str

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        if self.how == "sum":
            zero = partial(jnp.zeros, ())
            self.sow("losses", "l2", (x**2).mean(), init_fn=zero, reduce_fn=jnp.add)
        if self.how == "list":
            self.sow("losses", "activity", x)
        mean = self.variable("means", "mean", jnp.zeros, (8,))
        if train:
            mean.value = x.mean(0)
        return nn.Dense(3)(x - mean.value)


@pytest.mark.parametrize("how", ["sum", "list", "nothing"])
def test_what_is_sown_is_no_state(how, dataset):
    own = network(Sowing(how))
    assert set(own.bind(NOTHING, DATA).shapes) == {"params", "means"}
    notes = own.bind(NOTHING, DATA).notes
    assert sum("sows as losses" in note for note in notes) == (how != "nothing")
    weights, _ = trained(own, dataset, epochs=1)
    assert np.abs(weights["means"]["mean"]).max() > 0


class Guarded(nn.Module):
    """State that is created when it is missing, as Flax's own decoding caches are."""

    @nn.compact
    def __call__(self, x, train):
        known = self.has_variable("ema", "mean")
        x = nn.Dense(8)(x.reshape(x.shape[0], -1))
        if known or self.is_initializing():
            mean = self.variable("ema", "mean", jnp.zeros, (8,))
            x = x - mean.value
            if train:
                mean.value = 0.5 * mean.value + x.mean(0)
        return nn.Dense(3)(x)


def test_state_that_a_module_can_do_without_is_kept(dataset):
    own = network(Guarded())
    assert set(own.bind(NOTHING, DATA).shapes) == {"params", "ema"}
    assert not own.bind(NOTHING, DATA).notes
    weights, _ = trained(own, dataset, epochs=1)
    assert np.abs(weights["ema"]["mean"]).max() > 0


class NnxSowing(nnx.Module):
    """A penalty under a type of its own, and features for the SVM."""

    def __init__(self, *, rngs):
        self.a, self.b = nnx.Linear(64, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.a(x.reshape(x.shape[0], -1)))
        self.sow(Penalty, "l2", (x**2).mean())
        self.sow(nnx.Intermediate, "features", 2 * x)
        return self.b(x)


class Penalty(nnx.Variable):
    pass


@pytest.mark.filterwarnings("ignore:Using 'Module.sow")  # which people go on doing
def test_what_nnx_modules_sow_is_no_state(dataset):
    own = network(NnxSowing)
    assert set(own.bind(NOTHING, DATA).shapes) == {"params"}
    weights, data = trained(own, dataset, epochs=1)
    images = dataset.x_test[:3]
    outputs = own.bind(NOTHING, data).model("tiles", "default").outputs(weights, images)
    assert outputs.features.shape == (3, 8)


class Perturbed(nn.Module):
    """`perturb` makes a collection that is for looking at gradients."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(self.perturb("hidden", nn.Dense(8)(x.reshape(x.shape[0], -1))))


def test_perturbations_are_no_state(dataset):
    weights, _ = trained(network(Perturbed()), dataset, epochs=1)
    assert set(weights) == {"params"}


class Complex(nn.Module):
    @nn.compact
    def __call__(self, x):
        dtype = jnp.complex64
        x = nn.Dense(8, param_dtype=dtype, dtype=dtype)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(jnp.abs(x))


def test_complex_parameters_train(dataset):
    weights, _ = trained(network(Complex()), dataset, epochs=1)
    assert weights["params"]["Dense_0"]["kernel"].dtype == np.complex64


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", lambda key: jnp.ones((), int))
        return scale * nn.Dense(3)(x.reshape(x.shape[0], -1))


def test_parameters_without_a_gradient_are_named():
    assert "parameter scale is int32" in refusal(Counting())


class Typed(nn.Module):
    dtype: object = jnp.float32
    shared: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = nn.initializers.lecun_normal()
        if self.shared:
            kernel = nn.with_partitioning(kernel, (None, "model"))
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        x = nn.relu(nn.Dense(8, kernel_init=kernel, dtype=self.dtype, param_dtype=self.dtype)(x))
        return nn.Dense(3, dtype=self.dtype, param_dtype=self.dtype)(x)


def test_partitioned_parameters_are_plain_ones(dataset):
    weights, _ = trained(network(Typed(shared=True)), dataset, epochs=1)
    plain, _ = trained(network(Typed()), dataset, epochs=1)
    assert jax.tree.all(jax.tree.map(np.array_equal, weights, plain))


def test_parameters_in_bfloat16_train(dataset):
    own = network(Typed(jnp.bfloat16))
    weights, _ = trained(own, dataset)
    assert {x.dtype for x in jax.tree.leaves(weights)} == {jnp.dtype(jnp.bfloat16)}


# --- Optimizers -----------------------------------------------------------------------------------


class Frozen(nn.Module):
    """A fixed kernel, one that is not used, and one whose gradient happens to be 0."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        ones = nn.initializers.ones
        fixed, unused, dead = (self.param(n, ones, (64, 8)) for n in ("fixed", "unused", "dead"))
        x = x @ jax.lax.stop_gradient(fixed) + nn.relu(x @ -dead)
        return nn.Dense(3, bias_init=ones)(x) + 0 * unused.shape[0]


def test_weight_decay_leaves_fixed_weights_alone(dataset):
    """Fixed and unused weights stay as they are; a gradient of 0 is none of these."""
    own = network(Frozen())
    assert own.bind(NOTHING, DATA).decayed == {
        "fixed": False,
        "unused": False,
        "dead": True,
        "Dense_0": {"kernel": True, "bias": False},
    }
    settings = {"optimizer": "adamw", "weight_decay": 0.5, "learning_rate": 0.1}
    weights, _ = trained(own, dataset, **settings)
    assert np.all(weights["params"]["fixed"] == 1)
    assert np.all(weights["params"]["unused"] == 1)
    assert np.all(weights["params"]["dead"] < 0.7)


def test_labels_of_an_optimizer_may_have_two_levels(dataset):
    def labels(weights):
        return {
            layer: dict.fromkeys(parts, "fixed" if layer == "Dense_0" else "free")
            for layer, parts in weights.items()
        }

    rules = {"fixed": optax.set_to_zero(), "free": optax.sgd(0.1)}
    own = network(Typed(), optax.multi_transform(rules, labels))
    weights, data = trained(own, dataset, epochs=1)
    initial = own.bind(NOTHING, data).initial_weights(seed=0, index=0)
    same = jax.tree.map(np.array_equal, initial["params"], weights["params"])
    assert same["Dense_0"]["kernel"]
    assert not same["Dense_1"]["kernel"]


def test_multi_steps_train(dataset):
    """The mean of four batches' gradients at once, as Optax says."""
    own = network(Typed(), optax.MultiSteps(optax.sgd(0.1), 4))
    weights, data = trained(own, dataset, epochs=1)
    assert data.steps({}) == 6
    initial = own.bind(NOTHING, data).initial_weights(seed=0, index=0)
    assert not jax.tree.all(jax.tree.map(np.array_equal, initial, weights))
    assert own.bind(NOTHING, data).notes == []


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (optax.cosine_decay_schedule(0.1, 3), 3),
        (optax.cosine_decay_schedule(0.1, 12), None),
        (optax.piecewise_constant_schedule(0.1, {5: 0.0}), 5),
        (optax.linear_schedule(0.0, 0.1, 6), None),
        (0.1, None),
        (optax.linear_schedule(0.1, 0.0, 5), 5),  # not quite 0 as it is compiled
    ],
)
def test_a_schedule_that_ends_early_is_noted(schedule, last):
    data = DataSpec(SHAPE, 3, images=64, epochs=3, batch_size=16)
    notes = network(Typed(), optax.adam(schedule)).bind(NOTHING, data).notes
    assert [f"after step {last} of 12" in note for note in notes] == [True] * (last is not None)


def test_the_number_of_steps_is_that_of_this_training():
    """1 before data are loaded; then by a batch size that was searched; a refit has its own."""
    asked = []

    def build_model(hp):
        asked.append(hp.steps)
        hp.Choice("batch_size", [8, 16])
        asked.append(hp.steps)
        return Typed(), optax.sgd(optax.cosine_decay_schedule(0.1, hp.steps))

    own = Network(build_model)
    drawn = Hyperparameters(batch_size=8)
    assert own.bind(drawn, DATA).built
    data = DataSpec(SHAPE, 3, images=60, epochs=2, batch_size=128)
    first = own.bind(drawn, data).built.computation
    refit = own.bind(
        drawn, DataSpec(SHAPE, 3, images=80, epochs=2, batch_size=128)
    ).built.computation
    assert asked == [1, 1, 16, 16, 20, 20]
    assert first.differences(refit) == "training"


def test_a_schedule_that_wants_many_steps_is_asked_for_with_some():
    """Before data are there, what is asked for behind it is found all the same."""

    def build_model(hp):
        hp.Int("units", 3, 4)
        rate = optax.warmup_cosine_decay_schedule(0, 0.1, 5, hp.steps)
        hp.Choice("momentum", [0.5, 0.9])
        return Typed(), optax.sgd(rate)

    assert set(Space(Network(build_model).definition).explored) == {"units", "momentum"}


def test_a_batch_size_that_only_the_search_asks_for_counts():
    data = DataSpec(SHAPE, 3, images=60, epochs=2, batch_size=30)
    seen = []

    def build_model(hp):
        seen.append(hp.steps)
        return Typed()

    assert Network(build_model).bind(Hyperparameters(batch_size=10), data).built
    assert seen == [12]
