"""The distributions that hyperparameter values are drawn from.

This module imports only the standard library, so that `--help` is fast.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from jaxmnist.hyperparameters import plain, shown, text

if TYPE_CHECKING:
    import numpy as np

SAMPLINGS = ("linear", "log", "reverse_log")
LARGEST_INT = 10**9  # a larger number is probably a typing error
LARGEST_FLOAT = 3e38  # about the largest float32
MOST_FLOATS = 100_000  # values of a Float with a step
DIGITS = 6  # significant digits of a Float drawn without a grid of values


def rounded(value: float) -> float:
    """`value` rounded to 6 significant digits."""
    return float(f"{value:.{DIGITS}g}")


def check_bounds(low: float, high: float, step: float | None, sampling: Any, largest: float) -> str:
    """Return the normalized sampling; raise ValueError if the bounds and sampling are invalid.

    The text of the error is a predicate, which follows the name of the hyperparameter.
    """
    found = sampling.lower() if isinstance(sampling, str) else "linear" if sampling is None else ""
    if found not in SAMPLINGS:
        raise ValueError(f"must have one of the samplings {', '.join(SAMPLINGS)}, not {sampling!r}")
    if max(abs(low), abs(high)) > largest:
        raise ValueError(f"must lie between -{largest:g} and {largest:g}")
    if high < low:
        raise ValueError(f"is empty: its last number {text(high)} is below its first, {text(low)}")
    if step is not None and step <= 0:
        raise ValueError(f"must have a step above 0, not {text(step)}")
    if found != "linear":
        if low <= 0:
            raise ValueError(f"must start above 0 with sampling {found}, not at {text(low)}")
        if step is not None and step <= 1:
            raise ValueError(f"must have a step above 1, as a factor, with sampling {found}")
        if step is not None and high > low and low * step > high:
            raise ValueError(
                f"has only one value: with sampling {found} the step is a factor, and"
                f" {text(low)} × {text(step)} is above {text(high)}"
            )
    return found


def _whole(value: Any) -> int:
    """`value` as an int; ValueError unless it is a whole number."""
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(f"must be a whole number, not {shown(value)}")


def _real(value: Any) -> float:
    """`value` as a float; ValueError unless it is a finite number."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"must be a number, not {shown(value)}")
    if abs(number) > LARGEST_FLOAT:
        raise ValueError(f"must lie between -{LARGEST_FLOAT:g} and {LARGEST_FLOAT:g}")
    return float(number)


def _grid(low: float, high: float, factor: float) -> list[float]:
    """The numbers low, low × factor, low × factor², … up to high."""
    # The last number may lie above `high` by rounding only: whole numbers are exact.
    most = high if isinstance(high, int) else high * (1 + 1e-9)
    return list(takewhile(lambda value: value <= most, (low * factor**k for k in count())))


def _at(share: float, low: float, high: float, sampling: str | None) -> float:
    """The number at the fraction `share`, from 0 to 1, of the way from low to high."""
    if sampling == "linear":
        return low + share * (high - low)
    if sampling == "log":
        return float(low * (high / low) ** share)
    return float(high + low - low * (high / low) ** (1 - share))


@dataclass(frozen=True)
class Int:
    """Whole numbers from `min` to `max`.

    sampling 'linear': min, min + step, … (step 1 by default), all equally likely.
    'log' with a step: min, min × step, …, all equally likely; without one: uniform in the
    logarithm, rounded down. 'reverse_log': 'log' mirrored, so that values near `max` are denser.
    """

    min: int
    max: int
    step: int | None = None
    sampling: str | None = "linear"
    kind: ClassVar[str] = "int"

    def __post_init__(self) -> None:
        for name in ("min", "max"):
            object.__setattr__(self, name, _whole(getattr(self, name)))
        if self.step is not None:
            object.__setattr__(self, "step", _whole(self.step))
        sampling = check_bounds(self.min, self.max, self.step, self.sampling, LARGEST_INT)
        object.__setattr__(self, "sampling", sampling)

    @cached_property
    def values(self) -> Sequence[int]:
        """All values, in ascending order."""
        if self.sampling == "linear" or self.step is None:
            return range(self.min, self.max + 1, self.step or 1)
        grid = [round(value) for value in _grid(self.min, self.max, self.step)]
        if self.sampling == "log":
            return grid
        return [self.max + self.min - value for value in reversed(grid)]

    def draw(self, generator: np.random.Generator) -> int:
        """Draw one value."""
        if self.sampling == "linear" or self.step is not None:
            return self.values[int(generator.integers(len(self.values)))]
        value = math.floor(_at(generator.random(), self.min, self.max + 1, self.sampling))
        return min(max(value, self.min), self.max)

    def __str__(self) -> str:
        return _range_text(self.min, self.max, self.step, self.sampling)


