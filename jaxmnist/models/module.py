"""A person's Flax module as pure functions: how it is called, whatever its signature is.

Only Flax's own interface is used: the flag for training is found in the signature of the module's
`__call__` or among its fields, and random streams are those that the module asks for. NNX modules
become Linen's by Flax's bridge; their mode is set by their own `train()` and `eval()`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache, partial
from itertools import takewhile
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import unfreeze

from jaxmnist.errors import JaxmnistError, NetworkError
from jaxmnist.models import jaxprs
from jaxmnist.models.interface import a_key, stream_key
from jaxmnist.models.own_code import only_exceptions

# Names of the flag for training, and its value in training.
FLAGS = {
    **dict.fromkeys(
        ("train", "training", "is_training", "is_train", "train_mode", "training_mode"), True
    ),
    **dict.fromkeys(
        (
            *("deterministic", "eval", "evaluate", "is_eval", "eval_mode", "evaluation"),
            *("inference", "is_inference", "inference_mode", "test", "testing", "is_test"),
            "use_running_average",
        ),
        False,
    ),
}
NAMED = "train, training, is_training, is_train, deterministic, eval_mode or inference"
SOWN = "intermediates"  # Flax's collection of what modules sow
NO_STATE = (SOWN, "perturbations")  # what Flax's own methods make to look into a network
FEATURES = "features"  # the name under which a module sows its flatten features
STREAMS = 16  # random streams that a module may have
# Streams that are served in training in any case: a module may look whether it has them.
USUAL_STREAMS = (
    *("dropout", "noise", "droppath", "drop_path", "stochastic_depth"),
    *("latent", "sample", "sampling", "mixup", "random"),
)
# What Flax raises where a module reads what its initialization in evaluation did not make.
MISSING = (
    flax.errors.ScopeParamNotFoundError,
    flax.errors.ScopeVariableNotFoundError,
    flax.errors.ScopeCollectionNotFound,
    flax.errors.ModifyScopeVariableError,
)
SEEDS = 100  # of an NNX instance, that are tried to build it again
LOGITS = "logits"  # the entry of a dict that a module returns


def check_module(found: Any) -> nn.Module:
    """What `build_model` returned, as a Linen module; `NetworkError` unless it is a Flax module."""
    if isinstance(found, nnx.bridge.ToLinen):
        return found.clone(metadata_fn=None)  # plain arrays, without boxes around them
    if isinstance(found, nn.Module):
        return found
    if isinstance(found, nnx.Module):
        return _bridged(_class_of(found))
    maker = found.func if isinstance(found, partial) else found
    if inspect.isclass(maker) and issubclass(maker, nnx.Module):
        return _bridged(found)
    if inspect.isclass(maker) and issubclass(maker, nn.Module):
        raise NetworkError(
            f"build_model must return a module, not the class {maker.__name__}: call it with its"
            " arguments"
        )
    raise NetworkError(
        f"build_model must return a Flax module, or a module and an Optax optimizer, not a"
        f" {type(found).__name__}"
    )


def _bridged(maker: Callable[..., nnx.Module]) -> nn.Module:
    """What makes an NNX module, as a Linen module."""
    takes = _parameters(maker.func if isinstance(maker, partial) else maker)
    every = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    return nnx.bridge.ToLinen(maker, skip_rng="rngs" not in takes and not every, metadata_fn=None)


def _parameters(kind: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class' constructor, whose metaclass hides them; `self` stands first."""
    return inspect.signature(kind.__init__).parameters


