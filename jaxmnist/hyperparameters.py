"""Hyperparameters as an immutable mapping, and the values that they may have."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any


def shown(value: Any) -> str:
    """Return the `repr` of a value for a message, cut off if long."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to convert an int of thousands of digits to text
        text = "a number with too many digits to show"
    return text if len(text) <= 100 else text[:100] + "…"


def plain(value: Any) -> Any:
    """Return `value` as JSON can represent it: NumPy scalars become Python's, lists become tuples.

    Raises ValueError for anything else; the caller prefixes its message with a name.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        if abs(value) >= 2**63:
            raise ValueError(f"must lie between -2**63 and 2**63, not be {shown(value)}")
        return int(value)
    if isinstance(value, float):  # NumPy's float64 is one
        if not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value}")
        return float(value)
    if isinstance(value, list | tuple):
        return tuple(plain(member) for member in value)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return plain(value.item())
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        raise ValueError(f"{name} is a callable: use its name as text, and look the name up")
    raise ValueError(f"a {type(value).__name__} is not text, a number, a boolean or None")


def text(value: Any) -> str:
    """Return a value as the command line has it: 0.001, relu, true."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, tuple) else str(value)


class Hyperparameters(Mapping[str, Any]):
    """One configuration: names and their values, in the order in which the network asks for them.

    Values are ints, floats, strings, bools, None, or tuples of them. Hyperparameters that the
    configuration does not use are absent. Two configurations are equal if they have the same
    names, values and types of values, in any order.

    >>> h = Hyperparameters(learning_rate=0.01, activation="relu", bias=True)
    >>> print(h)
    learning_rate=0.01 activation=relu bias=true
    >>> h["activation"], h == Hyperparameters(bias=True, activation="relu", learning_rate=0.01)
    ('relu', True)
    """

    __slots__ = ("_key", "_values")
    _values: dict[str, Any]
    _key: str

    def __init__(self, values: Mapping[str, Any] | None = None, /, **named: Any) -> None:
        given = {**(values or {}), **named}
        if not all(isinstance(name, str) for name in given):
            raise ValueError("the names of hyperparameters must be text")
        object.__setattr__(self, "_values", {name: plain(v) for name, v in given.items()})
        object.__setattr__(self, "_key", json.dumps(self._values, sort_keys=True))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("hyperparameters can't be changed; replace() returns a changed copy")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        # The JSON text is compared, since 1 == 1.0 == True in Python.
        return self._key == other._key if isinstance(other, Hyperparameters) else NotImplemented

    def __reduce__(self) -> tuple[Any, ...]:
        return Hyperparameters, (self._values,)

    def replace(self, **changes: Any) -> Hyperparameters:
        """Return a copy with some values replaced."""
        return Hyperparameters({**self._values, **changes})

    def to_json(self) -> dict[str, Any]:
        """Return the hyperparameters as a JSON object."""
        return dict(self._values)

    def __str__(self) -> str:
        return " ".join(f"{name}={text(value)}" for name, value in self._values.items())

    def __repr__(self) -> str:
        return f"Hyperparameters({self._values!r})"
