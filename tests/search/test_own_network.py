"""A search over a network of one's own: in Python, and from a file on the command line."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time

import flax.linen as nn
import numpy as np
import optax
import pytest
from processes import command, facts, flags

import jaxmnist
from jaxmnist import Run, UsageError, random_search
from jaxmnist.engine.events import EpochFinished, TrialFinished, TrialStarted
from jaxmnist.report.facts import in_python_only
from jaxmnist.runs.records import ModelReport

SOURCE = """
import flax.linen as nn


class Network(nn.Module):
    filters: int
    dropout: float
    classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(self.filters, (3, 3), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.classes)(x)


def build_model(hp):
    dropout = hp.Float("dropout", 0, 0.5, step=0.1) if hp.Boolean("regularise") else 0.0
    hp.Float("learning_rate", 1e-3, 1e-1, sampling="log")
    return Network(hp.Int("width", 2, 4), dropout, hp.classes)
"""


@pytest.fixture(scope="module")
def own(options):
    study = ("filters", "conv_layers", "dense_layers", "units", "learning_rate")
    return {
        **{name: value for name, value in options.items() if name not in study},
        "max_trials": 3,
        "epochs": 2,
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "striding_network.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def run(own, file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    result = command("search", *flags({**own, "directory": str(folder)}), "--model", file)
    assert result.returncode == 0, result.stderr
    return Run(folder / "small")


def test_results_are_there_for_everybody(run):
    assert run.best_trial.status == "completed"
    assert list(run.space.ranges()) == ["regularise", "learning_rate", "width", "dropout"]
    assert "dropout" in run.results_summary() or "regularise" in run.results_summary()
    assert (run.store.path / "svm" / "small" / "svm.json").is_file()
    with pytest.raises(UsageError, match="give --model FILE, or build_model in Python"):
        run.best_model  # noqa: B018
    assert command("report", run.store.path).returncode == 0


def test_weights_become_a_model_where_the_network_is_given(run, file, options):
    namespace = {}
    exec(SOURCE, namespace)
    model = Run(run.store.path, namespace["build_model"]).best_model
    arrays = jaxmnist.load_arrays(None, options["data_dir"])
    images = arrays.x_test
    right = (model.predict(images) == arrays.y_test).mean()
    assert right == run.result("best/test.json", ModelReport).accuracy
    assert model.features(images[:2]).shape[0] == 2
    for name in ("evaluate", "svm"):
        result = command(name, run.store.path, "--model", file)
        assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(run, own, file, tmp_path):
    """Bit for bit, from its checkpoints."""
    line = [
        *[sys.executable, "-m", "jaxmnist", "search", "--model", str(file)],
        *flags({**own, "directory": str(tmp_path), "checkpoint_every": 0, "jobs": 1}),
    ]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("small/trials/0001/checkpoint.*")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(line, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert facts(Run(tmp_path / "small")) == facts(run)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("self.dropout, deter", "self.dropout / 2, deter", "different training:"),
        (
            "(3, 3), (2, 2), use",
            "(5, 5), (2, 2), use",
            "different initial weights, training and evaluation",
        ),
        ('"width", 2, 4', '"width", 2, 5', "width was '2:4', not '2:5'"),
        ("# nothing", "# a remark", None),
    ],
)
def test_a_changed_network_is_refused(run, own, old, new, says, tmp_path):
    """Unless it computes the same; nothing of the run changes."""
    shutil.copytree(run.store.path, tmp_path / "small")
    changed = tmp_path / "changed_network.py"
    source = SOURCE + "# nothing\n"
    assert old in source
    changed.write_text(source.replace(old, new))
    before = (tmp_path / "small" / "trials" / "0000" / "trial.json").read_bytes()
    words = flags({**own, "directory": str(tmp_path), "svm": False})
    result = command("search", *words, "--model", changed)
    assert result.returncode == (2 if says else 0), result.stderr
    assert (says or "") in result.stderr
    assert (tmp_path / "small" / "trials" / "0000" / "trial.json").read_bytes() == before


def test_arrays_a_listener_and_training_settings(in_memory):
    """In Python: the data in memory, what is searched beside the network, every event."""
    seen = []

    def listener(event):
        seen.append(event)
        if isinstance(event, EpochFinished):
            raise RuntimeError("not today")

    given = {
        **in_memory,
        "max_trials": 3,
        "optimizer": ["adamw", "sgd"],
        "learning_rate": (1e-3, 1e-1, "log"),
        "batch_size": [8, 16],
    }
    run = random_search(lambda hp: Flat(hp.Int("units", 2, 3)), listener=listener, **given)
    assert run.store.path.name == "arrays"
    assert [type(event) for event in seen].count(EpochFinished) == 1
    assert isinstance(seen[0], TrialStarted)
    assert not any(isinstance(event, TrialFinished) for event in seen)
    assert {"optimizer", "learning_rate", "batch_size", "units"} == set(run.space.ranges())
    assert run.get_best_models(1)[0].predict(in_memory["data"][0][:3]).shape == (3,)
    with pytest.raises(UsageError, match="arrays in memory"):
        run.load_dataset()
    assert in_python_only(run.store.search) == ["build_model", "data"]


class Centred(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)((x - x.mean(0)).reshape(x.shape[0], -1))


def test_a_network_that_needs_its_batch_to_predict_is_noted(in_memory, said):
    random_search(lambda hp: Centred(), max_trials=1, **in_memory)
    assert sum("depends on the other images of its batch" in line for line in said) == 1


@pytest.fixture
def in_memory(own, tmp_path):
    """Two classes of 120 small images, and options of a short search over them."""
    x = np.random.default_rng(0).random((120, 10, 10), np.float32)
    y = (x.mean((1, 2)) > 0.5).astype(int)
    without = ("data_dir", "dataset", "max_trials", "epochs", "project_name")
    return {
        **{name: value for name, value in own.items() if name not in without},
        "data": (x[:60], y[:60], x[60:90], y[60:90], x[90:], y[90:]),
        "directory": str(tmp_path),
        "epochs": 1,
        "svm": False,
        "report": False,
    }


@pytest.mark.slow
def test_a_tree_of_questions_is_searched_whole(in_memory):
    """Branches with questions of their own, one name with two ranges, exact steps."""

    def build_model(hp):
        if hp.Choice("optimizer", ["adam", "sgd"]) == "adam":
            units = hp.Int("units", 2, 3)
            optimizer = optax.adam(1e-2)
        else:
            units = hp.Int("units", 8, 16, step=8)
            optimizer = optax.sgd(1e-2, hp.Float("momentum", 0.0, 0.5, step=0.1))
        return Flat(units), optimizer

    run = random_search(build_model, max_trials=100, **in_memory)
    assert [trial.status for trial in run.trials] == ["completed"] * 14
    found = [tuple(trial.hyperparameters.items()) for trial in run.trials]
    expected = [(("optimizer", "adam"), ("units", units)) for units in (2, 3)]
    expected += [
        (("optimizer", "sgd"), ("units", units), ("momentum", momentum))
        for units in (8, 16)
        for momentum in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    ]
    assert sorted(found) == sorted(expected)


def test_settings_of_an_optimizer_that_the_network_brings_are_refused(in_memory):
    def build_model(hp):
        return Flat(2), optax.sgd(hp.Float("learning_rate", 1e-3, 1e-1))

    with pytest.raises(UsageError, match=r"^optimizer and schedule would have no effect"):
        random_search(
            build_model,
            optimizer="sgd",
            schedule=["cosine", "constant"],
            learning_rate=0.01,
            **in_memory,
        )


class Flat(nn.Module):
    units: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.relu(nn.Dense(self.units)(x.reshape(x.shape[0], -1))))


def test_what_is_given_beside_the_network_counts(file):
    """A flag at its default's value too; in Python a default counts as not given."""
    from jaxmnist.api import settings_of
    from jaxmnist.models.network import Network
    from jaxmnist.models.own_code import load_function
    from jaxmnist.models.space import Space

    space = Space(Network(load_function(str(file))).definition)
    assert settings_of({"learning_rate": 0.001}, space).ranges == {"learning_rate": 0.001}
    assert settings_of({"batch_size": [8, 16]}, space).ranges == {"batch_size": [8, 16]}
    assert settings_of({"batch_size": 8}, space).training.batch_size == 8


