"""The ranges that a user gives for a network's hyperparameters.

Syntax: `first:last`, with the declared step, if any, else step 1 for an Int and a continuous range
for a Float; `first:last:step`; `first:last:log`; `a,b,c` or `true,false`, a list of values; a
single value, which fixes the hyperparameter. In Python, a tuple is a range and a list holds values.
"""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

from jaxmnist.hyperparameters import shown, text
from jaxmnist.models.distributions import Choice, Distribution, Float, Int, is_number

WANTED = {
    "int": "a whole number, a range such as 32:128:16 (in Python also a tuple) or values such as"
    " 32,64,128 (in Python also a list)",
    "float": "a number, a range such as 0.1:0.5:0.1 or 1e-4:1e-2:log (in Python also a tuple) or"
    " values such as 0.1,0.5 (in Python also a list)",
}


def read_range(given: Any, declared: Distribution) -> Distribution:
    """The distribution that a user gives in place of the one that the network declares.

    Args:
      given: the user's range, as `settings.canonical` returns it.
      declared: the network's distribution. Given numbers may lie outside its range, but choices
        must be among the declared ones.

    Raises:
      ValueError: the range is invalid; the text is a predicate that follows the name.
    """
    if isinstance(declared, Choice):
        return _read_choice(given, declared)
    parts = given if isinstance(given, list) else [given]
    if isinstance(given, str):
        if ":" in given:
            return _read_interval(given, declared)
        parts = given.split(",")
    if not all(_is_number(part, declared) for part in parts):
        raise ValueError(f"must be {WANTED[declared.kind]}, not {shown(given)}")
    numbers = sorted(_number(part, declared) for part in parts)
    for number in numbers:
        type(declared)(number, number)  # raises if the number is outside all bounds
    return Choice(tuple(numbers))


def _read_interval(given: str, declared: Int | Float) -> Distribution:
    """The distribution that `first:last`, `first:last:step` or `first:last:log` stands for."""
    first, last, *rest = given.split(":")
    is_log = rest == ["log"]
    numbers = [first, last] if is_log else [first, last, *rest]
    if len(rest) > 1 or not all(_is_number(part, declared) for part in numbers):
        raise ValueError(f"must be {WANTED[declared.kind]}, not {shown(given)}")
    low, high, *step = (_number(part, declared) for part in numbers)
    if step and step[0] <= 0:
        raise ValueError(f"must have a step above 0, not {text(step[0])}")
    if is_log:
        return type(declared)(low, high, None, "log")
    if step:
        return type(declared)(low, high, step[0])
    return replace(declared, min=low, max=high)


def _read_choice(given: Any, declared: Choice) -> Choice:
    """The declared choices that the user selects."""
    by_text = {text(value): value for value in declared.values}
    if isinstance(given, str):
        names = [given] if given in by_text else given.split(",")
    else:
        names = [text(member) for member in (given if isinstance(given, list) else [given])]
    return Choice(tuple(_chosen(name, by_text) for name in names))


def _chosen(name: str, by_text: dict[str, Any]) -> Any:
    """The choice with this text; a number may be written differently, such as 1e-3 for 0.001."""
    if name in by_text:
        return by_text[name]
    for value in by_text.values():
        try:
            if is_number(value) and float(name) == value:
                return value
        except ValueError:
            break
    raise ValueError(f"must be one of {', '.join(by_text)}, not {shown(name)}")


def _is_number(part: Any, declared: Int | Float) -> bool:
    try:
        _number(part, declared)
    except (ValueError, TypeError):
        return False
    return True


def _number(part: Any, declared: Int | Float) -> Any:
    """`part` as a number of the declared kind; ValueError or TypeError if it is not one."""
    if isinstance(part, bool) or (isinstance(part, str) and "_" in part):
        raise ValueError("not a number")
    if isinstance(declared, Float):
        return float(part)
    return int(part) if isinstance(part, str) else operator.index(part)
