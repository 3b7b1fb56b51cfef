"""A network of a person's own: what `build_model(hp)` returns, as an engine asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.errors import NetworkError, UsageError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.built import (
    Batching,
    Built,
    Tried,
    as_transformation,
    last_update,
    random_weights,
)
from jaxmnist.models.convolution import Method, block_size
from jaxmnist.models.module import PlainModule, check_module
from jaxmnist.models.network import (
    NUMBERS,
    DataSpec,
    Images,
    Loss,
    Model,
    Network,
    Outputs,
    Parameters,
    StepInputs,
    in_own_code,
    is_kernel,
    own_modules,
    pixels,
)
from jaxmnist.models.questions import Definition, Distribution, Questions, answers_of, one_step
from jaxmnist.models.rewriting import rewritten, with_last_inputs
from jaxmnist.runs.trial import Computation, Layer
from jaxmnist.settings import OF_OPTIMIZER, RANGED, TrainingSettings, check_training

NAME = "own"  # of the network, in a run's identity
# Of a training, before data are there, where a schedule fails with the one step that is told then.
NOMINAL_STEPS = 1000
MOST_BUILT = 64  # configurations that are kept as they were built
# What a person's function asks for first, or after some answers; None at the end.
Question = tuple[str, Distribution] | None


class FlaxNetwork(Network):
    """The network of a `build_model(hp)`.

    Args:
      build_model: of `Questions`; returns a Flax module, or a pair of it and an Optax optimizer.
      name: what to call it in messages.
    """

    traced = True

    def __init__(self, build_model: Callable[[Questions], Any], name: str = "build_model") -> None:
        if not callable(build_model):
            raise UsageError(f"build_model must be a function of hp, not {build_model!r}")
        self.name = name
        self._build_model = build_model
        self.definition = Definition(NAME, self._ask)
        # What was asked after which answers, by the data: the function needs no second call.
        self._trees: dict[Hashable, dict[tuple[str, ...], Question]] = {}
        # Trials build in threads of their own: a cache of the standard library bears that.
        self._kept = lru_cache(MOST_BUILT)(self._build_as_before)
        self._computations: dict[Hashable, Computation] = {}  # of all that was ever built
        self._built_twice: set[Hashable] = set()
        self._tried: dict[Computation, Tried] = {}

    def __reduce__(self) -> tuple[type[FlaxNetwork], tuple[Any, ...]]:
        """Another process makes it anew of its function."""
        return FlaxNetwork, (self._build_model, self.name)

    def own_modules(self) -> list[ModuleType]:
        """The module of `build_model`, and those beside it."""
        return own_modules(self._build_model)

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

    def built(self, hyperparameters: Hyperparameters, data: DataSpec) -> Built:
        """A configuration, built once and kept.

        Raises `NetworkError` if it can't be built, or if the function asks or returns something
        else when it is called again.
        """
        return self._kept(hyperparameters, data)

    def _build_as_before(self, hyperparameters: Hyperparameters, data: DataSpec) -> Built:
        built = self._build(hyperparameters, data)
        before = self._computations.setdefault((hyperparameters, data), built.computation)
        if different := before.differences(built.computation):
            raise NetworkError(
                f"{self.name} isn't deterministic: two calls with {hyperparameters} returned"
                f" networks with different {different}"
            )
        return built

    def _build(self, hyperparameters: Hyperparameters, data: DataSpec) -> Built:
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

    def tried(self, hyperparameters: Hyperparameters, data: DataSpec) -> Tried:
        """What trying a configuration has shown; that of an equal one is known.

        The function must return the same network twice.
        """
        built = self.built(hyperparameters, data)
        if (hyperparameters, data) not in self._built_twice:
            self._build_as_before(hyperparameters, data)
            self._built_twice.add((hyperparameters, data))
        if built.computation not in self._tried:
            self._tried[built.computation] = built.tried
        return self._tried[built.computation]

    def check(self, hyperparameters: Hyperparameters, data: DataSpec) -> None:
        """Build, trace and try a configuration."""
        self.tried(hyperparameters, data)

    def notes(self, hyperparameters: Hyperparameters, data: DataSpec) -> list[str]:
        """What is taken from it in another way than may be meant."""
        built, tried = self.built(hyperparameters, data), self.tried(hyperparameters, data)
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
        steps = data.steps(hyperparameters)
        if built.optimizer is not None:
            last = last_update(built.optimizer, built.plain.shapes["params"], steps)
            if last < steps:
                found.append(
                    f"the optimizer stops changing the weights after step {last} of {steps}"
                    f" {with_these}: give its schedule hp.steps steps"
                )
        return found

    def computation(self, hyperparameters: Hyperparameters, data: DataSpec) -> Computation:
        """Hashes of its initial weights, training and evaluation."""
        return self.built(hyperparameters, data).computation

    def rounding(self, hyperparameters: Hyperparameters, data: DataSpec) -> float:
        """By the coarsest type that it computes in."""
        return self.built(hyperparameters, data).rounding

    def random_weights(self, weights: Parameters) -> dict[str, Any]:
        """See `built.random_weights`."""
        return random_weights(weights, 0)

    def logits(
        self,
        hyperparameters: Hyperparameters,
        data: DataSpec,
        weights: Parameters,
        images: np.ndarray,
    ) -> np.ndarray:
        """The logits in evaluation."""
        return self.built(hyperparameters, data).outputs(weights, images)

    def layers(self, hyperparameters: Hyperparameters, data: DataSpec) -> tuple[Layer, ...]:
        """The modules that have parameters or no modules within; none if it can't be built."""
        try:
            return _layers(self.built(hyperparameters, data).plain)
        except Exception:  # its trial fails, and says why
            return ()

    def initial_parameters(
        self, hyperparameters: Hyperparameters, data: DataSpec, *, seed: int, index: int
    ) -> dict[str, Any]:
        """The module's own initial variables, with a key from (seed, index)."""
        self.check(hyperparameters, data)
        return self.built(hyperparameters, data).variables(seed, index)

    def shapes(self, hyperparameters: Hyperparameters, data: DataSpec) -> dict[str, Any]:
        """A tree with the shape and dtype of every variable."""
        return self.built(hyperparameters, data).plain.shapes

    def split(self, weights: Parameters) -> tuple[Parameters, Any]:
        """Flax's variables as the parameters and the other collections."""
        return weights["params"], {name: weights[name] for name in weights if name != "params"}

    def join(self, parameters: Parameters, collections: Any) -> dict[str, Any]:
        """Flax's variables."""
        return {"params": parameters, **collections}

    def decayed(self, hyperparameters: Hyperparameters, data: DataSpec) -> Any:
        """Kernels that receive a gradient: fixed weights stay as they are."""
        built = self.built(hyperparameters, data)
        kernels = jax.tree_util.tree_map_with_path(is_kernel, built.plain.shapes["params"])
        return jax.tree.map(lambda kernel, trained: kernel and trained, kernels, built.trained)

    def model(
        self, hyperparameters: Hyperparameters, data: DataSpec, method: Method, precision: str
    ) -> FlaxModel:
        """The model of a configuration."""
        built = self.built(hyperparameters, data)
        return FlaxModel(
            built.plain,
            lambda: self.batching(hyperparameters, data),
            method == "tiles",
            precision,
            data.scale,
        )

    def block_size(
        self, hyperparameters: Hyperparameters, data: DataSpec, platform: str, batch_size: int
    ) -> int:
        """A CPU's blocks where images don't depend on each other, else the whole batch."""
        if self.batching(hyperparameters, data) == "independent":
            return block_size(platform, batch_size)
        return batch_size

    def fills_batches(self, hyperparameters: Hyperparameters, data: DataSpec) -> bool:
        """Whether images that don't count change nothing, tried by number."""
        return self.batching(hyperparameters, data) != "exact"

    def optimizer(
        self, hyperparameters: Hyperparameters, data: DataSpec
    ) -> optax.GradientTransformation | None:
        """What was returned beside the module."""
        return self.built(hyperparameters, data).optimizer

    def training(
        self, settings: TrainingSettings, hyperparameters: Hyperparameters, data: DataSpec
    ) -> TrainingSettings:
        """An optimizer of its own has its numbers in it, whatever else the network asks for."""
        if self.optimizer(hyperparameters, data) is None:
            return settings.for_trial(hyperparameters)
        return settings.for_trial(
            {name: value for name, value in hyperparameters.items() if name not in OF_OPTIMIZER}
        )

    def program_key(self, hyperparameters: Hyperparameters, data: DataSpec) -> Hashable:
        """The hyperparameters, but for the numbers of training that the module doesn't use."""
        without = super().program_key(hyperparameters, data)
        if without == hyperparameters:
            return hyperparameters
        try:
            other = hyperparameters.replace(
                **{name: 0.5 for name in NUMBERS if name in hyperparameters}
            )
            ours = self.built(hyperparameters, data)
            same = ours.optimizer is None and (
                ours.computation == self._build(other, data).computation
            )
        except Exception:  # its trial says why
            return hyperparameters
        return without if same else hyperparameters

    def batching(self, hyperparameters: Hyperparameters, data: DataSpec) -> Batching:
        """How images of a batch depend on each other in training, tried with some of them.

        What is found counts for this configuration alone: another one may normalise over another
        axis.
        """
        return self.tried(hyperparameters, data).batching


