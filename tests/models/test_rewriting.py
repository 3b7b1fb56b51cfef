"""Rewritten functions against XLA's own convolutions and pooling: values and gradients."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import float64, slow_after

from jaxmnist.models.rewriting import Rewriting, rewritten, with_pooling_by_axis


def primitives(function, *arguments):
    """The names of all primitives of a function, those of its inner calls too."""
    names = []

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            names.append(equation.primitive.name)
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
            ):
                if hasattr(inner, "jaxpr"):
                    collect(inner.jaxpr)

    collect(jax.make_jaxpr(function)(*arguments).jaxpr)
    return names


def bordered(shape, seed=0):
    """Images with black borders and whole numbers, whose pooling windows have ties."""
    images = np.random.default_rng(seed).integers(0, 5, shape) / 4.0
    images[:, :6] = images[:, -6:] = 0
    return images


def noise(shape):
    """Images without ties."""
    return np.random.default_rng(0).normal(size=shape)


def check(function, *arguments, replaced=("conv_general_dilated",)):
    """`function` rewritten has the same values and gradients, and none of the `replaced`."""

    def loss(function):
        return lambda *arguments: (jnp.sin(function(*arguments)) * 0.3).sum()

    with float64():
        arguments = [jnp.asarray(array, jnp.float64) for array in arguments]
        everything = tuple(range(len(arguments)))

        @jax.jit
        def both(*arguments):
            return [
                (each(*arguments), *jax.grad(loss(each), everything)(*arguments))
                for each in (rewritten(function), function)
            ]

        for found, wanted in zip(*both(*arguments), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-9)
        names = primitives(jax.grad(loss(rewritten(function)), everything), *arguments)
    assert not set(replaced) & set(names)
    return names


CONVOLUTIONS = [
    # (kernel, channels, filters, strides, padding, dilation, groups)
    ((5, 5), 1, 4, (1, 1), "VALID", (1, 1), 1),
    ((5, 5), 1, 16, (1, 1), "SAME", (1, 1), 1),
    ((3, 3), 4, 5, (1, 1), "SAME", (1, 1), 1),
    ((3, 3), 1, 5, (1, 1), "SAME", (1, 1), 1),
    ((1, 1), 3, 5, (1, 1), "SAME", (1, 1), 1),
    ((3, 3), 3, 4, (2, 2), "SAME", (1, 1), 1),
    ((3, 3), 3, 4, (2, 1), ((0, 1), (2, 0)), (1, 1), 1),
    ((4, 4), 2, 3, (4, 4), "VALID", (1, 1), 1),
    ((3, 2), 3, 4, (1, 1), "SAME", (2, 3), 1),
    ((7, 7), 4, 4, (1, 1), "SAME", (1, 1), 4),
    ((3, 3), 4, 8, (2, 2), "SAME", (1, 1), 4),
    ((3, 3), 4, 6, (1, 1), "SAME", (1, 1), 2),
    ((3, 3), 2, 3, (1, 1), ((-1, -2), (1, 1)), (1, 1), 1),
]


@pytest.mark.parametrize(
    ("size", "channels", "filters", "strides", "padding", "dilation", "groups"), CONVOLUTIONS
)
def test_convolutions(size, channels, filters, strides, padding, dilation, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            rhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    kernel = np.random.default_rng(1).normal(size=(*size, channels // groups, filters))
    check(convolve, bordered((3, 17, 18, channels)), kernel)


def test_a_transposed_convolution():
    def convolve(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME")

    check(convolve, bordered((2, 14, 14, 3)), np.random.default_rng(1).normal(size=(3, 3, 3, 4)))


def test_patches_that_are_too_large_are_added_up(monkeypatch):
    monkeypatch.setattr("jaxmnist.models.rewriting.LARGEST_PATCHES", 100)
    test_convolutions((5, 3), 2, 8, (1, 1), "SAME", (1, 1), 1)


@pytest.mark.parametrize("pool", [nn.max_pool, nn.avg_pool])
@pytest.mark.parametrize(
    ("window", "strides", "padding"),
    [((2, 2), (2, 2), "VALID"), ((3, 3), (2, 2), "SAME"), ((2, 2), (1, 1), "VALID")],
)
def test_pooling(pool, window, strides, padding):
    """Also where several pixels of a window are the largest."""
    names = check(
        lambda x: pool(x, window, strides, padding),
        bordered((3, 17, 18, 2)),
        replaced=("reduce_window_max", "reduce_window_sum", "select_and_scatter_add"),
    )
    assert "select_and_gather_add" not in names


BLOCKS = {
    "conv 5, bias, relu, pool": lambda x: nn.max_pool(
        nn.relu(nn.Conv(4, (5, 5), padding="VALID")(x)), (2, 2), (2, 2)
    ),
    "an odd image": lambda x: nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x[:, :-1])), (2, 2), (2, 2)),
    "conv, pool": lambda x: nn.max_pool(nn.Conv(4, (3, 3), use_bias=False)(x), (2, 2), (2, 2)),
    "conv, gelu, pool": lambda x: nn.max_pool(nn.gelu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2)),
    "conv, relu, average": lambda x: nn.avg_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2)),
    "conv used twice": lambda x: (
        lambda y: nn.max_pool(nn.relu(y), (2, 2), (2, 2)) + nn.avg_pool(y, (2, 2), (2, 2))
    )(nn.Conv(4, (3, 3))(x)),
    "two branches": lambda x: (
        nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
        + nn.max_pool(nn.relu(nn.Conv(4, (5, 5))(x)), (2, 2), (2, 2))
    ),
    "conv 5, relu, average": lambda x: nn.avg_pool(nn.relu(nn.Conv(4, (5, 5))(x)), (2, 2), (2, 2)),
    "conv, bias, pool, relu": lambda x: nn.relu(nn.max_pool(nn.Conv(4, (3, 3))(x), (2, 2), (2, 2))),
}


@pytest.mark.parametrize(
    ("window", "strides", "padding"), [((2, 2), (2, 2), "VALID"), ((3, 2), (2, 1), "SAME")]
)
def test_max_pooling_by_axis(window, strides, padding):
    """Also where the number of images is left open."""

    def pool(x):
        return nn.max_pool(x, window, strides, padding)

    images = np.random.default_rng(0).normal(size=(3, 7, 8, 2)).astype(np.float32)
    by_axis = with_pooling_by_axis(pool)
    np.testing.assert_array_equal(by_axis(images), pool(images))
    (count,) = jax.export.symbolic_shape("N")
    jaxpr = jax.make_jaxpr(by_axis)(jax.ShapeDtypeStruct((count, 7, 8, 2), np.float32)).jaxpr
    pools = [e.invars[0].aval.ndim for e in jaxpr.eqns if e.primitive.name == "reduce_window_max"]
    assert pools == [3, 3]


@pytest.mark.parametrize("name", slow_after(3, BLOCKS))
def test_blocks_of_layers(name):
    """As people write them; with zero biases and black borders ReLU's gradient at 0 counts."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(BLOCKS[name](x).reshape(x.shape[0], -1))

    # A fast algorithm rounds, so that it breaks the ties of black borders in its own way.
    ties = "5" in name
    images = (bordered if ties else noise)((4, 16, 18, 4))
    network = Network()
    with float64():
        parameters = network.init(jax.random.key(0), images)["params"]
        flat, tree = jax.tree.flatten(parameters)
    check(
        lambda *flat: network.apply({"params": jax.tree.unflatten(tree, flat[:-1])}, flat[-1]),
        *flat,
        images,
    )


