"""A trained network is loaded only as what was trained, wherever weights and network meet."""

from __future__ import annotations

import hashlib
import json
import shutil

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from conftest import slow_after
from flax import nnx
from processes import command, flags, looks_of

from jaxmnist import NetworkError, Run, TrainedModel, UsageError, random_search
from jaxmnist.engine.events import EpochFinished
from jaxmnist.files import as_json, read_tensors
from jaxmnist.models.network import Network
from jaxmnist.runs.records import File, ModelReport
from jaxmnist.runs.trial import REFIT, Key

SOURCE = """
import flax.linen as nn


class Network(nn.Module):
    width: int
    classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Conv(self.width, (3, 3), (2, 2))(x))
        x = nn.Dropout(0.25, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.classes)(x)


def build_model(hp):
    return Network(hp.Int("width", 2, 3), hp.classes)
"""
# Changes of the network, and what differs by its hashes, and by its outputs.
CHANGES = {
    "an activation": (
        ("nn.relu(", "nn.tanh("),
        "different training and evaluation",
        "different evaluation",
    ),
    "initial weights": (
        ("(2, 2))", "(2, 2), kernel_init=nn.initializers.normal(3.0))"),
        "different initial weights",
        "different initial weights",
    ),
    "the training step": (("Dropout(0.25", "Dropout(0.5"), "different training:", None),
    "the evaluation": (
        ("        return nn", "        x = x if train else x * 2\n        return nn"),
        "different evaluation",
        "different evaluation",
    ),
    "the space": (('"width", 2, 3', '"width", 2, 4'), "width was 2:3, is now 2:4", "width was"),
    "shapes": (
        ("(3, 3), (2", "(5, 5), (2"),
        "different initial weights, training and evaluation",
        "different evaluation",
    ),
    "an error": (("nn.relu(", "nn.ReLU("), "line 11, in __call__: AttributeError", "line 11"),
}
DOORS = ("evaluate", "svm", "predict", "export", "resume", "Python")


@pytest.fixture(scope="module")
def own(options):
    study = ("filters", "conv_layers", "dense_layers", "units", "learning_rate")
    kept = {name: value for name, value in options.items() if name not in study}
    return {**kept, "max_trials": 2, "epochs": 1, "svm": False, "report": False}


@pytest.fixture(scope="module")
def searched(own, tmp_path_factory):
    """The folder of a finished search, and of its network's file."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "right_network.py").write_text(SOURCE)
    given = flags({**own, "directory": str(folder / "runs")})
    result = command("search", *given, "--model", folder / "right_network.py")
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture
def copied(searched, tmp_path):
    shutil.copytree(searched / "runs", tmp_path / "runs")
    return tmp_path


def content(folder):
    """What the files of a folder hold, but for locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "lock" not in path.name
    }


def enter(door, folder, file, own):
    """Let weights and network meet; returns the exit status and the line of an error."""
    run, line = folder / "runs" / "small", [folder / "runs" / "small", "--model", file]
    if door == "Python":
        namespace = {}
        exec(compile(file.read_text(), file.name, "exec"), namespace)
        try:
            Run(run, namespace["build_model"]).best_model  # noqa: B018
        except UsageError as problem:
            return problem.exit_status, str(problem)
        return 0, ""
    words = {
        "evaluate": ("evaluate", *line),
        "svm": ("svm", *line),
        "predict": ("predict", *line, folder / "images.npy"),
        "export": ("export", *line, folder / "out.safetensors"),
        "resume": ("search", *flags({**own, "directory": str(folder / "runs")}), "--model", file),
    }[door]
    np.save(folder / "images.npy", np.zeros((1, *shape_of(run)), np.uint8))
    found = command(*words)
    return found.returncode, found.stderr


def shape_of(run):
    return Run(run).store.search.data.image_shape


@pytest.mark.parametrize("door", slow_after(6, DOORS))
@pytest.mark.parametrize("change", slow_after(2, CHANGES))
def test_another_network_is_refused_with_what_differs(change, door, copied, own):
    """And nothing that is stored changes."""
    (old, new), says, _ = CHANGES[change]
    assert old in SOURCE
    file = copied / "changed_network.py"
    file.write_text(SOURCE.replace(old, new))
    before = content(copied / "runs")
    status, line = enter(door, copied, file, own)
    assert status == 2
    if change == "the space" and door == "resume":
        says = "width was '2:3', not '2:4'"
    assert says in line
    assert content(copied / "runs") == before


