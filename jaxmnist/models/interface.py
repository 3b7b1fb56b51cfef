"""What the engine and a network exchange: the data's properties, weights, outputs and keys."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmnist.data.dataset import Dataset
from jaxmnist.settings import SETTINGS, TrainingSettings

# Hyperparameters of training that are arguments of a compiled program, not constants in it.
NUMBERS = tuple(name for name, item in SETTINGS.items() if item.shares_program)
# Those of them of which a program contains whether they are 0, as it then does without.
ZERO_IS_NONE = tuple(name for name in NUMBERS if SETTINGS[name].shares_program == "above 0")
# A tree of named arrays: {"dense": {"kernel": …, "bias": …}}.
Parameters = Mapping[str, Any]
# Maps the indices of a block's images, int32[B], to the images, float or uint8[B, H, W, C].
Images = Callable[[jax.Array], jax.Array]
# Maps logits, float[B, classes], and image indices, int32[B], to the block's share of the loss and
# a tree of sums.
Loss = Callable[[jax.Array, jax.Array], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class DataSpec:
    """The properties of a dataset that a network depends on.

    image_shape: (H, W, C). scale: the number that pixels are divided by; see `Dataset`.
    images, epochs, batch_size: how many training images there are, and how trials train on them;
      no images if the network isn't trained.
    """

    image_shape: tuple[int, int, int]
    classes: int
    scale: float = 255.0
    images: int = 0
    epochs: int = 0
    batch_size: int = 1

    @classmethod
    def of(cls, dataset: Dataset, settings: TrainingSettings) -> DataSpec:
        """The specification of a dataset that is trained on as `settings` say."""
        return cls(
            dataset.image_shape,
            dataset.classes,
            dataset.scale,
            len(dataset.y_train),
            settings.epochs,
            settings.batch_size,
        )

    @property
    def length(self) -> tuple[int, int, int]:
        """What the number of steps follows from: `images`, `epochs` and `batch_size`."""
        return self.images, self.epochs, self.batch_size

    def steps(self, hyperparameters: Mapping[str, Any]) -> int:
        """The number of steps of a training, with the batch size of `hyperparameters`, if any."""
        size = min(hyperparameters.get("batch_size", self.batch_size), self.images)
        return self.epochs * -(-self.images // size) if self.images else 1


class Outputs(NamedTuple):
    """The outputs of a network for N images.

    logits: float[N, classes].
    features: float[N, D], for the SVM: see `Model.outputs`.

    The compiler removes the computation of whichever is not used.
    """

    logits: jax.Array
    features: jax.Array


def a_key(seed: int = 0) -> jax.Array:
    """A random key; its kind is named, so that no setting of JAX changes what is drawn."""
    return jax.random.key(seed, impl="threefry2x32")


def stream_key(key: jax.Array, name: str) -> jax.Array:
    """The key of the random stream of this name, from the key of a step."""
    # A checksum is the same number in every process.
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def split_weights(weights: Parameters) -> tuple[Parameters, Any]:
    """Flax's variables as the parameters, which are trained, and the collections beside them."""
    return weights["params"], {name: weights[name] for name in weights if name != "params"}


def join_weights(parameters: Parameters, collections: Any) -> dict[str, Any]:
    """The inverse of `split_weights`."""
    return {"params": parameters, **collections}


def pixels(images: jax.Array, scale: float, precision: str) -> jax.Array:
    """Images scaled to 0–1, in bfloat16 for that precision, else float32 or their float dtype."""
    if precision == "bfloat16":
        dtype = jnp.dtype(jnp.bfloat16)
    else:
        dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.float32
    return images.astype(dtype) / scale


def is_kernel(path: Sequence[Any], array: Any) -> bool:
    """Whether a parameter is neither a bias nor the scale of a normalization.

    These have such a name, or fewer than two dimensions. Weight decay leaves them alone, as is
    usual. See Loshchilov and Hutter, 'Decoupled weight decay regularization', 2019, for the decay.

    Args:
      path: of the parameter, as JAX gives it for a leaf of a tree.
      array: the parameter, or its shape.
    """
    name = str(getattr(path[-1], "key", path[-1])) if path else ""
    return len(array.shape) > 1 and name not in ("bias", "scale")


def by_path(parameters: Parameters, above: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the arrays of a tree with their paths, such as 'dense/kernel'."""
    for name, part in parameters.items():
        if isinstance(part, Mapping):
            yield from by_path(part, f"{above}{name}/")
        else:
            yield f"{above}{name}", part


def from_paths(arrays: Mapping[str, Any], like: Parameters, above: str = "") -> dict[str, Any]:
    """The inverse of `by_path`: a tree like `like`, of these arrays; KeyError if one is missing."""
    return {
        name: from_paths(arrays, part, f"{above}{name}/")
        if isinstance(part, Mapping)
        else arrays[f"{above}{name}"]
        for name, part in like.items()
    }
