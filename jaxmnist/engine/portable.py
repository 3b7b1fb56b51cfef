"""A function of images in a form that other programs run: StableHLO, or ONNX by jax2onnx."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import jax
import jax.export  # `import jax` alone does not import it
import numpy as np
from jax.extend import core

from jaxmnist.engine.devices import start_jax
from jaxmnist.errors import UsageError, one_line
from jaxmnist.models.rewriting import with_pooling_by_axis

# Images, dtype[N, H, W, C] for any N, to their probabilities, float32[N, K].
Function = Callable[[jax.Array], jax.Array]
PLATFORMS = ("cpu", "cuda", "tpu")  # that StableHLO is made for
TOLERANCE = 1e-4  # by which probabilities of an ONNX model may differ
CHATTY = "onnx_ir"  # the logger that warns of shapes that no runtime needs


def stablehlo(function: Function, examples: np.ndarray) -> bytes:
    """A function as `jax.export.deserialize` reads it, to be called on each of `PLATFORMS`.

    Args:
      function: pure; its constants become part of the result.
      examples: images [N, H, W, C], of which only the shape (H, W, C) and the dtype count.

    Raises:
      UsageError: it can't be traced for a number of images that is left open.
    """
    start_jax()

    def make() -> jax.export.Exported:
        return jax.export.export(jax.jit(function), platforms=PLATFORMS)(_any_number(examples))

    return bytes(_tried(make).serialize())


def check_onnx() -> None:
    """Raise `UsageError` unless jax2onnx is installed."""
    if find_spec("jax2onnx") is None:
        raise UsageError(
            "exporting to .onnx needs jax2onnx: python -m pip install jax2onnx; or export to"
            " .stablehlo, which needs nothing more"
        )


def onnx(function: Function, examples: np.ndarray) -> bytes:
    """An ONNX model with the input `images` and the output `probabilities`.

    Args:
      function: see `stablehlo`.
      examples: images [N, H, W, C], for which ONNX Runtime must give what the function gives.

    Raises:
      UsageError: jax2onnx is missing or can't convert the function, or what it gives is wrong.
    """
    check_onnx()
    start_jax()
    # Imported here: it takes seconds, and is installed only where it is wanted.
    import jax2onnx

    def make() -> Any:
        """The ONNX model of the function, for any number of images."""
        images = _any_number(examples)
        # Traced before jax2onnx replaces functions of JAX and Flax by its own, which don't take all
        # of their arguments; its max-pooling is over four axes, which ONNX Runtime doesn't do.
        plain = with_pooling_by_axis(function)
        traced = core.jaxpr_as_fun(jax.make_jaxpr(plain)(images))
        model = jax2onnx.to_onnx(
            lambda images: traced(images)[0],
            inputs=[images],
            model_name="jaxmnist",
            input_names=["images"],
            output_names=["probabilities"],
        )
        # Shapes within, which a runtime derives itself; some of jax2onnx's are wrong.
        del model.graph.value_info[:]
        return model.SerializeToString()

    with _quiet(CHATTY):
        content: bytes = _tried(make)
    _compare(content, function, examples)
    return content


def _any_number(examples: np.ndarray) -> jax.ShapeDtypeStruct:
    """The shape of N such images, N being left open."""
    (count,) = jax.export.symbolic_shape("N")
    return jax.ShapeDtypeStruct((count, *examples.shape[1:]), examples.dtype)


def _tried(make: Callable[[], Any]) -> Any:
    """What `make` returns; an error in it, whose cause is the network, becomes one line."""
    try:
        return make()
    except MemoryError:
        raise
    except Exception as problem:
        raise UsageError(
            "the network can't be exported for any number of images (take that from x.shape[0], as"
            f" in x.reshape(x.shape[0], -1)): {one_line(problem, named=True)}"
        ) from None


def _compare(content: bytes, function: Function, examples: np.ndarray) -> None:
    """Raise `UsageError` unless ONNX Runtime gives a function's values, for one image and for all.

    jax2onnx doesn't say so where a model that it makes is invalid or computes something else.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # an error is raised, and told once
    wanted = "the network can't be exported to .onnx, but to .stablehlo: "
    try:
        session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
        found = [session.run(None, {"images": part})[0] for part in (examples[:1], examples)]
    except Exception as problem:
        raise UsageError(f"{wanted}{one_line(problem, named=True)}") from None
    with jax.default_device(jax.devices("cpu")[0]):
        expected = np.asarray(jax.jit(function)(examples))
    for values in found:
        if not np.allclose(values, expected[: len(values)], rtol=0, atol=TOLERANCE):
            raise UsageError(f"{wanted}jax2onnx converts it to a model that computes other values")


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Leave out what a logger says below an error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