@pytest.mark.parametrize("name", ["conv 5, bias, relu, pool", "two branches", "an odd image"])
def test_relu_is_computed_behind_the_pooling(name):
    """With the ReLU of jax.nn in its place; it alone has a rule for its gradient here."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BLOCKS[name](x)

    images = jnp.asarray(noise((4, 16, 18, 4)))
    network = Network()
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    names = primitives(rewritten(network.apply), variables, images)
    assert "custom_jvp_call" not in names
    assert "custom_jvp_call" in primitives(network.apply, variables, images)


def test_a_relu_of_ones_own_is_not_taken_for_relu():
    @jax.jit
    def relu(x):
        return jnp.maximum(x, 0.1 * x)

    kernel = np.random.default_rng(1).normal(size=(3, 3, 4, 4))

    def block(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.max_pool(relu(y), (2, 2), (2, 2))

    check(block, noise((2, 16, 16, 4)), kernel)


def test_loops_and_rules_of_their_own_are_left():
    """A scan, a condition, rematerialisation and a rule of one's own work as they are."""

    @jax.custom_vjp
    def halved(x):
        return x

    halved.defvjp(lambda x: (x, None), lambda _, g: (g / 2,))

    def function(x):
        x = jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=3)[0]
        x = jax.lax.cond(x.sum() > 1e6, jnp.cos, jax.checkpoint(jnp.tanh), x)
        return halved(x)

    check(function, bordered((2, 14, 14, 2)), replaced=())


