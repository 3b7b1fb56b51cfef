"""Networks of one's own: ten as people write them, trained by the engine and by plain Flax."""

from __future__ import annotations

import re
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import numbered, slow_after
from networks import NETWORKS

from jaxmnist import UsageError
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import Checkpoint, TrialFinished, from_arrays, to_arrays
from jaxmnist.engine.local import Engine
from jaxmnist.engine.training import epoch_order
from jaxmnist.models.interface import DataSpec, split_weights
from jaxmnist.models.network import Network
from jaxmnist.models.space import Space
from jaxmnist.runs.trial import Key
from jaxmnist.settings import RECIPES

DATA = DataSpec((28, 28, 1), 10)
SETTINGS = replace(RECIPES["study"], epochs=2, batch_size=16, learning_rate=1e-2)


@pytest.fixture(scope="module")
def dataset():
    """104 images for training, so that the last batch of 16 has 8."""
    mnist = load_arrays("mnist")
    few = Arrays(mnist.x_train[:130], mnist.y_train[:130], mnist.x_test[:10], mnist.y_test[:10])
    return split("few", few, validation_split=0.2, seed=0)


def first(network):
    """The configuration of first values."""
    return Space(network.definition).configuration(
        lambda name, distribution: distribution.values[0] if distribution.values else 1e-2
    )


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", slow_after(2, NETWORKS))
def test_ten_networks_as_people_write_them(name, dataset):
    """They have the known numbers of parameters, train, and evaluate the same twice."""
    build_model, parameters, statistics = NETWORKS[name]
    network = Network(build_model)
    h = first(network)
    trained, collections = split_weights(network.bind(h, DATA).shapes)
    assert parameters in (None, count(trained))
    assert statistics in (None, count(collections))
    if name != "bridged":
        assert sum(layer.parameters for layer in network.bind(h, DATA).layers) == count(trained)
    stateful = bool(collections)
    assert network.bind(h, DATA).tried.independent
    assert network.bind(h, DATA).notes == []
    assert network.bind(h, DATA).batching == (
        "exact" if name == "bridged" else "masked" if stateful else "independent"
    )
    with Engine(network, dataset, SETTINGS, 0).run(numbered([h])) as events:
        ended = [event for event in events if isinstance(event, TrialFinished)]
    assert ended[0].error is None
    assert ended[0].history[1].loss < ended[0].history[0].loss


class Normalised(nn.Module):
    """BatchNorm, and a collection of its own that changes, where `own`."""

    own: bool

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), (2, 2))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5)(x))
        if self.own:
            mean = self.variable("means", "mean", jnp.zeros, (4,))
            if train:
                mean.value = x.mean((0, 1, 2))
            x = x - mean.value
        return nn.Dense(10)(nn.Dense(8)(x.mean((1, 2))))


