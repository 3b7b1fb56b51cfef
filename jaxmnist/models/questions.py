"""What a network asks: the hyperparameters of one configuration, in the order of asking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxmnist.checked import flag
from jaxmnist.errors import UsageError
from jaxmnist.hyperparameters import Hyperparameters, plain
from jaxmnist.models.distributions import Choice, Distribution, Float, Int, fixed
from jaxmnist.settings import RESERVED

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
                f"hyperparameter {name!r}: {flag(name)} is already an option of the search; choose"
                " another name"
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
