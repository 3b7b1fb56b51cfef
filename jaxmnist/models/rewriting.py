"""A function of arrays with its convolutions and pooling computed from slices, however written.

Inside a loop XLA computes a convolution's gradient 14 times slower than outside of it on a CPU
(jax-ml/jax issue 12868), and the gradient of a pooling window is slow everywhere. The function is
traced, and its jaxpr evaluated equation by equation before anything is differentiated: convolutions
and pooling windows are replaced, all else is bound as it is. What has a rule of its own for its
gradient, such as ReLU, is not looked into, as it would lose the rule; nor are loops and conditions.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxmnist.models.convolution import (
    Method,
    Padding,
    convolve_by_winograd,
    convolve_pool,
    convolve_relu_pool_by_corners,
    max_corner,
    max_pool_2x2,
    product,
    relu,
)

# --- Convolution and pooling of every kind as matrix products and sums of slices, for a CPU ---

Pairs = tuple[tuple[int, int], tuple[int, int]]
Corners = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
# Multiplications that cost as much as copying one number into a patch (measured on one machine).
COPY = 35
# Patches of a batch that are larger than this are not made: rows of the kernel are added up.
LARGEST_PATCHES = 2**27  # numbers


@dataclass(frozen=True)
class Window:
    """How a window of pixels moves over an image; all pairs are (vertical, horizontal).

    size, strides, dilation: of the window. padding: pixels before and behind the image, negative
    ones cut it. base_dilation: of the image, whose pixels are moved apart by zeros.
    """

    size: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: Pairs = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    base_dilation: tuple[int, int] = (1, 1)

    def places(self) -> Sequence[tuple[int, int]]:
        """The positions within the window, row by row."""
        return list(itertools.product(range(self.size[0]), range(self.size[1])))

    def pad(self, x: jax.Array, value: float) -> jax.Array:
        """The images [N, H, W, C] with their padding and dilation, filled with `value`."""
        spread = [
            (*pair, gap - 1) for pair, gap in zip(self.padding, self.base_dilation, strict=True)
        ]
        return lax.pad(x, jnp.asarray(value, x.dtype), ((0, 0, 0), *spread, (0, 0, 0)))

    def slices(self, padded: jax.Array) -> Callable[[int, int], jax.Array]:
        """The function of (i, j) that gives what each window has there: [N, H', W', C]."""
        extents = [
            (length - (size - 1) * gap - 1) // stride + 1
            for length, size, gap, stride in zip(
                padded.shape[1:3], self.size, self.dilation, self.strides, strict=True
            )
        ]

        def at(i: int, j: int) -> jax.Array:
            first = [i * self.dilation[0], j * self.dilation[1]]
            last = [
                a + (extent - 1) * stride + 1
                for a, extent, stride in zip(first, extents, self.strides, strict=True)
            ]
            n, channels = padded.shape[0], padded.shape[3]
            return lax.slice(padded, (0, *first, 0), (n, *last, channels), (1, *self.strides, 1))

        return at


CORNER_WINDOW = Window((2, 2), (2, 2))  # of usual pooling


def convolve(x: jax.Array, kernel: jax.Array, window: Window, groups: int = 1) -> jax.Array:
    """The convolution of images with a kernel.

    Args:
      x: float[N, H, W, C].
      kernel: float[K, L, C / groups, F].
      window: of the size (K, L).
      groups: into which channels and filters are divided; each sees its own channels only.

    Returns:
      float[N, H', W', F].
    """
    plain = Window(window.size, padding=((1, 1), (1, 1)))
    if groups == 1 and window.size == (3, 3) and window == plain and kernel.shape[2] >= 4:
        return convolve_by_winograd(x, kernel)
    padded = window.pad(x, 0)
    if groups > 1:
        return _convolve_groups(window, padded, kernel, groups)
    columns, filters = kernel.shape[1], kernel.shape[3]
    if window == Window(window.size, padding=window.padding) and (
        padded.shape[2] * filters <= columns * (filters + COPY)
    ):
        return _convolve_by_rows(padded, kernel)
    return _convolve_by_patches(window.slices(padded), kernel)


def _convolve_by_rows(padded: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 'valid' convolution as one product of whole rows of pixels with a matrix mostly of zeros.

    It multiplies more than patches need, but copies less: for small images of few channels.
    """
    rows, columns, channels, filters = kernel.shape
    n, seen, wide, _ = padded.shape
    height, width = seen - rows + 1, wide - columns + 1
    # Where the output pixel o sees the input pixel w: at the kernel's column w - o.
    places = np.arange(wide)[:, None] - np.arange(width) == np.arange(columns)[:, None, None]
    matrix = jnp.einsum("jwo,ijcf->iwcof", jnp.asarray(places, kernel.dtype), kernel)
    lines = padded.reshape(n, seen, wide * channels)
    above = jnp.concatenate([lines[:, i : i + height] for i in range(rows)], -1)
    outputs = product(above.reshape(n * height, -1), matrix.reshape(-1, width * filters))
    return outputs.reshape(n, height, width, filters)