@pytest.mark.parametrize("door", slow_after(0, DOORS))
def test_the_same_network_is_taken(door, copied, searched, own):
    """However it is written."""
    file = copied / "rewritten_network.py"
    file.write_text(SOURCE.replace("x.shape[0], -1", "len(x), -1") + "# a remark\n")
    assert enter(door, copied, file, own)[0] == 0
    looks = ["winner", *{"evaluate": ["evaluation"], "svm": ["svm"]}.get(door, [])]
    assert looks_of(Run(copied / "runs" / "small")) == looks


@pytest.mark.parametrize("change", [None, *slow_after(0, CHANGES)])
def test_other_versions_are_told_apart_by_outputs(change, copied, own, monkeypatch, said):
    """Only the training step is not seen, and that is said."""
    monkeypatch.setattr(jax, "__version__", "0.99")
    (old, new), _, says = CHANGES[change] if change else (("", ""), "", None)
    file = copied / "other_version.py"
    file.write_text(SOURCE.replace(old, new, 1) if change else SOURCE)
    before = content(copied / "runs")
    for door in ("Python", "resume"):
        status, line = enter(door, copied, file, own)
        assert status == (2 if says else 0), line
        if says and (change, door) != ("the space", "resume"):
            assert says in line
    if says:
        assert content(copied / "runs") == before
    elif not change:
        assert any("its training step is not" in each for each in said)


def test_the_identity_of_an_evaluation_has_the_hash(searched):
    """By the file of the weights, whose SHA-256 is part of it."""
    run = Run(searched / "runs" / "small")
    trial = run.best_trial
    assert trial.computation is not None
    _, metadata = read_tensors(run.store.file(File.MODEL), "jaxmnist")
    assert metadata["computation"] == as_json(trial.computation)
    lines = (searched / "runs" / "ledger.jsonl").read_text().splitlines()
    sha256 = hashlib.sha256(run.store.file(File.MODEL).read_bytes()).hexdigest()
    assert [json.loads(line)["model_sha256"] for line in lines] == [sha256]


def test_a_file_of_weights_alone_is_compared_too(searched):
    run = Run(searched / "runs" / "small")
    namespace = {}
    exec(SOURCE.replace("nn.relu(", "nn.gelu("), namespace)
    other = Network(namespace["build_model"])
    with pytest.raises(
        UsageError, match=r"the weights of another network, with different training and eval"
    ):
        TrainedModel.load(run.store.file(File.MODEL), network=other)


# --- In Python -----------------------------------------------------------------------------------


class Flat(nn.Module):
    units: int = 3
    act: str = "relu"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.units)(x.reshape(x.shape[0], -1))
        return nn.Dense(2)(getattr(nn, self.act)(x))


@pytest.fixture
def bright(tmp_path):
    """Two classes of small images that are told apart by their brightness, and a short search."""
    random = np.random.default_rng(0)
    y = np.arange(120) % 2
    x = (random.random((120, 6, 6)) / 4 + 0.7 * y[:, None, None]).astype(np.float32)
    return {
        "data": (x[:60], y[:60], x[60:90], y[60:90], x[90:], y[90:]),
        "directory": str(tmp_path),
        "svm": False,
        "report": False,
        "tensorboard": False,
        "quiet": True,
        "epochs": 8,
        "batch_size": 10,
        "learning_rate": 0.03,
        "max_trials": 1,
    }


def test_arrays_that_change_while_a_search_runs_do_not_reach_the_test_set(bright):
    """Also those of 8 bits, which need no conversion."""
    images, labels = bright["data"][::2], bright["data"][1::2]
    whole = [(255 * x).astype(np.uint8) for x in images]
    bright["data"] = [array for pair in zip(whole, labels, strict=True) for array in pair]
    x_test = bright["data"][4]
    inverted = 255 - x_test

    def listener(event):
        if isinstance(event, EpochFinished):
            x_test[:] = inverted

    run = random_search(lambda hp: Flat(8), listener=listener, **bright)
    assert np.array_equal(x_test, inverted)
    assert run.result("best/test.json", ModelReport).accuracy > 0.9


def test_a_function_that_returns_another_network_each_time(bright):
    """The trial fails with what differs; it is not a matter of luck."""
    calls = []

    def build_model(hp):
        calls.append(hp.Int("units", 3, 4))
        return Flat(calls[-1], "relu" if len(calls) % 2 else "tanh")

    with pytest.raises(NetworkError, match=r"isn't deterministic.*different training and evalu"):
        random_search(build_model, **bright)


