"""Several trained networks that predict together, by the mean of their probabilities."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxmnist.data.preparation import Preparation
from jaxmnist.errors import UsageError
from jaxmnist.results.export import Exportable, target, write
from jaxmnist.results.origin import Origin, facts
from jaxmnist.results.trained import TrainedModel


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The mean of the probabilities of K networks that were trained on the same data.

    Predicting costs K times the computing of one network.

    members: the networks, of the same image shape, scale and labels; at least two.
    trials: the indices of their trials.
    origin: the run that they come from.

    References:
      Hansen and Salamon, 'Neural network ensembles', 1990; Lakshminarayanan, Pritzel and Blundell,
      'Simple and scalable predictive uncertainty estimation using deep ensembles', 2017, for the
      mean of the probabilities.

    >>> ensemble = run.ensemble
    >>> ensemble.predict_proba(images).shape == (5, len(ensemble.labels))
    True
    """

    members: tuple[TrainedModel, ...]
    trials: tuple[int, ...]
    origin: Origin

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The labels of images [N, H, W, C] (or [N, H, W] of one channel): int64[N]."""
        found: np.ndarray = np.asarray(self.labels)[self.predict_proba(images).argmax(1)]
        return found

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """The members' mean probability of each class, in the order of `labels`: float32[N, K]."""
        first, *others = self.members
        total = first.predict_proba(images).astype(np.float64)
        for member in others:
            total += member.predict_proba(images)
        found: np.ndarray = (total / len(self.members)).astype(np.float32)
        return found

    @property
    def labels(self) -> tuple[int, ...]:
        """Class k stands for label `labels[k]` of the data."""
        return self.members[0].labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes; see `TrainedModel.class_names`."""
        return self.members[0].class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that it takes."""
        return self.members[0].image_shape

    @property
    def scale(self) -> float:
        """What pixels are divided by; see `Dataset`."""
        return self.members[0].scale

    @property
    def preparation(self) -> Preparation | None:
        """How pictures are prepared; see `TrainedModel`."""
        return self.members[0].preparation

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Any]:
        """Write the ensemble as one function for other programs; see `TrainedModel.export`.

        The function returns the members' mean probability, float32[N, K]. The description lists the
        members. '.safetensors' holds the weights of one network and is refused.
        """
        return write(self.exportable, target(path, overwrite))

    @property
    def exportable(self) -> Exportable:
        """What `export` writes of it."""
        parts = [member.exportable for member in self.members]
        said = parts[0].description
        shared = ("network", "image_shape", "labels", "scale", "preparation", "transposed")
        return Exportable(
            _mean([part.probabilities for part in parts]),
            parts[0].examples,
            _refuse_weights,
            {
                **{name: said[name] for name in shared if name in said},
                "output": "the mean of the members' probabilities",
                "members": [
                    {
                        "trial": trial,
                        "model_sha256": member.origin.sha256 if member.origin else None,
                        "hyperparameters": member.hyperparameters.to_json(),
                    }
                    for trial, member in zip(self.trials, self.members, strict=True)
                ],
                **facts(self.origin, self.labels),
            },
        )


def _mean(functions: Sequence[Callable[[jax.Array], jax.Array]]) -> Callable[..., jax.Array]:
    """The function that is the mean of functions of images."""

    def mean(images: jax.Array) -> jax.Array:
        first, *others = (function(images) for function in functions)
        return sum(others, first) / len(functions)

    return mean


def _refuse_weights() -> bytes:
    raise UsageError(
        "an ensemble is not one network's weights: export it to .stablehlo or .onnx, or its members"
        " one by one"
    )