def _class_of(instance: nnx.Module) -> Callable[..., nnx.Module]:
    """The class of an NNX module, if the module is what the class gives for some seed.

    Then a trial's initial weights can be drawn for its own seed. Other instances, such as one with
    weights that were loaded, or with attributes that were changed, are refused.
    """
    kind: Any = type(instance)
    state = nnx.state(instance, nnx.Not(nnx.RngState))
    wanted = [np.asarray(x) for x in jax.tree.leaves(state)]
    try:
        if list(_parameters(kind))[1:] == ["rngs"]:
            for seed in range(SEEDS):
                found = jax.tree.leaves(_state_of(kind)(jax.random.key(seed)))
                if [x.shape for x in found] != [x.shape for x in wanted]:
                    break
                if all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True)):
                    if _attributes(kind(rngs=nnx.Rngs(seed))) != _attributes(instance):
                        break
                    return type(instance)
    except Exception:  # it can't be built so
        pass
    name = kind.__name__
    raise NetworkError(
        f"build_model returned an instance of {name}, whose initial weights can't be drawn for"
        f" another seed: return the class {name}, functools.partial({name}, …) or"
        f" flax.nnx.bridge.to_linen({name}, …)"
    )


@lru_cache(maxsize=4)
def _state_of(kind: Callable[..., nnx.Module]) -> Callable[[Any], Any]:
    """The compiled function of a key that gives the state of an NNX class, without its streams."""
    state: Callable[[Any], Any] = jax.jit(
        lambda key: nnx.state(kind(rngs=nnx.Rngs(key)), nnx.Not(nnx.RngState))
    )
    return state


def _attributes(module: nnx.Module) -> dict[Any, str]:
    """The attributes of an NNX module and of those within it, as text; arrays are left out."""
    return {
        path: re.sub(" at 0x[0-9a-f]+", "", repr(value))
        for path, value in nnx.iter_graph(module)
        if not isinstance(value, nnx.Variable | nnx.Module | nnx.Rngs | nnx.RngStream)
        and "_pytree__state" not in path
    }


@dataclass
class Remarks:
    """What is seen while a module is called.

    dropout: the names of its dropout layers with a rate above 0.
    training: whether what is called now is called in training.
    acting: whether each dropout layer has an effect there, as far as it is seen: what Flax compiles
      within a module is traced once.
    layer: the innermost layer that was called when an exception was raised, by name and type.
    outputs: where the logits are among what the module returns, in each mode in which it is asked.
    """

    dropout: list[str] = field(default_factory=list)
    training: bool = False
    acting: dict[str, bool] = field(default_factory=dict)
    layer: str = ""
    outputs: list[str] = field(default_factory=list)

    def note_output(self, result: Any) -> None:
        """Note where the logits are among what a module returns, unless they are all of it."""
        if said := describe_output(result):
            self.outputs.append(f"{said} in {'training' if self.training else 'evaluation'}")


