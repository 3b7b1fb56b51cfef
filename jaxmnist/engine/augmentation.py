"""Training images shifted and turned at random, on the device.

What an image gets depends on the key of the step and on the image's index, not on how a batch is
divided into blocks nor on what trains beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmnist.models.network import Images, stream_key
from jaxmnist.training_settings import TrainingSettings

STREAM = "augmentation"  # of random numbers


def augmentation(
    settings: TrainingSettings, constants: Mapping[str, Any], images: jax.Array, key: jax.Array
) -> Images:
    """The function that returns some training images of a step as it trains on them.

    Args:
      settings: of the trial; they say what is done.
      constants: its numbers, float[], by the names of the settings.
      images: all training images, uint8 or float[N, H, W, C].
      key: of the step.
    """
    shift, rotation = settings.random_shift, None
    if settings.random_rotation > 0:
        rotation = constants["random_rotation"]
    if not shift and rotation is None:
        return lambda block: images[block]
    return lambda block: augmented(images, block, key, shift, rotation)


def augmented(
    images: jax.Array,
    block: jax.Array,
    key: jax.Array,
    shift: int,
    rotation: jax.Array | None,
) -> jax.Array:
    """Some images, each shifted and turned at random; what comes in from outside repeats the edge.

    Args:
      images: all training images, uint8 or float[N, H, W, C].
      block: int32[B], the indices of the images that are wanted.
      key: of the step.
      shift: the largest shift in rows and in columns, in pixels; a shift is a whole number.
      rotation: the largest angle either way, in degrees, float[]; None for no turning.

    Returns:
      [B, H, W, C], of the dtype of `images` if nothing is turned; else float32, as a turned image
      is interpolated linearly between four pixels.
    """
    height, width = images.shape[1:3]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(stream_key(key, STREAM), block)
    rows, columns = jnp.arange(height), jnp.arange(width)
    shifts = jnp.zeros((len(block), 2), jnp.int32)
    if shift:
        shifts = jax.vmap(lambda key: jax.random.randint(key, (2,), -shift, shift + 1))(keys)
    y, x = rows[None, :] - shifts[:, :1], columns[None, :] - shifts[:, 1:]  # [B, H], [B, W]
    image = block[:, None, None]
    if rotation is None:
        return images[image, y.clip(0, height - 1)[:, :, None], x.clip(0, width - 1)[:, None, :]]
    turns = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys)
    angle = (jnp.deg2rad(rotation) * (2 * turns - 1)).astype(jnp.float32)[:, None, None]
    from_center = y[:, :, None] - (height - 1) / 2, x[:, None, :] - (width - 1) / 2
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    source_y = cosine * from_center[0] + sine * from_center[1] + (height - 1) / 2
    source_x = cosine * from_center[1] - sine * from_center[0] + (width - 1) / 2
    above, left = jnp.floor(source_y), jnp.floor(source_x)
    part_y, part_x = (source_y - above)[..., None], (source_x - left)[..., None]

    def pixel(down: int, right: int) -> jax.Array:
        row = (above.astype(jnp.int32) + down).clip(0, height - 1)
        column = (left.astype(jnp.int32) + right).clip(0, width - 1)
        return images[image, row, column].astype(jnp.float32)

    upper = pixel(0, 0) * (1 - part_x) + pixel(0, 1) * part_x
    lower = pixel(1, 0) * (1 - part_x) + pixel(1, 1) * part_x
    return upper * (1 - part_y) + lower * part_y
