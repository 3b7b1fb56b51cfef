"""The command `jaxmnist`, which is also `python -m jaxmnist`: its subcommands."""

from __future__ import annotations

import importlib
import sys

from jaxmnist import __version__
from jaxmnist.commands import search
from jaxmnist.commands.parser import run_command
from jaxmnist.errors import UsageError
from jaxmnist.settings import nearest

# The commands, each a module in `commands/`, and what they do.
COMMANDS = {
    "search": "search, test the winner, fit the SVM; or resume an interrupted search",
    "evaluate": "evaluate a run's winner on the test set again",
    "svm": "fit the SVM on a run's features, of its own or another dataset",
    "predict": "classify images",
    "report": "rebuild a run's report page",
    "export": "write a run's winner as a file for other programs",
}


def overview() -> str:
    """Return the help text: a line for each subcommand."""
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            f"jaxmnist {__version__}: random search over small convolutional networks",
            "",
            "usage: jaxmnist COMMAND … (jaxmnist COMMAND --help lists its flags)",
            "",
            *lines,
            "",
            "examples:",
            "  jaxmnist search --max-trials 4 --epochs 2 --train-limit 20000",
            "      a short search on MNIST, to see what it does",
            "  jaxmnist predict runs/mnist digit.png",
            "      classify a picture with the winner of a search",
        ]
    )


def main(arguments: list[str]) -> int | None:
    """Run the subcommand that the first argument names; print an overview if there is none."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return None
    name, *rest = arguments
    if name == "--version":
        print(f"jaxmnist {__version__}")
        return None
    if name not in COMMANDS:
        near = nearest(name, COMMANDS)
        mean = f"; did you mean {near!r}?" if near else ""
        raise UsageError(
            f"unknown command {name!r}{mean or '; the commands are ' + ', '.join(COMMANDS)}"
        )
    module = importlib.import_module(f"jaxmnist.commands.{name}")
    status: int | None = module.main(rest, f"jaxmnist {name}")
    return status


def start() -> int:
    """Run the command with the arguments of this process; returns the exit status."""
    advice = ""
    if sys.argv[1:2] == ["search"]:
        advice = search.advice(sys.argv)
    return run_command(main, advice=advice)


if __name__ == "__main__":
    sys.exit(start())
