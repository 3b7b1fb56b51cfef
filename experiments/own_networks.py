"""Networks of a person's own beside the built-in one, and beside a plain Flax loop.

Claim: a network that a stranger writes with Flax's own layers trains at the speed that is printed,
as a ratio. Rounds alternate; figures are medians of rounds with the lowest and the highest, of one
trial in one process, in images per second after the first epoch, which compiles.

    python experiments/own_networks.py --rounds 3 --python .venv-peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flax
import flax.linen as nn
import jax
import numpy as np
import optax
from measure import PEERS

from jaxmnist.data.arrays import Arrays
from jaxmnist.data.dataset import load_arrays, split
from jaxmnist.engine.events import EpochFinished, TrialFinished
from jaxmnist.engine.local import Engine
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.machine import machine
from jaxmnist.models.network import STUDY, Network
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import Key
from jaxmnist.settings import RECIPES

STUDY_CASES = ((112, 2, 1, 224), (64, 3, 1, 128), (32, 1, 0, 0))


class Stranger(nn.Module):
    """The study's network as somebody writes it who has read Flax's documentation."""

    filters: int
    conv_layers: int
    dense_layers: int
    units: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        for i in range(self.conv_layers):
            size, padding = (3, "SAME") if i else (5, "VALID")
            x = nn.Conv(self.filters, (size, size), padding=padding)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for _ in range(self.dense_layers):
            x = nn.relu(nn.Dense(self.units)(x))
        return nn.Dense(10)(x)


class LeNet(nn.Module):
    """LeNet-5 with BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""
        for filters, padding in ((6, "SAME"), (16, "VALID")):
            x = nn.Conv(filters, (5, 5), padding=padding, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = x.reshape(x.shape[0], -1)
        for units in (120, 84):
            x = nn.relu(nn.Dense(units)(x))
        return nn.Dense(10)(x)


class ResNet(nn.Module):
    """Three blocks of 16, 32 and 64 filters."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train)(x)

        x = nn.relu(norm(nn.Conv(16, (3, 3), use_bias=False)(x)))
        for filters, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.Conv(filters, (3, 3), (stride, stride), use_bias=False)(x)
            y = norm(nn.Conv(filters, (3, 3), use_bias=False)(nn.relu(norm(y))))
            if y.shape != x.shape:
                x = norm(nn.Conv(filters, (1, 1), (stride, stride), use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2)))


def by_engine(network: Network, h: Hyperparameters, images: int, epochs: int) -> float:
    """Images per second of one trial."""
    mnist = load_arrays("mnist")
    few = Arrays(
        mnist.x_train[: images + 64],
        mnist.y_train[: images + 64],
        mnist.x_test[:64],
        mnist.y_test[:64],
    )
    dataset = split("mnist", few, validation_split=64 / (images + 64), seed=0)
    moments = []
    engine = Engine(network, dataset, replace(RECIPES["study"], epochs=epochs), 0, jobs=1)
    with engine.run([(Key(0), h)]) as events:
        for event in events:
            if isinstance(event, EpochFinished):
                moments.append(time.perf_counter())
            if isinstance(event, TrialFinished) and event.error:
                raise SystemExit(event.error)
    return images * (epochs - 1) / (moments[-1] - moments[0])


def by_plain_loop(module: nn.Module, flags: dict[str, Any], images: int, epochs: int) -> float:
    """Images per second of the loop that Flax's documentation shows, a step at a time."""
    mnist = load_arrays("mnist")
    x = mnist.x_train[:images].astype(np.float32) / 255
    y = mnist.y_train[:images].astype(np.int32)
    variables = jax.jit(lambda key: module.init(key, x[:1], **flags))(jax.random.key(0))
    parameters = variables["params"]
    rest = {name: variables[name] for name in variables if name != "params"}
    adam = optax.adam(1e-3)
    state = adam.init(parameters)

    @jax.jit
    def step(parameters: Any, rest: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(parameters: Any) -> Any:
            variables = {"params": parameters, **rest}
            logits, changed = module.apply(variables, x, mutable=list(rest), **flags)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed

        gradient, rest = jax.grad(loss, has_aux=True)(parameters)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(parameters, updates), rest, state

    moments = []
    for epoch in range(epochs):
        order = np.random.default_rng(epoch).permutation(images)
        for first in range(0, images, 128):
            rows = order[first : first + 128]
            parameters, rest, state = step(parameters, rest, state, x[rows], y[rows])
        jax.block_until_ready(parameters)
        moments.append(time.perf_counter())
    return images * (epochs - 1) / (moments[-1] - moments[0])


def by_keras(python: str, network: str, images: int, epochs: int) -> float:
    """Images per second of Keras on TensorFlow, in a process of its own."""
    command = [python, str(PEERS / "keras_own.py"), network, str(images), str(epochs)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(printed.splitlines()[-1])
    print(network, found["parameters"], "parameters,", found["versions"], file=sys.stderr)
    rate: float = found["rate"]
    return rate


def cases(
    images: int, epochs: int, python: str | None
) -> dict[str, dict[str, Callable[[], float]]]:
    """What is measured: by network, each way of training it."""
    found: dict[str, dict[str, Callable[[], float]]] = {}
    nothing = Hyperparameters()
    for case in STUDY_CASES:
        stranger = Stranger(*case)
        found["-".join(str(part) for part in case if part is not None)] = {
            "built-in": lambda case=case: by_engine(STUDY, configuration(*case), images, epochs),
            "own": lambda s=stranger: by_engine(Network(lambda hp: s), nothing, images, epochs),
            "plain Flax loop": lambda s=stranger: by_plain_loop(s, {}, images, epochs),
        }
    for name, peer, module in (
        ("LeNet-5 with BatchNorm", "lenet", LeNet()),
        ("ResNet-8", "resnet", ResNet()),
    ):
        found[name] = {
            "own": lambda m=module: by_engine(Network(lambda hp: m), nothing, images, epochs),
            "plain Flax loop": lambda m=module: by_plain_loop(m, {"train": True}, images, epochs),
        }
        if python is not None:
            found[name]["Keras on TensorFlow"] = lambda peer=peer: by_keras(
                python, peer, images, epochs
            )
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=3840, help="of an epoch")
    parser.add_argument("--epochs", type=int, default=3, help="the first of which compiles")
    parser.add_argument("--python", help="one that has Keras and TensorFlow, to compare with them")
    parser.add_argument("--only", help="networks whose name contains this")
    given = parser.parse_args()
    print(f"{machine()}; jax {jax.__version__}, flax {flax.__version__}")
    print("| network | trained by | images/s (lowest to highest) | own / it |")
    print("| --- | --- | --- | --- |")
    for network, ways in cases(given.images, given.epochs, given.python).items():
        if given.only and given.only not in network:
            continue
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(given.rounds):
            for way in list(ways) if round_ % 2 == 0 else reversed(list(ways)):
                rates[way].append(ways[way]())
        own = statistics.median(rates["own"])
        for way, found in rates.items():
            median = statistics.median(found)
            spread = f"{median:.0f} ({min(found):.0f} to {max(found):.0f})"
            print(f"| {network} | {way} | {spread} | {own / median:.2f} |", flush=True)


if __name__ == "__main__":
    main()
