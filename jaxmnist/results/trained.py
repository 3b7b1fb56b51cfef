"""A trained network: predicts classes, probabilities and features in batches; its file format."""

from __future__ import annotations

import functools
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save as save_tensors

from jaxmnist.data.arrays import EIGHT_BITS, check_images, check_levels
from jaxmnist.data.labels import class_names_of
from jaxmnist.data.preparation import Preparation
from jaxmnist.engine.devices import start_jax
from jaxmnist.engine.seeds import weights_seed
from jaxmnist.engine.training import apply
from jaxmnist.errors import NetworkError, UsageError, local_path
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import best_method, block_size
from jaxmnist.models.network import DataSpec, Network, Parameters, by_path, from_paths
from jaxmnist.models.study.network import STUDY
from jaxmnist.results.export import Exportable, target, write
from jaxmnist.results.origin import Origin, facts
from jaxmnist.runs.keys import TrialKey, index_of
from jaxmnist.runs.layers import Layer, summary
from jaxmnist.runs.trial import Computation
from jaxmnist.whole_files import DamagedFile, fits, read_tensors

MODEL_METADATA = "jaxmnist"  # the metadata key for the description of the model
MODEL_SHAPE = {
    "network": str,
    "hyperparameters": dict,
    "image_shape": (int, int, int),
    "labels": [int],
    "scale": float,
}
BATCH_SIZE = 512  # a multiple of every platform's block size
EXAMPLES = 5  # images that an exported model may be tried with
AHEAD = 3  # batches in flight beyond the one that is waited for


