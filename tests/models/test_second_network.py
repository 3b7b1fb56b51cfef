"""A second network, a perceptron defined only here, is searched by the same code."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
import pytest
from pages import check

from jaxmnist import Run, UsageError
from jaxmnist.api import run_search as search
from jaxmnist.api import settings_of
from jaxmnist.files import read_json
from jaxmnist.models.network import Model, Network, Outputs, pixels
from jaxmnist.models.questions import Definition
from jaxmnist.models.space import Space
from jaxmnist.report.page import make_page
from jaxmnist.report.tensorboard import columns
from jaxmnist.results.trained import TrainedModel
from jaxmnist.runs.records import ModelReport, SvmReport
from jaxmnist.runs.trial import Layer

pytestmark = pytest.mark.slow


def ask(hp):
    """A perceptron: its activation, and the units of each of one or two layers."""
    activation = hp.Choice("activation", ["relu", "gelu"])
    widths = [hp.Int(f"units_{i}", 8, 16, step=8) for i in range(hp.Int("depth", 1, 2))]
    return activation, widths, hp.Boolean("normalised")


class Perceptron(nn.Module):
    activation: str
    widths: tuple[int, ...]
    normalised: bool
    classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = nn.Dense(width)(x)
            x = nn.LayerNorm()(x) if self.normalised else x
            x = getattr(nn, self.activation)(x)
        return Outputs(nn.Dense(self.classes)(x), x)


def module(h, data):
    widths = tuple(h[f"units_{i}"] for i in range(h["depth"]))
    return Perceptron(h["activation"], widths, h["normalised"], data.classes)


@dataclass(frozen=True)
class PerceptronModel(Model):
    made: Perceptron
    scale: float
    precision: str

    def outputs(self, parameters, images, collections=None):
        return self.made.apply({"params": parameters}, pixels(images, self.scale, self.precision))


class PerceptronNetwork(Network):
    definition = Definition("perceptron", ask)

    @functools.cache  # noqa: B019, one network lives as long as the tests
    def _initialise(self, h, data):
        made, image = module(h, data), np.zeros((1, *data.image_shape), np.float32)
        return jax.jit(lambda key: made.init(key, image)["params"])

    def initial_parameters(self, h, data, *, seed, index):
        key = jax.random.fold_in(jax.random.key(seed), index)
        return jax.device_get(self._initialise(h, data)(key))

    def layers(self, h, data):
        rows = jax.eval_shape(self._initialise(h, data), jax.random.key(0))
        return tuple(
            Layer(
                name,
                name.partition("_")[0],
                (part["bias"].size,),
                sum(x.size for x in part.values()),
            )
            for name, part in rows.items()
        )

    def model(self, h, data, method, precision):
        return PerceptronModel(module(h, data), data.scale, precision)


NETWORK = PerceptronNetwork()


def options_of(options, **changes):
    study = ("filters", "conv_layers", "dense_layers", "units")
    given = {name: value for name, value in options.items() if name not in study} | changes
    return settings_of(given, Space(NETWORK.definition))


@pytest.fixture(scope="module")
def run(options, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("perceptrons"))
    settings = options_of(
        options, max_trials=6, directory=folder, report=True, tensorboard=True, keep=6
    )
    return search(settings, NETWORK)


def test_its_space_is_what_it_asks_for(run):
    assert run.space.ranges() == {
        "activation": "relu,gelu",
        "depth": "1:2",
        "units_0": "8:16:8",
        "normalised": "false,true",
        "units_1": "8:16:8",
    }
    assert run.space.size == 2 * 2 * (2 + 4)
    assert [dict(t.hyperparameters) for t in run.trials] == [
        dict(h) for h, _ in zip(Space(NETWORK.definition).draws(0), range(6), strict=False)
    ]
    assert all(
        ("units_1" in t.hyperparameters) == (t.hyperparameters["depth"] == 2) for t in run.trials
    )
    assert run.store.search.identity["network"] == "perceptron"


def test_it_learns(run):
    assert len(run.ranking.ranked) == 6
    assert run.result("best/test.json", ModelReport).accuracy > 0.5
    assert run.result("svm/small/svm.json", SvmReport).accuracy > 0.5


def test_its_histories_are_those_of_plain_flax(run):
    """The validation accuracy of the last epoch, by the module itself."""
    data = run.load_dataset()
    for trial in run.trials:
        model = run.load_model(trial)
        made = module(trial.hyperparameters, NETWORK_DATA(data))
        logits, features = made.apply(
            {"params": model.parameters}, data.x_validation / np.float32(255)
        )
        assert (np.asarray(logits).argmax(1) == data.y_validation).mean() == trial.score
        np.testing.assert_allclose(model.features(data.x_validation), features, rtol=0, atol=1e-5)
        assert trial.parameters == sum(x.size for x in jax.tree.leaves(model.parameters))


def NETWORK_DATA(dataset):
    from jaxmnist.models.network import DataSpec

    return DataSpec(dataset.image_shape, dataset.classes, dataset.scale)


def test_it_resumes_and_extends(run, options, tmp_path):
    shutil.copytree(run.store.path, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "trials" / "0002")
    settings = options_of(options, max_trials=7, directory=str(tmp_path), keep=7)
    again = search(settings, NETWORK)
    assert len(again.trials) == 7
    assert [t.history for t in again.trials[:6]] == [t.history for t in run.trials]
    assert [t.weights_sha256 for t in again.trials[:6]] == [t.weights_sha256 for t in run.trials]


def test_the_studys_network_is_another_run(run, options, tmp_path):
    shutil.copytree(run.store.path, tmp_path / "small")
    from jaxmnist import random_search

    with pytest.raises(UsageError, match="network was 'perceptron', not 'study'"):
        random_search(**options, directory=str(tmp_path))


def test_its_page_shows_what_it_has(run):
    page = check((run.store.path / "report.html").read_text("utf-8"))
    names = {attributes["id"] for attributes in page.all("figure")}
    assert {
        f"figure-quality-{name}"
        for name in ("activation", "depth", "units-0", "units-1", "normalised")
    } <= names
    for trial in run.trials:
        assert trial.hyperparameters["activation"] in page.text["trials"]
    assert "gelu" in page.text["quality"]
    assert "can't be estimated" in page.text["importance"]
    assert "LayerNorm" in page.text["network"] or not run.best_trial.hyperparameters["normalised"]


def test_its_page_needs_no_network(run):
    """Records say what was trained: whoever reads them needs none of it."""
    page = check(make_page(Run(run.store.path), images=False))
    assert "perceptron" in page.text["record"]
    assert run.best_model.summary() in page.text["network"]
    with pytest.raises(UsageError, match="its network is not jaxmnist's own"):
        _ = Run(run.store.path).best_model


def test_its_columns_in_tensorboard(run):
    for trial in run.trials:
        found = columns(run.space, trial.hyperparameters)
        assert list(found) == ["activation", "depth", "units_0", "normalised", "units_1"]
        assert found["activation"] in ("relu", "gelu")
        assert found["normalised"] in ("true", "false")
        assert found["units_1"] == trial.hyperparameters.get("units_1", 0)


def test_its_model_file(run, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(run.best_model.to_bytes())
    again = TrainedModel.load(path, network=NETWORK)
    images = run.load_dataset().x_test
    assert np.array_equal(again.predict_proba(images), run.best_model.predict_proba(images))
    with pytest.raises(UsageError, match="holds the network 'perceptron', not 'study'"):
        TrainedModel.load(path)


def test_a_range_of_its_own(options, tmp_path):
    settings = options_of(
        options, max_trials=3, directory=str(tmp_path), svm=False, units_0="4,6", activation="gelu"
    )
    run = search(settings, NETWORK)
    assert {t.hyperparameters["activation"] for t in run.trials} == {"gelu"}
    assert {t.hyperparameters["units_0"] for t in run.trials} <= {4, 6}
    assert run.space.varied == ["depth", "units_0", "normalised", "units_1"]
    saved = read_json(run.store.path / "search.json")
    assert saved["settings"]["ranges"] == {"units_0": "4,6", "activation": "gelu"}