@dataclass(frozen=True)
class Float:
    """Real numbers from `min` to `max`, with the same samplings as `Int`.

    Without a step the values are continuous, rounded to 6 significant digits; with a linear step
    they are rounded to the decimals of `step` and `min`.
    """

    min: float
    max: float
    step: float | None = None
    sampling: str | None = "linear"
    kind: ClassVar[str] = "float"

    def __post_init__(self) -> None:
        for name in ("min", "max"):
            object.__setattr__(self, name, _real(getattr(self, name)))
        if self.step is not None:
            object.__setattr__(self, "step", _real(self.step))
        sampling = check_bounds(self.min, self.max, self.step, self.sampling, LARGEST_FLOAT)
        object.__setattr__(self, "sampling", sampling)
        if sampling != "linear" and not math.isfinite(self.max / self.min):
            raise ValueError(f"has a range too wide for the sampling {sampling}")
        if self.step is None:
            return
        if sampling == "linear":
            steps = (self.max - self.min) / self.step
        else:
            steps = math.log(self.max / self.min) / math.log(self.step)
        if steps > MOST_FLOATS:
            raise ValueError(f"has more than {MOST_FLOATS:,} values with the step {self.step}")

    @cached_property
    def values(self) -> Sequence[float] | None:
        """All values, in ascending order; None for a continuous range."""
        if self.min == self.max:
            return [self.min]
        if self.step is None:
            return None
        if self.sampling == "linear":
            members = math.floor((self.max - self.min) / self.step + 1e-9) + 1
            digits = max(_decimals(self.step), _decimals(self.min))
            return [round(self.min + k * self.step, digits) for k in range(members)]
        grid = _grid(self.min, self.max, self.step)
        if self.sampling == "reverse_log":
            grid = [self.max + self.min - value for value in reversed(grid)]
        # Values that differ by less than is kept of them are one.
        return list(dict.fromkeys(min(max(rounded(v), self.min), self.max) for v in grid))

    def draw(self, generator: np.random.Generator) -> float:
        """Draw one value."""
        if (values := self.values) is not None:
            return values[int(generator.integers(len(values)))]
        value = rounded(_at(generator.random(), self.min, self.max, self.sampling))
        return min(max(value, self.min), self.max)

    def __str__(self) -> str:
        return _range_text(self.min, self.max, self.step, self.sampling)


def _decimals(number: float) -> int:
    """The number of decimal places that a number is written with."""
    exponent = Decimal(repr(number)).as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _range_text(low: float, high: float, step: float | None, sampling: str | None) -> str:
    if low == high:
        return text(low)
    parts = [text(low), text(high)]
    if step is not None:
        parts.append(text(step) if sampling == "linear" else f"×{text(step)}")
    if sampling and sampling != "linear":
        parts.append(sampling)
    return ":".join(parts)


@dataclass(frozen=True)
class Choice:
    """An explicit list of values, all equally likely."""

    values: tuple[Any, ...] = field(compare=False)
    kind: ClassVar[str] = "choice"
    # The field that == compares: JSON distinguishes 1, 1.0 and true.
    key: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Sequence):
            raise ValueError(f"must have a list of choices, not {shown(self.values)}")
        values = tuple(plain(value) for value in self.values)
        keys = [json.dumps(value) for value in values]
        if not values:
            raise ValueError("has an empty list of choices")
        for value, key in zip(values, keys, strict=True):
            if keys.count(key) > 1:
                raise ValueError(f"lists the value {text(value)} twice")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "key", f"[{', '.join(keys)}]")

    def draw(self, generator: np.random.Generator) -> Any:
        """Draw one of the values."""
        return self.values[int(generator.integers(len(self.values)))]

    def __str__(self) -> str:
        return ",".join(text(value) for value in self.values)


Distribution = Int | Float | Choice


def fixed(value: Any) -> Distribution:
    """The distribution of one value; a user's range of numbers may take a number's place."""
    value = plain(value)
    if type(value) is int and abs(value) <= LARGEST_INT:
        return Int(value, value)
    if type(value) is float and abs(value) <= LARGEST_FLOAT:
        return Float(value, value)
    return Choice((value,))


def is_number(value: Any) -> bool:
    """Whether a value is an int or a float, and so can be placed on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def distribution_to_json(distribution: Distribution) -> dict[str, Any]:
    """A distribution as a JSON object."""
    if isinstance(distribution, Choice):
        return {"kind": "choice", "values": list(distribution.values)}
    return {"kind": distribution.kind, **asdict(distribution)}


def distribution_from_json(content: Any) -> Distribution:
    """The inverse of `distribution_to_json`; ValueError or TypeError for invalid content."""
    if not isinstance(content, dict):
        raise ValueError("a distribution must be a JSON object")
    fields = {name: value for name, value in content.items() if name != "kind"}
    kinds = {"int": Int, "float": Float, "choice": Choice}
    if content.get("kind") not in kinds:
        raise ValueError("the kind of a distribution must be int, float or choice")
    found: Distribution = kinds[content["kind"]](**fields)
    return found
