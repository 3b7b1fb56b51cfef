"""A search that takes seconds, for scripts that run it often; facts in which two must agree."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxmnist
from jaxmnist import Run, SvmPipeline
from jaxmnist.files import as_json, sha256
from jaxmnist.runs.records import File, ModelReport, SvmReport
from jaxmnist.runs.trial import history_to_json
from jaxmnist.settings import SETTINGS, flag

TRAIN, TEST = 400, 200  # images
# What a search may do after its trials. An ensemble's members are not refitted: it takes two.
REFITTED = {"finalists": 2, "reruns": 1, "refit": True}
ENSEMBLE = {"finalists": 2, "reruns": 1, "ensemble": 2}


def search_options(place: Path) -> dict[str, Any]:
    """Options of a search of four networks on data that are written to `place`, in `place`/run.

    Neither page nor TensorBoard: they are made again from the rest, whatever is in their place.
    """
    mnist = jaxmnist.load_arrays("mnist")
    parts = {key: getattr(mnist, key)[:TRAIN] for key in ("x_train", "y_train")}
    parts |= {key: getattr(mnist, key)[:TEST] for key in ("x_test", "y_test")}
    np.savez(place / "data.npz", **parts)
    return {
        "data_dir": str(place / "data.npz"),
        "directory": str(place),
        "project_name": "run",
        "filters": "4:7:1",
        "conv_layers": 1,
        "dense_layers": 0,
        "max_trials": 4,
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": 0.01,
        "validation_split": 0.25,
        "keep": 2,
        "jobs": 1,
        "svm_backend": "sklearn",
        "cache": str(place / "cache"),
        "report": False,
        "tensorboard": False,
    }


def flags(options: Mapping[str, Any]) -> list[str]:
    """A search's options as its command has them."""
    words = []
    for name, value in options.items():
        if not isinstance(value, bool):
            words += [flag(name), str(value)]
        elif value != SETTINGS[name].default:
            words.append(flag(name if value else f"no_{name}"))
    return words


def start(program: str, *arguments: str, **options: Any) -> subprocess.Popen:
    """Start a Python program, whose imports find this folder; its output goes nowhere."""
    folder = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": folder, "TF_CPP_MIN_LOG_LEVEL": "3"},
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options},
    )


def facts(run: Run, images: np.ndarray) -> dict[str, Any]:
    """What must be equal bit for bit: all but times and the count of looks."""
    test = as_json(run.result("best/test.json", ModelReport))
    name = run.settings.data.dataset_name
    svm = as_json(run.result(f"svm/{name}/svm.json", SvmReport))
    ensemble = as_json(run.kept_ensemble()) or {}
    # The classification report is for other programs; jaxmnist doesn't read it.
    for content in (test, svm, ensemble):
        for key in (
            "looks",
            "classification_report",
            "seconds",
            "pipeline_sha256",
        ):
            content.pop(key, None)
    trials = [*run.trials, *run.reruns]  # the reruns and the refit too
    weights = {t.key: run.store.file(File.WEIGHTS, t.key) for t in trials}
    weights = {key: path for key, path in weights.items() if path.exists()}
    model = run.best_model
    features = model.features(images)
    return {
        "trials": [
            (
                str(t.key),
                t.hyperparameters,
                t.status,
                history_to_json(t.history),
                t.weights_sha256,
                t.validation_sha256,
            )
            for t in trials
        ],
        # Hashes of the files themselves, which must be those that the records name.
        "validation": [
            sha256(run.store.file(File.VALIDATION, t.key).read_bytes())
            for t in trials
            if t.status == "completed"
        ],
        "weights": {str(key): sha256(path.read_bytes()) for key, path in weights.items()},
        "winner": str(run.best_trial.key),
        "best": sha256(run.store.file(File.MODEL).read_bytes()),
        "test": test,
        "svm": svm,
        "ensemble": ensemble,
        "ensemble's classes": run.ensemble.predict(images).tolist() if ensemble else [],
        "comparisons": as_json(run.kept_comparisons()),
        "classes": model.predict(images).tolist(),
        "svm classes": SvmPipeline.load(run.store.file(File.PIPELINE, (name,)))
        .predict(features)
        .tolist(),
    }
