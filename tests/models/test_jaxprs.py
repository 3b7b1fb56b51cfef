"""A hash of what a function computes, and what its outputs depend on."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist.models.jaxprs import depends, is_zero, sha256

X = jnp.arange(4.0)


def traced(function, *arguments):
    return jax.make_jaxpr(function)(*(arguments or (X,)))


def with_rule(factor):
    """A function whose gradient is multiplied by a factor of its own."""
    copy = jax.custom_vjp(lambda x: 2 * x)
    copy.defvjp(lambda x: (2 * x, None), lambda _, g: (factor * g,))
    return lambda x: jax.grad(lambda x: copy(x).sum())(x)


def inner(constant):
    """A constant within a jitted function."""
    table = np.full(4, constant, np.float32)
    return lambda x: jax.jit(lambda x: x + table)(x)


DIFFERENT = {
    "what is called on the host": (
        lambda x: jax.pure_callback(lambda v: np.tanh(v), jax.ShapeDtypeStruct((4,), "f4"), x),
        lambda x: jax.pure_callback(lambda v: np.sin(v), jax.ShapeDtypeStruct((4,), "f4"), x),
    ),
    "another function": (jnp.sin, jnp.cos),
    "a number": (lambda x: x * 2, lambda x: x * 3),
    "a constant array": (
        lambda x: x + np.arange(4, dtype=np.float32),
        lambda x: x + np.arange(4, dtype=np.float32) ** 2,
    ),
    "an inner constant": (inner(1), inner(2)),
    "a rule for the gradient": (with_rule(2), with_rule(3)),
    "a loop's body": (
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + 1, x),
        lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + 2, x),
    ),
    "a key as a constant": (
        lambda x: x + jax.random.normal(jax.random.key(1), (4,)),
        lambda x: x + jax.random.normal(jax.random.key(2), (4,)),
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_computes_something_else_has_another_hash(name):
    first, second = DIFFERENT[name]
    assert sha256(traced(first)) != sha256(traced(second))
    assert sha256(traced(first)) == sha256(traced(lambda x: first(x)))


def test_what_no_output_needs_does_not_count():
    def more(x):
        jnp.tan(x) + np.arange(4.0)
        return jnp.sin(x)

    assert sha256(traced(more)) == sha256(traced(jnp.sin))
    assert sha256(traced(jnp.sin), traced(jnp.cos)) != sha256(traced(jnp.cos), traced(jnp.sin))


def test_what_outputs_depend_on():
    both = traced(lambda a, b: (jnp.sin(a), a * b, b + 1), X, X)
    wanted = [[True, False], [True, True], [False, True]]
    found = [[depends(both, [out], [place]) for place in (0, 1)] for out in range(3)]
    assert found == wanted
    assert depends(both, [0, 2], [1])


def test_gradients_to_which_nothing_leads():
    def loss(weights):
        used, fixed, _, dead = weights
        return (used * jax.lax.stop_gradient(fixed) + 0 * dead).sum()

    gradient = traced(jax.grad(loss), (X, X, X, X))
    assert [is_zero(gradient, place) for place in range(4)] == [False, True, True, False]


def test_dependence_through_calls_loops_and_conditions():
    """Each output on its own input alone, but for what a loop carries from one to the other."""

    def both(a, b):
        return jnp.sin(a), b + 1

    def carried(a, b):
        return jax.lax.scan(lambda c, _: ((c[0] + c[1], c[1]), None), (a, b), length=2)[0]

    def chosen(a, b):
        return jax.lax.cond(X.sum() > a.sum(), both, lambda a, b: (a, b), a, b)

    def on(function):
        closed = traced(function, X, X)
        return [[depends(closed, [out], [place]) for place in (0, 1)] for out in (0, 1)]

    apart = [[True, False], [False, True]]
    assert on(jax.jit(both)) == apart
    assert on(jax.checkpoint(both)) == apart
    assert on(carried) == [[True, True], [False, True]]
    assert on(chosen) == [[True, False], [True, True]]


TERMINAL = """
import sys, jax
from jaxmnist.models.jaxprs import sha256

sys.stderr.write(sha256(jax.make_jaxpr(lambda x: jax.nn.relu(x) + 1)(1.0)))
"""


@pytest.mark.slow
def test_a_terminal_has_the_hash_of_a_pipe():
    """JAX's own text of a jaxpr has colors there, as it finds when it is imported."""
    line = [sys.executable, "-c", TERMINAL]
    ours, theirs = pty.openpty()
    found = [
        subprocess.run(line, stdout=output, stderr=subprocess.PIPE, check=True).stderr
        for output in (theirs, subprocess.PIPE)
    ]
    os.close(ours)
    os.close(theirs)
    assert found[0] == found[1]
    assert len(found[0]) == 64


def test_what_jax_remembers_does_not_change_a_hash():
    """Its own text has an inner jaxpr once, or twice if the caches were cleared between."""

    def function(clear):
        def compute(x):
            first = jax.nn.relu(x)
            clear()
            return first + jax.nn.relu(x * 2)

        return compute

    once, twice = (traced(function(clear)) for clear in (int, jax.clear_caches))
    assert str(once.jaxpr) != str(twice.jaxpr)
    assert sha256(once) == sha256(twice)


def test_names_of_functions_do_not_count():
    assert sha256(traced(jax.jit(lambda x: x * 2))) == sha256(traced(jax.jit(times_two)))


def times_two(x):
    return x * 2


def test_what_is_printed_does_not_count():
    def printing(text):
        def function(x):
            jax.debug.print(text, x=x)
            return x * 2

        return function

    assert sha256(traced(printing("one {x}"))) == sha256(traced(printing("two {x}")))
