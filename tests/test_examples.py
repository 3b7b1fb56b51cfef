"""The examples in docstrings, run against a finished run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "api",
        "data.dataset",
        "errors",
        "hyperparameters",
        "models.study",
        "results.features",
        "results.run",
        "results.pipeline",
        "results.trained",
        "settings",
    ],
)
def test_examples(name, finished, mnist, options):
    module = importlib.import_module(f"jaxmnist.{name}")
    known = {
        "run": finished,
        "model": finished.best_model,
        "directory": finished.store.path,
        "images": mnist.x_test[:5],
        "options": options,
    }
    found = doctest.testmod(module, extraglobs=known)
    assert found.attempted > 0
    assert found.failed == 0
