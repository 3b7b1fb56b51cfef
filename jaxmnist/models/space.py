"""The search space of a network: its hyperparameters, size, configurations and random draws.

Syntax of the ranges that a user gives: `first:last`, with the declared step, if any, else step 1
for an Int and a continuous range for a Float; `first:last:step`; `first:last:log`; `a,b,c` or
`true,false`, a list of values; a single value, which fixes the hyperparameter. In Python, a tuple
is a range and a list holds values.
"""

from __future__ import annotations

import itertools
import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jaxmnist.errors import Named, SettingError, UsageError, wrong
from jaxmnist.hyperparameters import Hyperparameters, shown, text
from jaxmnist.models.questions import (
    CLASSES,
    IMAGE_SHAPE,
    Answer,
    Choice,
    Definition,
    Distribution,
    Float,
    Int,
    Questions,
    ends_or_values,
    is_number,
    one_step,
)
from jaxmnist.settings import DECAYING, RANGED, SETTINGS, Setting, check_training

# --- The ranges that a user gives for a network's hyperparameters ---

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


# --- The search space of a network ---

MOST_CALLS = 1000  # of a network's function, after which a walk through the space stops
MOST_EXPLORED = 250  # configurations that represent a space
VALUES = 32  # of a distribution, each of which one of them has
QUIET = 64  # consecutive ones without a new distribution, after which there are no more
MOST_COLLISIONS = 1000  # consecutive draws of configurations that were drawn before
SHOWN_VALUES = 1000  # values of a hyperparameter that are examined to display it


def declared_range(item: Setting) -> Distribution:
    """What a range of a setting of training is read as, where a network doesn't ask for it."""
    if item.choices:
        return Choice(item.range)
    first, last, *log = item.range
    sampling = "log" if log else "linear"
    return (
        Int(first, last, 1, sampling) if item.kind == "int" else Float(first, last, None, sampling)
    )


