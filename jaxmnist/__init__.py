"""Random search over small convolutional networks for MNIST-like images, in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import jaxmnist.machine  # noqa: F401  # notes forks of processes that have started JAX

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxmnist.api import random_search
    from jaxmnist.data.dataset import load_arrays
    from jaxmnist.data.preparation import Preparation, read_pictures
    from jaxmnist.errors import EnvironmentFailure, JaxmnistError, NetworkError, UsageError
    from jaxmnist.hyperparameters import Hyperparameters
    from jaxmnist.models.study import build_model
    from jaxmnist.results.features import FlattenFeatures
    from jaxmnist.results.pipeline import SvmPipeline
    from jaxmnist.results.run import Run
    from jaxmnist.results.trained import TrainedModel
    from jaxmnist.settings import SearchSettings

# Imported on first access, so that importing the package, and `--help`, stay fast.
_HOMES = {
    "FlattenFeatures": "results.features",
    "Hyperparameters": "hyperparameters",
    "JaxmnistError": "errors",
    "NetworkError": "errors",
    "Preparation": "data.preparation",
    "Run": "results.run",
    "SearchSettings": "settings",
    "SvmPipeline": "results.pipeline",
    "EnvironmentFailure": "errors",
    "TrainedModel": "results.trained",
    "UsageError": "errors",
    "build_model": "models.study",
    "load_arrays": "data.dataset",
    "random_search": "api",
    "read_pictures": "data.preparation",
}
__all__ = [
    "EnvironmentFailure",
    "FlattenFeatures",
    "Hyperparameters",
    "JaxmnistError",
    "NetworkError",
    "Preparation",
    "Run",
    "SearchSettings",
    "SvmPipeline",
    "TrainedModel",
    "UsageError",
    "build_model",
    "load_arrays",
    "random_search",
    "read_pictures",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxmnist' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxmnist.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
