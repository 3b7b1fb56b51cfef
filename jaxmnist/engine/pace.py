"""How fast this machine trains a configuration, measured by a few steps, whose results are lost."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import mean

import jax
import numpy as np

from jaxmnist.engine.estimates import COSTS
from jaxmnist.engine.lanes import Group
from jaxmnist.engine.local import CPU_STEPS, STEPS, Engine
from jaxmnist.engine.stacking import Stacking
from jaxmnist.hyperparameters import Hyperparameters

LEAST_SECONDS = 1.0  # of training that is timed, after a first block of steps


@dataclass(frozen=True)
class Pace:
    """The speed of training one configuration while others train beside it.

    hyperparameters: the configuration.
    step: wall seconds of one of its training steps.
    compiling: wall seconds until a trial has its two programs, compiled or read from the cache.
    steps: the steps that were timed.
    together: how many trials trained at once.
    """

    hyperparameters: Hyperparameters
    step: float
    compiling: float
    steps: int
    together: int


def measure(
    engine: Engine,
    hyperparameters: Hyperparameters,
    jobs: int,
    beside: Iterable[Hyperparameters] = (),
) -> Pace:
    """Train a configuration from fresh weights for some steps, as many times at once as a search.

    Args:
      engine: of the search, without `lanes`. Nothing is recorded, and there are no events.
      hyperparameters: the configuration.
      jobs: groups of trials that train at once; a group has a trial on each device.
      beside: other configurations, whose programs the other jobs compile meanwhile.
    """
    devices = engine.builder.devices.count
    stacking = engine.stacking = engine.stacking or Stacking(lanes=devices)

    def group_of(drawn: Hyperparameters) -> Group:
        """A group that trains the configuration on each device."""
        return engine.builder.groups([(lane, drawn) for lane in range(devices)], stacking)[0]

    def programs(drawn: Hyperparameters) -> tuple[jax.stages.Compiled, float]:
        """The training program of a configuration, and the seconds of compiling both."""
        began = time.perf_counter()
        train, _ = [compiler() for compiler in engine.compilers(group_of(drawn))]
        return train, time.perf_counter() - began

    with ThreadPoolExecutor(jobs) as pool:
        own, *others = [pool.submit(programs, each) for each in (hyperparameters, *beside)]
    train = own.result()[0]
    # A configuration that can't be compiled fails as a trial, not here.
    compiling = mean(found.result()[1] for found in (own, *others) if not found.exception())
    group = group_of(hyperparameters)
    order = engine.builder.batches_of(group, 0)
    last = min(CPU_STEPS if engine.platform == "cpu" else STEPS, len(order))
    block = (*engine.builder.train, order, np.int32(0), np.int32(last), np.int32(0))

    def steps(job: int) -> tuple[int, float]:
        """A number of steps, and their seconds."""
        state, done = jax.block_until_ready(train(engine.builder.start(group, {}), *block)), 0
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < LEAST_SECONDS:
            state, done = jax.block_until_ready(train(state, *block)), done + last
        return done, spent

    with ThreadPoolExecutor(jobs) as pool:
        timed = list(pool.map(steps, range(jobs)))
    done = sum(count for count, _ in timed)
    return Pace(
        hyperparameters, sum(spent for _, spent in timed) / done, compiling, done, jobs * devices
    )


def relative(engine: Engine, hyperparameters: Hyperparameters) -> float:
    """About how long a training step of a configuration takes, to be compared with another's.

    The estimate of `estimates.Costs`, by the network's multiplications and outputs.
    """
    costs = COSTS.get(engine.platform, COSTS["gpu"])["alone"]
    layers = engine.network.layers(hyperparameters, engine.builder.data)
    return costs.step_seconds(layers, engine.builder.settings_of(hyperparameters).batch_size)
