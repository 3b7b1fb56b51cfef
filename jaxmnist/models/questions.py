"""What a network asks: the hyperparameters of one configuration, and their distributions.

This module imports only the standard library, so that `--help` is fast.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, partial
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from jaxmnist.errors import UsageError
from jaxmnist.hyperparameters import Hyperparameters, plain, shown, text
from jaxmnist.settings import RESERVED

if TYPE_CHECKING:
    import numpy as np


# --- The distributions that hyperparameter values are drawn from ---

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
    DERIVED: ClassVar[tuple[str, ...]] = ("kind",)  # of its record in search.json
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
    DERIVED: ClassVar[tuple[str, ...]] = ("kind",)  # of its record in search.json
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
    DERIVED: ClassVar[tuple[str, ...]] = ("kind",)  # of its record in search.json
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


# --- What a network asks: the hyperparameters of one configuration, in the order of asking ---

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Assumed before the images are loaded, when the space is needed for the command-line flags.
IMAGE_SHAPE, CLASSES = (28, 28, 1), 10

Answer = Callable[[str, Distribution], Any]


def one_step(values: Mapping[str, Any]) -> int:
    """Assumed before the images are loaded."""
    return 1


class Questions:
    """The `hp` of a network's `build_model(hp)`: each method asks for a hyperparameter's value.

    Names and meanings are KerasTuner's, except where KerasTuner would silently lose or change a
    value. Values are plain Python numbers, strings and bools.

    Attributes:
      image_shape: (H, W, C) of the images.
      classes: the number of classes.
      steps_of: the number of steps of a training, as a function of the values so far.
      asked: the distribution of each hyperparameter of this configuration, in the order of asking.
    """

    def __init__(
        self,
        answer: Answer,
        read: Callable[[str, Distribution], Distribution] = lambda name, declared: declared,
        image_shape: tuple[int, int, int] = IMAGE_SHAPE,
        classes: int = CLASSES,
        steps_of: Callable[[Mapping[str, Any]], int] = one_step,
    ) -> None:
        self.image_shape = image_shape
        self.classes = classes
        self.steps_of = steps_of
        self.asked: dict[str, Distribution] = {}
        self._answer = answer
        self._read = read
        self._declared: dict[str, Distribution] = {}
        self._values: dict[str, Any] = {}
        self._inactive: set[str] = set()
        self._conditions: list[bool] = []
        self._scopes: list[str] = []

    def Int(
        self,
        name: str,
        min_value: int,
        max_value: int,
        step: int | None = None,
        sampling: str | None = "linear",
        default: int | None = None,
        parent_name: str | None = None,
        parent_values: Any = None,
    ) -> Any:
        """A whole number from `min_value` to `max_value`, both included: see `Int`.

        With the samplings 'log' and 'reverse_log', `step` is a factor.
        """
        make = partial(Int, min_value, max_value, step, sampling)
        return self._ask(name, make, default, parent_name, parent_values)

    def Float(
        self,
        name: str,
        min_value: float,
        max_value: float,
        step: float | None = None,
        sampling: str | None = "linear",
        default: float | None = None,
        parent_name: str | None = None,
        parent_values: Any = None,
    ) -> Any:
        """A number from `min_value` to `max_value`: see `Float`."""
        make = partial(Float, min_value, max_value, step, sampling)
        return self._ask(name, make, default, parent_name, parent_values)

    def Choice(
        self,
        name: str,
        values: Any,
        ordered: bool | None = None,
        default: Any = None,
        parent_name: str | None = None,
        parent_values: Any = None,
    ) -> Any:
        """One of `values`: numbers, strings, bools, None, or lists of them."""
        return self._ask(name, partial(Choice, values), default, parent_name, parent_values)

    def Boolean(
        self,
        name: str,
        default: bool = False,
        parent_name: str | None = None,
        parent_values: Any = None,
    ) -> Any:
        """True or False."""
        return self._ask(name, partial(Choice, (False, True)), default, parent_name, parent_values)

    def Fixed(
        self, name: str, value: Any, parent_name: str | None = None, parent_values: Any = None
    ) -> Any:
        """Always `value`; in place of a number the user may give other numbers: see `fixed`."""
        return self._ask(name, partial(fixed, value), value, parent_name, parent_values)

    @contextmanager
    def conditional_scope(self, parent_name: str, parent_values: Any) -> Iterator[None]:
        """What is asked for inside is used only if `parent_name` has one of `parent_values`.

        The parent is looked up in the innermost name scope first, then outwards, and does not hold
        if it was itself asked for under a condition that does not hold. Raises `UsageError` if it
        was not asked for before in this configuration.
        """
        asker = f"hp.conditional_scope({parent_name!r})"
        self._conditions.append(self._holds(parent_name, parent_values, asker))
        try:
            yield
        finally:
            self._conditions.pop()

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Names inside begin with `name` and an underscore: 'size' in 'head' is 'head_size'."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def ask_as_declared(self, name: str, declared: Distribution) -> Any:
        """The value of a hyperparameter with this distribution, unless a person gave another."""
        return self._ask(name, lambda: declared, None, None, None)

    @property
    def steps(self) -> int:
        """The number of steps of this training, epochs × batches, for a schedule of one's own.

        To be used after a `batch_size` was asked for, if that is searched. It is 1 before the data
        are loaded; a refit, which has more images, has more steps.
        """
        return self.steps_of(self._values)

    def get(self, name: str) -> Any:
        """The value of a hyperparameter that was asked for before in this configuration."""
        if name not in self:
            raise UsageError(f"hp.get({name!r}): this configuration has not asked for {name} yet")
        return self._values[self._scoped(name)]

    def __contains__(self, name: object) -> bool:
        return self._scoped(name) in self._values

    @property
    def values(self) -> Hyperparameters:
        """The hyperparameters asked for so far, with their values."""
        return Hyperparameters(self._values)

    def _ask(
        self,
        name: str,
        declare: Callable[[], Distribution],
        default: Any,
        parent_name: str | None,
        parent_values: Any,
    ) -> Any:
        name = self._scoped(name)
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(
                f"hyperparameter {name!r}: a name must start with a letter and contain only"
                " letters, digits and _"
            )
        if name in RESERVED:
            raise UsageError(
                f"hyperparameter {name!r}: an option of the search has this name; choose another"
            )
        try:
            declared = declare()
        except ValueError as problem:
            raise UsageError(f"hyperparameter {name!r} {problem}") from None
        holds = all(self._conditions)
        if holds and parent_name is not None:
            holds = self._holds(parent_name, parent_values, f"hyperparameter {name!r}")
        if not holds:  # the value is not used, but code that computes with it must not fail
            self._inactive.add(name)
            return ends_or_values(declared)[0] if default is None else default
        if name in self._values:
            if declared != self._declared[name]:
                raise UsageError(
                    f"hyperparameter {name!r} is asked for twice, as {self._declared[name]} and as"
                    f" {declared}; use two names"
                )
            return self._values[name]
        distribution = self._read(name, declared)
        self._declared[name] = declared
        self.asked[name] = distribution
        self._values[name] = self._answer(name, distribution)
        return self._values[name]

    def _holds(self, parent_name: str, parent_values: Any, asker: str) -> bool:
        """Whether a condition holds: see `conditional_scope`; asker: what an error names."""
        known = parent_values if isinstance(parent_values, list | tuple) else [parent_values]
        # By JSON's text, as Python takes 1, 1.0 and True for the same.
        texts = [json.dumps(plain(value)) for value in known]
        for depth in range(len(self._scopes), -1, -1):
            name = self._scoped(parent_name, depth)
            if name in self._values:
                return json.dumps(self._values[name]) in texts
            if name in self._inactive:
                return False
        raise UsageError(
            f"{asker}: its parent {parent_name!r} has not been asked for before it in this"
            " configuration; ask for the parent first, by the same name"
        )

    def _scoped(self, name: Any, depth: int | None = None) -> Any:
        """A name with those of the scopes in which it is used; or of the outermost `depth`."""
        scopes = map(str, self._scopes[:depth])
        return "_".join([*scopes, name]) if isinstance(name, str) else name


@dataclass(frozen=True)
class Definition:
    """The name and hyperparameters of a network, without anything that needs JAX.

    name: the network's name, which is part of a run's identity.
    ask: asks `Questions` for the hyperparameters of a configuration; its return value is ignored.
    check: raises `UsageError` if a configuration can't be built, or not for images of the given
      shape (H, W, C); the shape is None before the images are loaded.
    help: a description of each hyperparameter, by name, for `--help`.
    """

    name: str
    ask: Callable[[Questions], object]
    check: Callable[[Hyperparameters, tuple[int, int, int] | None], None] = lambda h, shape: None
    help: Mapping[str, str] | None = None


def ends_or_values(distribution: Distribution) -> Sequence[Any]:
    """All values of a distribution, or the two ends of a continuous one."""
    if distribution.values is not None:
        return distribution.values
    assert isinstance(distribution, Float)
    return [distribution.min, distribution.max]


def answers_of(given: Mapping[str, Any]) -> Answer:
    """The answers that reproduce a given configuration."""

    def answer(name: str, distribution: Distribution) -> Any:
        if name not in given:
            raise UsageError(f"the configuration has no {name}, which the network asks for")
        return given[name]

    return answer