@dataclass(frozen=True, eq=False)
class PlainModule:
    """A Linen module, which may be a bridge to an NNX module, for images of one shape."""

    module: nn.Module
    image_shape: tuple[int, int, int]
    init_in_training: bool = False

    def complete(self) -> PlainModule:
        """It, or if parts of it exist in training only, it with these initialized too."""
        try:
            self.streams  # noqa: B018
        except MISSING:
            return replace(self, init_in_training=True)
        except Exception:  # told where it is traced
            return self
        return self

    @property
    def bridged(self) -> bool:
        """Whether it is an NNX module."""
        return isinstance(self.module, nnx.bridge.ToLinen)

    @only_exceptions()
    def _call(
        self,
        method: Callable[..., Any],
        images: Any,
        keys: Mapping[str, jax.Array],
        *,
        training: bool,
    ) -> Any:
        """Call the module by `init` or `apply`, in training or in evaluation."""
        if self.bridged:
            nnx_method = partial(_call_nnx, training=training, keys=keys)
            return method(self.module, images, nnx_method=nnx_method)
        kind = type(self.module)
        flags = flags_of(kind.__call__, kind.__name__, training=training)
        own: dict[str, Any] = {
            item.name: FLAGS[item.name] == training
            for item in fields(self.module)
            if item.name in FLAGS
            and item.name not in flags.known
            and _may_be_flag(self.module, item)
        }
        module = self.module.clone(**own) if own else self.module
        return method(module, images, *flags.arguments, **flags.keywords)

    def _image(self, images: int) -> Any:
        return jax.ShapeDtypeStruct((images, *self.image_shape), np.float32)

    def _init(self, key: jax.Array, streams: Sequence[str]) -> dict[str, Any]:
        keys = {name: stream_key(key, name) for name in streams}
        keys["default"] = keys["params"]
        image = jnp.zeros((1, *self.image_shape), jnp.float32)
        found = self._call(
            lambda module, *given, **keywords: module.init(keys, *given, **keywords),
            image,
            keys,
            training=self.init_in_training,
        )
        # Names of axes that shard a parameter have no meaning on one device.
        return dict(unfreeze(nn.meta.unbox(found)))

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The initial variables: {'params': …, other collections of its state}."""
        variables = {"params": {}, **self._init(key, self._init_streams)}
        return {name: variables[name] for name in self._collections}

    @cached_property
    def _initialized(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The streams that initializing asks for, and the shapes of all that it makes."""
        key, found = jax.eval_shape(a_key), dict[str, Any]()  # shapes need no device

        def trace(names: Sequence[str]) -> None:
            found.update(jax.eval_shape(lambda k: self._init(k, names), key))

        streams = _served(("params", "dropout"), trace)
        return streams, {"params": {}, **found}

    @property
    def _init_streams(self) -> tuple[str, ...]:
        return self._initialized[0]

    @property
    def _whole(self) -> dict[str, Any]:
        """The shapes of all that the module initializes, with what it sows."""
        return self._initialized[1]

    def dropout_layers(self) -> list[str]:
        """The dropout layers of an NNX module with a rate above 0, by name.

        Raises `NetworkError` for parameters of a type of their own: Flax's bridge puts these among
        the state.
        """
        if not self.bridged:
            return []

        def make() -> nnx.Module:
            bridge = self.module
            streams = {} if bridge.skip_rng else {"rngs": nnx.Rngs(0)}
            made: nnx.Module = bridge.nnx_class(*bridge.args, **bridge.kwargs, **streams)
            return made

        found = {"/".join(map(str, path)): x for path, x in nnx.iter_graph(nnx.eval_shape(make))}
        for name, value in found.items():
            if isinstance(value, nnx.Param) and type(value) is not nnx.Param:
                raise NetworkError(
                    f"parameter {name} is of type {type(value).__name__}, which would not be"
                    " trained: use nnx.Param"
                )
        return [
            name or "Dropout"
            for name, value in found.items()
            if isinstance(value, nnx.Dropout) and value.rate > 0
        ]

    @cached_property
    def sown(self) -> tuple[str, ...]:
        """The collections, besides Flax's own, that the module sows and doesn't read."""
        return tuple(n for n in self._whole if n not in (*NO_STATE, *self._collections))

    @cached_property
    def _collections(self) -> tuple[str, ...]:
        """The parameters and the collections that the module reads again: what is sown is not."""
        return tuple(n for n in self._whole if n not in NO_STATE and not self._is_sown(n))

    def _is_sown(self, collection: str) -> bool:
        """Whether the module doesn't read what it puts into a collection.

        It can be called without, and with it no output depends on it.
        """
        if self.bridged or collection == "params":  # the bridge initializes what is state alone
            return False
        whole = {name: value for name, value in self._whole.items() if name not in NO_STATE}
        without = {name: value for name, value in whole.items() if name != collection}
        try:
            return not any(
                self._reads(whole, collection, self._streams(without, training=training), training)
                for training in (False, True)
            )
        except Exception:  # it is missed
            return False

    def _reads(self, shapes: Any, collection: str, streams: Sequence[str], training: bool) -> bool:
        """Whether outputs depend on a collection."""

        def outputs(read: Any, others: Any, images: Any, keys: Any) -> Any:
            variables = {**others, collection: read}
            given = dict(zip(streams, keys, strict=True)) if training else {}
            return self._apply(variables, images, given, training=training)[0]

        others = {name: value for name, value in shapes.items() if name != collection}
        keys = [a_key()] * len(streams)
        closed = jax.make_jaxpr(outputs)(shapes[collection], others, self._image(2), keys)
        places = range(len(jax.tree.leaves(shapes[collection])))
        return jaxprs.depends(closed, range(len(closed.jaxpr.outvars)), places)

    @cached_property
    def shapes(self) -> dict[str, Any]:
        """The shapes of `init`."""
        return {name: self._whole[name] for name in self._collections}

    @property
    def defaulted_arguments(self) -> tuple[str, ...]:
        """The arguments of its `__call__` that keep a default of True or False."""
        owner = self.module.nnx_class if self.bridged else type(self.module)
        kind = getattr(owner, "func", owner)
        if not inspect.isclass(kind):  # a function that makes it
            return ()
        call: Any = kind.__call__
        streams = {"rngs": None} if "rngs" in inspect.signature(call).parameters else {}
        return flags_of(partial(call, **streams), kind.__name__, training=True).others

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The random streams that it asks for in training, besides those that Flax knows."""
        names = self._streams(self.shapes, training=True)
        return (*names, "params", "default") if self.bridged else names

    def _streams(self, shapes: Any, *, training: bool) -> tuple[str, ...]:
        """The random streams that a call with variables of these shapes asks for."""

        def call(names: Sequence[str]) -> None:
            def apply(variables: Any, images: jax.Array) -> Any:
                keys = dict.fromkeys(names, a_key())
                return self._apply(variables, images, keys, training=training)

            jax.eval_shape(apply, shapes, self._image(2))

        return _served(USUAL_STREAMS if training else (), call)

    def _apply(
        self, variables: Any, images: jax.Array, keys: Mapping[str, jax.Array], *, training: bool
    ) -> tuple[Any, Any]:
        """What the module returns, and the collections afterwards, or else what it has sown."""
        state = [name for name in variables if name != "params"] if training else [SOWN]
        result, collections = self._call(
            lambda module, *given, **keywords: module.apply(
                variables, *given, rngs=dict(keys), mutable=state, **keywords
            ),
            images,
            keys,
            training=training,
        )
        return result, dict(unfreeze(nn.meta.unbox(collections)))

    def apply_in_training(
        self,
        variables: Any,
        images: jax.Array,
        key: jax.Array,
        present: jax.Array | None = None,
        remarks: Remarks | None = None,
    ) -> tuple[jax.Array, Any]:
        """Logits of images float[N, H, W, C] in training, and the collections afterwards.

        Args:
          variables: {'params': …, other collections}.
          images: of which some may not count.
          key: of the step; each random stream has one of its own, by its name.
          present: bool[N], which images count in BatchNorm's statistics; None for all.
          remarks: to which it adds where the logits are among the results.
        """
        keys = {name: stream_key(key, name) for name in self.streams}
        if present is None:
            result, collections = self._apply(variables, images, keys, training=True)
        else:
            with nn.intercept_methods(_masking(present)):
                result, collections = self._apply(variables, images, keys, training=True)
        if remarks is not None:
            remarks.note_output(result)
        return logits_of(result), collections

    def apply_in_evaluation(
        self,
        variables: Any,
        images: jax.Array,
        key: jax.Array | None = None,
        remarks: Remarks | None = None,
    ) -> tuple[jax.Array, Any]:
        """Logits of images float[N, H, W, C], and what the module sows as features, or None.

        key: for NNX modules, whose outputs must not depend on it; others are called without.
        remarks: see `apply_in_training`.
        """
        if key is None:
            key = a_key()
        keys = {name: stream_key(key, name) for name in self.streams} if self.bridged else {}
        result, sown = self._apply(variables, images, keys, training=False)
        if remarks is not None:
            remarks.note_output(result)
        return logits_of(result), _features(sown.get(SOWN, {}))


@dataclass(frozen=True)
class Flags:
    """What a module's `__call__` is given besides images, to train or to evaluate.

    arguments: those by position. keywords: those by name. known: the names of all of them.
    others: further arguments that may be flags, as they are True or False by default.
    """

    arguments: tuple[bool, ...]
    keywords: Mapping[str, bool]
    known: tuple[str, ...]
    others: tuple[str, ...]


def flags_of(call: Callable[..., Any], owner: str, *, training: bool) -> Flags:
    """The flags for training among the arguments of a module's `__call__`.

    Those that directly follow the images are given by position, as transformations of Flax want it.
    Raises `NetworkError` if it takes anything else, besides images, that has no default.
    """
    parameters = list(inspect.signature(call).parameters.values())[2:]  # after self and images
    found = {p.name: FLAGS[p.name] == training for p in parameters if _is_flag(p)}
    for p in parameters:
        wanted = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if wanted and p.name not in found:
            raise NetworkError(
                f"{owner}.__call__ has an unknown argument {p.name!r}: it may take images and a"
                f" flag for training, {NAMED}"
            )
    first = list(
        takewhile(
            lambda p: p.name in found and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD),
            parameters,
        )
    )
    names = [p.name for p in first]
    return Flags(
        tuple(found[name] for name in names),
        {name: value for name, value in found.items() if name not in names},
        tuple(found),
        tuple(p.name for p in parameters if isinstance(p.default, bool) and p.name not in found),
    )


def _is_flag(parameter: inspect.Parameter) -> bool:
    default = parameter.default
    return parameter.name in FLAGS and (
        default is parameter.empty or default is None or isinstance(default, bool)
    )


def _may_be_flag(module: nn.Module, item: Any) -> bool:
    value = getattr(module, item.name, None)
    return value is None or isinstance(value, bool)


def _call_nnx(
    module: nnx.Module, images: Any, *, training: bool, keys: Mapping[str, jax.Array]
) -> Any:
    """Call an NNX module in its mode for training or evaluation.

    A parameter `rngs` of its `__call__` gets streams of the step.
    """
    owner: Any = module
    if training:
        owner.train()
    else:
        owner.eval()
    call = type(module).__call__
    name = type(module).__name__
    wanted = inspect.signature(call).parameters
    streams = {"rngs": nnx.Rngs(**keys)} if "rngs" in wanted else {}
    flags = flags_of(partial(call, **streams), name, training=training)
    before = _statistics(module)
    found = owner(images, *flags.arguments, **flags.keywords, **streams)
    changed = [
        f"layer {name}" for name, x in _statistics(module).items() if x is not before.get(name)
    ]
    if changed and not training:
        raise NetworkError(_fixed(changed[0], "changes its statistics", "use_running_average=True"))
    return found


def _statistics(module: nnx.Module) -> dict[str, Any]:
    """The statistics of an NNX module's BatchNorm layers, by name."""
    found = jax.tree_util.tree_flatten_with_path(nnx.state(module, nnx.BatchStat))[0]
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in found)
    return {name.removesuffix("/value"): x for name, (_, x) in zip(names, found, strict=True)}


