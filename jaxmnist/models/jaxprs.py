"""What a traced function computes: a hash of it, and what its outputs depend on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from types import CodeType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object, in memory
NAMES = ("name", "debug_info")  # parameters of equations that change nothing
# Equations whose output is zero where their input is.
PASSING = ("convert_element_type", "reshape", "transpose", "copy", "squeeze", "neg", "reduce_sum")


def sha256(*computations: Any) -> str:
    """The SHA-256 of closed jaxprs: of the equations behind their outputs, with all constants.

    What is no closed jaxpr counts by its `repr`.

    Equations on which no output depends are left out. JAX's own text of a jaxpr won't do: it has
    colors on a terminal, and shows inner jaxprs once or several times, as its caches have them.
    """
    found = hashlib.sha256()
    for computation in computations:
        for part in _value(computation):
            found.update(part)
    return found.hexdigest()


def _parts(jaxpr: Any, constants: Sequence[Any]) -> Iterator[bytes]:
    """What a jaxpr says, piece by piece; variables are numbered as they come."""
    numbers: dict[Any, int] = {}

    def said(atom: Any) -> str:
        if isinstance(atom, core.Literal):
            return f"{atom.val!r}:{atom.aval}"
        return f"{numbers.setdefault(atom, len(numbers))}:{atom.aval}"

    equations, needed = _live(jaxpr, jaxpr.outvars)
    for variable, value in zip(jaxpr.constvars, constants, strict=True):
        if variable in needed:
            yield said(variable).encode()
            yield from _value(value)
    yield " ".join(map(said, jaxpr.invars)).encode()
    for equation in equations:
        if equation.primitive.name.startswith("debug"):  # what is printed changes nothing
            continue
        atoms = [*equation.invars, "->", *equation.outvars]
        words = [atom if isinstance(atom, str) else said(atom) for atom in atoms]
        yield f"\n{equation.primitive.name} {' '.join(words)}".encode()
        for name, value in sorted(equation.params.items()):
            if name not in NAMES:
                yield f" {name}=".encode()
                yield from _value(value)
    yield f"\n{' '.join(map(said, jaxpr.outvars))}".encode()


def _value(value: Any) -> Iterator[bytes]:
    """What a constant, or a parameter of an equation, says."""
    if isinstance(value, core.ClosedJaxpr):
        yield from _parts(value.jaxpr, value.consts)
    elif isinstance(value, core.Jaxpr):
        yield from _parts(value, ())
    elif isinstance(value, tuple | list):
        for part in value:
            yield b","
            yield from _value(part)
    elif isinstance(value, jax.Array | np.ndarray):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            value = jax.random.key_data(value)
        array = np.ascontiguousarray(jax.device_get(value))
        yield repr((array.shape, str(array.dtype))).encode()
        yield array.tobytes()
    elif (code := getattr(getattr(value, "callback_func", None), "__code__", None)) is not None:
        yield from _code(code)
    else:
        yield ADDRESS.sub("", repr(value)).encode()


def _code(code: Any) -> Iterator[bytes]:
    """What a Python function does that a program calls on the host, as far as it says it itself."""
    yield repr((code.co_code, code.co_names)).encode()
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _code(constant)
        else:
            yield from _value(constant)


def within(equation: Any) -> list[Any]:
    """The jaxprs of what an equation calls, such as the body of a loop."""
    return [
        getattr(part, "jaxpr", part)
        for value in equation.params.values()
        for part in (value if isinstance(value, tuple | list) else (value,))
        if isinstance(part, core.ClosedJaxpr | core.Jaxpr)
    ]


def depends(closed: Any, outputs: Iterable[int], inputs: Iterable[int]) -> bool:
    """Whether some of the outputs of a closed jaxpr depend on some of its inputs, by position."""
    return not _used(closed.jaxpr, outputs).isdisjoint(inputs)


def _used(jaxpr: Any, outputs: Iterable[int]) -> set[int]:
    """The positions of the inputs on which outputs depend, also through calls and loops."""
    needed = {jaxpr.outvars[place] for place in outputs}
    for equation in reversed(jaxpr.eqns):
        places = [place for place, v in enumerate(equation.outvars) if v in needed]
        if places:
            needed |= {equation.invars[place] for place in _used_by(equation, places)}
    return {place for place, variable in enumerate(jaxpr.invars) if variable in needed}


def _used_by(equation: Any, outputs: Sequence[int]) -> Iterable[int]:
    """The positions of the inputs that outputs of an equation depend on, with no literals."""
    variables = [
        place for place, atom in enumerate(equation.invars) if not isinstance(atom, core.Literal)
    ]
    found: set[int] = set()
    inner = within(equation)
    # What stands before the arguments of the inner jaxprs, such as the index of a condition.
    before = len(equation.invars) - len(inner[0].invars) if inner else 0
    if (
        not inner
        or equation.primitive.name == "while"
        or any(
            len(body.invars) != len(inner[0].invars) or len(body.outvars) != len(equation.outvars)
            for body in inner
        )
    ):
        return variables
    first = equation.params.get("num_consts", 0)  # the carry of a scan comes behind them
    carried = equation.params.get("num_carry", 0)
    wanted = set(outputs)
    while True:
        for body in inner:
            found |= {before + place for place in _used(body, wanted)}
        again = {place - first for place in found if first <= place < first + carried}
        if again <= wanted:
            return [place for place in variables if place in found or place < before]
        wanted |= again


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


def _live(jaxpr: Any, outputs: Iterable[Any]) -> tuple[list[Any], set[Any]]:
    """The equations of a jaxpr that outputs need, and the variables that they need."""
    needed = {atom for atom in outputs if not isinstance(atom, core.Literal)}
    kept = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(variable in needed for variable in equation.outvars):
            kept.append(equation)
            needed |= {atom for atom in equation.invars if not isinstance(atom, core.Literal)}
    return kept[::-1], needed
