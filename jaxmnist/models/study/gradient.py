"""The gradient of the study's network, made for a CPU's cache.

Images pass through the network a block after another, so that what they become stays in the cache.
The gradient of the convolutions is added up block by block. That of the dense layers is not, as
adding it up would move all their weights each time: a dense layer's gradient is the product of what
went into it and of the derivative by what came out, so that both are kept for all blocks, and
multiplied once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmnist.models.convolution import transposed_product

if TYPE_CHECKING:
    from jaxmnist.models.network import Images, Loss, Parameters
    from jaxmnist.models.study.layers import ConvolutionalNetwork


def gradient_over_blocks(
    module: ConvolutionalNetwork,
    parameters: Parameters,
    images: Images,
    loss: Loss,
    blocks: jax.Array,
) -> tuple[Any, Any]:
    """The gradient of a loss that is a sum over blocks of images: see `Model.gradient`."""
    dense = {layer.name: parameters[layer.name] for layer in module.layers if layer.kind == "Dense"}
    convolutions = {name: layer for name, layer in parameters.items() if name not in dense}

    def block_loss(
        convolutions: Any, added: dict[str, jax.Array], block: jax.Array
    ) -> tuple[jax.Array, Any]:
        features = module.apply({"params": convolutions}, images(block), method="flatten")
        logits, inputs = module.apply({"params": dense}, features, added, method="classify")
        value, sums = loss(logits, block)
        return value, (sums, inputs)

    def add_block(total: Any, block: jax.Array) -> tuple[Any, Any]:
        # Zeros are added to what comes out of dense layers, for the derivative by it.
        zeros = {
            name: jnp.zeros((len(block), layer["bias"].size), layer["bias"].dtype)
            for name, layer in dense.items()
        }
        (gradient, derivatives), (sums, inputs) = jax.grad(block_loss, (0, 1), has_aux=True)(
            convolutions, zeros, block
        )
        return jax.tree.map(jnp.add, total, gradient), (sums, inputs, derivatives)

    nothing = jax.tree.map(jnp.zeros_like, convolutions)
    gradient, (sums, inputs, derivatives) = lax.scan(add_block, nothing, blocks)
    for name in dense:
        x, derivative = (_joined(values[name]) for values in (inputs, derivatives))
        product = transposed_product(x, derivative.astype(x.dtype), module.method)
        gradient[name] = {"kernel": product, "bias": derivative.sum(0)}
    return gradient, jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)


def _joined(blocks: jax.Array) -> jax.Array:
    """Blocks one after another: (K, B, D) → (K·B, D)."""
    return blocks.reshape(-1, blocks.shape[-1])
