"""The programs and states of a network's configurations on a platform's devices."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.engine.events import Checkpoint
from jaxmnist.engine.lanes import Devices, Group, group_trials
from jaxmnist.engine.packing import Packing
from jaxmnist.engine.programs import Compilers
from jaxmnist.engine.seeds import order_seed, weights_seed
from jaxmnist.engine.stacking import Stacking
from jaxmnist.engine.training import (
    TrainingState,
    batches,
    constants_of,
    epoch_order,
    evaluate,
    first_state,
    frozen_where_diverged,
    train_block,
)
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import block_size
from jaxmnist.models.loading import in_own_code
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.runs.keys import TrialKey, index_of
from jaxmnist.training_settings import TrainingSettings

Arguments = tuple[Any, ...]
# On a CPU, most of the work is in precompiled matrix products: optimizing the rest further doesn't
# make training faster, but compiling competes with it for cores. (Level 0 is four times slower.)
COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}


@dataclass
class Builder:
    """Makes what trains a network's configurations on one dataset, whose images are on the devices.

    train: the training images and labels on the devices.
    evaluated: images, labels and batches of an evaluation: the validation images, or else some
      training images.
    data: the dataset's properties that the network depends on.
    """

    network: Network
    dataset: Dataset
    settings: TrainingSettings
    seed: int
    platform: str
    devices: Devices

    def __post_init__(self) -> None:
        dataset, everywhere = self.dataset, self.devices.everywhere
        self.data = DataSpec.of(dataset, self.settings)
        self.train = jax.device_put((dataset.x_train, dataset.y_train), everywhere)
        # Evaluation doesn't depend on a batch size, so it uses the platform's preferred one.
        size, validated = block_size(self.platform, 1024), len(dataset.y_validation)
        images = (dataset.x_validation, dataset.y_validation) if validated else self.train
        order = np.arange(validated or min(size, len(dataset.y_train)), dtype=np.int32)
        evaluated = (*images, batches(order, size, size)[:, 0])
        self.evaluated = jax.device_put(evaluated, everywhere)

    def settings_of(self, hyperparameters: Hyperparameters) -> TrainingSettings:
        """How a configuration is trained."""
        settings = self.network.training(self.settings, hyperparameters, self.data)
        # A batch larger than the data is one short batch; no need to compute its padding.
        return replace(settings, batch_size=min(settings.batch_size, len(self.dataset.y_train)))

    def batches_of(self, group: Group, epoch: int) -> np.ndarray:
        """The batches of an epoch, the same for all trials of a group: int32[S, K, B]."""
        seed = order_seed(self.seed, group.trials[0][0])
        order = epoch_order(len(self.dataset.y_train), seed, epoch)
        size = self.settings_of(group.widest).batch_size
        block = self.network.block_size(group.widest, self.data, self.platform, size)
        return batches(order, size, block)

    def packing_of(self, hyperparameters: Hyperparameters) -> Packing | None:
        """How the weights of a configuration are packed while it trains, on a CPU.

        Not with a network's own optimizer, which need not compute elementwise.
        """
        if self.platform != "cpu" or self.network.optimizer(hyperparameters, self.data):
            return None
        shapes = self.network.shapes(hyperparameters, self.data)
        decayed = self.network.decayed(hyperparameters, self.data)
        return Packing.of(self.network.split(shapes)[0], decayed)

    def groups(
        self,
        trials: Iterable[tuple[TrialKey, Hyperparameters]],
        stacking: Stacking,
        positions: Mapping[TrialKey, Hashable] | None = None,
        *,
        consecutive: bool = False,
    ) -> list[Group]:
        """The trials in groups that can share a program: see `group_trials`."""
        return group_trials(
            trials,
            stacking,
            self.devices.count,
            positions,
            lambda hyperparameters: self.network.program_key(hyperparameters, self.data),
            self.network.pads,
            consecutive,
        )

    def resized(self, tree: Any, hyperparameters: Hyperparameters, resized: Hyperparameters) -> Any:
        """A tree of a configuration's weights or moments, resized to the shapes of another one."""
        if hyperparameters == resized or not self.network.multiples:
            return tree
        if isinstance(tree, TrainingState):
            return tree._replace(
                parameters=self.resized(tree.parameters, hyperparameters, resized),
                optimizer_state=self.resized(tree.optimizer_state, hyperparameters, resized),
            )

        def resize(part: Any) -> Any:
            if not isinstance(part, dict):
                return part  # a count or a sum, which has no shape to resize
            return self.network.resize(part, hyperparameters, resized, self.data)

        return jax.tree.map(resize, tree, is_leaf=lambda part: isinstance(part, dict))

    def start(self, group: Group, checkpoints: Mapping[TrialKey, Checkpoint]) -> TrainingState:
        """The state of a group before its next step; idle lanes repeat the last trial."""
        states: list[TrainingState] = []
        packing = self.packing_of(group.widest)
        for index, hyperparameters in group.trials:
            seeds = {"seed": weights_seed(self.seed, index), "index": index_of(index)}
            if index in checkpoints:
                state = checkpoints[index].state
                # A checkpoint has no constants: they follow from the trial.
                constants = constants_of(
                    self.settings_of(hyperparameters),
                    **seeds,
                    numbers=self.network.numbers(hyperparameters),
                )
                state = state._replace(constants=constants)
            else:
                weights = self.network.initial_parameters(hyperparameters, self.data, **seeds)
                state = first_state(
                    self.network,
                    hyperparameters,
                    self.data,
                    self.settings,
                    weights,
                    **seeds,
                    computed=True,
                )
            state = self.resized(state, hyperparameters, group.widest)
            states.append(packing.packed(state) if packing else state)
        states += states[-1:] * (group.lanes - len(states))
        stack = jax.tree.map(lambda *arrays: np.stack(arrays), *states)
        return cast(TrainingState, jax.device_put(stack, self.devices.by_lane))

    def compilers(self, group: Group, stacking: Stacking) -> Compilers:
        """The functions that compile the training and the evaluation program of a group."""
        options = COMPILER_OPTIONS if self.platform == "cpu" else None

        def compiler(function: Any, arguments: Arguments) -> Callable[[], jax.stages.Compiled]:
            def compiled() -> jax.stages.Compiled:
                with in_own_code() if self.network.traced else nullcontext():
                    lowered = function.lower(*arguments)
                program: jax.stages.Compiled = lowered.compile(options)
                return program

            return compiled

        train, validate = self.functions(group, stacking)
        return compiler(*train), compiler(*validate)

    def functions(
        self, group: Group, stacking: Stacking
    ) -> tuple[tuple[Any, Arguments], tuple[Any, Arguments]]:
        """The jitted training and evaluation functions of a group, with arguments to lower them."""
        by_lane, method = self.devices.by_lane, stacking.method(self.platform)
        shapes = self.network.shapes(group.widest, self.data)
        first = first_state(self.network, group.widest, self.data, self.settings, shapes)
        packing = self.packing_of(group.widest)

        def stacked(tree: Any) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((group.lanes, *x.shape), x.dtype, sharding=by_lane),
                tree,
            )

        state = stacked(jax.eval_shape(packing.packed, first) if packing else first)
        judging, precision = stacking.evaluation_method(self.platform), self.settings.precision
        model = self.network.model(group.widest, self.data, method, precision)
        evaluated = self.network.model(group.widest, self.data, judging, precision)
        step = np.int32(0)
        settings, images = self.settings_of(group.widest), len(self.dataset.y_train)
        fills = self.network.fills_batches(group.widest, self.data)
        tail = 0 if fills else images % settings.batch_size
        own = self.network.optimizer(group.widest, self.data)
        decayed = self.network.decayed(group.widest, self.data)
        train = train_block(model, settings, own, tail, packing, decayed)
        if not stacking.alone:
            train = frozen_where_diverged(train)
        train = jax.jit(self.devices.spread(train, stacking, shared=6), donate_argnums=0)
        validate = jax.jit(self.devices.spread(evaluate(evaluated), stacking, shared=3))
        arguments = (state, *self.train, self.batches_of(group, 0), step, step, step)
        weights = stacked((first.parameters, first.collections))
        return (train, arguments), (validate, (weights, *self.evaluated))
