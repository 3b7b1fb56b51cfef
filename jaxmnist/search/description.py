"""The description of a search in search.json, and the notes shown before it begins."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from jaxmnist import __version__
from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.devices import device_name, environment, pool_size
from jaxmnist.models.space import Space, SpaceDescription, ranges_of
from jaxmnist.runs.machine import instructions, machine
from jaxmnist.settings import KEEP, SearchSettings

MOST_CLASSES = 10  # that are named at the start of a search


def describe_narrowed(
    declared: Space, found: Space, image_shape: tuple[int, int, int]
) -> str | None:
    """A note on ranges that are narrower for these images than for MNIST's, or None."""
    before, now = ranges_of(declared.explored), ranges_of(found.explored)
    different = [
        f"{name} {now[name]}" + (f", not {before[name]}" if name in before else "")
        for name in now
        if now[name] != before.get(name)
    ]
    if not different:
        return None
    height, width = image_shape[:2]
    return f"ranges for images of {height}×{width} pixels: {'; '.join(different)}"


def describe_class_counts(dataset: Dataset) -> str:
    """The classes, the first ten by name, with their numbers of training images."""
    counts = np.bincount(dataset.y_train, minlength=dataset.classes)
    named = zip(dataset.class_names[:MOST_CLASSES], counts.tolist(), strict=False)
    more = dataset.classes - MOST_CLASSES
    return (
        f"{dataset.classes} classes (training images): "
        + ", ".join(f"{name} ({count})" for name, count in named)
        + (f" and {more} more" if more > 0 else "")
    )


def describe_budget(drawn: int, wanted: int, space: SpaceDescription) -> str | None:
    """A note if fewer configurations were drawn than trials were requested, or None."""
    if drawn == wanted:
        return None
    if space.size == drawn:
        return f"the space has {drawn} configurations, fewer than {wanted}: all are trained"
    return (
        f"after {drawn} configurations, 1,000 consecutive draws gave no new one: the search trains"
        " only these"
    )


def describe_kept(settings: SearchSettings) -> str | None:
    """A note if the weights of more trials are kept for an ensemble than without it, or None."""
    if settings.ensemble is None or settings.ensemble <= KEEP:
        return None
    return f"weights of the best {settings.keep} trials are kept"


def describe_end(seconds: float | None, trials: int, left: int) -> str:
    """A line on a search that its time has ended with trials left.

    Args:
      seconds: `max_seconds`.
      trials: number of trials of the budget.
      left: how many of them are not done.
    """
    return (
        f"the time of {seconds:g} s is over: {trials - left} of {trials} trials have ended; the"
        " same command goes on. If that finds another winner, its test is one more evaluation of"
        " the test set"
    )


def describe_search(
    settings: SearchSettings, dataset: Dataset, network: str, space: SpaceDescription
) -> dict[str, Any]:
    """The content of search.json; a search with a different `identity` is a different run."""
    here = machine()
    return {
        "identity": {
            "data": dataset.fingerprint,
            "network": network,
            "space": space.ranges(),
            **settings.identity(),
        },
        "space": space.to_json(),
        "settings": settings.to_json(),
        "data": {
            "name": dataset.name,
            "in_memory": dataset.in_memory,
            "train": len(dataset.y_train),
            "validation": len(dataset.y_validation),
            "validation_different": dataset.different_validation,
            "test": len(dataset.y_test),
            "test_sha256": dataset.test_sha256,
            "dtype": str(dataset.x_train.dtype),
            "image_shape": list(dataset.image_shape),
            "labels": list(dataset.labels),
            "class_names": list(dataset.class_names),
            "scale": dataset.scale,
            "notes": list(dataset.notes),
            "preparation": dataset.preparation.to_json(),
        },
        "versions": {
            "jaxmnist": __version__,
            **{name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        },
        "device": {
            "kind": device_name(),
            "devices": jax.local_device_count(),
            "machine": platform.machine(),
            "processor": here["processor"],
            "instructions": instructions(),
        },
        "environment": environment(),
        "threads": pool_size(),
        "machine": here,
    }