@dataclass(frozen=True, eq=False)
class FlaxModel(Model):
    """The pure functions of a module.

    batching: returns how images depend on each other, which training alone must know.
    rewrite: compute convolutions and pooling from slices, as is best on a CPU.
    precision: see `TrainingSettings`. scale: what pixels are divided by; see `Dataset`.
    """

    plain: PlainModule
    batching: Callable[[], Batching]
    rewrite: bool
    precision: str
    scale: float

    def outputs(
        self, parameters: Parameters, images: jax.Array, collections: Any = None
    ) -> Outputs:
        """Logits and features: what is sown as features, else what goes into the last Dense."""
        run = with_last_inputs(self.plain.apply_in_evaluation, rewrite=self.rewrite)
        variables = self._cast({"params": parameters, **(collections or {})})
        with self._matmul_precision():
            (logits, sown), inputs = run(variables, self._pixels(images))
        features = inputs if sown is None else sown
        flat = features.reshape(images.shape[0], -1)  # which may be symbolic
        return Outputs(self._float(logits), self._float(flat))

    def gradient(
        self,
        parameters: Parameters,
        images: Images,
        loss: Loss,
        blocks: jax.Array,
        inputs: StepInputs,
    ) -> tuple[Any, Any, Any]:
        """The gradient; block by block where images don't depend on each other."""

        masked = self.batching() == "masked"

        def of_block(
            parameters: Parameters, block: jax.Array, key: jax.Array
        ) -> tuple[jax.Array, Any]:
            """A block's share of the loss; its sums, and the collections afterwards."""
            present = block >= 0 if masked else None

            def apply(variables: Any, images: jax.Array) -> Any:
                return self.plain.apply_in_training(variables, images, key, present)

            run = rewritten(apply) if self.rewrite else apply
            variables = self._cast({"params": parameters, **inputs.collections})
            logits, collections = run(variables, self._pixels(images(block)))
            value, sums = loss(self._float(logits), block)
            like = inputs.collections
            kept = jax.tree.map(lambda x, old: x.astype(old.dtype), collections, like)
            return value, (sums, kept)

        differentiate = jax.grad(of_block, has_aux=True)
        with self._matmul_precision():
            if len(blocks) == 1:
                gradient, (sums, collections) = differentiate(parameters, blocks[0], inputs.key)
                return gradient, sums, collections

            def add_block(total: Any, item: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
                block, number = item
                key = jax.random.fold_in(inputs.key, number)
                gradient, (sums, _) = differentiate(parameters, block, key)
                return jax.tree.map(jnp.add, total, gradient), sums

            nothing = jax.tree.map(jnp.zeros_like, parameters)
            numbers = jnp.arange(len(blocks))
            gradient, sums = jax.lax.scan(add_block, nothing, (blocks, numbers))
        total = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), sums)
        return gradient, total, inputs.collections

    def _pixels(self, images: jax.Array) -> jax.Array:
        return pixels(images, self.scale, self.precision)

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


