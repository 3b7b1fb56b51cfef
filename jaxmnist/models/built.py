"""A configuration of a network: its module, traced and tried, its layers, and its optimizer.

What the traced functions show is looked up there. The rest is tried on random images, with the
initial weights and with random ones: a last layer of zeros would hide what is before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, count
from typing import Any, Literal

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from jaxmnist.errors import NetworkError, one_line
from jaxmnist.models import jaxprs
from jaxmnist.models.interface import a_key, by_path
from jaxmnist.models.module import PlainModule, Remarks, fixed_in_training, remarking
from jaxmnist.models.own_code import in_own_code
from jaxmnist.runs.trial import Computation, Layer

# --- An optimizer of a person's own, as the training step can use it ---

MOST_STEPS = 20_000  # that an optimizer is tried for
NOTHING = 1e-6  # of the largest change: what compiled schedules leave of zero


def as_transformation(found: Any) -> optax.GradientTransformation:
    """What was returned beside a module; `NetworkError` unless it is an optimizer of Optax."""
    if isinstance(found, optax.MultiSteps):
        found = found.gradient_transformation()
    if not isinstance(found, optax.GradientTransformation):
        raise NetworkError(
            "what is returned beside the module must be an optimizer of Optax, not a"
            f" {type(found).__name__}"
        )
    return with_plain_keys(found)


def traced_optimizer(found: optax.GradientTransformation, shapes: Any) -> list[Any]:
    """The functions of an optimizer of weights with these shapes, as closed jaxprs.

    Raises `NetworkError` unless it needs gradients and weights alone.
    """
    with in_own_code():
        start = jax.make_jaxpr(found.init)(shapes)
        state = jax.eval_shape(found.init, shapes)
        try:
            return [start, jax.make_jaxpr(found.update)(shapes, state, shapes)]
        except TypeError as problem:
            if "argument" not in one_line(problem):
                raise
            raise NetworkError(
                "the optimizer's update needs more arguments than gradients, state and weights"
                f" ({one_line(problem)}): it can't be used here"
            ) from problem


def last_update(found: optax.GradientTransformation, shapes: Any, steps: int) -> int:
    """The last of `steps` steps at which an optimizer changes weights, counted from 1.

    It is `steps` if later steps only pause, as they did before: an optimizer may sum up the
    gradients of several steps.

    Args:
      found: the optimizer.
      shapes: of the weights; they are tried with one element in place of each dimension.
      steps: of the training, of which the first `MOST_STEPS` are looked at.
    """
    tried = min(steps, MOST_STEPS)

    def small(x: Any) -> jax.Array:
        return jnp.ones((1,) * len(x.shape), x.dtype)

    def step(carry: tuple[Any, Any], _: Any) -> tuple[tuple[Any, Any], jax.Array]:
        weights, state = carry
        updates, state = found.update(weights, state, weights)
        changes = [jnp.abs(change).max().astype(jnp.float32) for change in jax.tree.leaves(updates)]
        return (weights, state), jnp.stack(changes).max()

    @jax.jit
    def run() -> jax.Array:
        weights = jax.tree.map(small, shapes)
        _, changes = jax.lax.scan(step, (weights, found.init(weights)), length=tried)
        return changes

    try:
        with in_own_code():
            changes = np.asarray(run())
    except NetworkError:  # it wants weights of their true shapes
        return steps
    changed = np.flatnonzero(changes > NOTHING * changes.max(initial=0))
    if not changed.size:
        return 0
    pause = int(np.diff(changed, prepend=-1).max())
    last = int(changed[-1]) + 1
    return steps if tried - last < max(pause, 2) else last


def with_plain_keys(found: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, with typed random keys in its state kept as their data, uint32[…, 2].

    A state is copied to the host and written to checkpoints, which know numbers alone.
    """

    def init(weights: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.random.key_data(x) if _is_key(x) else x, found.init(weights)
        )

    def update(gradient: Any, state: Any, weights: Any = None) -> tuple[Any, Any]:
        like = jax.eval_shape(found.init, weights)
        typed = jax.tree.map(
            lambda x, kind: jax.random.wrap_key_data(x, impl=_name(kind)) if _is_key(kind) else x,
            state,
            like,
        )
        updates, after = found.update(gradient, typed, weights)
        plain = jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, after)
        return updates, plain

    return optax.GradientTransformation(init, update)


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)


