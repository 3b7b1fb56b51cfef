"""The layer table of a network, whoever has written it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import Network

DATA = DataSpec((12, 12, 2), 3)


def rows(module):
    """Name, kind, output shape and parameters of each layer."""
    layers = Network(lambda hp: module).bind(Hyperparameters(), DATA).layers
    return [(row.name, row.kind, row.output_shape, row.parameters) for row in layers]


class Pool(nn.Module):
    """A layer of one's own that pools: its own row is enough."""

    @nn.compact
    def __call__(self, x):
        return nn.avg_pool(x, (2, 2), (2, 2))


class Block(nn.Module):
    """Layers within a module, with a parameter of its own."""

    @nn.compact
    def __call__(self, x):
        x = nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2))
        return x * self.param("scale", nn.initializers.ones, (4,))


class Whole(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = Pool()(Block()(x))
        x = x.reshape(x.shape[0], -1)
        again = nn.Dense(36, name="again")
        x = again(nn.relu(again(x)))
        x = nn.jit(nn.Dense)(5, name="jitted")(x)
        return nn.Dense(3)(nn.relu(x)) + self.param("own", nn.initializers.zeros, (3,))


def test_modules_pooling_and_flattening_in_the_order_of_the_data():
    """Parameters are those of the innermost module with a row; a layer called twice stands once."""
    assert rows(Whole()) == [
        ("Block_0/Conv_0", "Conv", (12, 12, 4), 9 * 2 * 4 + 4),
        ("max_pool_0", "max_pool", (6, 6, 4), 0),
        ("Block_0", "Block", (6, 6, 4), 4),
        ("Pool_0", "Pool", (3, 3, 4), 0),
        ("flatten_0", "flatten", (36,), 0),
        ("again", "Dense", (36,), 36 * 36 + 36),
        ("jitted", "Dense", (5,), 36 * 5 + 5),
        ("Dense_0", "Dense", (3,), 5 * 3 + 3),
        ("network", "Whole", (3,), 3),
    ]


class Repeated(nn.Module):
    """Layers in a loop that Flax makes, computed again for the gradient, and pooling between."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(nn.Conv)(2, (3, 3), name="first")(x)

        def step(conv, x, _):
            return conv(x), None

        scan = nn.scan(step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scan(nn.Conv(2, (3, 3), name="repeated"), x, None)
        for _ in range(2):
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(jnp.mean(x, (1, 2)))


def test_layers_within_transformations():
    assert rows(Repeated()) == [
        ("first", "Conv", (12, 12, 2), 9 * 2 * 2 + 2),
        ("repeated", "Conv", (12, 12, 2), 3 * (9 * 2 * 2 + 2)),
        ("max_pool_0", "max_pool", (6, 6, 2), 0),
        ("max_pool_1", "max_pool", (3, 3, 2), 0),
        ("Dense_0", "Dense", (3,), 2 * 3 + 3),
    ]


class Tricky(nn.Module):
    """Layers in a sequence, a layer over an axis, and pooling that counts or hides."""

    @nn.compact
    def __call__(self, x):
        x = nn.Sequential([nn.Conv(2, (3, 3)), lambda x: nn.max_pool(x, (2, 2), (2, 2))])(x)
        x = nn.avg_pool(x, (3, 3), (2, 2), padding="SAME", count_include_pad=False)
        x = Hiding()(x)
        x = x.reshape(1, -1) if x.shape[0] == 1 else x.reshape(x.shape[0], -1)
        table = self.param("table", nn.initializers.ones, (1, 2, 9))
        x = x + table.reshape(1, 18)
        rows = nn.vmap(
            nn.Dense,
            in_axes=1,
            out_axes=1,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        x = rows(5, name="flatten_0")(x.reshape(x.shape[0], 3, 6))
        return nn.Dense(3)(x.sum(1))


class Hiding(nn.Module):
    """A layer that pools in a method of its own, and in a function that is compiled apart."""

    @nn.compact
    def __call__(self, x):
        return self.pooled(x) + jax.jit(lambda x: nn.max_pool(x, (1, 1)))(x)

    def pooled(self, x):
        return nn.max_pool(x, (1, 1))


def test_what_only_looks_like_a_layer_or_hides_one():
    assert rows(Tricky()) == [
        ("Conv_0", "Conv", (12, 12, 2), 9 * 2 * 2 + 2),
        ("max_pool_0", "max_pool", (6, 6, 2), 0),
        ("avg_pool_0", "avg_pool", (3, 3, 2), 0),
        ("Hiding_0", "Hiding", (3, 3, 2), 0),
        ("flatten_1", "flatten", (18,), 0),
        ("flatten_0", "Dense", (5,), 3 * (6 * 5 + 5)),
        ("Dense_0", "Dense", (3,), 5 * 3 + 3),
        ("network", "Tricky", (3,), 18),
    ]
