"""A function of arrays with its convolutions and pooling computed from slices, however written.

The function is traced, and its jaxpr evaluated equation by equation before anything is
differentiated: convolutions and pooling windows are replaced, all else is bound as it is. What has
a rule of its own for its gradient, such as ReLU, is not looked into, as it would lose the rule;
nor are loops and conditions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jaxmnist.models.convolution import Padding, convolve_pool
from jaxmnist.models.primitives import relu
from jaxmnist.models.slices import Pairs, Window, convolve, max_pool, sum_pool

CALLS = ("jit", "pjit", "closed_call")  # whose body is evaluated in their place
IMAGES = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC as JAX writes it


def rewritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of trees of arrays, with convolutions and pooling computed from slices."""

    def run(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        values = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), values)

    return run


@dataclass(frozen=True)
class _Fused:
    """A convolution with the equations behind it that are computed together with it.

    bias: the variable that is added, or None. places: of the equations, in order.
    """

    padding: Padding
    bias: Any
    has_relu: bool
    places: tuple[int, ...]


def _evaluate(jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The values of a jaxpr's outputs."""
    known: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else known[atom]

    known.update(zip(jaxpr.constvars, consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    uses = Counter(
        atom
        for atoms in (*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars)
        for atom in atoms
        if not isinstance(atom, core.Literal)
    )
    fused: dict[int, tuple[Any, _Fused]] = {}  # by the place of the last of their equations
    skipped: set[int] = set()
    for place, equation in enumerate(jaxpr.eqns):
        if found := _fused(jaxpr.eqns, place, uses):
            fused[found.places[-1]] = equation, found
            skipped.update((place, *found.places[:-1]))
        if place in fused:
            convolution, parts = fused[place]
            x, kernel = map(read, convolution.invars)
            value = convolve_pool(x, kernel, padding=parts.padding, method="tiles")
            if parts.bias is not None:
                value = value + read(parts.bias)
            known[equation.outvars[0]] = relu(value) if parts.has_relu else value
        elif place not in skipped:
            _bind(equation, read, known)
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: Any, read: Callable[[Any], Any], known: dict[Any, Any]) -> None:
    """Compute one equation."""
    name, inputs = equation.primitive.name, [read(atom) for atom in equation.invars]
    values: Any
    if name in CALLS:
        inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
        values = _evaluate(inner.jaxpr, inner.consts, inputs)
    elif name == "conv_general_dilated" and (window := _convolution_window(equation)):
        x, kernel = inputs
        values = convolve(x, kernel, window, equation.params["feature_group_count"])
    elif name in ("reduce_window_max", "reduce_window_sum") and (window := _pool_window(equation)):
        values = (max_pool if name == "reduce_window_max" else sum_pool)(inputs[0], window)
    else:
        found = equation.primitive.get_bind_params(equation.params)
        # Functions among the parameters come apart from them before jax 0.10.
        functions, parameters = found if isinstance(found, tuple) else ((), found)
        values = equation.primitive.bind(*functions, *inputs, **parameters)
    several = name in CALLS or equation.primitive.multiple_results
    known.update(zip(equation.outvars, values if several else [values], strict=True))


def _convolution_window(equation: Any) -> Window | None:
    """How the window of a convolution of images moves; None if it isn't one of floats in NHWC."""
    found = equation.params
    dimensions = found["dimension_numbers"]
    x, kernel = (atom.aval for atom in equation.invars)
    if (
        tuple(dimensions) != IMAGES
        or found["batch_group_count"] != 1
        or not jnp.issubdtype(x.dtype, jnp.floating)
        or x.dtype != kernel.dtype
    ):
        return None
    return Window(
        kernel.shape[:2],
        tuple(found["window_strides"]),
        _pairs(found["padding"]),
        tuple(found["rhs_dilation"]),
        tuple(found["lhs_dilation"]),
    )


def _pairs(padding: Any) -> Pairs:
    (top, bottom), (left, right) = padding
    return (top, bottom), (left, right)


def _pool_window(equation: Any) -> Window | None:
    """How the window of a pooling moves; None if it isn't one of floats over height and width."""
    found = equation.params
    x = equation.invars[0].aval
    ones = [
        found[name][axis]
        for name in ("window_dimensions", "window_strides", "window_dilation", "base_dilation")
        for axis in (0, -1)
    ]
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating) or set(ones) != {1}:
        return None
    if any(tuple(found["padding"][axis]) != (0, 0) for axis in (0, -1)):
        return None

    def inner(name: str) -> Any:
        return tuple(found[name][1:3])

    return Window(
        inner("window_dimensions"),
        inner("window_strides"),
        _pairs(found["padding"][1:3]),
        inner("window_dilation"),
        inner("base_dilation"),
    )


# --- A convolution, its bias, ReLU and 2×2 max-pooling in one ------------------------------------


def _fused(equations: Sequence[Any], place: int, uses: Counter[Any]) -> _Fused | None:
    """What is computed with the convolution at a place; None if nothing is.

    Pooling commutes with adding a bias and with ReLU, so that it is done first: on a CPU that
    leaves a quarter of the numbers to them.
    """
    convolution = equations[place]
    if convolution.primitive.name != "conv_general_dilated":
        return None
    padding = _plain_padding(convolution)
    if padding is None:
        return None
    bias, has_relu = None, False
    variable = convolution.outvars[0]
    places: list[int] = []
    for found, equation in _chain(equations, place, uses):
        name = equation.primitive.name
        places.append(found)
        if name == "add" and bias is None and not has_relu:
            bias = next(atom for atom in equation.invars if atom is not variable)
            if isinstance(bias, core.Literal) or bias.aval.shape != (
                1, 1, 1, variable.aval.shape[-1]
            ):  # fmt: skip
                return None
        elif _is_relu(equation) and not has_relu:
            has_relu = True
        elif name == "reduce_window_max":
            corners = Window((2, 2), (2, 2))
            fits = _pool_window(equation) == corners
            return _Fused(padding, bias, has_relu, tuple(places)) if fits else None
        else:
            return None
        variable = equation.outvars[0]
    return None


def _chain(equations: Sequence[Any], place: int, uses: Counter[Any]) -> list[tuple[int, Any]]:
    """The equations behind one, each the only one that uses the output of the one before it."""
    chain: list[tuple[int, Any]] = []
    variable = equations[place].outvars[0]
    for found in range(place + 1, len(equations)):
        equation = equations[found]
        if any(atom is variable for atom in equation.invars):
            if uses[variable] != 1 or len(equation.outvars) != 1:
                break
            chain.append((found, equation))
            variable = equation.outvars[0]
    return chain


def _plain_padding(convolution: Any) -> Padding | None:
    """The padding of a convolution without strides, dilation and groups; None of any other."""
    window = _convolution_window(convolution)
    if window is None or convolution.params["feature_group_count"] != 1:
        return None
    rows, columns = window.size
    if window == Window(window.size):
        return "valid"
    same = ((rows // 2, rows // 2), (columns // 2, columns // 2))
    if rows % 2 and columns % 2 and window == Window(window.size, padding=same):
        return "same"
    return None


def _is_relu(equation: Any) -> bool:
    """Whether an equation is `jax.nn.relu`: its own rule, and the larger of its input and 0."""
    name, found = equation.primitive.name, equation.params
    if len(equation.invars) != 1 or found.get("name") != "relu":
        return False
    if name == "custom_jvp_call":
        body = found["call_jaxpr"].jaxpr
        while len(body.eqns) == 1 and body.eqns[0].primitive.name in CALLS:
            body = body.eqns[0].params["jaxpr"].jaxpr
        if len(body.eqns) != 1 or body.eqns[0].primitive.name != "max":
            return False
        zero = body.eqns[0].invars[1]
        return isinstance(zero, core.Literal) and zero.val == 0
    if name in CALLS:  # earlier versions of JAX: a jitted function with the rule inside
        body = found["jaxpr"].jaxpr
        return len(body.eqns) == 1 and body.eqns[0].primitive.name == "custom_jvp_call"
    return False