@pytest.mark.parametrize("own", slow_after(1, [False, True]))
def test_an_epoch_equals_one_of_plain_flax(own, dataset):
    """Batch by batch, the last one smaller: statistics and weights are those of a plain loop."""
    network = Network(lambda hp: Normalised(hp.Fixed("own", own)))
    h = first(network)
    assert network.bind(h, DATA).batching == ("exact" if own else "masked")
    settings = replace(
        RECIPES["study"], epochs=1, batch_size=16, learning_rate=1e-2, optimizer="sgd"
    )
    with Engine(network, dataset, settings, 0).run(numbered([h])) as events:
        (ended,) = [event for event in events if isinstance(event, TrialFinished)]

    module = Normalised(own)
    weights = network.bind(h, DATA).initial_weights(seed=0, index=0)
    parameters, collections = split_weights(weights)
    sgd = optax.sgd(1e-2, 0.9)
    state = sgd.init(parameters)
    order = epoch_order(len(dataset.y_train), 0, 0)

    @jax.jit
    def step(parameters, collections, state, x, y):
        def loss(parameters):
            logits, changed = module.apply(
                {"params": parameters, **collections}, x, True, mutable=list(collections)
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed

        gradient, collections = jax.grad(loss, has_aux=True)(parameters)
        updates, state = sgd.update(gradient, state)
        return optax.apply_updates(parameters, updates), collections, state

    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        x = dataset.x_train[rows].astype(np.float32) / 255
        parameters, collections, state = step(
            parameters, collections, state, x, dataset.y_train[rows]
        )
    wanted = {"params": parameters, **collections}
    pairs = zip(jax.tree.leaves(ended.parameters), jax.tree.leaves(wanted), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


class Everything(nn.Module):
    """BatchNorm's statistics, dropout, and a stream of its own."""

    width: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.max_pool(nn.relu(nn.Conv(self.width, (3, 3))(x)), (4, 4), (4, 4))
        x = nn.BatchNorm(use_running_average=not train)(x.reshape(x.shape[0], -1))
        x = nn.Dropout(0.3, deterministic=not train)(x)
        if train:
            x = x + 0.01 * jax.random.normal(self.make_rng("noise"), x.shape)
        return nn.Dense(10)(x)


def noise_from(key):
    """A transformation that keeps a typed random key in its state."""

    def update(gradient, key, weights=None):
        key, used = jax.random.split(key)
        return jax.tree.map(lambda g: g + jax.random.normal(used, g.shape) / 100, gradient), key

    return optax.GradientTransformation(lambda weights: key, update)


def everything(hp):
    sgd = optax.sgd(hp.Float("rate", 1e-3, 1e-1), 0.9)
    return Everything(hp.Int("width", 4, 8)), optax.chain(noise_from(jax.random.key(7)), sgd)


@pytest.mark.slow
def test_a_trial_goes_on_from_each_checkpoint(dataset):
    """Bit for bit, with statistics, random streams and an optimizer of its own with a key."""
    network = Network(everything)
    h = first(network)
    settings = replace(RECIPES["study"], epochs=2, batch_size=4)

    def run(checkpoints=None):
        engine = Engine(network, dataset, settings, 3, checkpoint_every=0.0)
        with engine.run([(Key(5), h)], checkpoints) as events:
            found = list(events)
        return found[-1], [event for event in found if isinstance(event, Checkpoint)]

    ended, kept = run()
    assert ended.error is None
    assert {(c.epoch, c.step) for c in kept} == {(0, 16), (0, 26), (1, 16), (1, 26)}
    for checkpoint in kept:
        arrays, content = to_arrays(checkpoint)
        again = from_arrays(
            arrays, content, Key(5), network.bind(h, DATA), len(dataset.y_validation), settings
        )
        went_on, _ = run({Key(5): again})
        assert went_on.history == ended.history
        pairs = zip(
            jax.tree.leaves(went_on.parameters), jax.tree.leaves(ended.parameters), strict=True
        )
        assert all(np.array_equal(a, b) for a, b in pairs)


def test_learning_rates_share_a_program(dataset):
    """They are arguments of it; the result is that of a program of each one's own."""

    def build_model(hp):
        hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
        return NETWORKS["lenet"][0](hp)

    network = Network(build_model)
    space = Space(network.definition)
    trials = numbered(space.configuration(lambda *_, r=r: r) for r in (1e-3, 1e-2))
    engine = Engine(network, dataset, SETTINGS, 0, jobs=1)
    with engine.run(trials) as events:
        found = {e.key: e for e in events if isinstance(e, TrialFinished)}
    assert engine.compiled == 1
    for key, h in trials:
        alone = Engine(
            network,
            dataset,
            replace(RECIPES["study"], epochs=2, batch_size=16, learning_rate=h["learning_rate"]),
            0,
        )
        with alone.run([(key, h)]) as events:
            (same,) = [event for event in events if isinstance(event, TrialFinished)]
        assert same.history == found[key].history
    assert len({ended.history for ended in found.values()}) == 2


@pytest.mark.slow
def test_the_weights_of_an_optimizer_of_ones_own_are_averaged_too(dataset):
    """One step an epoch: after two, the first one's weights count half as much as the second's."""
    network = Network(lambda hp: (Normalised(bool(hp.Fixed("own", 0))), optax.sgd(0.1, 0.9)))
    h = first(network)

    def weights(epochs, momentum):
        settings = replace(
            RECIPES["study"], epochs=epochs, batch_size=len(dataset.y_train), ema_momentum=momentum
        )
        with Engine(network, dataset, settings, 0).run(numbered([h])) as events:
            (ended,) = [event for event in events if isinstance(event, TrialFinished)]
        return ended.parameters["params"]

    one, two, average = weights(1, 0.0), weights(2, 0.0), weights(2, 0.5)
    expected = jax.tree.map(lambda a, b: (0.5 * a + b) / 1.5, one, two)
    for ours, theirs in zip(jax.tree.leaves(average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_optimizer_and_schedule_trains(dataset):
    """As a hyperparameter of any network, with batches of its own size."""

    def build_model(hp):
        hp.Choice("optimizer", ["adam", "adamw", "nadam", "rmsprop", "sgd", "lion"])
        hp.Choice("schedule", ["constant", "cosine", "one-cycle"])
        hp.Choice("batch_size", [8, 16])
        return Everything(4)

    network = Network(build_model)
    members = Space(network.definition).members()
    chosen = [members[0], members[9], members[14], members[20], members[27], members[35]]
    assert len({h["optimizer"] for h in chosen}) == 6
    settings = replace(RECIPES["study"], epochs=1, learning_rate=1e-3)
    with Engine(network, dataset, settings, 0).run(numbered(chosen)) as events:
        ended = [event for event in events if isinstance(event, TrialFinished)]
    assert [event.error for event in ended] == [None] * 6


class Axis(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x):
        x = x - x.mean(self.axis, keepdims=True)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def test_configurations_that_differ_in_an_axis_only():
    """Over images, or over rows: what is found for one doesn't count for the other."""
    network = Network(lambda hp: Axis(hp.Choice("axis", [1, 0])))
    rows, images = Space(network.definition).members()
    assert network.bind(rows, DATA).batching == "independent"
    assert network.bind(images, DATA).batching == "exact"
    assert network.bind(rows, DATA).tried.independent
    assert not network.bind(images, DATA).tried.independent


@pytest.mark.slow
def test_an_optimizer_of_ones_own_has_its_own_names(dataset):
    """What a network asks for its own optimizer is no setting of ours; the batch size is."""

    def build_model(hp):
        make = {"ours": optax.adagrad}[hp.Choice("optimizer", ["ours"])]
        hp.Choice("batch_size", [8])
        return Everything(4), make(hp.Choice("learning_rate", [0.5]))

    network = Network(build_model)
    h = first(network)
    assert network.bind(h, DATA).training(SETTINGS).batch_size == 8
    assert network.bind(h, DATA).training(SETTINGS).optimizer == SETTINGS.optimizer
    with Engine(network, dataset, SETTINGS, 0).run(numbered([h])) as events:
        (ended,) = [event for event in events if isinstance(event, TrialFinished)]
    assert ended.error is None


class NoParameters(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x.reshape(x.shape[0], -1)[:, :10]


class Wanting(nn.Module):
    @nn.compact
    def __call__(self, x, mode):
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def other_questions():
    calls = iter(range(100))

    def build_model(hp):
        return NETWORKS["lenet" if next(calls) % 2 else "squeeze"][0](hp)

    return build_model


WRONG = {
    "no module": (lambda hp: 7, "must return a Flax module"),
    "a class": (lambda hp: nn.Dense, "not the class Dense"),
    "nothing": (lambda hp: None, "not a NoneType"),
    "three things": (lambda hp: (1, 2, 3), "not 3 values"),
    "a Keras optimizer": (lambda hp: (nn.Dense(10), "adam"), "an optimizer of Optax, not a str"),
    "it raises at once": (
        lambda hp: 1 / 0,
        r"build_model fails: test_flax_network.py, line \d+, in <lambda>: ZeroDivisionError",
    ),
    "a reserved name": (lambda hp: hp.Int("max_trials", 1, 2), "an option of the search"),
    "an unknown optimizer": (
        lambda hp: (hp.Choice("optimizer", ["adagrad"]), nn.Dense(10))[1],
        "optimizer must be one of",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_network(name):
    build_model, line = WRONG[name]
    with pytest.raises(UsageError, match=line) as caught:
        Space(Network(build_model).definition)
    assert "\n" not in str(caught.value)


FAILING = {
    "an unknown argument": (lambda hp: Wanting(), "has an unknown argument 'mode'"),
    "logits of another shape": (lambda hp: nn.Dense(7), r"logits of shape \(N, 10\)"),
    "another network each time": (other_questions(), "isn't deterministic"),
    "a kernel that is too large": (
        lambda hp: NETWORKS["mixer"][0](hp).clone(patch=50),
        r"^networks.py, line \d+, in __call__: layer Conv_0 .* an empty array for .* 28×28×1",
    ),
    "no module": (lambda hp: hp.Int("a", 1, 2), "must return a Flax module"),
    "an optimizer that wants values": (
        lambda hp: (NETWORKS["lenet"][0](hp), optax.lbfgs()),
        "needs more arguments than gradients",
    ),
    "no parameters": (lambda hp: NoParameters(), "no parameters"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_configuration_that_fails(name, dataset):
    """The trial fails with one line."""
    build_model, line = FAILING[name]
    network = Network(build_model)
    h = first(network)
    with Engine(network, dataset, SETTINGS, 0).run(numbered([h])) as events:
        (ended,) = [event for event in events if isinstance(event, TrialFinished)]
    assert ended.error is not None
    assert "\n" not in ended.error
    assert re.search(line, ended.error), ended.error


def test_features_are_what_goes_into_the_last_product():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6)(x.reshape(x.shape[0], -1))
            self.sow("intermediates", "features", x * 2)
            return nn.Dense(10)(nn.relu(nn.Dense(5)(x)))

    def bound(network):
        h = first(network)
        weights = network.bind(h, DATA).initial_weights(seed=0, index=0)
        images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1)).astype(np.uint8)
        model = network.bind(h, DATA).model("tiles", "default")
        outputs = jax.jit(model.outputs)(weights, images)
        return outputs, network.bind(h, DATA).feature_count

    sown, width = bound(Network(lambda hp: Sowing()))
    assert sown.features.shape == (3, 6)
    assert width == 6
    nnx_outputs, width = bound(Network(NETWORKS["bridged"][0]))
    assert nnx_outputs.features.shape == (3, 256)
    assert width == 256
