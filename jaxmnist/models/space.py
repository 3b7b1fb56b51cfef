"""The search space: what a network asks for when it is built, its size, its members, its draws."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxmnist.errors import UsageError
from jaxmnist.hyperparameters import Hyperparameters, text
from jaxmnist.models.distributions import (
    Choice,
    Distribution,
    Float,
    Int,
    distribution_from_json,
    distribution_to_json,
)
from jaxmnist.models.ranges import read_range
from jaxmnist.settings import RESERVED, flag

MOST_ANSWERS = 100_000  # that a walk through the space gives
MOST_SECONDS = 2.0  # that a walk takes
MOST_COLLISIONS = 1000  # draws in a row that were drawn before
SHOWN_VALUES = 1000  # values of a hyperparameter that are looked at, to show it
SAMPLES = 256  # draws that stand for a space that is too large to be walked through
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What images are before they are loaded: a network is asked for its space then, for the flags.
IMAGE_SHAPE, CLASSES = (28, 28, 1), 10

Answer = Callable[[str, Distribution], Any]


class Questions:
    """The `hp` of a network's `build_model(hp)`: each method asks for a hyperparameter's value.

    Names and meanings are KerasTuner's, but where those would lose a value or change one silently.
    Values are plain Python numbers, texts and bools.

    Attributes:
      image_shape: (H, W, C) of the images. classes: how many there are.
      asked: the distribution of each hyperparameter of this configuration, in order.
    """

    def __init__(
        self,
        answer: Answer,
        read: Callable[[str, Distribution], Distribution] = lambda name, declared: declared,
        image_shape: tuple[int, int, int] = IMAGE_SHAPE,
        classes: int = CLASSES,
    ) -> None:
        self.image_shape = image_shape
        self.classes = classes
        self.asked: dict[str, Distribution] = {}
        self._answer = answer
        self._read = read
        self._declared: dict[str, Distribution] = {}
        self._values: dict[str, Any] = {}
        self._conditions: list[bool] = []

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

        `step` is a factor where the sampling is 'log' or 'reverse_log'.
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
        """One of `values`, which are numbers, texts, bools, None, or lists of them."""
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
        """Always `value`, unless a person gives others."""
        return self._ask(name, partial(Choice, (value,)), value, parent_name, parent_values)

    @contextmanager
    def conditional_scope(self, parent_name: str, parent_values: Any) -> Iterator[None]:
        """What is asked for inside counts only if `parent_name` has one of `parent_values`."""
        self._conditions.append(self._holds(parent_name, parent_values))
        try:
            yield
        finally:
            self._conditions.pop()

    def get(self, name: str) -> Any:
        """The value of a hyperparameter that this configuration has asked for before."""
        if name not in self._values:
            raise UsageError(f"hp.get({name!r}): this configuration has not asked for {name} yet")
        return self._values[name]

    def __contains__(self, name: object) -> bool:
        return name in self._values

    @property
    def values(self) -> Hyperparameters:
        """What was asked for so far, with its values."""
        return Hyperparameters(self._values)

    def _ask(
        self,
        name: str,
        declare: Callable[[], Distribution],
        default: Any,
        parent_name: str | None,
        parent_values: Any,
    ) -> Any:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise UsageError(
                f"hyperparameter {name!r}: a name begins with a letter and goes on with letters,"
                " digits and _"
            )
        if name in RESERVED:
            raise UsageError(
                f"hyperparameter {name!r}: {flag(name)} is a flag of the search already; choose"
                " another name"
            )
        try:
            declared = declare()
        except ValueError as problem:
            raise UsageError(f"hyperparameter {name!r} {problem}") from None
        holds = all(self._conditions)
        if holds and parent_name is not None:
            holds = self._holds(parent_name, parent_values)
        if not holds:  # its value plays no part, but what computes with it shall not fail
            members = declared.values
            return default if default is not None or members is None else members[0]
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

    def _holds(self, parent_name: str, parent_values: Any) -> bool:
        known = parent_values if isinstance(parent_values, list | tuple) else [parent_values]
        return parent_name in self._values and self._values[parent_name] in known


@dataclass(frozen=True)
class Definition:
    """A network's hyperparameters, as far as nothing has to be computed for them.

    name: of the network, which belongs to a run's identity.
    ask: asks `Questions` for the hyperparameters of a configuration; what it returns is not used.
    check: raises `UsageError` if a configuration can't be built, or not for images of a shape
      (H, W, C), which is None before they are loaded.
    help: what the hyperparameters are, by name, for `--help`.
    """

    name: str
    ask: Callable[[Questions], object]
    check: Callable[[Hyperparameters, tuple[int, int, int] | None], None] = lambda h, shape: None
    help: Mapping[str, str] | None = None


@dataclass(frozen=True)
class SpaceDescription:
    """What a run keeps of its space, for whoever shows it without the network.

    size: configurations; None where it is not known. size_text: '357', 'more than 40,000' or
      'infinite'.
    parameters: the distributions of each hyperparameter; more than one where it depends on others.
    """

    size: int | None
    size_text: str
    parameters: Mapping[str, tuple[Distribution, ...]]

    @property
    def varied(self) -> list[str]:
        """The hyperparameters that can take more than one value."""
        return [name for name in self.parameters if len(self.some_values(name)) > 1]

    def some_values(self, name: str) -> list[Any]:
        """The first values of a hyperparameter, at most a thousand; of an endless one both ends."""
        found = {}
        for distribution in self.parameters[name]:
            for value in itertools.islice(ends_or_values(distribution), SHOWN_VALUES):
                found[text(value)] = value
        return list(found.values())

    def ranges(self) -> dict[str, str]:
        """Each hyperparameter with its range as text; 'or' stands between several."""
        return {
            name: " or ".join(map(str, distributions))
            for name, distributions in self.parameters.items()
        }

    def to_json(self) -> dict[str, Any]:
        """What search.json says under `space`."""
        return {
            "size": self.size,
            "size_text": self.size_text,
            "parameters": {
                name: [distribution_to_json(distribution) for distribution in distributions]
                for name, distributions in self.parameters.items()
            },
        }

    @classmethod
    def from_json(cls, content: Any) -> SpaceDescription:
        """The description of `to_json`; ValueError, TypeError or KeyError if it is none."""
        size = content["size"]
        if (
            isinstance(size, bool)
            or not isinstance(size, int | None)
            or (size is not None and size < 1)
        ):
            raise ValueError("the size of a space is a number")
        parameters = {
            str(name): tuple(distribution_from_json(part) for part in parts)
            for name, parts in content["parameters"].items()
        }
        return cls(size, str(content["size_text"]), parameters)


def ends_or_values(distribution: Distribution) -> Sequence[Any]:
    """The values of a distribution; both ends of one that has no end of values."""
    if distribution.values is not None:
        return distribution.values
    assert isinstance(distribution, Float)
    return [distribution.min, distribution.max]


@dataclass(frozen=True)
class Walk:
    """A walk through the tree of all answers.

    members: the configurations that it met, in order.
    parameters: the distributions that were asked for, by name, in order.
    whole: whether it came to its end.
    finite: whether no hyperparameter was met that has no end of values.
    """

    members: tuple[Hyperparameters, ...]
    parameters: Mapping[str, tuple[Distribution, ...]]
    whole: bool
    finite: bool


class Space:
    """The configurations of a network, within the ranges that a person gave.

    Args:
      definition: of the network's hyperparameters.
      ranges: what a person gave in place of declared ranges, by name, as `config.canonical` has it.
      image_shape, classes: of the images; before they are loaded None, which stands for MNIST's.

    Raises:
      UsageError: a range is of no hyperparameter, can't be read, or has values that the network
        can't take; or the network asks in a way that makes no space.
    """

    def __init__(
        self,
        definition: Definition,
        ranges: Mapping[str, Any] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        classes: int | None = None,
    ) -> None:
        self._definition = definition
        self._ranges = dict(ranges or {})
        self._image_shape = image_shape
        self._classes = classes
        self._known: dict[tuple[str, Distribution], Distribution] = {}
        self._walk = self._walk_through()
        unknown = [name for name in self._ranges if name not in self.parameters]
        if unknown:
            raise UsageError(
                f"{flag(unknown[0])}: no configuration has a hyperparameter {unknown[0]!r}; there"
                f" are {', '.join(self.parameters) or 'none'}"
            )

    @property
    def size(self) -> int | None:
        """How many configurations there are; None where that is not known."""
        return len(self._walk.members) if self._walk.whole and self._walk.finite else None

    @property
    def parameters(self) -> Mapping[str, tuple[Distribution, ...]]:
        """The distributions of each hyperparameter, in the order of asking."""
        return self._walk.parameters

    def describe(self) -> SpaceDescription:
        """What to keep of it in a run."""
        if self.size is not None:
            shown = f"{self.size:,}"
        elif self._walk.finite:
            shown = f"more than {len(self._walk.members):,}"
        else:
            shown = "infinite"
        return SpaceDescription(self.size, shown, self.parameters)

    def members(self) -> tuple[Hyperparameters, ...]:
        """Every configuration once, in the order of their values, of a space of known size."""
        if self.size is None:
            raise UsageError("a space of unknown size can't be listed")
        return self._walk.members

    def configuration(self, answer: Answer) -> Hyperparameters:
        """The configuration that these answers lead to, checked."""
        return self._ask(answer).values

    def draws(self, seed: int) -> Iterator[Hyperparameters]:
        """The one sequence of `seed`, no configuration twice; values are independent.

        Draw i comes from a generator of its own, seeded by (seed, i), which goes on until it gives
        a configuration that no draw before has given. After 1,000 that were given before it takes
        one of those that are left, each as likely, or ends where they are not known.
        """
        # --help reads the space too, and needn't wait for NumPy.
        import numpy as np

        drawn: set[Hyperparameters] = set()
        for i in itertools.count():
            if len(drawn) == self.size:
                return
            generator = np.random.default_rng([seed, i])
            for _ in range(MOST_COLLISIONS):
                candidate = self._sample(generator)
                if candidate not in drawn:
                    break
            else:
                if self.size is None:
                    return
                left = [member for member in self._walk.members if member not in drawn]
                candidate = left[int(generator.integers(len(left)))]
            drawn.add(candidate)
            yield candidate

    def _sample(self, generator: Any) -> Hyperparameters:
        return self.configuration(lambda name, distribution: distribution.draw(generator))

    def _ask(self, answer: Answer) -> Questions:
        images = self._image_shape or IMAGE_SHAPE, self._classes or CLASSES
        questions = Questions(answer, self._read, *images)
        self._definition.ask(questions)
        self._definition.check(questions.values, self._image_shape)
        return questions

    def _read(self, name: str, declared: Distribution) -> Distribution:
        """The distribution to use: what a person gave, or what is declared."""
        if name not in self._ranges:
            return declared
        if (name, declared) not in self._known:
            try:
                found = read_range(self._ranges[name], declared)
            except (ValueError, OverflowError) as problem:
                raise UsageError(f"{flag(name)} {problem}") from None
            self._known[name, declared] = found
        return self._known[name, declared]

    def _walk_through(self) -> Walk:
        """Every configuration, as far as the bounds of a walk allow."""
        began = time.monotonic()
        members: dict[Hyperparameters, None] = {}
        parameters: dict[str, dict[Distribution, None]] = {}
        path: list[int] = []  # which of its values each answer is
        counts: list[int] = []  # of how many
        place, answers, finite = 0, 0, True

        def answer(name: str, distribution: Distribution) -> Any:
            nonlocal place, answers, finite
            values = ends_or_values(distribution)
            finite = finite and distribution.values is not None
            if place == len(path):
                path.append(0)
                counts.append(len(values))
            place += 1
            answers += 1
            return values[path[place - 1]]

        while True:
            place = 0
            questions = self._ask(answer)
            members[questions.values] = None
            for name, distribution in questions.asked.items():
                parameters.setdefault(name, {})[distribution] = None
            while path and path[-1] + 1 == counts[-1]:
                path.pop()
                counts.pop()
            if not path:
                break
            path[-1] += 1
            if answers > MOST_ANSWERS or time.monotonic() - began > MOST_SECONDS:
                parameters = self._sampled_parameters()
                break
        found = {name: tuple(distributions) for name, distributions in parameters.items()}
        return Walk(tuple(members), found, not path, finite)

    def _sampled_parameters(self) -> dict[str, dict[Distribution, None]]:
        """What some draws ask for: the same on every machine, which a walk by the clock is not."""
        # --help reads the space too, and needn't wait for NumPy.
        import numpy as np

        parameters: dict[str, dict[Distribution, None]] = {}
        generator = np.random.default_rng(0)
        for _ in range(SAMPLES):
            questions = self._ask(lambda name, distribution: distribution.draw(generator))
            for name, distribution in questions.asked.items():
                parameters.setdefault(name, {})[distribution] = None
        return parameters


def answers_of(given: Mapping[str, Any]) -> Answer:
    """The answers that lead to a configuration that is there already."""

    def answer(name: str, distribution: Distribution) -> Any:
        if name not in given:
            raise UsageError(f"the configuration has no {name}, which the network asks for")
        return given[name]

    return answer