def _layers(plain: PlainModule) -> tuple[Layer, ...]:
    """The table of a module's layers, in the order in which they are called."""
    rows: dict[tuple[str, ...], tuple[str, tuple[int, ...]]] = {}
    parents: set[tuple[str, ...]] = set()

    def note(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        value = method(*arguments, **keywords)
        path = tuple(context.module.path)
        if context.method_name == "__call__" and hasattr(value, "shape"):
            rows.pop(path, None)
            rows[path] = type(context.module).__name__, tuple(value.shape[1:])
            parents.update(path[:length] for length in range(len(path)))
        return value

    with nn.intercept_methods(note):
        image = jax.ShapeDtypeStruct((1, *plain.image_shape), np.float32)
        jax.eval_shape(plain.apply_in_evaluation, plain.shapes, image)
    counts: dict[tuple[str, ...], int] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(plain.shapes["params"])[0]:
        names = tuple(str(getattr(key, "key", key)) for key in path)
        owner = max((row for row in rows if names[: len(row)] == row), key=len, default=())
        counts[owner] = counts.get(owner, 0) + int(np.prod(leaf.shape))
    shown = [path for path in rows if path not in parents or counts.get(path)]
    return tuple(
        Layer("/".join(path) or "network", rows[path][0], rows[path][1], counts.get(path, 0))
        for path in shown
    )