def _name(key: Any) -> str:
    """The name of the kind of a typed key, 'threefry2x32' say."""
    kinds = []
    jax.eval_shape(lambda key: kinds.append(jax.random.key_impl(key)), key)
    return str(kinds[0])


# --- A configuration ---

KEPT = 4  # images that stay the same where others of their batch are changed
DRAWS = 8  # of random weights
KEYS = 16  # of steps of training
# Options of XLA: random initial weights take it 8 times longer with its usual ones.
QUICKLY: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}
# How images of a batch depend on each other in training: not at all; by BatchNorm's statistics,
# which leave out images that don't count; or in another way.
Batching = Literal["independent", "masked", "exact"]
FLAG = (
    "give __call__ an argument that is called train, and pass it on, as in"
    " nn.BatchNorm(use_running_average=not train) and nn.Dropout(rate, deterministic=not train)"
)
Key = jax.Array


@dataclass(frozen=True)
class Traced:
    """The functions of a configuration as closed jaxprs.

    initial: of a key. evaluation: of variables, two images and a key.
    training: of parameters, other collections, two images and a key, to the gradient with respect
      to the parameters, the logits and the collections afterwards.
    parameters: number of arrays of parameters, the first outputs of `training`.
    outputs: see `Remarks`.
    """

    initial: Any
    evaluation: Any
    training: Any
    parameters: int
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """What trying a configuration has shown.

    batching: see `Batching`. independent: whether outputs in evaluation are the same beside other
    images, and at other places of the batch. bounded: whether they lie between -1 and 1, however
    large the weights are.
    """

    batching: Batching
    independent: bool
    bounded: bool


