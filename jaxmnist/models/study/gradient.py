"""The gradient of the study's network, computed block by block to suit a CPU's cache.

The images of a batch pass through the network in blocks, so that a block's activations stay in the
cache. The gradient of the convolutions is accumulated over the blocks. That of the dense layers is
not, because accumulating it would move all their weights for each block. A dense layer's gradient
is the product of its inputs and the derivative with respect to its outputs, so both are stored for
all blocks and multiplied once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmnist.models.convolution import transposed_product
from jaxmnist.models.study.dropout import dropout_factors

if TYPE_CHECKING:
    from jaxmnist.models.network import Images, Loss, Parameters, StepInputs
    from jaxmnist.models.study.layers import ConvolutionalNetwork


def gradient_over_blocks(
    module: ConvolutionalNetwork,
    parameters: Parameters,
    images: Images,
    loss: Loss,
    blocks: jax.Array,
    inputs: StepInputs,
) -> tuple[Any, Any]:
    """The gradient of a loss that is a sum over blocks of images: see `Model.gradient`."""
    dense = {layer.name: parameters[layer.name] for layer in module.layers if layer.kind == "Dense"}
    convolutions = {name: layer for name, layer in parameters.items() if name not in dense}

    widths = {
        layer.name: dense[after.name]["kernel"].shape[0]
        for layer, after in pairwise(module.layers)
        if layer.kind == "Dropout"
    }
    # The place of each image in the batch, which its random numbers depend on.
    places = jnp.arange(blocks.size).reshape(blocks.shape) if widths else None

    def block_loss(
        convolutions: Any,
        added: dict[str, jax.Array],
        block: jax.Array,
        factors: dict[str, jax.Array],
    ) -> tuple[jax.Array, Any]:
        features = module.apply({"params": convolutions}, images(block), method="flatten")
        logits, dense_inputs = module.apply(
            {"params": dense}, features, added, factors, method="classify"
        )
        value, sums = loss(logits, block)
        return value, (sums, dense_inputs)

    def add_block(total: Any, item: tuple[jax.Array, jax.Array | None]) -> tuple[Any, Any]:
        block, places = item
        factors = {} if places is None else dropout_factors(inputs, places, widths)
        # Zeros are added to the outputs of dense layers to get derivatives with respect to these.
        zeros = {
            name: jnp.zeros((len(block), layer["bias"].size), layer["bias"].dtype)
            for name, layer in dense.items()
        }
        (gradient, derivatives), (sums, dense_inputs) = jax.grad(block_loss, (0, 1), has_aux=True)(
            convolutions, zeros, block, factors
        )
        return jax.tree.map(jnp.add, total, gradient), (sums, dense_inputs, derivatives)

    nothing = jax.tree.map(jnp.zeros_like, convolutions)
    gradient, (sums, dense_inputs, derivatives) = lax.scan(add_block, nothing, (blocks, places))
    for name in dense:
        x, derivative = (_joined(values[name]) for values in (dense_inputs, derivatives))
        product = transposed_product(x, derivative.astype(x.dtype), module.method)
        gradient[name] = {"kernel": product, "bias": derivative.sum(0)}
    return gradient, jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)


def _joined(blocks: jax.Array) -> jax.Array:
    """The blocks concatenated: (K, B, D) → (K·B, D)."""
    return blocks.reshape(-1, blocks.shape[-1])
