"""Random search over small convolutional networks for MNIST-like images, in JAX."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from jaxmnist.config import SearchSettings
    from jaxmnist.data import load_arrays
    from jaxmnist.errors import JaxmnistError, SurroundingsError, UsageError
    from jaxmnist.features import FlattenFeatures
    from jaxmnist.models.hyperparameters import Hyperparameters
    from jaxmnist.models.study.network import build_model
    from jaxmnist.run import Run
    from jaxmnist.search import random_search
    from jaxmnist.support_vectors import SupportVectors
    from jaxmnist.trained import TrainedModel

# Loaded when first asked for, so that importing the package, and `--help`, cost nothing.
_HOMES = {
    "FlattenFeatures": "features",
    "Hyperparameters": "models.hyperparameters",
    "JaxmnistError": "errors",
    "Run": "run",
    "SearchSettings": "config",
    "SupportVectors": "support_vectors",
    "SurroundingsError": "errors",
    "TrainedModel": "trained",
    "UsageError": "errors",
    "build_model": "models.study.network",
    "load_arrays": "data",
    "random_search": "search",
}
__all__ = [
    "FlattenFeatures",
    "Hyperparameters",
    "JaxmnistError",
    "Run",
    "SearchSettings",
    "SupportVectors",
    "SurroundingsError",
    "TrainedModel",
    "UsageError",
    "build_model",
    "load_arrays",
    "random_search",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jaxmnist' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxmnist.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