def _fixed(layer: str, does: str, wanted: str) -> str:
    """A line on a layer that is fixed in training mode."""
    return (
        f"{layer} {does} in evaluation too, as it is fixed in training mode: it must have"
        f" {wanted} there, by the flag for training"
    )


def fixed_in_training(problem: Exception, layer: str) -> NetworkError:
    """The error to raise for one of Flax's about a call in evaluation."""
    if isinstance(problem, flax.errors.InvalidRngError):
        does, wanted = "asks for random numbers", "deterministic=True"
    else:
        does, wanted = "changes its statistics", "use_running_average=True"
    return NetworkError(_fixed(f"layer {layer}" if layer else "a layer", does, wanted))


def _served(names: Sequence[str], call: Callable[[Sequence[str]], Any]) -> tuple[str, ...]:
    """The names of random streams with which a call succeeds: those given, and what it asks for."""
    found = list(names)
    for _ in range(STREAMS):
        try:
            call(found)
        except flax.errors.InvalidRngError as problem:
            asked = re.search(r'PRNG for "([^"]+)"', str(problem))
            if not asked or asked[1] in found:
                raise
            found.append(asked[1])
        else:
            break
    return tuple(found)


def logits_of(result: Any) -> Any:
    """The logits among what a module returns."""
    if isinstance(result, Mapping):
        if LOGITS not in result:
            raise NetworkError(
                f"the network returns a dict of {', '.join(map(str, result)) or 'nothing'}; its"
                f" logits must have the key {LOGITS!r}"
            )
        return result[LOGITS]
    if hasattr(result, LOGITS):  # a named tuple, or a dataclass
        return getattr(result, LOGITS)
    if isinstance(result, tuple | list):
        if not result:
            raise NetworkError("the network returns an empty tuple; it must return logits")
        return result[0]
    return result


