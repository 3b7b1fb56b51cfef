from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.export
import numpy as np
import pytest

from jaxmnist import Run, TrainedModel, UsageError
from jaxmnist import __main__ as commands
from jaxmnist.commands.parser import run_command
from jaxmnist.engine import programs
from jaxmnist.files import as_json, read_json, write_json
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import Network
from jaxmnist.results.trained import Ensemble, target
from jaxmnist.runs.records import ModelReport
from jaxmnist.runs.trial import Key

# All that a process has which calls an exported network.
JAX_ALONE = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers")
CALLER = """
import sys, jax.export, numpy
images = numpy.load("images.npy")
for name in sys.argv[1:]:
    with open(name, "rb") as file:
        call = jax.export.deserialize(bytearray(file.read())).call
    numpy.save(name + ".all.npy", call(images))
    numpy.save(name + ".one.npy", call(images[3:4]))
try:
    import flax
except ModuleNotFoundError:
    print("alone")
"""


class Normalized(nn.Module):
    """With everything that differs between training and evaluation."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape((x.shape[0], -1)))
        return nn.Dense(10)(x)


class Counting(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))


def of(module: nn.Module, scale: float = 255.0, shape=(28, 28, 1)) -> TrainedModel:
    """A network of one's own with random weights, BatchNorm's statistics among them."""
    network, h = Network(lambda hp: module), Hyperparameters()
    weights = network.bind(h, DataSpec(shape, 10, scale)).initial_weights(seed=0, index=0)
    generator = np.random.default_rng(0)
    changed = jax.tree.map(
        lambda x: x + generator.uniform(0.05, 0.1, x.shape).astype(x.dtype), weights
    )
    return TrainedModel(h, shape, tuple(range(10)), scale, changed, network)


def agree(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """The same classes, and probabilities within the tolerance."""
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_stablehlo_is_called_with_jax_alone(finished, mnist, tmp_path):
    images = mnist.x_test[:200]
    models = {"study.stablehlo": finished.best_model, "own.stablehlo": of(Normalized())}
    for name, model in models.items():
        model.export(tmp_path / name)
    np.save(tmp_path / "images.npy", images)
    packages, installed = tmp_path / "packages", Path(jax.__file__).parents[1]
    packages.mkdir()
    for name in JAX_ALONE:
        for folder in installed.glob(f"{name}*"):
            if folder.name in (name, f"{name}.libs"):
                (packages / folder.name).symlink_to(folder)
    done = subprocess.run(
        [sys.executable, "-S", "-c", CALLER, *models],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "alone\n"
    for name, model in models.items():
        expected = model.predict_proba(images)
        assert len(set(expected.argmax(1))) > 1
        agree(np.load(tmp_path / f"{name}.all.npy"), expected)
        agree(np.load(tmp_path / f"{name}.one.npy"), expected[3:4])
        exported = jax.export.deserialize(bytearray((tmp_path / name).read_bytes()))
        assert exported.platforms == ("cpu", "cuda", "tpu")
        assert (str(exported.in_avals[0].dtype), exported.in_avals[0].shape[1:]) == (
            "uint8",
            (28, 28, 1),
        )
        assert "stablehlo.convolution" in exported.mlir_module()
        assert "gather" not in exported.mlir_module()


def test_images_of_floats(tmp_path):
    """Without a run, what isn't on the scale of 8 bits is taken as floats."""
    model = of(nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(10)]), 0.5, (3, 4, 2))
    assert model.export(tmp_path / "a.stablehlo").dtype == "float32"
    exported = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    images = np.random.default_rng(0).uniform(0, 0.5, (6, 3, 4, 2)).astype(np.float32)
    agree(np.asarray(exported.call(images)), model.predict_proba(images))


