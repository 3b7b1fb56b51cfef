"""A person's Flax module as pure functions: how it is called, whatever its signature is.

Only Flax's own interface is used: the flag for training is found in the signature of the module's
`__call__` or among its fields, and random streams are those that the module asks for.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import unfreeze

from jaxmnist.errors import UsageError
from jaxmnist.models.network import stream_key

# Names of the flag for training, and its value in training.
FLAGS = {"train": True, "training": True, "is_training": True, "deterministic": False}
SOWN = "intermediates"  # Flax's collection of what modules sow: it is no state
FEATURES = "features"  # the name under which a module sows its flatten features
STREAMS = 16  # random streams that a module may have


def check_module(found: Any) -> nn.Module:
    """What `build_model` returned, as a Linen module; `UsageError` unless it is one."""
    if isinstance(found, nnx.bridge.ToLinen):
        return found.clone(metadata_fn=None)  # plain arrays, without boxes around them
    if isinstance(found, nn.Module):
        return found
    if isinstance(found, nnx.Module):
        kind = type(found).__name__
        raise UsageError(
            f"build_model returned an NNX module, {kind}: return"
            f" flax.nnx.bridge.to_linen({kind}, …) instead, whose __call__ takes the flag train"
        )
    raise UsageError(
        f"build_model must return a Flax module, or a module and an Optax optimizer, not a"
        f" {type(found).__name__}"
    )


@dataclass(frozen=True)
class Call:
    """How a module is called to train or to evaluate: itself, and its flag as a keyword."""

    module: nn.Module
    keywords: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class PlainModule:
    """A Linen module, for images of one shape."""

    module: nn.Module
    image_shape: tuple[int, int, int]

    @cached_property
    def train(self) -> Call:
        """How it is called in training."""
        return self._call(training=True)

    @cached_property
    def evaluate(self) -> Call:
        """How it is called in an evaluation."""
        return self._call(training=False)

    def _call(self, *, training: bool) -> Call:
        owner = self.module.nnx_class if self._bridged else type(self.module)
        signature = inspect.signature(owner.__call__ if inspect.isclass(owner) else owner)
        takers = [name for name in FLAGS if name in signature.parameters]
        if takers:
            return Call(self.module, {name: FLAGS[name] == training for name in takers})
        others = [
            p.name
            for p in list(signature.parameters.values())[2:]  # after self and the images
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]
        if others:
            raise UsageError(
                f"{owner.__name__}.__call__ takes {others[0]!r}, which is not known: it is called"
                f" with images and, if it takes it, one flag of {', '.join(FLAGS)}"
            )
        if self._bridged:
            return Call(self.module, {})
        fields: dict[str, Any] = {
            name: FLAGS[name] == training for name in FLAGS if hasattr(self.module, name)
        }
        return Call(self.module.clone(**fields) if fields else self.module, {})

    @property
    def _bridged(self) -> bool:
        return isinstance(self.module, nnx.bridge.ToLinen)

    def _image(self, images: int = 1) -> Any:
        return jax.ShapeDtypeStruct((images, *self.image_shape), np.float32)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """The initial variables: {'params': …, other collections}."""
        call = self.evaluate
        keys = {name: stream_key(key, name) for name in ("params", "dropout")}
        keys["default"] = keys["params"]
        image = jnp.zeros((1, *self.image_shape), jnp.float32)
        variables = unfreeze(call.module.init(keys, image, **call.keywords))
        variables.pop(SOWN, None)
        return dict(variables)

    @cached_property
    def shapes(self) -> dict[str, Any]:
        """The shapes of `init`."""
        found: dict[str, Any] = jax.eval_shape(self.init, jax.random.key(0, impl="threefry2x32"))
        return found

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The random streams that it asks for in training, besides those that Flax knows."""
        names = ["dropout"]
        shapes = self.shapes
        for _ in range(STREAMS):
            keys = dict.fromkeys(names, jax.random.key(0, impl="threefry2x32"))
            try:
                jax.eval_shape(
                    lambda v, x, keys=keys: self._apply(v, x, keys), shapes, self._image(2)
                )
            except flax.errors.InvalidRngError as problem:
                found = re.search(r'PRNG for "([^"]+)"', str(problem))
                if not found or found[1] in names:
                    raise
                names.append(found[1])
            else:
                break
        return (*names, "default") if self._bridged else tuple(names)

    def _apply(
        self, variables: Any, images: jax.Array, keys: Mapping[str, jax.Array]
    ) -> tuple[jax.Array, Any]:
        """Logits in training, and the collections afterwards."""
        mutable = [name for name in variables if name != "params"]
        call = self.train
        result = call.module.apply(
            variables, images, rngs=dict(keys), mutable=mutable, **call.keywords
        )
        logits, collections = result
        return logits, dict(unfreeze(collections))

    def apply_in_training(
        self, variables: Any, images: jax.Array, key: jax.Array, present: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Logits of images float[N, H, W, C] in training, and the collections afterwards.

        Args:
          variables: {'params': …, other collections}.
          images: of which some may not count.
          key: of the step; each random stream has one of its own, by its name.
          present: bool[N], which images count in BatchNorm's statistics; None for all.
        """
        keys = {name: stream_key(key, name) for name in self.streams}
        if present is None:
            return self._apply(variables, images, keys)
        with nn.intercept_methods(_masking(present)):
            return self._apply(variables, images, keys)

    def apply_in_evaluation(self, variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """Logits of images float[N, H, W, C], and what the module sows as features, or None."""
        call = self.evaluate
        logits, sown = call.module.apply(variables, images, mutable=[SOWN], **call.keywords)
        return logits, _features(sown.get(SOWN, {}))


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
