"""What all commands share: their flags, exit statuses and signal handling."""

from __future__ import annotations

import argparse
import io
import os
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from jaxmnist import __version__
from jaxmnist.errors import (
    JaxmnistError,
    Stopped,
    UsageError,
    disk_error,
    one_line,
    signals,
    stopped_by,
)
from jaxmnist.hyperparameters import shown
from jaxmnist.machine import blas_threads, check_threads, cores, enough_threads
from jaxmnist.settings import PARTS, SETTINGS, Setting, flag, nearest

SPACE = """A RANGE is first:last, first:last:step, first:last:log, values such as
32,64,128, or one value."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and whose help ends with examples.

    Args:
      program: the command as it is typed.
      description: what it does, in a sentence.
      examples: command lines without the program, each with what it does.
      usage: the flags and arguments in a line; by default all of them.
    """

    def __init__(
        self,
        program: str,
        description: str,
        examples: Sequence[tuple[str, str]] = (),
        usage: str | None = None,
    ) -> None:
        lines = [f"  {program} {given}\n      {what}" for given, what in examples]
        super().__init__(
            prog=program,
            usage=usage and f"{program} {usage}",
            description=textwrap.fill(description, 78),
            epilog="\n".join(["examples:", *lines]) if lines else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--version", action="version", version=f"jaxmnist {__version__}")
        self._groups: dict[str, argparse._ArgumentGroup] = {}

    def group(self, title: str, description: str | None = None) -> argparse._ArgumentGroup:
        """The group of flags with this title, which is made where there is none."""
        if title not in self._groups:
            self._groups[title] = self.add_argument_group(title)
        found = self._groups[title]
        found.description = description or found.description
        return found

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; raise `UsageError` for an unknown option, with the known one that is most like it.

        As argparse does for all others, it reports first what is wrong with known options.
        """
        found, unknown = self.parse_known_args(args, namespace)
        if not unknown:
            check_threads(blas_threads(cores()))
            return found
        first = next((word for word in unknown if word.startswith("-") and word != "-"), None)
        if first is None:
            self.error(f"unexpected argument {shown(unknown[0])}")
        option = first.partition("=")[0]
        near = nearest(option, self._option_string_actions)
        return self.error(f"unknown option {option}", f"; did you mean {near}?" if near else None)

    def error(self, message: str, mend: str | None = None) -> NoReturn:
        """Raise `UsageError` with the message and how to mend it."""
        raise UsageError(message + (mend or " (--help lists the flags)"))


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


def first_of(arguments: list[str], *flags: str) -> list[str | None]:
    """What is given for flags that must be known before the others; None for each that isn't."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for each in flags:
        parser.add_argument(each, dest=each)
    try:
        found = vars(parser.parse_known_args(arguments)[0])
    except argparse.ArgumentError:
        return [None for _ in flags]  # the whole parser says what is wrong
    return [found[each] for each in flags]


def add_settings(
    parser: Parser,
    names: Iterable[str] | None = None,
    without: Iterable[str] = (),
) -> None:
    """Add flags for the settings `names`, or for all, in their groups.

    A flag that isn't given sets no attribute. Where only some settings are wanted, they have no
    groups.
    """
    for item in SETTINGS.values():
        if item.name not in without and (names is None or item.name in names):
            title = PARTS[item.part].title
            _add_setting(parser.group(title) if names is None else parser, item)


def _add_setting(parser: argparse._ActionsContainer, item: Setting) -> None:
    text = item.described.replace("%", "%%")
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS}
    if item.kind != "bool":
        parser.add_argument(
            flag(item.name),
            type={"int": _number(int), "float": _number(float)}.get(item.kind, str),
            metavar=item.metavar,
            help=text,
            **options,
        )
    elif item.default:
        action = argparse.BooleanOptionalAction
        parser.add_argument(flag(item.name), action=action, help=text, **options)
    else:
        # Settings that are on by default are listed with two flags, such as --svm and --no-svm; of
        # the others the second one only takes back what a file says.
        parser.add_argument(flag(item.name), action="store_true", help=text, **options)
        options["help"] = argparse.SUPPRESS
        parser.add_argument(flag(f"no_{item.name}"), action="store_false", **options)


def add_ranges(parser: Parser, ranges: Mapping[str, str], texts: Mapping[str, str]) -> None:
    """Add a flag for each hyperparameter, to the group 'space'.

    Args:
      parser: the parser to add them to.
      ranges: default ranges of the hyperparameters, by name, as text.
      texts: help texts, by name, of those hyperparameters for which the network has one.
    """
    group = parser.group("space", SPACE)
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
        with signals(advice), enough_threads():
            with suppress(SystemExit):  # from --help and --version
                status = main(sys.argv[1:] if arguments is None else arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
    except JaxmnistError as error:
        return _end(error.worded(flag), error.exit_status)
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