def test_the_command_and_what_it_describes(finished, tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    run = finished.store.path
    assert run_command(commands.main, ["export", str(run), str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: {path.stat().st_size} bytes")
    assert path.read_bytes() == (run / "best" / "model.safetensors").read_bytes()
    said = read_json(tmp_path / "model.safetensors.json")
    versions = said.pop("versions")
    assert set(versions) == {"jaxmnist", "jax", "flax"}
    assert said == {
        "file": "model.safetensors",
        "file_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "file_bytes": path.stat().st_size,
        "dtype": "uint8",
        "network": finished.store.search.identity["network"],
        "hyperparameters": dict(finished.best_trial.hyperparameters),
        "image_shape": [28, 28, 1],
        "labels": list(range(10)),
        "class_names": [str(i) for i in range(10)],
        "scale": 255.0,
        "preparation": as_json(finished.best_model.preparation),
        "transposed": False,
        "test_accuracy": finished.result("best/test.json", ModelReport).accuracy,
    }
    # Once more: refused, and what is there stays, until it is to be replaced.
    path.write_bytes(b"something else")
    assert run_command(commands.main, ["export", str(run), str(path)]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "exists already; --overwrite" in line
    assert path.read_bytes() == b"something else"
    assert run_command(commands.main, ["export", str(run), str(path), "--overwrite"]) == 0
    assert path.read_bytes() == (run / "best" / "model.safetensors").read_bytes()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]


def changed(finished: Run, folder: Path, **data: object) -> Run:
    """A copy of a run whose search.json says more about the data."""
    shutil.copytree(finished.store.path, folder)
    search = read_json(folder / "search.json")
    search["data"] |= data
    write_json(folder / "search.json", search)
    return Run(folder)


def test_what_a_run_says_about_its_data(finished, tmp_path):
    names = ["zero", *"123456789"]
    facts = {"class_names": names, "dtype": "float32"}
    run = changed(finished, tmp_path / "run", **facts)
    said = run.best_model.export(tmp_path / "a.safetensors")
    assert (list(said.class_names), said.dtype) == (names, "float32")
    # Neither another trial nor other weights were evaluated on the test images.
    other = run.get_best_models(2)[1]
    assert other.export(tmp_path / "b.safetensors").test_accuracy is None
    untrained = run.best_model.untrained(0, Key(0)).export(tmp_path / "c.safetensors")
    assert (untrained.test_accuracy, untrained.class_names[0]) == (None, "0")
    with pytest.raises(UsageError, match=r"search.json: lacks what this version"):
        changed(finished, tmp_path / "wrong", class_names=names[1:])
    (tmp_path / "run" / "best" / "test.json").write_text("{}")
    with pytest.raises(UsageError, match=r"test.json: .*jaxmnist evaluate .* makes it again"):
        Run(tmp_path / "run").best_model.export(tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.keras", r"a\.keras: the name must end in \.stablehlo, \.onnx, \.safetensors$"),
        ("stablehlo", "must end in"),
        ("no/a.stablehlo", "there is no folder .*no; make it first"),
        ("file/a.stablehlo", "there is no folder .*file; make it first"),
        ("folder.stablehlo", "is a folder; a name for a file is needed"),
        ("there.stablehlo", "there.stablehlo: exists already; --overwrite"),
        ("described.stablehlo", r"described\.stablehlo\.json: exists already; --overwrite"),
        ("link.stablehlo", "exists already"),
        ("run/best/a.safetensors", "lies in the run .*run; choose another folder"),
        ("s3://bucket/a.stablehlo", "PATH: .*looks like a URL"),
        (f"{'a' * 300}.stablehlo", "File name too long"),
    ],
)
def test_where_nothing_can_be_written(name, says, tmp_path):
    for file in ("file", "there.stablehlo", "described.stablehlo.json"):
        (tmp_path / file).touch()
    (tmp_path / "folder.stablehlo").mkdir()
    (tmp_path / "link.stablehlo").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "search.json").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match=says):
        target(name if ":" in name else tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before
    if name.startswith("folder"):
        with pytest.raises(UsageError, match=says):
            target(tmp_path / name, overwrite=True)


def test_runs_that_cant_be_exported(finished, tmp_path, capsys):
    copy = tmp_path / "run"
    shutil.copytree(finished.store.path, copy)
    (copy / "best" / "config.json").unlink()
    cases = {
        str(copy): "has no best/config.json: its search is not finished",
        str(tmp_path): "is not a run of jaxmnist",
        str(tmp_path / "no"): "is not a run of jaxmnist",
    }
    for run, says in cases.items():
        assert run_command(commands.main, ["export", run, str(tmp_path / "a.stablehlo")]) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert says in line
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_a_network_that_needs_a_number_of_images(tmp_path):
    with pytest.raises(UsageError, match=r"any number of images \(take that from x\.shape\[0\]"):
        of(Counting()).export(tmp_path / "a.stablehlo")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_earlier_export(tmp_path, monkeypatch):
    model = of(nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(10)]), 1.0, (2, 2, 1))
    model.export(tmp_path / "a.safetensors")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = dataclasses.replace(model, scale=2.0)
    left = [1]

    def full(descriptor: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Exception, match=re.escape("a.safetensors.json: can't be written: No")):
            other.export(tmp_path / "a.safetensors", overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    other.export(tmp_path / "a.safetensors", overwrite=True)
    assert json.loads((tmp_path / "a.safetensors.json").read_text())["scale"] == 2.0


def test_onnx_without_jax2onnx(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(programs, "find_spec", lambda name: None)
    path = str(tmp_path / "a.onnx")
    for run in (finished.store.path, tmp_path / "no run"):  # it is told before a run is read
        assert run_command(commands.main, ["export", str(run), path]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == said.count("needs jax2onnx: python -m pip install jax2onnx") == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # jax2onnx and what it imports warn of their own code
def test_onnx_in_onnx_runtime(finished, mnist, tmp_path):
    import onnxruntime

    images = mnist.x_test[:200]
    first, second = finished.get_best_models(2)
    mean = Ensemble((first, second), (0, 1), first.origin)
    for name, model in (("study", first), ("mean", mean), ("own", of(Normalized()))):
        said = model.export(tmp_path / f"{name}.onnx")
        assert set(said.versions) == {"jaxmnist", "jax", "flax", "jax2onnx", "onnx"}
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        (given,) = session.get_inputs()
        assert (given.name, given.type) == ("images", "tensor(uint8)")
        assert given.shape[1:] == [28, 28, 1]
        expected = model.predict_proba(images)
        (found,) = session.run(["probabilities"], {"images": images})
        agree(found, expected, 1e-4)
        agree(session.run(None, {"images": images[:1]})[0], expected[:1], 1e-4)
    # A model that computes something else, as jax2onnx has made them, is not written.
    content = (tmp_path / "own.onnx").read_bytes()
    with pytest.raises(
        UsageError, match=r"but to \.stablehlo: jax2onnx converts it to a model that"
    ):
        programs._compare(content, lambda x: jax.numpy.full((x.shape[0], 10), 0.1), images[:5])
    with pytest.raises(UsageError, match=r"but to \.stablehlo: InvalidProtobuf"):
        programs._compare(b"no model", lambda x: x, images[:5])