def describe_output(result: Any) -> str | None:
    """Where the logits are among what a module returns; None if they are all of it."""
    if isinstance(result, Mapping) or hasattr(result, LOGITS):
        kind = "dict" if isinstance(result, Mapping) else type(result).__name__
        return f"the entry {LOGITS!r} of the {kind} that the network returns"
    if isinstance(result, tuple | list):
        return f"the first of the {len(result)} values that the network returns"
    return None


def remarking(remarks: Remarks) -> Callable[..., Any]:
    """Notes what Linen's layers do, and refuses a layer that leaves nothing of its images."""

    def intercept(
        method: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Call a method."""
        module = context.module
        if context.method_name != "__call__":
            return method(*arguments, **keywords)
        kind = type(module).__name__
        name = f"{'/'.join(module.path)} ({kind})" if module.path else kind
        if isinstance(module, nn.Dropout) and module.rate > 0:
            given = arguments[1] if len(arguments) > 1 else keywords.get("deterministic")
            remarks.dropout.append(name)
            if remarks.training:
                acts = not (module.deterministic if given is None else given)
                remarks.acting[name] = acts or remarks.acting.get(name, False)
        axis = getattr(module, "axis_name", None)
        if axis is not None and isinstance(module, nn.BatchNorm):
            raise NetworkError(
                f"layer {name} has axis_name={axis!r}, and each trial trains on one device,"
                " without named axes: leave axis_name out"
            )
        inputs = [x for x in arguments if hasattr(x, "shape")]
        for x in inputs:
            if 0 in x.shape[1:]:
                raise NetworkError(
                    f"layer {name} gets an empty array of shape {_sizes(x)}: the layers before it"
                    " shrink the image too much; use smaller kernels or less pooling"
                )
        try:
            found = method(*arguments, **keywords)
        except JaxmnistError:
            raise
        except Exception:
            remarks.layer = remarks.layer or name
            raise
        if inputs and hasattr(found, "shape") and 0 in found.shape[1:]:
            kernel = getattr(module, "kernel_size", None)
            sizes = f" with its kernel of {kernel}" if kernel else ""
            raise NetworkError(
                f"layer {name}{sizes} returns an empty array for an input of shape"
                f" {_sizes(inputs[0])}: choose a smaller kernel, or padding 'SAME'"
            )
        return found

    return intercept


def _sizes(x: Any) -> str:
    """A shape without the images: '6×6×8'."""
    return "×".join(map(str, x.shape[1:])) or "()"


def _masking(present: jax.Array) -> Callable[..., Any]:
    """Keeps images that don't count out of the statistics of Flax's BatchNorm, by its own mask."""

    def intercept(
        method: Callable[..., Any],
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        """Call a method, BatchNorm's with the mask."""
        inputs: Any = arguments[0] if arguments else keywords.get("x")
        if (
            isinstance(context.module, nn.BatchNorm)
            and context.method_name == "__call__"
            and keywords.get("mask") is None
            and len(inputs) == len(present)
        ):
            shape = (-1, *[1] * (inputs.ndim - 1))
            keywords = {**keywords, "mask": present.reshape(shape)}
        return method(*arguments, **keywords)

    return intercept


def _features(sown: Mapping[str, Any]) -> Any:
    """The last value that the first module to sow features has sown; None if none has."""
    for name, value in sown.items():
        if name == FEATURES and isinstance(value, tuple):
            return value[-1]
        if isinstance(value, Mapping) and (found := _features(value)) is not None:
            return found
    return None