def test_help_lists_what_the_network_asks_for(file):
    text = command("search", "--model", file, "--help").stdout
    for name in ("--width", "--dropout", "--regularise", "--learning-rate"):
        assert f"{name} RANGE" in text
    assert "--conv-layers" not in text


WRONG = {
    "no file": (["--model", "nowhere.py"], "there is no such file"),
    "no function": (["--model", "{file}:other"], "has no function other"),
    "no Python": (["--model", "{folder}/text.txt"], "must be a Python file"),
    "a mistake in it": (["--model", "{folder}/wrong_syntax.py"], "SyntaxError"),
    "what it imports": (["--model", "{folder}/wrong_import.py"], "No module named 'nonsense'"),
    "no module": (["--model", "{folder}/returns_nothing.py"], "must return a Flax module"),
    "a flag of the study": (["--model", "{file}", "--conv-layers", "2"], "--conv-layers"),
    "a range outside": (["--model", "{file}", "--width", "a"], "--width must be"),
    "a decay without effect": (
        ["--optimizer", "adam", "--weight-decay", "0.1:0.2"],
        "--optimizer is adam",
    ),
    "one decay without effect": (
        ["--recipe", "study", "--weight-decay", "0.1"],
        "--optimizer is adam",
    ),
    "an optimizer": (["--optimizer", "adam,adagrad"], "must be one of"),
    "no learning rate": (["--learning-rate", "0:0.1"], "above 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line(name, file, tmp_path):
    shutil.copy(file, tmp_path / "text.txt")
    (tmp_path / "wrong_syntax.py").write_text("def build_model(hp:\n")
    (tmp_path / "wrong_import.py").write_text("import nonsense\n")
    (tmp_path / "returns_nothing.py").write_text("def build_model(hp):\n    hp.Int('a', 1, 2)\n")
    words, says = WRONG[name]
    words = [word.format(file=file, folder=tmp_path) for word in words]
    result = command("search", *words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1
    assert says in result.stderr
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "must be a function of hp"),
        (np.zeros(3), "data must be"),
        ((np.zeros((4, 8, 8)), np.arange(3), np.zeros((4, 8, 8)), np.arange(4)), "3 labels"),
        ((np.zeros((4, 8, 8)),) * 4, "y_train"),
    ],
)
def test_wrong_data_are_one_line(data, says, tmp_path):
    build_model = "nothing" if data is None else (lambda hp: Flat(2))
    with pytest.raises(UsageError, match=says):
        random_search(build_model, data=data, directory=str(tmp_path))


COUNTED = """
import flax.linen as nn


class Network(nn.Module):
    units: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        for units in self.units:
            x = nn.relu(nn.Dense(units)(x))
        return nn.Dense(10)(x)


def build_model(hp):
    with open(FILE, "a") as calls:
        calls.write(".")
    layers = hp.Int("layers", 1, 4)
    units = tuple(hp.Int(f"units_{i}", 2, 32, step=2) for i in range(layers))
    hp.Choice("learning_rate", [1e-2, 1e-3, 1e-4])
    return Network(units)
"""


@pytest.mark.slow
def test_a_search_of_a_large_space_calls_the_function_about_a_thousand_times(own, tmp_path):
    """All in all, with the flags, the size, the draws, and the trials' own builds."""
    (tmp_path / "counted_network.py").write_text(COUNTED.replace("FILE", repr(str(tmp_path / "c"))))
    given = {**own, "directory": str(tmp_path), "max_trials": 2, "epochs": 1, "svm": False}
    result = command("search", *flags(given), "--model", tmp_path / "counted_network.py")
    assert result.returncode == 0, result.stderr
    assert Run(tmp_path / "small").space.size_text == "more than 1,000"
    assert (tmp_path / "c").stat().st_size < 1250
