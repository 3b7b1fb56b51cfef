"""What a traced function computes: a hash of it, and what its outputs depend on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

ADDRESS = re.compile(r"0x[0-9a-f]+")  # of a function among the equations, in memory
# Equations whose output is zero where their input is.
PASSING = ("convert_element_type", "reshape", "transpose", "copy", "squeeze", "neg", "reduce_sum")


def sha256(*computations: Any) -> str:
    """The SHA-256 of closed jaxprs: of the equations behind their outputs, with all constants.

    Equations on which no output depends are left out.
    """
    found = hashlib.sha256()
    for closed in computations:
        jaxpr, needed = _live(closed.jaxpr)
        constants = zip(closed.jaxpr.constvars, closed.consts, strict=True)
        used = {variable: value for variable, value in constants if variable in needed}
        jaxpr = jaxpr.replace(constvars=list(used))
        found.update(ADDRESS.sub("", str(jaxpr)).encode())
        for value in (*used.values(), *_inner_constants(jaxpr)):
            _add(found, value)
    return found.hexdigest()


def depends(closed: Any, outputs: Iterable[int], inputs: Iterable[int]) -> bool:
    """Whether some of the outputs of a closed jaxpr depend on some of its inputs, by position."""
    wanted = [closed.jaxpr.outvars[place] for place in outputs]
    jaxpr, needed = _live(closed.jaxpr, wanted)
    return any(jaxpr.invars[place] in needed for place in inputs)


def is_zero(closed: Any, output: int) -> bool:
    """Whether an output of a closed jaxpr is 0 because nothing leads to it.

    So is the gradient with respect to what is not used, or not differentiated.
    """
    makers = {variable: eqn for eqn in closed.jaxpr.eqns for variable in eqn.outvars}
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    atom = closed.jaxpr.outvars[output]
    while not isinstance(atom, core.Literal):
        if atom in constants:
            return not np.any(np.asarray(jax.device_get(constants[atom])))
        equation = makers.get(atom)
        if equation is None or equation.primitive.name not in (*PASSING, "broadcast_in_dim"):
            return False
        atom = equation.invars[0]
    return not np.any(np.asarray(atom.val))


def _live(jaxpr: Any, outputs: Iterable[Any] | None = None) -> tuple[Any, set[Any]]:
    """A jaxpr without the equations that outputs don't need, and the variables that they need."""
    atoms = jaxpr.outvars if outputs is None else outputs
    needed = {atom for atom in atoms if not isinstance(atom, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(variable in needed for variable in equation.outvars):
            kept.append(equation)
            needed |= {atom for atom in equation.invars if not isinstance(atom, core.Literal)}
    return jaxpr.replace(eqns=kept[::-1]), needed


def _inner_constants(jaxpr: Any) -> Iterator[Any]:
    """The constants of the closed jaxprs among the equations' parameters, in order."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, core.ClosedJaxpr):
                    yield from part.consts
                    yield from _inner_constants(part.jaxpr)
                elif isinstance(part, core.Jaxpr):
                    yield from _inner_constants(part)


def _add(found: Any, constant: Any) -> None:
    """Add an array to a hash."""
    if jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key):
        constant = jax.random.key_data(constant)
    array = np.ascontiguousarray(jax.device_get(constant))
    found.update(repr((array.shape, str(array.dtype))).encode())
    found.update(array.tobytes())
