"""A trained network: classes, probabilities and features of images, in batches; its file."""

from __future__ import annotations

import functools
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save as save_tensors

from jaxmnist.atomic import DamagedFile, fits, read_tensors
from jaxmnist.config import Hyperparameters
from jaxmnist.convolution import best_method, block_size
from jaxmnist.devices import start_jax
from jaxmnist.errors import UsageError, local_path
from jaxmnist.files import check_images, check_levels
from jaxmnist.model import (
    Parameters,
    build_model,
    count_parameters,
    layers,
    parameter_shapes,
    summary,
)
from jaxmnist.training import apply

METADATA = "jaxmnist"  # where the file says what model it holds
SHAPE = {
    "hyperparameters": dict,
    "image_shape": (int, int, int),
    "labels": [int],
    "scale": float,
}
BATCH_SIZE = 512  # a multiple of what any platform computes together
AHEAD = 3  # batches that are started before the one that is waited for


@functools.lru_cache(maxsize=8)
def _program(
    hyperparameters: Hyperparameters, classes: int, scale: float, platform: str, output: str
) -> Callable[..., jax.Array]:
    """The compiled function of (parameters, images) that gives 'logits' or 'features'."""
    model = build_model(hyperparameters, classes, best_method(platform), scale=scale)
    return jax.jit(apply(model, output, block_size(platform, BATCH_SIZE)))


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with its weights.

    labels: class k stands for label `labels[k]` of the data.
    image_shape: (H, W, C) of the images that it takes, with pixels in the scale of the data that
      it was trained on.
    scale: what pixels are divided by; see `Dataset`.

    >>> model = run.get_best_models(1)[0]
    >>> model.predict(images).shape, model.features(images).shape == (5, model.feature_count)
    ((5,), True)
    """

    hyperparameters: Hyperparameters
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    scale: float
    parameters: Parameters

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The labels of images [N, H, W, C] (or [N, H, W] of one channel): int64[N]."""
        return np.asarray(self.labels)[self._run("logits", images).argmax(1)]

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class, in the order of `labels`: float32[N, K]."""
        logits = self._run("logits", images)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        return exponentials / exponentials.sum(1, keepdims=True)

    def features(self, images: np.ndarray) -> np.ndarray:
        """The flatten features of images: float32[N, D]."""
        return self._run("features", images)

    def summary(self) -> str:
        """The layers with their output shapes and parameters, under Keras' columns."""
        return summary(self.hyperparameters, self.image_shape, len(self.labels))

    @property
    def feature_count(self) -> int:
        """How many flatten features an image has, D."""
        rows = layers(self.hyperparameters, self.image_shape, len(self.labels))
        return next(row.output_shape[0] for row in rows if row.kind == "Flatten")

    @property
    def parameter_count(self) -> int:
        """How many numbers the network learned."""
        return count_parameters(self.hyperparameters, self.image_shape, len(self.labels))

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        images = self._check(images)
        width = len(self.labels) if output == "logits" else self.feature_count
        result = np.empty((len(images), width), np.float32)
        for first, values in self.batches(output, images):
            result[first : first + len(values)] = values
        return result

    def batches(self, output: str, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """'logits' or 'features' a batch at a time: (index of its first image, float32[B, D])."""
        platform = start_jax()
        program = _program(self.hyperparameters, len(self.labels), self.scale, platform, output)
        parameters = jax.device_put(self.parameters)
        images = self._check(images)

        def start(first: int) -> tuple[int, int, jax.Array]:
            batch = images[first : first + BATCH_SIZE]
            # The last one is filled up, so that one program serves all.
            padded = np.zeros((BATCH_SIZE, *self.image_shape), images.dtype)
            padded[: len(batch)] = batch
            return first, len(batch), program(parameters, padded)

        # JAX computes what was started while the host waits for what came before.
        started: deque[tuple[int, int, jax.Array]] = deque()
        for first in range(0, len(images), BATCH_SIZE):
            started.append(start(first))
            if len(started) > AHEAD:
                first, count, values = started.popleft()
                yield first, np.asarray(values)[:count]
        for first, count, values in started:
            yield first, np.asarray(values)[:count]

    def _check(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim == 3 and self.image_shape[2] == 1:
            images = images[..., None]
        if images.shape[1:] != self.image_shape:
            raise UsageError(
                f"images must be of shape (N, {', '.join(map(str, self.image_shape))}),"
                f" not {images.shape}"
            )
        images = check_images("images", images)
        check_levels("images", images, self.scale)
        return images

    def to_bytes(self) -> bytes:
        """The model as a safetensors file."""
        metadata = {
            "hyperparameters": self.hyperparameters.to_json(),
            "image_shape": list(self.image_shape),
            "labels": list(self.labels),
            "scale": self.scale,
        }
        arrays = {
            f"{layer}/{name}": np.ascontiguousarray(jax.device_get(array))
            for layer, entries in self.parameters.items()
            for name, array in entries.items()
        }
        return save_tensors(arrays, {METADATA: json.dumps(metadata, sort_keys=True)})

    @classmethod
    def load(cls, path: Path, sha256: str | None = None) -> TrainedModel:
        """The model of a safetensors file; `DamagedFile` if it is no model, or another one."""
        path = Path(local_path(path))
        arrays, metadata = read_tensors(path, METADATA, sha256)
        parameters: dict[str, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            layer, _, name = key.partition("/")
            parameters.setdefault(layer, {})[name] = array
        try:
            scale = metadata["scale"] if fits(metadata, SHAPE) else 0.0
            if not 0 < scale < math.inf or len(set(metadata["labels"])) < 2:
                raise ValueError
            hyperparameters = Hyperparameters(**metadata["hyperparameters"])
            height, width, channels = metadata["image_shape"]
            labels = tuple(metadata["labels"])
            # As many layers as it has arrays: a number alone must not make a long list.
            if hyperparameters.conv_layers + hyperparameters.dense_layers > len(arrays):
                raise ValueError
            expected = parameter_shapes(hyperparameters, (height, width, channels), len(labels))
        except (ValueError, TypeError):
            raise DamagedFile(path, "does not say what model it holds") from None
        shapes = {
            layer: {
                name: array.shape for name, array in entries.items() if array.dtype == np.float32
            }
            for layer, entries in parameters.items()
        }
        if shapes != expected:
            raise DamagedFile(path, "its weights don't fit its hyperparameters")
        return cls(hyperparameters, (height, width, channels), labels, float(scale), parameters)