def test_a_function_that_returns_another_network_later(bright):
    """The trial that it is no longer is named; the others can be used."""
    later = []

    def build_model(hp):
        units = hp.Int("units", 3, 4)
        return Flat(units, "tanh" if later and units == later[0] else "relu")

    run = random_search(build_model, keep=2, **{**bright, "max_trials": 2})
    first, second = (entry.trial for entry in run.ranking.ranked)
    later.append(second.hyperparameters["units"])
    again = Run(run.store.path, build_model)
    assert again.load_model(first)
    with pytest.raises(UsageError, match=rf"trial {second.index} .*training and evaluation"):
        again.load_model(second)


def test_a_refit_has_a_training_step_of_its_own(bright):
    """A schedule over all steps has more of them, and the network is the same."""

    def build_model(hp):
        rate = optax.cosine_decay_schedule(0.1, hp.steps)
        return Flat(hp.Fixed("units", 4)), optax.sgd(rate, 0.9)

    del bright["learning_rate"]
    run = random_search(build_model, refit=True, **bright)
    trial, refit = run.trials[0], run.store.read_trial(Key(0, REFIT))
    assert trial.computation.differences(refit.computation) == "training"
    again = Run(run.store.path, build_model)
    assert again.best_model.predict(bright["data"][0]).shape == (60,)
    assert again.load_model(trial).predict(bright["data"][0]).shape == (60,)


class Scaled(nn.Module):
    """A parameter without dimensions, and names with slashes."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.WeightNorm(nn.Dense(4))(x.reshape(x.shape[0], -1))
        return nn.Dense(2)(nn.tanh(x)) * self.param("scale", nn.initializers.ones, ())


class Listed(nnx.Module):
    """Layers by number."""

    def __init__(self, *, rngs):
        first, second = nnx.Linear(36, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.layers = nnx.Sequential(first, nnx.tanh, second)

    def __call__(self, x):
        return self.layers(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize("module", [Scaled(), Listed, Flat(4).clone(act="gelu")])
def test_weights_of_any_shape_and_name_come_back(module, bright):
    run = random_search(lambda hp: module, **bright)
    weights = run.best_model.parameters
    again = Run(run.store.path, lambda hp: module).best_model.parameters
    assert jax.tree.structure(weights) == jax.tree.structure(again)
    assert jax.tree.all(jax.tree.map(np.array_equal, weights, again))


# --- An error in a person's code -----------------------------------------------------------------

FAILING = """
import flax.linen as nn


class Network(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        if self.width in {widths}:
            raise ValueError("not this width")
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def build_model(hp):
    width = hp.Int("width", 1, 3)
    if width in {asked}:
        raise KeyError("asked")
    return Network(width)
"""


@pytest.mark.parametrize(
    ("widths", "asked", "says"),
    [
        ((2,), (), "failing_network.py, line 11, in __call__: ValueError: not this width"),
        ((), (2,), "failing_network.py, line 18, in build_model: KeyError: 'asked'"),
    ],
)
def test_some_configurations_fail_once_with_their_line(widths, asked, says, own, tmp_path):
    file = tmp_path / "failing_network.py"
    file.write_text(FAILING.format(widths=widths, asked=asked))
    given = flags({**own, "directory": str(tmp_path), "max_trials": 3, "max_retries": 2})
    result = command("search", *given, "--model", file)
    assert result.returncode == 0, result.stderr
    run = Run(tmp_path / "small")
    failed = [trial for trial in run.trials if trial.status == "failed"]
    assert [(t.hyperparameters["width"], t.attempts, t.error) for t in failed] == [(2, 1, says)]
    whole = run.store.file(File.ERROR, failed[0].key).read_text()
    assert whole.startswith("Traceback")
    assert str(file) in whole
    assert [path.parent.name for path in tmp_path.glob("small/trials/*/error.txt")] == [
        f"{failed[0].index:04d}"
    ]


@pytest.mark.parametrize(("widths", "asked"), [((1, 2, 3), ()), ((), (1, 2, 3))])
def test_if_all_fail_it_is_told_once_before_the_first_trial(widths, asked, own, tmp_path):
    file = tmp_path / "always_failing.py"
    file.write_text(FAILING.format(widths=widths, asked=asked))
    result = command("search", *flags({**own, "directory": str(tmp_path)}), "--model", file)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "always_failing.py, line " in result.stderr
    assert not (tmp_path / "small").exists()


def test_in_python_the_exception_is_the_cause(bright):
    def build_model(hp):
        hp.Int("width", 1, 2)
        raise KeyError("mine") if hp.Boolean("error") else SystemExit("choose a GPU")

    with pytest.raises(NetworkError, match=r"line \d+, in build_model: (Key|SystemExit)") as caught:
        random_search(build_model, **bright)
    assert isinstance(caught.value.__cause__, KeyError | SystemExit)
