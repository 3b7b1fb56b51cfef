"""Checks of values that a person gives, each with one line for what it refuses.

Only the standard library is imported, so that `--help` is fast.
"""

from __future__ import annotations

import difflib
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxmnist.errors import UsageError
from jaxmnist.hyperparameters import plain, shown, text

LARGEST_NUMBER = 10**9  # the largest value of any count; a larger one is a typing error
# Smaller limits, where memory or time would run out earlier.
LARGEST_VALUES = {
    "max_trials": 10**5,
    "lanes": 10**4,
    "random_shift": 1000,  # pixels: more than an image has
    "reruns": 1000,
    "svm_search": 10**4,
}


def flag(name: str) -> str:
    """Return the command-line flag of a setting: `--max-trials` for `max_trials`."""
    return "--" + name.replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a misspelt one; None if none is like it.

    >>> nearest("--max-trails", ["--max-trials", "--epochs"])
    '--max-trials'
    """
    return next(iter(difflib.get_close_matches(name, list(known), 1)), None)


def check_whole(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Return `value` as an int; `UsageError` unless it is a whole number from `low` to `high`.

    Without `high` the bound is that of `LARGEST_VALUES`, or else `LARGEST_NUMBER`.
    """
    bounds = f"of at least {low}" if high is None else f"from {low} to {high}"
    high = LARGEST_VALUES.get(name, LARGEST_NUMBER) if high is None else high
    if isinstance(value, int) and value > high:
        bounds = f"from {low} to {high}"
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        raise UsageError(f"{flag(name)} must be a whole number {bounds}, not {shown(value)}")
    return number


def check_number(name: str, value: Any, accepts: Callable[[float], bool], wanted: str) -> float:
    """Return `value` as a float; `UsageError` unless it is finite and `accepts` is true for it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not abs(value) <= 3e38 or not accepts(value):  # the largest float32
        raise UsageError(f"{flag(name)} must be a number {wanted}, not {shown(value)}")
    return float(value)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `UsageError` unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{flag(name)} must be one of {', '.join(choices)}, not {shown(value)}")


def canonical(given: Any) -> Any:
    """Return a given range as JSON can represent it: a tuple becomes text, a list stays a list.

    Raises ValueError unless it can be a range, values or one value; the caller prefixes the
    message with a name.
    """
    if isinstance(given, tuple):
        if not 1 <= len(given) <= 3:
            raise ValueError(
                f"must be a range (first, last[, step or 'log']) as a tuple, not {shown(given)}"
            )
        if any(isinstance(part, bool | list | tuple) for part in given):
            raise ValueError(f"must be a range of numbers as a tuple, not {shown(given)}")
        return ":".join(text(plain(part)) for part in given)
    if isinstance(given, list):
        if not given:
            raise ValueError("must have at least one value, but the list is empty")
        return [plain(member) for member in given]
    if given is None:
        raise ValueError("must be a range, values or one value, not None")
    return plain(given)


def checked_ranges(given: Any) -> dict[str, Any]:
    """Return the ranges as `canonical` gives them; raise `UsageError` for an invalid one."""
    if not isinstance(given, Mapping):
        raise UsageError(f"ranges must be a mapping of names to ranges, not {shown(given)}")
    found = {}
    for name, value in given.items():
        try:
            found[name] = canonical(value)
        except ValueError as problem:
            raise UsageError(f"{flag(str(name))} {problem}") from None
    return found


def is_plain_name(name: Any) -> bool:
    """Return whether `name` can name a single folder, and can't be any other path."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and not set(name) & {"/", "\\", "\0", os.sep}
        and name.isprintable()
    )