@dataclass(frozen=True)
class SpaceDescription:
    """The description of a space that a run stores, which can be shown without the network.

    size: the number of configurations; None if unknown.
    size_text: the size for display: '357', 'more than 40,000' or 'infinite'.
    parameters: the distributions of each hyperparameter; more than one if they depend on others.
    """

    size: int | None
    size_text: str
    parameters: Mapping[str, tuple[Distribution, ...]]

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError("the size of a space is below 1")

    @cached_property
    def varied(self) -> list[str]:
        """The hyperparameters that can take more than one value."""
        return [name for name in self.parameters if len(self.some_values(name)) > 1]

    def shown(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """What a list of trials shows of one: what varies; all of it if nothing does."""
        varied = {name: value for name, value in hyperparameters.items() if name in self.varied}
        return Hyperparameters(varied) if varied else hyperparameters

    def some_values(self, name: str) -> list[Any]:
        """The first values of a hyperparameter, at most 1,000; both ends of a continuous range."""
        found = {}
        for distribution in self.parameters[name]:
            for value in itertools.islice(ends_or_values(distribution), SHOWN_VALUES):
                found[text(value)] = value
        return list(found.values())

    def ranges(self) -> dict[str, str]:
        """The range of each hyperparameter as text; several ranges are joined by 'or'."""
        return ranges_of(self.parameters)


def ranges_of(parameters: Mapping[str, tuple[Distribution, ...]]) -> dict[str, str]:
    """See `SpaceDescription.ranges`."""
    return {name: " or ".join(map(str, each)) for name, each in parameters.items()}


@dataclass(frozen=True)
class Walk:
    """The result of a depth-first walk through the tree of all answers.

    members: the configurations found, in order.
    parameters: the distributions that were asked for, by name.
    whole: whether the walk was complete.
    finite: whether no continuous hyperparameter was found.
    """

    members: tuple[Hyperparameters, ...]
    parameters: Mapping[str, tuple[Distribution, ...]]
    whole: bool
    finite: bool


class Space:
    """The configurations of a network, within the ranges that the user gave.

    Args:
      definition: the network's definition.
      ranges: the user's replacements for declared ranges, by name, as returned by
        `settings.canonical`.
      image_shape, classes: (H, W, C) and number of classes of the images; None before they are
        loaded, which stands for MNIST's.
      steps_of: see `Questions`.
      most: the number of configurations up to which the size is found out.

    Raises:
      UsageError: a range names no hyperparameter, can't be parsed, or has values that the network
        can't take; or the network's definition is invalid.
    """

    def __init__(
        self,
        definition: Definition,
        ranges: Mapping[str, Any] | None = None,
        image_shape: tuple[int, int, int] | None = None,
        classes: int | None = None,
        steps_of: Callable[[Mapping[str, Any]], int] = one_step,
        most: int = MOST_CALLS,
    ) -> None:
        self._definition = definition
        self._ranges = dict(ranges or {})
        self._image_shape = image_shape
        self._classes = classes
        self._steps_of = steps_of
        self._most = max(most, MOST_CALLS)
        self._known: dict[tuple[str, Distribution], Distribution] = {}
        self.explored, whole = self._explore()
        unknown = [name for name in self._ranges if name not in self.explored]
        if unknown and whole:
            raise SettingError(
                "{given}: no configuration has a hyperparameter {name}; the hyperparameters are"
                " {known}",
                given=Named(unknown[0]),
                name=repr(unknown[0]),
                known=", ".join(self.parameters) or "none",
            )

    @property
    def size(self) -> int | None:
        """The number of configurations; None if unknown."""
        return len(self._walk.members) if self._walk.whole and self._walk.finite else None

    @property
    def parameters(self) -> Mapping[str, tuple[Distribution, ...]]:
        """The distributions of each hyperparameter, in the order of asking.

        Those that were `explored`, if the space has more than `MOST_CALLS` configurations.
        """
        walk = self._walk
        small = walk.whole and len(walk.members) <= MOST_CALLS
        return walk.parameters if small else self.explored

    def describe(self) -> SpaceDescription:
        """The description to store in a run."""
        found = (each for several in self.explored.values() for each in several)
        if self.size is not None:
            shown = f"{self.size:,}"
        elif self._walk.finite and all(each.values is not None for each in found):
            shown = f"more than {self._most:,}"
        else:
            shown = "infinite"
        return SpaceDescription(self.size, shown, self.parameters)

    def members(self) -> tuple[Hyperparameters, ...]:
        """Every configuration once, in the order of their values; the size must be known."""
        if self.size is None:
            raise UsageError("a space of unknown size can't be listed")
        return self._walk.members

    def configuration(self, answer: Answer) -> Hyperparameters:
        """The configuration that these answers lead to, checked."""
        return self._ask(answer).values

    def draws(self, seed: int) -> Iterator[Hyperparameters]:
        """The sequence of distinct random configurations that `seed` determines.

        The values of a configuration are drawn independently. Draw i uses its own generator, seeded
        with (seed, i), and repeats until it gives a new configuration. After 1,000 repetitions it
        takes one of the remaining configurations, all equally likely; if the size of the space is
        unknown, the sequence ends there.
        """
        # Imported here because --help also builds the space and should not wait for NumPy.
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
        questions = Questions(answer, self._read, *images, self._steps_of)
        self._definition.ask(questions)
        self._ask_for_training(questions)
        self._definition.check(questions.values, self._image_shape)
        return questions

    def _ask_for_training(self, questions: Questions) -> None:
        """Ask for settings of training that a person gave ranges of and the network left out."""
        given = [name for name in RANGED if name in self._ranges and name not in questions]
        for name in given:
            others = "optimizer" in questions and questions.get("optimizer") not in DECAYING
            if name == "weight_decay" and others:
                continue
            questions.ask_as_declared(name, declared_range(SETTINGS[name]))
        if given:
            check_training(questions.values)

    def _read(self, name: str, declared: Distribution) -> Distribution:
        """The distribution to use: the user's if there is one, else the declared one."""
        if name not in self._ranges:
            return declared
        if (name, declared) not in self._known:
            try:
                found = read_range(self._ranges[name], declared)
            except (ValueError, OverflowError) as problem:
                raise wrong(name, str(problem)) from None
            self._known[name, declared] = found
        return self._known[name, declared]

    @cached_property
    def _walk(self) -> Walk:
        """A walk through all configurations, within the limit."""
        members: dict[Hyperparameters, None] = {}
        parameters: dict[str, dict[Distribution, None]] = {}
        path: list[int] = []  # the position of each answer among its values
        counts: list[int] = []  # the number of values at each answer
        place, finite = 0, True

        def answer(name: str, distribution: Distribution) -> Any:
            nonlocal place, finite
            values = ends_or_values(distribution)
            finite = finite and distribution.values is not None
            if place == len(path):
                path.append(0)
                counts.append(len(values))
            place += 1
            return values[path[place - 1]]

        for _ in range(self._most):
            place = 0
            questions = self._ask(answer)
            members[questions.values] = None
            _note(parameters, questions)
            while path and path[-1] + 1 == counts[-1]:
                path.pop()
                counts.pop()
            if not path:
                break
            path[-1] += 1
        return Walk(tuple(members), _in_order(parameters), not path, finite)

    def _explore(self) -> tuple[Mapping[str, tuple[Distribution, ...]], bool]:
        """The distributions of each hyperparameter, in the order of asking; and whether all.

        Values that no configuration has had yet are taken first, then random ones, the same on
        every machine.
        """
        generator = random.Random(0)
        parameters: dict[str, dict[Distribution, None]] = {}
        left: dict[tuple[str, Distribution], list[Any]] = {}

        def answer(name: str, distribution: Distribution) -> Any:
            values = ends_or_values(distribution)
            waiting = left.setdefault((name, distribution), _spread(values))
            return waiting.pop() if waiting else values[generator.randrange(len(values))]

        quiet = 0
        for _ in range(MOST_EXPLORED):
            before = sum(map(len, parameters.values()))
            _note(parameters, self._ask(answer))
            new = sum(map(len, parameters.values())) > before
            quiet = 0 if new or any(left.values()) else quiet + 1
            if quiet == QUIET:
                break
        return _in_order(parameters), quiet == QUIET


def _spread(values: Sequence[Any]) -> list[Any]:
    """At most `VALUES` of some values, evenly spread; `pop` takes the first, then from the end."""
    steps = min(len(values), VALUES) - 1
    first, *others = (
        values[place * (len(values) - 1) // max(steps, 1)] for place in range(steps + 1)
    )
    return [*others, first]


def _note(parameters: dict[str, dict[Distribution, None]], questions: Questions) -> None:
    """Add what a configuration asked for."""
    for name, distribution in questions.asked.items():
        parameters.setdefault(name, {})[distribution] = None


def _in_order(
    parameters: Mapping[str, Mapping[Distribution, None]],
) -> dict[str, tuple[Distribution, ...]]:
    """Distributions in an order that doesn't depend on how they were found."""
    return {name: tuple(sorted(each, key=str)) for name, each in parameters.items()}
