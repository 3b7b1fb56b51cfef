"""`jaxmnist search`: the random search."""

from __future__ import annotations

from jaxmnist.api import own_network, run_search, settings_of
from jaxmnist.commands.parser import Parser, add_ranges, add_settings, model_of
from jaxmnist.models.space import Space
from jaxmnist.models.study.space import DEFINITION


def main(arguments: list[str], program: str = "python -m jaxmnist.search") -> None:
    """Run the command."""
    # The network says which flags there are, so that its own flag is read first.
    network = own_network(model_of(arguments))
    parser = Parser(
        program, "Random search over small convolutional networks for images like MNIST's."
    )
    definition = network.definition if network else DEFINITION
    space = Space(definition)
    # What the network asks for itself is a hyperparameter, and no setting.
    add_settings(parser, without=space.parameters)
    add_ranges(parser, space.describe().ranges(), definition.help or {})
    run_search(settings_of(vars(parser.parse_args(arguments)), space), network)


def advice(arguments: list[str]) -> str:
    """Return a phrase that says how to resume a stopped search."""
    goes_on = "; the same command goes on from here"
    if "--overwrite" in arguments:
        goes_on += " (without --overwrite, once trials have begun)"
    return goes_on