@dataclass(frozen=True, eq=False)
class Built:
    """A configuration as `build_model` returned it.

    optimizer: None for that of the settings. classes: of the data, K.
    """

    plain: PlainModule
    optimizer: optax.GradientTransformation | None
    classes: int

    @cached_property
    def init(self) -> Callable[[Key], dict[str, Any]]:
        """The compiled function of a key that gives the initial variables."""
        return compiled(self.plain.init)

    @cached_property
    def evaluation(self) -> Callable[..., Any]:
        """The compiled function of variables and images that gives logits."""
        return compiled(
            lambda variables, images: self.plain.apply_in_evaluation(variables, images)[0]
        )

    def variables(self, seed: int, index: int) -> dict[str, Any]:
        """The initial variables of a trial, computed and kept on the host."""
        with in_own_code(), jax.default_device(jax.devices("cpu")[0]):
            found: dict[str, Any] = jax.device_get(
                self.init(jax.random.fold_in(a_key(seed), index))
            )
        return found

    @cached_property
    def traced(self) -> Traced:
        """Its functions, traced; `NetworkError` for what can't be trained as it is meant."""
        remarks, plain = Remarks(), self.plain
        image = jax.ShapeDtypeStruct((2, *plain.image_shape), np.float32)
        key = jax.eval_shape(a_key)
        with in_own_code(), nn.intercept_methods(remarking(remarks)):
            initial = jax.make_jaxpr(plain.init)(key)
            shapes = plain.shapes
            if not jax.tree.leaves(shapes["params"]):
                raise NetworkError("the network has no parameters: there is nothing to train")
            for name, x in by_path(shapes["params"]):
                if not jnp.issubdtype(x.dtype, jnp.inexact):
                    raise NetworkError(
                        f"parameter {name} is {x.dtype}, which has no gradient: make it float32, or"
                        " a variable of another collection"
                    )
            remarks.layer = ""
            try:
                evaluation = jax.make_jaxpr(partial(self._evaluate, remarks))(shapes, image, key)
            except (flax.errors.ModifyScopeVariableError, flax.errors.InvalidRngError) as problem:
                raise fixed_in_training(problem, remarks.layer) from problem
            if jaxprs.depends(evaluation, [0], [len(evaluation.jaxpr.invars) - 1]):
                raise NetworkError(
                    "the network uses random numbers in evaluation: switch them off there, as by"
                    " deterministic=not train"
                )
            others = {name: shapes[name] for name in shapes if name != "params"}
            remarks.training = True
            differentiate = partial(self._differentiate, remarks)
            training = jax.make_jaxpr(differentiate)(shapes["params"], others, image, key)
            dropout = plain.dropout_layers()
        count = len(jax.tree.leaves(shapes["params"]))
        found = Traced(initial, evaluation, training, count, tuple(remarks.outputs))
        self._check_dropout(found, dropout, remarks)
        self._check_outputs_agree(found)
        return found

    def _evaluate(self, remarks: Remarks, variables: Any, images: jax.Array, key: Key) -> Any:
        logits, features = self.plain.apply_in_evaluation(variables, images, key, remarks)
        return self._checked(logits), features

    def _differentiate(
        self, remarks: Remarks, parameters: Any, collections: Any, images: jax.Array, key: Key
    ) -> Any:
        """The gradient of a smooth function of the logits, these, and the collections."""

        def loss(parameters: Any) -> tuple[jax.Array, Any]:
            variables = {"params": parameters, **collections}
            logits, after = self.plain.apply_in_training(variables, images, key, None, remarks)
            logits = self._checked(logits)
            return -jax.nn.log_softmax(logits.astype(jnp.float32))[:, 0].sum(), (logits, after)

        return jax.grad(loss, has_aux=True)(parameters)

    def _checked(self, logits: Any) -> Any:
        """Logits of two images, if they are such."""
        shape = getattr(logits, "shape", None)
        if shape != (2, self.classes):
            found = type(logits).__name__ if shape is None else shape
            raise NetworkError(
                f"the network must return logits of shape (N, {self.classes}), and returns"
                f" {found} for 2 images: end it with a layer of hp.classes outputs and no"
                " activation"
            )
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise NetworkError(f"the network must return floats as logits, not {logits.dtype}")
        return logits

    def _check_dropout(self, found: Traced, dropout: list[str], remarks: Remarks) -> None:
        """Raise `NetworkError` if a dropout layer with a rate above 0 has no effect in training.

        dropout: those of an NNX module, which have none if the outputs use no random numbers.
        """
        last = len(found.training.jaxpr.invars) - 1
        random = jaxprs.depends(found.training, [found.parameters], [last])
        dead = [name for name, acts in remarks.acting.items() if not acts]
        dead += [] if random else [*remarks.dropout, *dropout]
        if dead:
            raise NetworkError(f"dropout layer {dead[0]} has no effect in training: {FLAG}")

    def _check_outputs_agree(self, found: Traced) -> None:
        """Raise `NetworkError` if logits are taken from other layers in training.

        Then what makes those of evaluation gets no gradient. Only where the module returns them in
        another way in training: fixed layers are ordinary.
        """
        words = [said.rpartition(" in ")[0] for said in found.outputs]
        if len(words) != 1 and len(set(words)) < 2:
            return
        leaves = jax.tree_util.tree_leaves_with_path(self.plain.shapes)
        places = [place for place, (path, _) in enumerate(leaves) if path[0].key == "params"]
        for number, place in enumerate(places):
            unused = jaxprs.is_zero(found.training, number)
            if unused and jaxprs.depends(found.evaluation, [0], [place]):
                name = "/".join(str(getattr(key, "key", key)) for key in leaves[place][0][1:])
                raise NetworkError(
                    f"the logits are others in training, {found.outputs[-1]}, and don't train"
                    f" parameter {name}: return the same logits first in both modes"
                )

    @cached_property
    def computation(self) -> Computation:
        """Hashes of what it computes, constants included."""
        traced = self.traced
        training = [traced.training]
        if self.optimizer is not None:
            training += traced_optimizer(self.optimizer, self.plain.shapes["params"])
        names = "/".join(map(str, jax.tree_util.tree_leaves_with_path(self.plain.shapes)))
        return Computation(
            f"jax {jax.__version__}, flax {flax.__version__}",
            jaxprs.sha256(traced.initial, names),
            jaxprs.sha256(*training),
            jaxprs.sha256(traced.evaluation),
        )

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layer table, in the order in which data passes."""
        return layer_table(self.plain)

    @property
    def trained(self) -> Any:
        """Whether each parameter receives a gradient, a tree of bools like them."""
        places = range(self.traced.parameters)
        found = [not jaxprs.is_zero(self.traced.training, place) for place in places]
        return jax.tree.unflatten(jax.tree.structure(self.plain.shapes["params"]), found)

    def outputs(self, variables: Any, images: np.ndarray) -> np.ndarray:
        """The logits in evaluation: float32[N, classes] of N ≤ 8 images float32[N, H, W, C]."""
        with in_own_code(), jax.default_device(jax.devices("cpu")[0]):
            # As many as are tried, so that nothing is compiled for them.
            filled = np.resize(images, (2 * KEPT, *self.plain.image_shape))
            found = np.asarray(self.evaluation(variables, filled), np.float32)
        return found[: len(images)]

    @cached_property
    def tried(self) -> Tried:
        """How images depend on each other; `NetworkError` for outputs that are no logits."""
        initial = self.variables(0, 0)
        draws = [random_weights(initial, seed) for seed in range(DRAWS)]
        with in_own_code(), jax.default_device(jax.devices("cpu")[0]):
            independent, bounded = self._try_evaluation(initial, draws)
            return Tried(self._try_training(initial, draws), independent, bounded)

    def _try_evaluation(self, initial: Any, draws: list[Any]) -> tuple[bool, bool]:
        images, others = _images_and_others(self.plain.image_shape)

        def logits(variables: Any, images: np.ndarray) -> np.ndarray:
            return np.asarray(self.evaluation(variables, images), np.float32)

        self._check_outputs([logits(variables, images) for variables in draws])
        large = np.concatenate([logits(_multiplied(v), images) for v in draws[:2]])
        bounded = bool(np.isfinite(large).all() and (abs(large) <= 1).all())
        independent = True
        for variables in (initial, *draws[:2]):
            found, changed = logits(variables, images), logits(variables, others)
            moved = logits(variables, np.roll(images, KEPT // 2, axis=0))
            independent &= _close(found[:KEPT], changed[:KEPT], self.rounding)
            independent &= _close(np.roll(moved, -(KEPT // 2), axis=0), found, self.rounding)
        return independent, bounded

    @property
    def rounding(self) -> float:
        """How far equal values may differ, relatively, in the coarsest type that it computes in."""
        types = {
            variable.aval.dtype
            for equation in self.traced.evaluation.jaxpr.eqns
            for variable in equation.outvars
            if jnp.issubdtype(getattr(variable.aval, "dtype", np.int32), jnp.floating)
        }
        errors = (float(jnp.finfo(dtype).eps) for dtype in types)  # type: ignore[no-untyped-call]
        coarsest = max(errors, default=1e-7)
        return coarsest * (1e3 if coarsest < 1e-5 else 4)

    def _check_outputs(self, found: list[np.ndarray]) -> None:
        """Raise `NetworkError` if outputs with various random weights are never negative."""
        whole = np.concatenate(found)
        if not np.isfinite(whole).all() or (whole < 0).any() or not whole.any():
            return
        if np.allclose(whole.sum(1), 1, atol=1e-2):
            what = "are probabilities, as softmax at its end makes them"
        elif (whole <= 1).all():
            what = "lie between 0 and 1, as a sigmoid at its end makes them"
        else:
            what = "are never negative, as ReLU at its end makes them"
        raise NetworkError(
            f"the network's outputs {what}; they must be logits: leave out the activation of its"
            " last layer"
        )

    def _try_training(self, initial: Any, draws: list[Any]) -> Batching:
        """Change images that don't count; see whether that changes anything of the others."""
        images, others = _images_and_others(self.plain.image_shape)
        present = np.arange(len(images)) < KEPT
        stateful = len(initial) > 1
        run = compiled(
            lambda variables, images, key: self.plain.apply_in_training(
                variables, images, key, jnp.asarray(present) if stateful else None
            )
        )
        self._check_outputs([np.asarray(run(v, images, a_key())[0], np.float32) for v in draws])
        same = True
        changed: set[str] = set()
        # Several keys: images may be mixed in some steps only.
        for variables, seed in ((initial, 0), *((draws[0], seed) for seed in range(KEYS))):
            key = a_key(seed)
            logits, state = run(variables, images, key)
            other, other_state = run(variables, others, key)
            same &= _close(logits[:KEPT], other[:KEPT], self.rounding)
            pairs = zip(jax.tree.leaves(state), jax.tree.leaves(other_state), strict=True)
            same &= all(_close(a, b, self.rounding) for a, b in pairs)
            before = dict(_statistics(variables))
            changed |= {
                name.rpartition("/")[0]
                for name, x in _statistics(state)
                if not np.array_equal(x, before[name], equal_nan=True)
            }
        self._check_statistics(initial, changed)
        if not same:
            return "exact"
        return "masked" if stateful else "independent"

    def _check_statistics(self, variables: Any, changed: set[str]) -> None:
        """Raise `NetworkError` for a BatchNorm layer that a training step leaves as it was.

        Not if its own parameters are not trained either: then it is meant so.
        """
        trained = {name.rpartition("/")[0] for name, found in by_path(self.trained) if found}
        frozen = {name.rpartition("/")[0] for name, _ in by_path(variables["params"])} - trained
        for name, _ in _statistics(variables):
            layer = name.rpartition("/")[0]
            if layer not in (*changed, *frozen):
                raise NetworkError(
                    f"layer {layer or 'BatchNorm'} never updates its statistics in training: {FLAG}"
                )


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as it is compiled in a fraction of the usual time: it is called a few times."""
    found: Callable[..., Any] = jax.jit(function, compiler_options=QUICKLY)
    return found


def _statistics(variables: Any) -> Iterator[tuple[str, Any]]:
    """The arrays of Flax's batch statistics, by path."""
    return by_path(variables.get("batch_stats", {}))


