"""A network, as a function of its hyperparameters and bound to a configuration and data."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxmnist.errors import NetworkError, UsageError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models import study
from jaxmnist.models.built import (
    Batching,
    Built,
    Tried,
    as_transformation,
    last_update,
    random_weights,
)
from jaxmnist.models.convolution import Method, block_size, transposed_product
from jaxmnist.models.interface import (
    NUMBERS,
    ZERO_IS_NONE,
    DataSpec,
    Images,
    Loss,
    Outputs,
    Parameters,
    is_kernel,
    pixels,
)
from jaxmnist.models.module import PlainModule, check_module
from jaxmnist.models.own_code import in_own_code, own_modules
from jaxmnist.models.questions import Definition, Distribution, Questions, answers_of, one_step
from jaxmnist.models.rewriting import Rewriting, rewritten, with_last_inputs
from jaxmnist.runs.trial import Computation, Layer
from jaxmnist.settings import OF_OPTIMIZER, RANGED, TrainingSettings, check_training

NAME = "own"  # of a person's network, in a run's identity
# Of a training, before data are there, where a schedule fails with the one step that is told then.
NOMINAL_STEPS = 1000
MOST_BUILT = 64  # configurations that are kept as they were built
# What a person's function asks for first, or after some answers; None at the end.
Question = tuple[str, Distribution] | None


@dataclass(frozen=True)
class Known:
    """What this package declares of a network of its own, which then needs no trying.

    definition: its name, and its hyperparameters, which are asked for without Flax.
    draw: maps (the variables' shapes, seed, index) to a trial's initial variables, of the module's
      own distributions: compiling its initializers would take seconds for each configuration.
    paddings: multiples to which hyperparameters may be padded, by name, the narrowest first: trials
      that are padded to equal ones share programs.
    pads: whether a configuration may be padded.
    resize: maps (parameters, their shapes in another configuration, the two configurations) to the
      parameters in these shapes: zeros are added that change no output, or cut off.
    """

    definition: Definition
    draw: Callable[[Any, int, int], dict[str, Any]]
    paddings: tuple[Mapping[str, int], ...]
    pads: Callable[[Hyperparameters], bool]
    resize: Callable[[Parameters, Any, Hyperparameters, Hyperparameters], dict[str, Any]]


class Network:
    """The network of a `build_model(hp)`.

    Args:
      build_model: of `Questions`; returns a Flax module, or a pair of it and an Optax optimizer.
      name: what to call it in messages.
      known: of a network of this package; None for a person's own.

    Attributes:
      definition: its name and hyperparameters.
    """

    def __init__(
        self,
        build_model: Callable[[Questions], Any],
        name: str = "build_model",
        known: Known | None = None,
    ) -> None:
        if not callable(build_model):
            raise UsageError(f"build_model must be a function of hp, not {build_model!r}")
        self.name = name
        self.known = known
        self._build_model = build_model
        self.definition = known.definition if known else Definition(NAME, self._ask)
        # What was asked after which answers, by the data: the function needs no second call.
        self._trees: dict[Hashable, dict[tuple[str, ...], Question]] = {}
        # Trials build in threads of their own: a cache of the standard library bears that.
        self._bound = lru_cache(MOST_BUILT)(lambda h, data: BoundNetwork(self, h, data))
        self._computations: dict[Hashable, Computation] = {}  # of all that was ever built
        self._built_twice: set[Hashable] = set()
        self._tried: dict[Computation, Tried] = {}

    def __reduce__(self) -> tuple[type[Network], tuple[Any, ...]]:
        """Another process makes it anew of its function."""
        return Network, (self._build_model, self.name, self.known)

    def own_modules(self) -> list[ModuleType]:
        """The modules that a person wrote for it, which other machines need not have."""
        return own_modules(self._build_model)

    def bind(self, hyperparameters: Hyperparameters, data: DataSpec) -> BoundNetwork:
        """The network of a configuration, for such data; it is built when it is first needed."""
        bound: BoundNetwork = self._bound(hyperparameters, data)
        return bound

    # --- asking ---

    def _ask(self, hp: Questions) -> None:
        """Ask for the hyperparameters: what was asked before is known.

        A configuration that raises when it is built fails as a trial.
        """
        steps = getattr(hp.steps_of, "__self__", hp.steps_of)  # the data that have the method
        tree = self._trees.setdefault((hp.image_shape, hp.classes, steps), {})
        path: tuple[str, ...] = ()
        while path in tree:
            question = tree[path]
            if question is None:
                return
            path += (json.dumps(hp.ask_as_declared(*question)),)

        def answer(name: str, declared: Distribution) -> Any:
            nonlocal path
            if name in hp:
                return hp.get(name)
            value = hp.ask_as_declared(name, declared)
            tree[path] = name, declared
            path += (json.dumps(value),)
            return value

        def build(steps_of: Callable[[Mapping[str, Any]], int]) -> None:
            asking = Questions(
                answer, image_shape=hp.image_shape, classes=hp.classes, steps_of=steps_of
            )
            with in_own_code():
                found = self._build_model(asking)
                if not hp.asked:
                    self._parts(found)
            if not isinstance(found, tuple):
                check_training(hp.values)

        try:
            try:
                build(hp.steps_of)
            except NetworkError:
                if hp.steps_of is not one_step:
                    raise
                build(lambda values: NOMINAL_STEPS)  # a schedule may want more than one
        except NetworkError as problem:
            if not hp.asked:  # it fails whatever the hyperparameters are
                line = f"{self.name} fails: {problem}"
                raise NetworkError(line, problem.traceback) from problem.__cause__
        tree[path] = None

    # --- building ---

    def _parts(self, found: Any) -> tuple[nn.Module, optax.GradientTransformation | None]:
        """What the function returned, checked."""
        optimizer = None
        if isinstance(found, tuple):
            if len(found) != 2:
                raise NetworkError(
                    f"{self.name} must return a Flax module, or a module and an Optax optimizer,"
                    f" not {len(found)} values"
                )
            found, optimizer = found
            optimizer = as_transformation(optimizer)
        return check_module(found), optimizer

    def build(self, bound: BoundNetwork) -> Built:
        """A configuration of this network, built anew.

        Raises `NetworkError` if it can't be built, or if the function asks for something else when
        it is called again.
        """
        hyperparameters, data = bound.hyperparameters, bound.data
        hp = Questions(
            answers_of(hyperparameters),
            image_shape=data.image_shape,
            classes=data.classes,
            steps_of=lambda values: data.steps({**hyperparameters, **values}),
        )
        try:
            with in_own_code():
                found = self._build_model(hp)
        except NetworkError:
            raise
        except UsageError as problem:  # it asks for something else than it did before
            raise NetworkError(f"{self.name}: {problem}") from problem
        if left := [name for name in hyperparameters if name not in (*hp.asked, *RANGED)]:
            raise NetworkError(
                f"{self.name} asked for {', '.join(left)} before, and doesn't now, with the same"
                f" answers ({hyperparameters})"
            )
        with in_own_code():
            module, optimizer = self._parts(found)
        plain = PlainModule(module, data.image_shape).complete()
        return Built(plain, optimizer, data.classes)

    def build_as_before(self, bound: BoundNetwork) -> Built:
        """As `build`; `NetworkError` if it computes something else than it did before."""
        built = self.build(bound)
        if self.known:
            return built
        before = self._computations.setdefault(bound.key, built.computation)
        if different := before.differences(built.computation):
            raise NetworkError(
                f"{self.name} isn't deterministic: two calls with {bound.hyperparameters} returned"
                f" networks with different {different}"
            )
        return built

    def tried(self, bound: BoundNetwork) -> Tried:
        """What trying a configuration has shown; that of an equal one is known.

        The function must return the same network twice.
        """
        if self.known:
            return Tried("independent", independent=True, bounded=False)
        built = bound.built
        if bound.key not in self._built_twice:
            self.build_as_before(bound)
            self._built_twice.add(bound.key)
        if built.computation not in self._tried:
            self._tried[built.computation] = built.tried
        return self._tried[built.computation]


@dataclass(frozen=True, eq=False)
class BoundNetwork:
    """A network of one configuration, for data of one shape; `NetworkError` if it can't be built.

    network: whose configuration it is.
    """

    network: Network
    hyperparameters: Hyperparameters
    data: DataSpec

    @property
    def key(self) -> tuple[Hyperparameters, DataSpec]:
        """What tells it from others of its network."""
        return self.hyperparameters, self.data

    @cached_property
    def built(self) -> Built:
        """The configuration, built once."""
        return self.network.build_as_before(self)

    @cached_property
    def tried(self) -> Tried:
        """What trying it has shown."""
        return self.network.tried(self)

    def check(self) -> None:
        """Build, trace and try it; `NetworkError` if it can't be trained as it is meant."""
        self.tried  # noqa: B018

    # --- what a person sees ---

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layer table, in the order in which data passes; empty if it can't be built."""
        try:
            return self.built.layers
        except Exception:  # its trial fails, and says why
            return ()

    @property
    def notes(self) -> list[str]:
        """What a user should know: what is taken from it in another way than may be meant."""
        if self.network.known:
            return []
        built, tried, hyperparameters = self.built, self.tried, self.hyperparameters
        found: list[str] = []
        found += [f"the logits are {said}" for said in built.traced.outputs]
        if kept := built.plain.defaulted_arguments:
            found.append(
                f"__call__ keeps the default of its argument {' and '.join(kept)}: a flag for"
                " training must be called train, training or the like"
            )
        if built.plain.sown:
            names = " and ".join(built.plain.sown)
            found.append(f"the loss ignores what the network sows as {names}")
        with_these = f"(tried with {hyperparameters})" if hyperparameters else "(tried)"
        if not tried.independent:
            found.append(
                "in evaluation an image's output depends on the other images of its batch"
                f" {with_these}, and so do accuracies and predictions"
            )
        if tried.bounded:
            found.append(
                "the network's outputs lie between -1 and 1, which limits how sure it can be"
                f" {with_these}: leave out an activation such as tanh after the last layer"
            )
        steps = self.data.steps(hyperparameters)
        if built.optimizer is not None:
            last = last_update(built.optimizer, built.plain.shapes["params"], steps)
            if last < steps:
                found.append(
                    f"the optimizer stops changing the weights after step {last} of {steps}"
                    f" {with_these}: give its schedule hp.steps steps"
                )
        return found

    # --- what belongs to a run's identity ---

    @property
    def computation(self) -> Computation | None:
        """Hashes of its initial weights, training and evaluation; None of a known network."""
        return None if self.network.known else self.built.computation

    @property
    def rounding(self) -> float:
        """How far logits that are equal but for rounding may differ, relative to the largest.

        By the coarsest type that it computes in.
        """
        return self.built.rounding

    def random_weights(self, weights: Parameters) -> dict[str, Any]:
        """Weights with random parameters, the same for equal shapes: no layer is zero."""
        return random_weights(weights, 0)

    def logits(self, weights: Parameters, images: np.ndarray) -> np.ndarray:
        """Logits float32[N, K] of a few images float32[N, H, W, C] from 0 to 1, by these weights.

        As in evaluation, computed on the host.
        """
        return self.built.outputs(weights, images)

    # --- weights ---

    @property
    def shapes(self) -> dict[str, Any]:
        """A tree with the shape and dtype of every variable: see `interface.split_weights`."""
        return self.built.plain.shapes

    def initial_weights(self, seed: int, index: int) -> dict[str, Any]:
        """The initial weights of trial `index` with `seed`: arrays in host memory.

        The module's own initial variables, with a key from (seed, index); or see `Known.draw`.
        """
        if known := self.network.known:
            return known.draw(self.shapes, seed, index)
        self.check()
        return self.built.variables(seed, index)

    @cached_property
    def decayed(self) -> Any:
        """Whether weight decay applies to each parameter, a tree of bools like them.

        It applies to kernels that receive a gradient: fixed weights stay as they are.
        """
        kernels = jax.tree_util.tree_map_with_path(is_kernel, self.shapes["params"])
        if self.network.known:
            return kernels
        return jax.tree.map(lambda kernel, trained: kernel and trained, kernels, self.built.trained)

    @cached_property
    def feature_count(self) -> int:
        """The number of features of an image, D."""
        image = jax.ShapeDtypeStruct((1, *self.data.image_shape), np.float32)
        model = self.model("convolution", "default")
        return int(jax.eval_shape(model.outputs, self.shapes, image).features.shape[1])

    # --- training ---

    @property
    def optimizer(self) -> optax.GradientTransformation | None:
        """What was returned beside the module; None for the optimizer of the settings."""
        return self.built.optimizer

    def training(self, settings: TrainingSettings) -> TrainingSettings:
        """How it is trained: its own hyperparameters of training come first.

        An optimizer of its own has its numbers in it, whatever else the network asks for.
        """
        if self.optimizer is None:
            return settings.for_trial(self.hyperparameters)
        return settings.for_trial(
            {n: value for n, value in self.hyperparameters.items() if n not in OF_OPTIMIZER}
        )

    @property
    def batching(self) -> Batching:
        """How images of a batch depend on each other in training, tried with some of them.

        What is found counts for this configuration alone: another one may normalise over another
        axis.
        """
        return self.tried.batching

    def block_size(self, platform: str, batch_size: int) -> int:
        """The number of images of a batch to compute at a time in training.

        A CPU's blocks where images don't depend on each other, else the whole batch.
        """
        return block_size(platform, batch_size) if self.batching == "independent" else batch_size

    @property
    def fills_batches(self) -> bool:
        """Whether the last batch of an epoch may be filled up with images that don't count."""
        return self.batching != "exact"

    def model(self, method: Method, precision: str) -> Model:
        """Its outputs and gradient; precision: see `TrainingSettings`."""
        return Model(self, method, precision)

    @cached_property
    def program_key(self) -> Hashable:
        """What trials must have in common to share a compiled program, once they are padded.

        The hyperparameters, but for the numbers of training that the module doesn't use; of those
        in `ZERO_IS_NONE` it counts whether they are above 0.
        """
        drawn = self.hyperparameters
        without = Hyperparameters(
            {
                name: value > 0 if name in ZERO_IS_NONE else value
                for name, value in drawn.items()
                if name not in NUMBERS or name in ZERO_IS_NONE
            }
        )
        if without == drawn or self.network.known:
            return without
        try:
            other = drawn.replace(**{name: 0.5 for name in NUMBERS if name in drawn})
            found = self.network.build(replace(self, hyperparameters=other))
            same = self.optimizer is None and self.built.computation == found.computation
        except Exception:  # its trial says why
            return drawn
        return without if same else drawn


@dataclass(frozen=True, eq=False)
class Model:
    """The pure functions of a bound network.

    method: how convolutions are computed. precision: see `TrainingSettings`.
    """

    bound: BoundNetwork
    method: Method
    precision: str

    def outputs(self, weights: Parameters, images: jax.Array) -> Outputs:
        """Logits and features of images, uint8 or float[N, H, W, C], pixels from 0 to `scale`.

        As in an evaluation: nothing is random, and collections stay as they are. Features are what
        the module sows as `features`, else what goes into the Dense layer that makes the logits.
        """
        run = with_last_inputs(self.bound.built.plain.apply_in_evaluation, self.method)
        with self._matmul_precision():
            (logits, sown), inputs = run(self._cast(weights), self._pixels(images))
        features = inputs if sown is None else sown
        flat = features.reshape(images.shape[0], -1)  # which may be symbolic
        return Outputs(self._float(logits), self._float(flat))

    def probabilities(self, weights: Parameters, images: jax.Array) -> jax.Array:
        """The probability of each class, float32[N, classes], for images as `outputs` takes them.

        N may be symbolic.
        """
        logits = self.outputs(weights, images).logits
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def gradient(
        self,
        parameters: Parameters,
        collections: Any,
        images: Images,
        loss: Loss,
        blocks: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, Any, Any]:
        """The gradient of a loss that is a sum over images.

        Args:
          parameters, collections: the weights before the step.
          images: returns the images of a block.
          loss: returns a block's share of the loss, a scalar, and a tree of sums.
          blocks: int32[K, B], the image indices of each of the K blocks; K is 1 unless `block_size`
            divides batches. Some indices may stand for no image.
          key: of the step, for all that is random in it: see `stream_key`.

        Returns:
          The gradient, a tree like `parameters`, the sums over all blocks, and the collections
          after the step.
        """
        with self._matmul_precision():
            if len(blocks) > 1:
                return *self._by_blocks(parameters, images, loss, blocks, key), collections

            def of_batch(parameters: Parameters) -> tuple[jax.Array, Any]:
                run = rewritten(self._apply(blocks[0], key), self.method)
                weights = {"params": parameters, **collections}
                logits, after = run(weights, images(blocks[0]))
                value, sums = loss(logits, blocks[0])
                kept = jax.tree.map(lambda x, old: x.astype(old.dtype), after, collections)
                return value, (sums, kept)

            gradient, (sums, after) = jax.grad(of_batch, has_aux=True)(parameters)
            return gradient, sums, after

    def _by_blocks(
        self,
        parameters: Parameters,
        images: Images,
        loss: Loss,
        blocks: jax.Array,
        key: jax.Array,
    ) -> tuple[Any, Any]:
        """The gradient and the sums, a block at a time, so that activations stay in a CPU's cache.

        Gradients are added up over the blocks, but not those of dense layers, as that would move
        all their weights for each block. The gradient of a dense kernel is the product of its
        inputs and the derivative with respect to its outputs: both are kept for all blocks, and
        multiplied once.
        """
        leaves, structure = jax.tree.flatten(parameters)

        def apply(parameters: Parameters, images: jax.Array, key: jax.Array) -> jax.Array:
            logits: jax.Array = self._apply(None, key)({"params": parameters}, images)[0]
            return logits

        traced = Rewriting(apply, parameters, images(blocks[0]), key, method=self.method)
        dense = traced.dense_products(range(len(leaves)), blocks.shape[1])
        others = {place: leaf for place, leaf in enumerate(leaves) if place not in dense}

        def of_block(
            others: dict[int, jax.Array], added: dict[int, jax.Array], block: jax.Array, key: Any
        ) -> tuple[jax.Array, Any]:
            whole = jax.tree.unflatten(structure, [others.get(i, x) for i, x in enumerate(leaves)])
            logits, inputs = traced.with_factors(added, whole, images(block), key)
            value, sums = loss(logits, block)
            return value, (sums, inputs)

        def add_block(total: Any, item: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
            block, number = item
            # Zeros, to get the derivatives with respect to the outputs of dense layers.
            zeros = {place: jnp.zeros(x.shape, x.dtype) for place, x in dense.items()}
            (gradient, derivatives), (sums, inputs) = jax.grad(of_block, (0, 1), has_aux=True)(
                others, zeros, block, jax.random.fold_in(key, number)
            )
            return jax.tree.map(jnp.add, total, gradient), (sums, inputs, derivatives)

        nothing = jax.tree.map(jnp.zeros_like, others)
        numbered = blocks, jnp.arange(len(blocks))
        gradient, (sums, inputs, derivatives) = lax.scan(add_block, nothing, numbered)
        for place in dense:
            x, derivative = (
                kept[place].reshape(-1, kept[place].shape[-1]) for kept in (inputs, derivatives)
            )
            gradient[place] = transposed_product(x, derivative).astype(x.dtype)
        total = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)
        return jax.tree.unflatten(structure, [gradient[i] for i in range(len(leaves))]), total

    def _apply(
        self, block: jax.Array | None, key: jax.Array
    ) -> Callable[[Any, jax.Array], tuple[jax.Array, Any]]:
        """The function of (weights, images) that gives logits in training, and the collections.

        block: the indices of the images; those of no image are left out of BatchNorm's statistics.
        """
        masked = self.bound.batching == "masked"
        present = None if block is None or not masked else block >= 0

        def apply(weights: Any, images: jax.Array) -> tuple[jax.Array, Any]:
            plain = self.bound.built.plain
            logits, after = plain.apply_in_training(
                self._cast(weights), self._pixels(images), key, present
            )
            return self._float(logits), after

        return apply

    def _pixels(self, images: jax.Array) -> jax.Array:
        return pixels(images, self.bound.data.scale, self.precision)

    def _cast(self, variables: Any) -> Any:
        if self.precision != "bfloat16":
            return variables
        return jax.tree.map(
            lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, variables
        )

    def _float(self, x: jax.Array) -> jax.Array:
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    def _matmul_precision(self) -> Any:
        return jax.default_matmul_precision("highest" if self.precision == "highest" else "default")


STUDY = Network(
    study.build_model,
    "the study's network",
    Known(study.DEFINITION, study.draw, study.PADDINGS, study.pads, study.resize),
)