@functools.lru_cache(maxsize=8)
def _program(
    network: Network, hyperparameters: Hyperparameters, data: DataSpec, platform: str, output: str
) -> Callable[..., jax.Array]:
    """The compiled function of (weights, images) that returns 'logits' or 'features'."""
    model = network.model(hyperparameters, data, best_method(platform), "default")
    return jax.jit(apply(model, output, block_size(platform, BATCH_SIZE)))


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with its weights.

    labels: class k stands for label `labels[k]` of the data.
    image_shape: (H, W, C) of the images that it takes, with pixels on the scale of the data that
      it was trained on.
    scale: what pixels are divided by; see `Dataset`.
    network: the network that `hyperparameters` configure.
    origin: the run that it comes from; None if it comes from a file alone.
    preparation: how pictures are prepared like the images that it was trained on; None if that
      isn't known.
    computation, length: what a network of one's own computed when it was trained, None of the
      study's; and on how much it was trained: see `DataSpec.length`.

    >>> model = run.get_best_models(1)[0]
    >>> model.predict(images).shape, model.features(images).shape == (5, model.feature_count)
    ((5,), True)
    """

    hyperparameters: Hyperparameters
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    scale: float
    parameters: Parameters
    network: Network = STUDY
    origin: Origin | None = None
    preparation: Preparation | None = None
    computation: Computation | None = None
    length: tuple[int, int, int] = (0, 0, 1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The labels of images [N, H, W, C] (or [N, H, W] of one channel): int64[N]."""
        found: np.ndarray = np.asarray(self.labels)[self._run("logits", images).argmax(1)]
        return found

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class, in the order of `labels`: float32[N, K]."""
        logits = self._run("logits", images)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        found: np.ndarray = exponentials / exponentials.sum(1, keepdims=True)
        return found

    def features(self, images: np.ndarray) -> np.ndarray:
        """The flatten features of images: float32[N, D]."""
        return self._run("features", images)

    def summary(self) -> str:
        """The layers with their output shapes and parameters, under Keras' columns."""
        return summary(self.layers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of `labels`; the labels as text without names.

        Raises `DamagedFile` if the run has other than K names.
        """
        names = self.origin.class_names(len(self.labels)) if self.origin else None
        return class_names_of(self.labels, names or ())

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layer table."""
        return self.network.layers(self.hyperparameters, self._data)

    @functools.cached_property
    def feature_count(self) -> int:
        """The number of flatten features of an image, D."""
        return self.network.feature_count(self.hyperparameters, self._data)

    @property
    def _data(self) -> DataSpec:
        return DataSpec(self.image_shape, len(self.labels), self.scale, *self.length)

    def untrained(self, seed: int, key: TrialKey) -> TrainedModel:
        """The same network with the initial weights of trial or rerun `key` of `seed`."""
        parameters = self.network.initial_parameters(
            self.hyperparameters, self._data, seed=weights_seed(seed, key), index=index_of(key)
        )
        return replace(self, parameters=parameters, origin=None)

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
        program = _program(self.network, self.hyperparameters, self._data, platform, output)
        weights = jax.device_put(self.network.split(self.parameters))
        images = self._check(images)

        def start(first: int) -> tuple[int, int, jax.Array]:
            batch = images[first : first + BATCH_SIZE]
            # The last batch is padded, so that one compiled program serves all.
            padded = np.zeros((BATCH_SIZE, *self.image_shape), images.dtype)
            padded[: len(batch)] = batch
            return first, len(batch), program(weights, padded)

        # JAX computes the batches in flight while the host waits for an earlier one.
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

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> dict[str, Any]:
        """Write the model for other programs, and a description beside it, in `path` + '.json'.

        Args:
          path: its ending is the format. '.stablehlo' and '.onnx' (for which jax2onnx must be
            installed) are a function of images [N, H, W, C], of any N and of the dtype that the
            run's data have, that returns the probabilities float32[N, K]; pixels are divided by
            `scale` inside. '.safetensors' is the weights alone, as a run keeps them. The dtype of
            a model without `origin` is uint8 if its scale is 255, else float32.
          overwrite: replace the two files if they exist.

        Returns:
          The description: the file's SHA-256, the dtype and shape of images, labels and class
          names, hyperparameters, test accuracy, versions.

        Raises:
          UsageError: `path` can't be written to, or the network can't be exported.
        """
        return write(self.exportable, target(path, overwrite))

    @property
    def exportable(self) -> Exportable:
        """What `export` writes of it."""
        # XLA's own convolution on every platform: the methods for a CPU serve training.
        model = self.network.model(self.hyperparameters, self._data, "convolution", "default")
        parameters, collections = self.network.split(self.parameters)
        guess = "uint8" if self.scale == EIGHT_BITS else "float32"
        dtype = (self.origin.dtype if self.origin else None) or guess
        examples = np.random.default_rng(0).uniform(0, self.scale, (EXAMPLES, *self.image_shape))
        return Exportable(
            lambda images: model.probabilities(parameters, images, collections),
            examples.astype(dtype),
            self.to_bytes,
            {
                **self._metadata,
                **facts(self.origin, self.labels),
                # Images have rows and columns swapped, as in training.
                "transposed": bool(self.preparation and self.preparation.source.transposed),
            },
        )

    @property
    def _metadata(self) -> dict[str, Any]:
        """What belongs to the weights in a file."""
        content = {
            "network": self.network.definition.name,
            "hyperparameters": self.hyperparameters.to_json(),
            "image_shape": list(self.image_shape),
            "labels": list(self.labels),
            "scale": self.scale,
        }
        if self.preparation is not None:
            content["preparation"] = self.preparation.to_json()
        if self.computation is not None:
            content["computation"] = self.computation.to_json()
            content["length"] = list(self.length)
        return content

    def to_bytes(self) -> bytes:
        """The model as a safetensors file."""
        arrays = {
            path: np.asarray(jax.device_get(array), order="C")
            for path, array in by_path(self.parameters)
        }
        return save_tensors(arrays, {MODEL_METADATA: json.dumps(self._metadata)})

    @classmethod
    def load(cls, path: Path, sha256: str | None = None, network: Network = STUDY) -> TrainedModel:
        """Load a model, a configuration of `network`, from a safetensors file.

        The file of a network of one's own names what it computed. If versions of JAX and Flax are
        the same, the network must compute it still.

        Raises `DamagedFile` if the file isn't a model or its SHA-256 isn't `sha256`, and
        `UsageError` if it holds another network.
        """
        path = Path(local_path(path))
        arrays, metadata = read_tensors(path, MODEL_METADATA, sha256)
        try:
            scale = metadata["scale"] if fits(metadata, MODEL_SHAPE) else 0.0
            labels = tuple(metadata["labels"])
            if not 0 < scale < math.inf or len(set(labels)) < max(2, len(labels)):
                raise ValueError
            hyperparameters = Hyperparameters(metadata["hyperparameters"])
        except (ValueError, TypeError, KeyError):
            raise DamagedFile(path, "lacks the description of its model") from None
        name = network.definition.name
        if metadata["network"] != name:
            raise UsageError(f"{path}: holds the network {metadata['network']!r}, not {name!r}")
        height, width, channels = metadata["image_shape"]
        length = metadata.get("length", [0, 0, 1])
        if not fits(length, (int, int, int)) or length[2] < 1:
            raise DamagedFile(path, "lacks the description of its model")
        images, epochs, batch_size = length
        shape = (height, width, channels)
        data = DataSpec(shape, len(labels), float(scale), images, epochs, batch_size)
        try:
            computation = Computation.from_json(metadata.get("computation"))
            preparation = None
            if "preparation" in metadata:
                preparation = Preparation.from_json(
                    metadata["preparation"], data.image_shape, data.scale
                )
            network.definition.check(hyperparameters, data.image_shape)
            expected = network.shapes(hyperparameters, data)
        except NetworkError as problem:
            cause = problem.__cause__ or problem
            raise NetworkError(f"{path}: {problem}", problem.traceback) from cause
        except (ValueError, TypeError, KeyError):
            raise DamagedFile(path, "lacks the description of its model") from None
        now, different = network.computation(hyperparameters, data), ""
        if computation and now and computation.versions == now.versions:
            different = computation.differences(now)
        if different:
            raise UsageError(
                f"{path}: holds the weights of another network, with different {different}: give"
                " the network that was trained"
            )
        found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        if found != {name: (x.shape, x.dtype) for name, x in by_path(expected)}:
            raise DamagedFile(path, "its weights don't fit its hyperparameters")
        return cls(
            hyperparameters,
            data.image_shape,
            labels,
            data.scale,
            from_paths(arrays, expected),
            network,
            preparation=preparation,
            computation=computation,
            length=data.length,
        )
