"""The search space: its size, its members, and draw i of a seed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np

from jaxmnist.config import DEFAULT_RANGES, Hyperparameters, Range, SearchSettings, Values
from jaxmnist.errors import UsageError


@dataclass(frozen=True)
class SearchSpace:
    """A range, or values, for each of the four hyperparameters."""

    filters: Range | Values = DEFAULT_RANGES["filters"]
    conv_layers: Range | Values = DEFAULT_RANGES["conv_layers"]
    dense_layers: Range | Values = DEFAULT_RANGES["dense_layers"]
    units: Range | Values = DEFAULT_RANGES["units"]

    @property
    def size(self) -> int:
        """Distinct configurations: those without dense layers count once for all `units`."""
        without = 0 in self.dense_layers.values
        dense = without + (len(self.dense_layers.values) - without) * len(self.units.values)
        return len(self.filters.values) * len(self.conv_layers.values) * dense

    def members(self) -> Iterator[Hyperparameters]:
        """Every configuration once, in ascending order of its hyperparameters."""
        for filters, conv_layers, dense_layers in itertools.product(
            self.filters.values, self.conv_layers.values, self.dense_layers.values
        ):
            for units in self.units.values if dense_layers else (None,):
                yield Hyperparameters(filters, conv_layers, dense_layers, units)

    def draws(self, seed: int) -> Iterator[Hyperparameters]:
        """The one sequence of `seed`, every member once; hyperparameters uniform, independent.

        Draw i comes from a generator of its own, seeded by (seed, i), which goes on until it
        gives a configuration that no draw before has given.
        """
        drawn: set[Hyperparameters] = set()
        ranges = (
            self.filters.values,
            self.conv_layers.values,
            self.dense_layers.values,
            self.units.values,
        )
        for i in range(self.size):
            generator = np.random.default_rng([seed, i])
            while True:
                values = (values[int(generator.integers(len(values)))] for values in ranges)
                candidate = Hyperparameters(*values)
                if candidate not in drawn:
                    break
            drawn.add(candidate)
            yield candidate

    def to_json(self) -> dict[str, str]:
        """Each range as its text."""
        return {item.name: str(getattr(self, item.name)) for item in fields(self)}


def most_conv_layers(height: int, width: int) -> int:
    """Convolutions that an image can pass before pooling leaves nothing of it.

    The first convolution takes 4 pixels off height and width; each pooling halves, rounding down.
    """
    side = (min(height, width) - 4) // 2
    return max(side, 0).bit_length()


def fit_to_images(
    settings: SearchSettings, height: int, width: int
) -> tuple[SearchSpace, str | None]:
    """The space that `settings` asks for on images of this size.

    Returns the space and, where default ranges had to narrow, a line that says so.
    Raises `UsageError` where a range that the person gave would pool the image away.
    """
    most = most_conv_layers(height, width)
    if most == 0:
        raise UsageError(
            f"images of {height}×{width} pixels are too small: at least 6×6 are needed"
        )
    given = {
        name: value for name in DEFAULT_RANGES if (value := getattr(settings, name)) is not None
    }
    space = SearchSpace(**{**DEFAULT_RANGES, **given})
    if space.conv_layers.values[-1] <= most:
        return space, None
    if "conv_layers" in given:
        raise UsageError(
            f"--conv-layers {space.conv_layers} would pool images of {height}×{width} pixels away: "
            f"at most {most} fit"
        )
    narrowed = Range(space.conv_layers.values[0], most)
    note = (
        f"images of {height}×{width} pixels have room for conv_layers {narrowed},"
        f" not {space.conv_layers}"
    )
    return SearchSpace(**{**DEFAULT_RANGES, **given, "conv_layers": narrowed}), note
