"""What an engine asks of any network: the room's one interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import Method
from jaxmnist.models.space import Definition
from jaxmnist.runs.layers import Layer

# A tree of named arrays: {"dense": {"kernel": …, "bias": …}}.
Parameters = Mapping[str, Any]
# From int32[B], which images a block has, to float or uint8[B, H, W, C].
Images = Callable[[jax.Array], jax.Array]
# From float[B, classes] and int32[B] to the block's part of the loss and a tree of sums.
Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class DataSpec:
    """What a network must know of the data.

    image_shape: (H, W, C). scale: what pixels are divided by; see `Dataset`.
    """

    image_shape: tuple[int, int, int]
    classes: int
    scale: float = 255.0

    @classmethod
    def of(cls, dataset: Dataset) -> DataSpec:
        """What a network must know of a dataset."""
        return cls(dataset.image_shape, dataset.classes, dataset.scale)


class Outputs(NamedTuple):
    """What a network gives for N images.

    logits: float[N, classes].
    features: float[N, D], the flatten layer; the compiler drops whichever of the two is not used.
    """

    logits: jax.Array
    features: jax.Array


class Model(ABC):
    """A network of one configuration, as pure functions of its parameters."""

    @abstractmethod
    def outputs(self, parameters: Parameters, images: jax.Array) -> Outputs:
        """Logits and features of images uint8 or float[N, H, W, C], with pixels up to the scale."""

    def gradient(
        self, parameters: Parameters, images: Images, loss: Loss, blocks: jax.Array
    ) -> tuple[Any, Any]:
        """The gradient of a loss that is a sum over images, of all images at once.

        Args:
          parameters: the weights.
          images: gives the images of a block.
          loss: gives the part of the loss that is a block's, a scalar, and a tree of sums.
          blocks: int32[K, B], which images each of the K blocks has; K is 1 unless the network's
            `block_size` cuts batches.

        Returns:
          The gradient in the shape of `parameters`, and the sums of all blocks.
        """
        batch = blocks.reshape(-1)

        def of_batch(parameters: Parameters) -> tuple[jax.Array, Any]:
            return loss(self.outputs(parameters, images(batch)).logits, batch)

        gradient, sums = jax.grad(of_batch, has_aux=True)(parameters)
        return gradient, sums


class Network(ABC):
    """A network as a function of its hyperparameters.

    definition: its hyperparameters, as far as nothing has to be computed for them.
    """

    definition: Definition

    @abstractmethod
    def layers(self, hyperparameters: Hyperparameters, data: DataSpec) -> tuple[Layer, ...]:
        """The layer table, in the order of the data."""

    @abstractmethod
    def initial_parameters(
        self, hyperparameters: Hyperparameters, data: DataSpec, *, seed: int, index: int
    ) -> dict[str, Any]:
        """The initial weights of trial `index` of `seed`: float32 arrays in the host's memory."""

    @abstractmethod
    def model(
        self, hyperparameters: Hyperparameters, data: DataSpec, method: Method, precision: str
    ) -> Model:
        """The functions of a configuration.

        method: how convolutions are computed. precision: see `TrainingSettings`.
        """

    def shapes(self, hyperparameters: Hyperparameters, data: DataSpec) -> dict[str, Any]:
        """The shape and type of every parameter, in their tree."""
        initial = self.initial_parameters(hyperparameters, data, seed=0, index=0)
        shapes: dict[str, Any] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), initial
        )
        return shapes

    def feature_count(self, hyperparameters: Hyperparameters, data: DataSpec) -> int:
        """How many features an image has, D."""
        model = self.model(hyperparameters, data, "convolution", "default")
        image = jax.ShapeDtypeStruct((1, *data.image_shape), np.float32)
        found = jax.eval_shape(model.outputs, self.shapes(hyperparameters, data), image)
        return int(found.features.shape[1])

    def block_size(self, platform: str, batch_size: int) -> int:
        """Images of a batch that are computed together.

        Fewer than all only where no image has a part in the outputs of another one.
        """
        return batch_size

    def padding(self, platform: str) -> Mapping[str, int]:
        """Hyperparameters that may be padded to multiples of these numbers, by name.

        Trials that are equal then share compiled programs: `resize` makes their weights equal in
        shape. By default there are none.
        """
        return {}

    def resize(
        self,
        parameters: Parameters,
        hyperparameters: Hyperparameters,
        resized: Hyperparameters,
        data: DataSpec,
    ) -> dict[str, Any]:
        """The parameters of a configuration in the shapes of another one that pads it, or back."""
        raise NotImplementedError(f"{self.definition.name} is not padded")


def pixels(images: jax.Array, scale: float, precision: str) -> jax.Array:
    """Images from 0 to 1: float32, the type of floating images, or bfloat16 where asked for."""
    if precision == "bfloat16":
        dtype = jnp.dtype(jnp.bfloat16)
    else:
        dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
    return images.astype(dtype) / scale


def by_path(parameters: Parameters, above: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of a tree by their paths: 'dense/kernel'."""
    for name, part in parameters.items():
        if isinstance(part, Mapping):
            yield from by_path(part, f"{above}{name}/")
        else:
            yield f"{above}{name}", part


def from_paths(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of `by_path`; ValueError where a path leads through an array."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *folders, name = path.split("/")
        part = tree
        for folder in folders:
            part = part.setdefault(folder, {})
            if not isinstance(part, dict):
                raise ValueError(f"{path} leads through an array")
        if name in part:
            raise ValueError(f"{path} is there twice")
        part[name] = array
    return tree
