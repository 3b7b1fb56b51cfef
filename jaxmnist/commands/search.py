"""`jaxmnist search`: the random search."""

from __future__ import annotations

from jaxmnist.api import run_search, settings_of
from jaxmnist.commands.parser import Parser, add_ranges, add_settings
from jaxmnist.models.space import Space
from jaxmnist.models.study.space import DEFINITION


def main(arguments: list[str], program: str = "python -m jaxmnist.search") -> None:
    """Run the command."""
    parser = Parser(
        program, "Random search over small convolutional networks for images like MNIST's."
    )
    add_settings(parser)
    space = Space(DEFINITION)
    add_ranges(parser, space.describe().ranges(), DEFINITION.help or {})
    run_search(settings_of(vars(parser.parse_args(arguments)), space))


def advice(arguments: list[str]) -> str:
    """Return a phrase that says how to resume a stopped search."""
    goes_on = "; the same command goes on from here"
    if "--overwrite" in arguments:
        goes_on += " (without --overwrite, once trials have begun)"
    return goes_on
