"""What all commands share: their flags, exit statuses and signal handling."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any, NoReturn

from jaxmnist import __version__
from jaxmnist.errors import JaxmnistError, Stopped, UsageError, disk_error, one_line
from jaxmnist.settings import SearchSettings, flag
from jaxmnist.signals import signals, stopped_by


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def __init__(self, program: str, description: str) -> None:
        super().__init__(prog=program, description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"jaxmnist {__version__}")

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with the message."""
        raise UsageError(f"{message} (--help lists the flags)")


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add an argument for the run directory that a command reads."""
    parser.add_argument("run", metavar="RUN", help="run directory, such as runs/mnist")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the file of a person's own network, for a command that needs a run's network."""
    parser.add_argument(
        "--model", metavar="FILE[:FUNCTION]", help="Python file of the network, if it is your own"
    )


def add_ensemble(parser: argparse.ArgumentParser) -> None:
    """Add the choice of the run's ensemble in place of its winner."""
    parser.add_argument(
        "--ensemble",
        action="store_true",
        help="use the mean probability of the best trials, which the search tested (its --ensemble"
        " K), in place of the winner",
    )


def model_of(arguments: list[str]) -> str | None:
    """What is given as --model; None if nothing is."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model")
    try:
        found: str | None = parser.parse_known_args(arguments)[0].model
    except argparse.ArgumentError:
        return None  # the whole parser says what is wrong
    return found


def add_settings(
    parser: argparse.ArgumentParser,
    names: Iterable[str] | None = None,
    without: Iterable[str] = (),
) -> None:
    """Add flags for the settings `names`, or for all; a flag that isn't given sets no attribute."""
    for item in fields(SearchSettings):
        if "help" not in item.metadata or (names is not None and item.name not in names):
            continue
        if item.name in without:
            continue
        kind = str(item.type).removesuffix(" | None")
        text = item.metadata["help"]
        if choices := item.metadata["choices"]:
            text += f" [{', '.join(choices)}]"
        if kind == "bool":
            # Settings that are on by default have two flags, such as --svm and --no-svm.
            action = argparse.BooleanOptionalAction if item.default else "store_true"
            parser.add_argument(
                flag(item.name),
                dest=item.name,
                action=action,
                default=argparse.SUPPRESS,
                help=text + (" (default: yes)" if item.default else ""),
            )
            continue
        if item.default is not None and item.default != "default":
            text += f" (default {item.default})"
        parser.add_argument(
            flag(item.name),
            dest=item.name,
            default=argparse.SUPPRESS,
            type={"int": _number(int), "float": _number(float)}.get(kind, str),
            metavar=item.metadata["metavar"] or "WORD",
            help=text.replace("%", "%%"),
        )


def add_ranges(
    parser: argparse.ArgumentParser, ranges: Mapping[str, str], texts: Mapping[str, str]
) -> None:
    """Add a flag for each hyperparameter.

    Args:
      parser: the parser to add them to.
      ranges: default ranges of the hyperparameters, by name, as text.
      texts: help texts, by name, of those hyperparameters for which the network has one.
    """
    group = parser.add_argument_group(
        "hyperparameters",
        "A RANGE is first:last, first:last:step, first:last:log, values such as 32,64,128, or one"
        " value.",
    )
    for name, values in ranges.items():
        text = f"{texts.get(name, name)} (default {values})"
        group.add_argument(
            flag(name),
            dest=name,
            default=argparse.SUPPRESS,
            metavar="RANGE",
            help=text.replace("%", "%%"),
        )


def _number(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a function that reads a number; other text stays, and the setting refuses it."""

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


def run_command(
    main: Callable[[list[str]], int | None], arguments: list[str] | None = None, advice: str = ""
) -> int:
    """Run a command's `main` with its arguments; returns the exit status, which `main` may give.

    An error of jaxmnist becomes one line on standard error. `advice` is appended to the line of a
    command that a signal has stopped.
    """
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal lacks is replaced, and doesn't end the search.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    status = None
    try:
        with signals(advice):
            with suppress(SystemExit):  # from --help and --version
                status = main(sys.argv[1:] if arguments is None else arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
    except JaxmnistError as error:
        return _end(str(error), error.exit_status)
    except ImportError as error:
        mend = "install jaxmnist with its dependencies: python -m pip install --editable ."
        return _end(f"{one_line(error)}; {mend}", 1)
    except MemoryError:
        return _end("memory is exhausted", 1)
    except Stopped as stopped:
        line = f"{stopped_by(stopped.exit_status - 128)}{advice}"
        return _end(line, stopped.exit_status)
    except BrokenPipeError:
        # The reader of the output is gone, so that no message can reach it.
        return _end(None, 1)
    except OSError as error:
        failure = disk_error(f"{error.filename or 'output'}", error)
        return _end(str(failure), failure.exit_status)
    return status or 0


def complain(line: str) -> None:
    """Print a line on standard error, if it can be printed."""
    if sys.stderr is not None:
        with suppress(OSError):  # the terminal was closed
            print(f"jaxmnist: {line}", file=sys.stderr, flush=True)


def _end(line: str | None, status: int) -> int:
    """Print why the command ends, if it can be printed; returns `status`."""
    if line is not None:
        complain(line)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            # Python flushes again at exit, where another failure would change the exit status.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return status