def _images_and_others(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Two batches of random images, the first `KEPT` of which are the same: float32[2, N, …]."""
    both = np.random.default_rng(0).random((2, 2 * KEPT, *image_shape), np.float32)
    both[1, :KEPT] = both[0, :KEPT]
    return both


def random_weights(variables: Any, seed: int) -> dict[str, Any]:
    """Variables with other parameters: kernels drawn anew, noise added to the rest."""
    random = np.random.default_rng(seed)

    def draw(weight: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(weight.dtype, jnp.floating):
            return weight
        noise = random.standard_normal(weight.shape)
        if weight.ndim > 1:
            return (noise / np.prod(weight.shape[:-1]) ** 0.5).astype(weight.dtype)
        return (weight + noise / 4).astype(weight.dtype)

    return {**variables, "params": jax.tree.map(draw, variables["params"])}


def _multiplied(variables: Any) -> Any:
    """Variables with parameters a hundred times as large, which make any logits large."""
    large = jax.tree.map(lambda x: (100 * x).astype(x.dtype), variables["params"])
    return {**variables, "params": large}


def _close(a: Any, b: Any, rounding: float) -> bool:
    """Whether two arrays are equal, relatively within `rounding`; NaN is equal to NaN."""
    finite = np.abs(np.asarray(a)[np.isfinite(a)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    return bool(np.allclose(a, b, rtol=rounding, atol=rounding * scale / 10, equal_nan=True))


# --- The layer table ---

POOLING = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool"}
# The path of a module, or the name of a function; and an image's shape.
Row = tuple[str | None, str, tuple[int, ...]]


def layer_table(plain: PlainModule) -> tuple[Layer, ...]:
    """The modules that have parameters or no modules within, with pooling and flattening."""
    modules: dict[str, tuple[str, tuple[int, ...]]] = {}  # kind and output shape, by path
    within: list[str] = []  # the modules that are being called, the innermost last
    containers: set[str] = set()  # modules that call others

    def mark(method: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        """Call a method; note the module, and mark what it returns."""
        if context.method_name != "__call__":
            return method(*arguments, **keywords)
        path = "/".join(context.module.path)
        containers.update(within[-1:])
        within.append(path)
        try:
            value = method(*arguments, **keywords)
        finally:
            within.pop()
        if hasattr(value, "shape"):
            modules[path] = type(context.module).__name__, tuple(value.shape[1:])
            value = checkpoint_name(value, path)  # an equation at its place in the jaxpr
        return value

    image = jax.ShapeDtypeStruct((1, *plain.image_shape), np.float32)
    with nn.intercept_methods(mark):
        traced = jax.make_jaxpr(plain.apply_in_evaluation)(plain.shapes, image)
    counts: dict[str, int] = {}
    for place, leaf in by_path(plain.shapes["params"]):
        owners = accumulate(place.split("/"), "{}/{}".format)
        owner = next((each for each in reversed([*owners]) if each in modules), "")
        counts[owner] = counts.get(owner, 0) + math.prod(leaf.shape)
    layers = {path for path in modules if path not in containers}
    rows: dict[str, tuple[str, tuple[int, ...]]] = {}
    images = traced.jaxpr.invars[-1]  # the variables come before them
    for name, kind, shape in _rows(traced.jaxpr, {images}, "", layers):
        if name is not None and name not in modules:
            continue  # of somebody else's marks
        if name is not None:
            rows.pop(name, None)  # a module that is called again stands where it is called last
            rows[name] = modules[name]
            continue
        number = next(n for n in count() if f"{kind}_{n}" not in (*rows, *modules))
        rows[f"{kind}_{number}"] = kind, shape
    return tuple(
        Layer(name or "network", kind, shape, counts.get(name, 0))
        for name, (kind, shape) in rows.items()
        if name not in containers or counts.get(name)
    )


def _rows(jaxpr: Any, images: set[Any], scope: str, layers: Collection[str]) -> Iterator[Row]:
    """The modules, and the pooling and flattening between them, of a marked jaxpr.

    Args:
      jaxpr: of the network, or within it.
      images: the variables that depend on the images.
      scope: the modules around it, as JAX names them.
      layers: the paths of modules without modules within, which need no rows for what they do.
    """
    for equation in jaxpr.eqns:
        path = f"{scope}/{equation.source_info.name_stack}"
        depends = [atom in images for atom in equation.invars if not isinstance(atom, core.Literal)]
        shape = equation.outvars[0].aval.shape if equation.outvars else ()
        if equation.primitive.name == "name":
            yield equation.params["name"], "", shape[1:]
        elif any(depends) and (function := _function(equation)) and not _in_layer(path, layers):
            yield None, function, shape[1:]
        for inner in jaxprs.within(equation):
            # What stands before the arguments of an inner jaxpr, such as an index, isn't its own.
            given = equation.invars[len(equation.invars) - len(inner.invars) :]
            own = {
                variable
                for variable, atom in zip(inner.invars, given, strict=False)
                if not isinstance(atom, core.Literal) and atom in images
            }
            yield from _rows(inner, own, path, layers)
        if any(depends):
            images.update(equation.outvars)


def _function(equation: Any) -> str | None:
    """The name of pooling or flattening, where an equation computes it."""
    if (name := equation.primitive.name) in POOLING:
        return POOLING[name]
    if name != "reshape":
        return None
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    flat = len(before) > 2 and before[0] == 1 and after == (1, math.prod(before))
    return "flatten" if flat else None


def _in_layer(path: str, layers: Collection[str]) -> bool:
    """Whether a path of names, as JAX gives it, leads into a module without modules within."""
    names = "/".join(part.partition(".")[0] for part in path.split("/"))  # without methods
    return any(layer and f"/{layer}/" in f"/{names}/" for layer in layers)