def test_a_convolution_with_another_type_of_output_is_left():
    """bfloat16 in, float32 out: the sums are as exact as JAX's own."""

    def function(x, kernel):
        half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        return jax.lax.conv_general_dilated(
            *half,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )

    random = np.random.default_rng(0)
    x = random.normal(size=(2, 6, 6, 3)).astype(np.float32)
    kernel = random.normal(size=(3, 3, 3, 4)).astype(np.float32)
    ours, theirs = rewritten(function)(x, kernel), function(x, kernel)
    assert ours.dtype == theirs.dtype
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("method", ["corners", "convolution"])
def test_blocks_on_an_accelerator(name, method):
    """Convolution, bias, ReLU and pooling in one, and all else as it is: the same values."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return BLOCKS[name](x)

    with float64():
        images = jnp.asarray(noise((2, 16, 18, 4)))
        network = Network()
        weights = jax.tree.map(
            lambda x: jnp.asarray(x, float), network.init(jax.random.key(0), images)
        )
        ours = rewritten(network.apply, method)
        np.testing.assert_allclose(
            jax.jit(ours)(weights, images), network.apply(weights, images), atol=1e-12
        )


def test_who_pools_by_corners():
    """The study's layers: four strided convolutions each, and no pooling window."""

    def function(x, kernel, bias):
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return nn.max_pool(nn.relu(y + bias.reshape(1, 1, 1, -1)), (2, 2), (2, 2))

    arguments = noise((2, 8, 8, 3)), noise((3, 3, 3, 4)), noise((4,))
    names = primitives(rewritten(function, "corners"), *arguments)
    assert names.count("conv_general_dilated") == 4
    assert "reduce_window_max" not in names
    names = primitives(rewritten(function, "convolution"), *arguments)
    assert names.count("conv_general_dilated") == 1
    assert "reduce_window_max" not in names


def test_which_dense_kernels_are_taken_apart():
    """A row for each image, one type, used once: others would cost memory or be wrong."""

    def function(kernels, x):
        first = x @ kernels["of images"]
        pixels = x.reshape(-1, 2) @ kernels["of pixels"]
        twice = first @ kernels["twice"] @ kernels["twice"]
        half = jax.lax.dot_general(
            first.astype(jnp.bfloat16), kernels["half"], (((1,), (0,)), ((), ()))
        )
        returned = first @ kernels["returned"]
        return twice.sum() + pixels.sum() + half.sum() + returned.sum(), kernels["returned"]

    shapes = {"of images": (6, 4), "of pixels": (2, 4), "twice": (4, 4), "half": (4, 4)}
    kernels = {name: jnp.ones(shape) for name, shape in (*shapes.items(), ("returned", (4, 4)))}
    x = jnp.ones((3, 6))
    traced = Rewriting(function, kernels, x)
    places = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(kernels)]
    found = traced.dense_products(range(len(places)), rows=3)
    assert [places[place] for place in found] == ["['of images']"]
    (place,) = found
    assert found[place].shape == (3, 4)
    value, factors = traced.with_factors({place: jnp.zeros((3, 4))}, kernels, x)
    assert np.array_equal(factors[place], x)
    assert float(value[0]) == float(function(kernels, x)[0])