def _convolve_groups(
    window: Window, padded: jax.Array, kernel: jax.Array, groups: int
) -> jax.Array:
    """The sum over the kernel's places: a loop over rows, to have fewer operations to compile."""
    rows, columns, each, filters = kernel.shape
    kernels = kernel.reshape(rows, columns, each, groups, filters // groups)
    # Of a row of places; the image is as high as what the windows see at their first row.
    row = replace(window, size=(1, columns))
    seen = padded.shape[1] - (rows - 1) * window.dilation[0]

    def add_row(total: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        first, kernel_row = item
        at = row.slices(lax.dynamic_slice_in_dim(padded, first, seen, 1))
        for j in range(columns):
            part = at(0, j)
            grouped = part.reshape(*part.shape[:3], groups, each)
            if each == 1:
                total = total + grouped * kernel_row[j, 0]
            else:
                total = total + jnp.einsum("nhwgc,cgf->nhwgf", grouped, kernel_row[j])
        return total, None

    height, width = jax.eval_shape(lambda: window.slices(padded)(0, 0)).shape[1:3]
    nothing = jnp.zeros((len(padded), height, width, groups, filters // groups), padded.dtype)
    firsts = jnp.arange(rows) * window.dilation[0]
    total, _ = lax.scan(add_row, nothing, (firsts, kernels))
    return total.reshape(*total.shape[:3], filters)


def _convolve_by_patches(at: Callable[[int, int], jax.Array], kernel: jax.Array) -> jax.Array:
    """One product of all patches; of a row of the kernel at a time where they are too many."""
    rows, columns, _, filters = kernel.shape
    at_once = rows
    n, height, width, _ = jax.eval_shape(lambda: at(0, 0)).shape
    if math.prod((n, height, width, *kernel.shape[:3])) > LARGEST_PATCHES:
        at_once = 1
    total = None
    for first in range(0, rows, at_once):
        parts = [at(i, j) for i in range(first, first + at_once) for j in range(columns)]
        patches = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)
        matrix = kernel[first : first + at_once].reshape(-1, filters)
        term = product(patches.reshape(n * height * width, -1), matrix)
        total = term if total is None else total + term
    assert total is not None
    return total.reshape(n, height, width, filters)


def max_pool(x: jax.Array, window: Window) -> jax.Array:
    """The largest number in each window, float[N, H, W, C] → float[N, H', W', C].

    Its gradient goes to the first of a window's largest numbers, row by row.
    """
    if window == CORNER_WINDOW:
        return max_corner(*corners(x))
    at = window.slices(window.pad(x, -jnp.inf))
    best, *others = [at(i, j) for i, j in window.places()]
    for other in others:
        best = jnp.where(best >= other, best, other)
    return best


def max_pool_by_axis(x: jax.Array, window: Window) -> jax.Array:
    """The values of `max_pool`: of each column of a window the largest number, then of those.

    Each step pools along the middle one of three axes, which runtimes do that can't pool over
    four. N may be symbolic.
    """
    n, _, width, channels = x.shape
    rows = _pool_middle(x.reshape(n, -1, width * channels), window, 0)
    height = rows.shape[1]
    pooled = _pool_middle(rows.reshape(n * height, width, channels), window, 1)
    return pooled.reshape(n, height, -1, channels)


def _pool_middle(x: jax.Array, window: Window, axis: int) -> jax.Array:
    """Max-pooling of [A, B, C] along B, as a window does along one of its axes."""

    def along(value: int) -> tuple[int, int, int]:
        return 1, value, 1

    found: jax.Array = lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        along(window.size[axis]),
        along(window.strides[axis]),
        ((0, 0), window.padding[axis], (0, 0)),
        along(window.base_dilation[axis]),
        along(window.dilation[axis]),
    )
    return found


def sum_pool(x: jax.Array, window: Window) -> jax.Array:
    """The sum of each window, float[N, H, W, C] → float[N, H', W', C]."""
    if window == CORNER_WINDOW:
        a, b, c, d = corners(x)
        return a + b + c + d
    at = window.slices(window.pad(x, 0))
    total, *others = [at(i, j) for i, j in window.places()]
    for other in others:
        total = total + other
    return total


@jax.custom_vjp
def corners(x: jax.Array) -> Corners:
    """The numbers of each 2×2 window, row by row: float[N, H, W, C] → 4 × float[N, H', W', C].

    An odd last row or column is in no window.
    """
    n, height, width, channels = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    pairs = even.reshape(n, height // 2, 2, width // 2, 2 * channels)
    top, bottom = pairs[:, :, 0], pairs[:, :, 1]
    return (
        top[..., :channels], top[..., channels:], bottom[..., :channels], bottom[..., channels:]
    )  # fmt: skip


def _corners_forward(x: jax.Array) -> tuple[Corners, jax.Array]:
    return corners(x), x[:0]


def _corners_backward(like: jax.Array, cotangents: Corners) -> tuple[jax.Array]:
    """The cotangents put side by side, instead of a sum of four arrays of zeros between numbers."""
    a, b, c, d = cotangents
    n, rows, columns, channels = a.shape
    pairs = jnp.stack([jnp.concatenate([a, b], -1), jnp.concatenate([c, d], -1)], 2)
    even = pairs.reshape(n, 2 * rows, 2 * columns, channels)
    _, height, width, _ = like.shape
    return (jnp.pad(even, ((0, 0), (0, height % 2), (0, width % 2), (0, 0))),)


corners.defvjp(_corners_forward, _corners_backward)


# --- A traced function, evaluated equation by equation ---

CALLS = ("jit", "pjit", "closed_call")  # whose body is evaluated in their place
IMAGES = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # NHWC, HWIO, NHWC as JAX writes it


class Rewriting:
    """A function of trees of arrays, traced once, and evaluated with its convolutions rewritten.

    Args:
      function: pure.
      arguments: of the function, or their shapes.
      method: how convolutions and pooling are computed: see `Method`.
    """

    def __init__(
        self, function: Callable[..., Any], *arguments: Any, method: Method = "tiles"
    ) -> None:
        self._closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self._structure = jax.tree.structure(shapes)
        self._method = method

    def __call__(self, *arguments: Any) -> Any:
        """The value of the function."""
        return self._value(_Evaluation(self._method), arguments)

    def dense_products(
        self, arguments: Iterable[int], rows: int
    ) -> dict[int, jax.ShapeDtypeStruct]:
        """The products x @ kernel, [N, D] × [D, F], whose kernel is an argument and used only once.

        Those of one dtype alone: the product of x and a derivative then has the kernel's.

        Args:
          arguments: the places of the arguments that are looked at, among all leaves.
          rows: N, as others have more rows than images, which take memory to be kept.

        Returns:
          The shape [N, F] of each product by the place of its kernel.
        """
        jaxpr, uses = self._closed.jaxpr, _uses(self._closed.jaxpr)
        places = {jaxpr.invars[place]: place for place in arguments}
        return {
            places[equation.invars[1]]: jax.ShapeDtypeStruct(out.shape, out.dtype)
            for equation in jaxpr.eqns
            if _is_plain_product(equation) and uses[equation.invars[1]] == 1
            if equation.invars[1] in places
            for out in [equation.outvars[0].aval]
            if out.shape[0] == rows and all(x.aval.dtype == out.dtype for x in equation.invars)
        }

    def with_factors(
        self, added: Mapping[int, jax.Array], *arguments: Any
    ) -> tuple[Any, dict[int, jax.Array]]:
        """The value of the function, and the left factors x of some of `dense_products`.

        added: what is added to a product, by the place of its kernel. A derivative with respect to
          it is the derivative with respect to the product.
        """
        variables = {self._closed.jaxpr.invars[place]: place for place in added}
        evaluation = _Evaluation(
            self._method, added={variable: added[variables[variable]] for variable in variables}
        )
        value = self._value(evaluation, arguments)
        return value, {variables[v]: factor for v, factor in evaluation.factors.items()}

    def _value(self, evaluation: _Evaluation, arguments: Sequence[Any]) -> Any:
        values = evaluation.run(self._closed.jaxpr, self._closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(self._structure, values)


def rewritten(function: Callable[..., Any], method: Method = "tiles") -> Callable[..., Any]:
    """`function` of trees of arrays, with convolutions and pooling computed by a method."""
    return lambda *arguments: Rewriting(function, *arguments, method=method)(*arguments)


def with_pooling_by_axis(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of trees of arrays, with max-pooling computed one axis after the other."""

    def run(*arguments: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        evaluation = _Evaluation("convolution", pool=max_pool_by_axis)
        values = evaluation.run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(shapes), values)

    return run


def with_last_inputs(function: Callable[..., Any], method: Method) -> Callable[..., Any]:
    """`function`, which gives also what goes into the product that makes its first output.

    Args:
      function: of trees of arrays.
      method: as in `Rewriting`.

    Returns:
      The function whose value is a pair: the value of `function`, and the left factor, [N, D], of
      the matrix product from which, but for a bias, a new shape or type, the first output comes.
      The first output itself where it comes from something else.
    """

    def run(*arguments: Any) -> tuple[Any, jax.Array]:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        evaluation = _Evaluation(method, _left_factor(closed.jaxpr, closed.jaxpr.outvars[0]))
        values = evaluation.run(closed.jaxpr, closed.consts, jax.tree.leaves(arguments))
        found = values[0] if evaluation.watched is None else evaluation.watched
        return jax.tree.unflatten(jax.tree.structure(shapes), values), found

    return run


def _is_plain_product(equation: Any) -> bool:
    """Whether an equation is x @ kernel of two matrices."""
    if equation.primitive.name != "dot_general":
        return False
    (contracted, _) = equation.params["dimension_numbers"]
    variables = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
    matrices = len(variables) == 2 and all(atom.aval.ndim == 2 for atom in variables)
    return matrices and tuple(map(tuple, contracted)) == ((1,), (0,))


def _uses(jaxpr: Any) -> Counter[Any]:
    """How often each variable is used, as an output too."""
    return Counter(
        atom
        for atoms in (*(equation.invars for equation in jaxpr.eqns), jaxpr.outvars)
        for atom in atoms
        if not isinstance(atom, core.Literal)
    )


def _left_factor(jaxpr: Any, output: Any) -> Any:
    """The variable that is the left factor of the product behind an output; None without one."""
    makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}
    while not isinstance(output, core.Literal) and (equation := makers.get(output)) is not None:
        name = equation.primitive.name
        if name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            left = equation.invars[0]
            plain = left.aval.ndim == 2 and tuple(contracted) == (1,) and not batched
            return left if plain else None
        if name in CALLS:
            inner = _body(equation)
            place = equation.outvars.index(output)
            return _left_factor(inner.jaxpr, inner.jaxpr.outvars[place])
        if name in ("add", "add_any", "sub"):
            # One of the two is a bias, which no product makes.
            for atom in equation.invars:
                if (found := _left_factor(jaxpr, atom)) is not None:
                    return found
            return None
        if name in ("convert_element_type", "reshape", "squeeze", "copy"):
            output = equation.invars[0]
        else:
            return None
    return None


def _body(equation: Any) -> Any:
    """The closed jaxpr of a call."""
    return equation.params.get("jaxpr") or equation.params["call_jaxpr"]


@dataclass(frozen=True)
class _Fused:
    """A convolution with the equations behind it that are computed together with it.

    bias: the variable that is added, or None. places: of the equations, in order.
    """

    padding: Padding
    bias: Any
    has_relu: bool
    places: tuple[int, ...]

    def compute(
        self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None, method: Method
    ) -> jax.Array:
        """Their value, float[N, H', W', F]; bias: float[1, 1, 1, F]."""
        if method == "corners" and self.has_relu:
            filters = kernel.shape[-1]
            flat = jnp.zeros(filters, x.dtype) if bias is None else bias.reshape(filters)
            return convolve_relu_pool_by_corners(x, kernel, flat, self.padding)
        value = convolve_pool(x, kernel, self.padding, method)
        value = value if bias is None else value + bias
        return relu(value) if self.has_relu else value


@dataclass
class _Evaluation:
    """An evaluation of a jaxpr.

    method: how convolutions and pooling are computed.
    watch: a variable of the jaxpr or of one within it. watched: its value.
    pool: computes max-pooling; None leaves it to `method`.
    added, factors: see `Rewriting.with_factors`; by the variable of the kernel.
    """

    method: Method
    watch: Any = None
    watched: Any = None
    pool: Callable[[jax.Array, Window], jax.Array] | None = None
    added: Mapping[Any, jax.Array] = field(default_factory=dict)
    factors: dict[Any, jax.Array] = field(default_factory=dict)

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """The values of the outputs."""
        known: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        known.update(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, arguments, strict=True))
        uses = _uses(jaxpr)
        fused: dict[int, tuple[Any, _Fused]] = {}  # by the place of the last of their equations
        skipped: set[int] = set()
        for place, equation in enumerate(jaxpr.eqns):
            if not self.pool and (found := _fused(jaxpr.eqns, place, uses)):
                fused[found.places[-1]] = equation, found
                skipped.update((place, *found.places[:-1]))
            if place in fused:
                convolution, parts = fused[place]
                x, kernel = map(read, convolution.invars)
                bias = None if parts.bias is None else read(parts.bias)
                known[equation.outvars[0]] = parts.compute(x, kernel, bias, self.method)
            elif place not in skipped:
                values = self._compute(equation, [read(atom) for atom in equation.invars])
                if _is_plain_product(equation) and (kernel := equation.invars[1]) in self.added:
                    self.factors[kernel] = read(equation.invars[0])
                    values = [values[0] + self.added[kernel]]
                known.update(zip(equation.outvars, values, strict=True))
        if self.watch in known:
            self.watched = known[self.watch]
        return [read(atom) for atom in jaxpr.outvars]

    def _compute(self, equation: Any, inputs: list[Any]) -> list[Any]:
        """The values of one equation."""
        name = equation.primitive.name
        if name in CALLS:
            inner = _body(equation)
            return self.run(inner.jaxpr, inner.consts, inputs)
        if self.pool and name == "reduce_window_max" and (window := _pool_window(equation)):
            return [self.pool(inputs[0], window)]
        if self.method == "tiles" and (value := _from_slices(equation, inputs)) is not None:
            return [value]
        if _pools_corners(equation):
            return [max_pool_2x2(inputs[0])]
        found = equation.primitive.get_bind_params(equation.params)
        # Functions among the parameters come apart from them before jax 0.10.
        functions, parameters = found if isinstance(found, tuple) else ((), found)
        values = equation.primitive.bind(*functions, *inputs, **parameters)
        return list(values) if equation.primitive.multiple_results else [values]


def _from_slices(equation: Any, inputs: list[Any]) -> Any:
    """The value of a convolution or pooling; None of anything else."""
    name = equation.primitive.name
    if name == "conv_general_dilated" and (window := _convolution_window(equation)):
        x, kernel = inputs
        return convolve(x, kernel, window, equation.params["feature_group_count"])
    if name in ("reduce_window_max", "reduce_window_sum") and (window := _pool_window(equation)):
        return (max_pool if name == "reduce_window_max" else sum_pool)(inputs[0], window)
    return None


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
        or equation.outvars[0].aval.dtype != x.dtype
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


def _pools_corners(equation: Any) -> bool:
    """Whether an equation is usual pooling, of a number of images that is known.

    If that is left open, for export, slices would become gathers.
    """
    return (
        equation.primitive.name == "reduce_window_max"
        and isinstance(equation.invars[0].aval.shape[0], int)
        and _pool_window(equation) == CORNER_WINDOW
    )


# --- A convolution, its bias, ReLU and 2×2 max-pooling in one ---


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
            fits = _pools_corners(equation)
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
    """Whether an equation is `jax.nn.relu`, with its rule for the gradient at 0."""
    source = _source_of_rule(equation)
    return source is not None and source == _source_of_relu()


@functools.cache
def _source_of_relu() -> str | None:
    (equation,) = jax.make_jaxpr(jax.nn.relu)(0.0).jaxpr.eqns
    return _source_of_rule(equation)


def _source_of_rule(equation: Any) -> str | None:
    """Where the function is defined that an equation calls, if it has a rule of its own.

    Some versions of JAX have the call within a jitted one.
    """
    while equation.primitive.name in CALLS:
        equations = _body(equation).jaxpr.eqns
        if len(equations) != 1:
            return None
        (equation,) = equations
    if equation.primitive.name != "custom_jvp_call":
        return None
    found = equation.params["call_jaxpr"].jaxpr.debug_info
    return getattr(found, "func_src_info", None)
