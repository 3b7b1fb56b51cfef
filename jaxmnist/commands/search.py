"""`jaxmnist search`: the random search."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxmnist.api import dry_run, own_network, run_search, settings_of
from jaxmnist.commands.config import Config, read_config
from jaxmnist.commands.parser import Parser, add_ranges, add_settings, first_of
from jaxmnist.models.questions import Definition
from jaxmnist.models.space import Space, ranges_of
from jaxmnist.models.study.space import DEFINITION

EXAMPLES = (
    ("--data-dir my/pictures --max-trials 20", "pictures of your own, in a folder for each class"),
    (
        "--learning-rate 3e-4:3e-3:log --optimizer adam,lion --dry-run",
        "what would be searched, and about how long it would take",
    ),
)


def main(arguments: list[str], program: str = "python -m jaxmnist.search") -> None:
    """Run the command."""
    # The network says which flags there are, so that its own flag is read first.
    path, model = first_of(arguments, "--config", "--model")
    config = Config() if path is None else read_config(path)
    config = config.without(() if model is None else ("model",))
    with config.named():
        network = own_network(config.network() if model is None else model)
        definition = network.definition if network else DEFINITION
        space = Space(definition)
    given = vars(parser_of(definition, space, program).parse_args(arguments))
    given.pop("config", None)
    dry = given.pop("dry_run", False)
    config = config.without(given)
    config.check(space.explored)
    notes = config.notes()
    with config.named():
        settings = settings_of({**config.options, **given}, space)
        if dry:
            print(dry_run(settings, network, notes))
        else:
            typed = as_typed(sys.argv, sys.orig_argv)
            run_search(settings, network, command=typed, notes=notes)


def parser_of(definition: Definition, space: Space, program: str) -> Parser:
    """The parser of the command for a network and its space."""
    parser = Parser(
        program,
        "Random search over small convolutional networks for images like MNIST's.",
        EXAMPLES,
        usage="[FLAG …]",
    )
    # What the network asks for itself is a hyperparameter, and no setting.
    add_settings(parser, without=space.explored)
    add_ranges(parser, ranges_of(space.explored), definition.help or {})
    running = parser.group("running")
    running.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of settings, whose keys are the words of these flags (flags win over it),"
        " or a run's search.json",
    )
    running.add_argument(
        "--dry-run",
        action="store_true",
        help="print the space, the first draws and about how long they would take; train and write"
        " nothing",
    )
    return parser


def as_typed(arguments: Sequence[str], original: Sequence[str]) -> str:
    """How a person who typed the command would type `jaxmnist`.

    Args:
      arguments: `sys.argv`.
      original: `sys.orig_argv`, in which `-m` still stands.

    >>> as_typed(["/x/__main__.py"], [".venv/bin/python", "-m", "jaxmnist.search"])
    '.venv/bin/python -m jaxmnist'
    """
    if Path(arguments[0]).name != "__main__.py" or "-m" not in original:
        return "jaxmnist"
    return f"{shlex.join(original[: original.index('-m') + 1])} jaxmnist"


def advice(arguments: list[str]) -> str:
    """Return a phrase that says how to resume a stopped search."""
    goes_on = "; the same command goes on from here"
    if "--overwrite" in arguments:
        goes_on += " (without --overwrite, once trials have begun)"
    return goes_on
