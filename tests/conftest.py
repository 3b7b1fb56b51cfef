"""Tiny datasets and runs that several tests share."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import signal
import struct
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

# XLA warns of each program that it takes from the cache; see `engine.cache.keep_programs`.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import jax
import numpy as np
import pytest

from jaxmnist import Run, random_search
from jaxmnist.data.array_files import IDX_NAMES, read_idx_folder
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.preparation import Placing
from jaxmnist.engine.events import rows
from jaxmnist.engine.training import constants_of, optimizer, start_training
from jaxmnist.files import array_bytes, sha256
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.questions import Questions, answers_of
from jaxmnist.models.study import build_model
from jaxmnist.runs.records import File, Search, SearchedData
from jaxmnist.runs.store import Store, read_search
from jaxmnist.runs.trial import METRICS, History, Key, Layer, Metrics, Trial, pack_right

PACKAGED = Path(__file__).parents[1] / "jaxmnist" / "data" / "mnist"


def write_idx(path: Path, array: np.ndarray) -> None:
    """An IDX file of unsigned bytes, written from the format's description."""
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def float64() -> AbstractContextManager[None]:
    """A context in which JAX computes in double precision."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # where JAX is older than 0.8

    return enable_x64()


def slow_after(count: int, values: Iterable) -> list:
    """The values of a parameter; those after the first `count` are marked slow."""
    return [
        value if number < count else pytest.param(value, marks=pytest.mark.slow)
        for number, value in enumerate(values)
    ]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--size",
        choices=("small", "full"),
        default="small",
        help="of the robustness tests: seconds each, or the sizes that experiments/README.md tells",
    )


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests in a browser, or with a cluster, are slow."""
    for item in items:
        if {"browser", "cluster"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether the robustness tests were asked for in full size."""
    size: str = request.config.getoption("--size")
    return size == "full"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the package logs."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger("jaxmnist"), Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def begin(parameters, settings):
    """The state of a trial with these weights before its first step."""
    dtype = np.result_type(*jax.tree.leaves(parameters))
    constants = constants_of(settings, 0, 0, dtype)
    return start_training(parameters, optimizer(settings, constants), constants)


def searched(**changes: Any) -> Search:
    """What search.json says of a search of nothing in particular."""
    identity = {"data": "abc", "network": "study", "seed": 0, "space": {"depth": "1:2"}}
    names = tuple(map(str, range(10)))
    data = SearchedData(
        **dict.fromkeys(("train", "validation", "validation_different", "test"), 100),
        **{"name": "small", "in_memory": False, "test_sha256": "0" * 64, "dtype": "uint8"},
        **{"image_shape": (28, 28, 1), "labels": tuple(range(10)), "class_names": names},
        **{"scale": 255.0, "notes": (), "preparation": {}},
    )
    whole: dict[str, Any] = {
        **{"identity": identity, "space": {}, "settings": {}, "given": {}, "data": data},
        **{"versions": {"jax": "1"}, "device": {"kind": "cpu"}, "environment": {}},
        **{"threads": 2, "machine": {}},
    }
    return Search(**{**whole, **changes})


def writing(path: Path, search: Search | None = None) -> Store:
    """A run directory for writing; its lock file is there, but nobody holds the lock."""
    path.mkdir(exist_ok=True)
    held = os.open(path / "lock", os.O_RDWR | os.O_CREAT)
    return Store(path, read_search(path) if search is None else search, held)


def history(*accuracies: float, loss: float = 0.5) -> History:
    """Epochs of these validation accuracies."""
    return tuple(Metrics(loss, 0.5, loss, accuracy) for accuracy in accuracies)


def bits(*accuracies: float, images: int = 100) -> tuple[bytes, ...]:
    """Packed results of epochs of these accuracies: the first images are right."""
    right = [np.arange(images) < round(images * accuracy) for accuracy in accuracies]
    return tuple(map(pack_right, right))


def write_completed(run: Store, trial: Trial, images: int = 100) -> None:
    """Write a completed trial, whose first validation images are right, with its bits."""
    packed = bits(*trial.metric("val_accuracy"), images=images)
    content = array_bytes(rows(packed))
    run.write_bytes(File.VALIDATION, content, trial.key)
    run.write_trial(replace(trial, validation_sha256=sha256(content)))


def study_module(h: Hyperparameters, data: Any) -> Any:
    """The study's Flax module of a configuration, of images from 0 to 1."""
    return build_model(Questions(answers_of(h), image_shape=data.image_shape, classes=data.classes))


def numbered(configurations: Iterable[Hyperparameters]) -> list[tuple[Key, Hyperparameters]]:
    """Trials of these configurations, with their keys."""
    return [(Key(index), drawn) for index, drawn in enumerate(configurations)]


def a_trial(
    index: int, hyperparameters: Hyperparameters, status: str, epochs: History, **more: object
) -> Trial:
    """The record of a trial of a network with ten parameters."""
    return Trial(
        index, hyperparameters, status, epochs, (Layer("dense", "Dense", (10,), 10),), **more
    )


def last_metrics(trial: Trial) -> dict[str, float]:
    """The metrics of a trial's last epoch by name."""
    return {name: trial.metric(name)[-1] for name in METRICS}


@pytest.fixture(scope="session", autouse=True)
def signals() -> None:
    """Heed the signals that are ignored in a background process: children inherit that."""
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and commands that they start, keep compiled programs, and not in the user's folder.

    Half of the time of all tests would be spent on compiling the same small programs again. If
    the variable TESTS_CACHE names a folder, programs are kept there from one run of pytest to the
    next.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers
    folder = Path(os.environ.get("TESTS_CACHE") or folder).absolute()
    kept = {
        "jax_compilation_cache_dir": str(folder / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in kept}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXMNIST_CACHE", str(folder / "cache"))
        for name, value in kept.items():
            jax.config.update(name, value)
        yield
        for name, value in before.items():
            jax.config.update(name, value)


# How MNIST's digits stand in their images, and their negatives.
DIGITS = Placing(0.0, 1.0, 20 / 28, "mass")
INVERTED = Placing(1.0, 0.0, 20 / 28, "mass")


@pytest.fixture(scope="session")
def mnist() -> Arrays:
    """MNIST as it is packaged."""
    return read_idx_folder(PACKAGED)


@pytest.fixture(scope="session")
def small(mnist: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first 400 training and 200 test digits of MNIST, as IDX files."""
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    for key, count in (("x_train", 400), ("y_train", 400), ("x_test", 200), ("y_test", 200)):
        array = getattr(mnist, key)[:count]
        write_idx(folder / f"{IDX_NAMES[key]}.gz", array[..., 0] if array.ndim == 4 else array)
    return folder


@pytest.fixture(scope="session")
def options(small: Path) -> dict:
    """A search that takes seconds: four small networks on the small digits."""
    return {
        "data_dir": str(small),
        "filters": "4:8:4",
        "conv_layers": "1:2",
        "dense_layers": "0:1",
        "units": 8,
        "max_trials": 4,
        "epochs": 3,
        "batch_size": 32,
        "learning_rate": 0.01,
        "validation_split": 0.25,
        "report": False,
        "tensorboard": False,
        "quiet": True,
    }


@pytest.fixture(scope="session")
def finished(options: dict, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run with all that is made by default; tests that change it work on a copy."""
    given = {**options, "report": True, "tensorboard": True}
    return random_search(**given, directory=str(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="session")
def eight(finished: Run, options: dict, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run with four more trials: the whole space, of eight configurations."""
    folder = tmp_path_factory.mktemp("eight")
    shutil.copytree(finished.store.path, folder / "small")
    given = {**options, "report": True, "max_trials": 8}
    return random_search(**given, directory=str(folder))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium as Debian packages it; the driver's own could not be downloaded."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        assert not os.environ.get("CI"), "Chromium is not installed: apt-get install chromium"
        pytest.skip("Chromium is not installed: the page was not tested in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=path,
            # Root can't use the sandbox; the page is our own.
            args=["--no-sandbox"] if os.geteuid() == 0 else [],
        )
        yield chromium
        chromium.close()


@pytest.fixture(params=["light", "dark"])
def scheme(request) -> str:
    return request.param
