"""Ten networks as people write them, small, and what each is to have."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class LeNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(nn.tanh(nn.Conv(6, (5, 5))(x)), (2, 2), (2, 2))
        x = nn.avg_pool(nn.tanh(nn.Conv(16, (5, 5), padding="VALID")(x)), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for units in (120, 84):
            x = nn.tanh(nn.Dense(units)(x))
        return nn.Dense(10)(x)


def lenet(hp):
    return LeNet()


class Perceptron(nn.Module):
    units: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x, *, deterministic):
        x = x.reshape((x.shape[0], -1))
        for units in self.units:
            x = nn.relu(nn.Dense(units)(x))
            x = nn.Dropout(self.dropout)(x, deterministic=deterministic)
        return nn.Dense(10)(x)


def perceptron(hp):
    units = [hp.Int(f"units_{i}", 64, 128, step=64) for i in range(hp.Int("depth", 2, 2))]
    rate = hp.Float("rate", 0, 0.5, step=0.1) if hp.Boolean("dropout") else 0.0
    return Perceptron((128, 64) if hp.Fixed("known", True) else tuple(units), rate)


class Vgg(nn.Module):
    pool: str

    @nn.compact
    def __call__(self, x, train: bool):
        pool = {"max": nn.max_pool, "average": nn.avg_pool}[self.pool]
        for filters in (32, 64):
            for _ in range(2):
                x = nn.Conv(filters, (3, 3), use_bias=False)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(64)(x.mean((1, 2))))
        return nn.Dense(10)(nn.Dropout(0.4, deterministic=not train)(x))


def vgg(hp):
    return Vgg(hp.Choice("pool", ["max", "average"]))


class ResNet(nn.Module):
    train: bool | None = None

    @nn.compact
    def __call__(self, x):
        def norm(x):
            return nn.BatchNorm(use_running_average=not self.train)(x)

        x = nn.relu(norm(nn.Conv(16, (3, 3), use_bias=False)(x)))
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.Conv(filters, (3, 3), (stride, stride), use_bias=False)(x)
            y = norm(nn.Conv(filters, (3, 3), use_bias=False)(nn.relu(norm(y))))
            if y.shape != x.shape:
                x = norm(nn.Conv(filters, (1, 1), (stride, stride), use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


def resnet(hp):
    return ResNet()


class PreActivation(nn.Module):
    @nn.compact
    def __call__(self, x, is_training):
        x = nn.Conv(32, (3, 3))(x)
        for i, rate in enumerate((0.0, 0.1, 0.2)):
            y = x
            for _ in range(2):
                y = nn.Conv(32, (3, 3))(nn.silu(nn.GroupNorm(8)(y)))
            if is_training and rate:
                shape = (x.shape[0], 1, 1, 1)
                kept = jax.random.bernoulli(self.make_rng("droppath"), 1 - rate, shape)
                y = jnp.where(kept, y / (1 - rate), 0)
            x = x + y
            if i < 2:
                x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        return nn.Dense(10)(nn.silu(nn.GroupNorm(8)(x)).mean((1, 2)))


def pre_activation(hp):
    return PreActivation()


class ConvNext(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Conv(64, (4, 4), (4, 4), padding="VALID")(x))
        for i in range(3):
            y = nn.LayerNorm()(nn.Conv(64, (7, 7), feature_group_count=64)(x))
            y = nn.Dense(64)(nn.gelu(nn.Dense(256)(y)))
            x = x + y * self.param(f"scale_{i}", nn.initializers.constant(1e-6), (64,))
        return nn.Dense(10)(nn.LayerNorm()(x.mean((1, 2))))


def convnext(hp):
    return ConvNext()


class Mixer(nn.Module):
    patch: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(64, (self.patch, self.patch), (self.patch, self.patch), padding="VALID")(x)
        x = x.reshape(x.shape[0], -1, 64)
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            x = x + nn.Dense(x.shape[1])(nn.gelu(nn.Dense(32)(y))).swapaxes(1, 2)
            x = x + nn.Dense(64)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
        x = nn.LayerNorm()(x).mean(1)
        return nn.Dense(10, kernel_init=nn.initializers.zeros_init())(x)


def mixer(hp):
    return Mixer(hp.Choice("patch", [7, 4, 14]))


class MobileNet(nn.Module):
    @nn.compact
    def __call__(self, x, training):
        def norm(x):
            return nn.BatchNorm(use_running_average=not training)(x)

        x = nn.Conv(16, (3, 3), (2, 2), padding=((0, 1), (0, 1)), use_bias=False)(x)
        x = nn.relu6(norm(x))
        for filters, expansion, stride in ((16, 1, 1), (24, 4, 2), (32, 4, 2)):
            y, width = x, x.shape[-1] * expansion
            if expansion > 1:
                y = nn.relu6(norm(nn.Conv(width, (1, 1), use_bias=False)(y)))
            y = nn.Conv(width, (3, 3), (stride, stride), feature_group_count=width, use_bias=False)(
                y
            )
            y = norm(nn.Conv(filters, (1, 1), use_bias=False)(nn.relu6(norm(y))))
            x = x + y if x.shape == y.shape else y
        x = nn.relu6(norm(nn.Conv(128, (1, 1), use_bias=False)(x)))
        return nn.Dense(10)(x.mean((1, 2)))


def mobilenet(hp):
    return MobileNet()


class Excitation(nn.Module):
    filters: int
    stride: int

    def setup(self):
        strides = (self.stride, self.stride)
        self.convolution = nn.Conv(self.filters, (3, 3), strides)
        self.shortcut = nn.Conv(self.filters, (1, 1), strides)
        self.norm = nn.GroupNorm(4)
        self.dense = [nn.Dense(self.filters // 4), nn.Dense(self.filters)]

    def __call__(self, x):
        y = nn.relu(self.norm(self.convolution(x)))
        s = self.dense[1](nn.relu(self.dense[0](y.mean((1, 2)))))
        return nn.relu(self.shortcut(x) + y * nn.sigmoid(s)[:, None, None])


class Squeeze(nn.Module):
    def setup(self):
        self.blocks = [Excitation(*each) for each in ((16, 1), (32, 2), (64, 2))]
        self.head = nn.Dense(10)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def squeeze(hp):
    return Squeeze()


class Nnx(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.Conv(1, 32, (3, 3), rngs=rngs)
        self.first_norm = nnx.BatchNorm(32, rngs=rngs)
        self.second_norm = nnx.BatchNorm(64, rngs=rngs)
        self.second = nnx.Conv(32, 64, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 64, 256, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x, train):
        layers = (self.first, self.first_norm), (self.second, self.second_norm)
        for convolution, norm in layers:
            x = nnx.relu(norm(convolution(x), use_running_average=not train))
            x = nnx.avg_pool(x, (2, 2), (2, 2))
        x = nnx.relu(self.dense(x.reshape(x.shape[0], -1)))
        return self.head(self.dropout(x, deterministic=not train))


def bridged(hp):
    return nnx.bridge.to_linen(Nnx)


# By name: the function, its parameters, and the numbers in its other collections.
NETWORKS = {
    "lenet": (lenet, 61_706, 0),
    "perceptron": (perceptron, 109_386, 0),
    "vgg": (vgg, 69_994, 384),
    "resnet": (resnet, 77_754, 672),
    "pre_activation": (pre_activation, 56_586, 0),
    "convnext": (convnext, 111_434, 0),
    "mixer": (mixer, 39_786, 0),
    "mobilenet": (mobilenet, None, None),
    "squeeze": (squeeze, None, 0),
    "bridged": (bridged, 824_650, 192),
}
