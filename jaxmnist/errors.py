"""Errors that users see, and signals that end a command, each with its exit status."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

# --- Errors ---


def printable(text: str) -> str:
    """Return `text` as one line that is safe for a terminal: unprintable characters are escaped.

    >>> printable("a\\x1b[2Jb\\nc")
    'a\\\\x1b[2Jb\\\\nc'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException, named: bool = False) -> str:
    """Return an exception's message as one line, cut off if long; `named` puts its type first."""
    kind = type(error).__name__
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:  # a person's own exception may raise anything when asked for its text
        text = ""
    return (f"{kind}: {text}" if named else text) if text else kind


def whole_traceback(error: BaseException) -> str:
    """Return an exception's traceback as text; of one that can't be printed, the places alone."""
    try:
        return "".join(traceback.format_exception(error))
    except BaseException:  # as in `one_line`
        return "".join(traceback.format_tb(error.__traceback__)) + one_line(error, named=True)


class JaxmnistError(Exception):
    """Base class of every error that jaxmnist raises on purpose; its message is one line."""

    exit_status = 1

    def __init__(self, line: str) -> None:
        # Messages include file names and strings from files, which may hold any character.
        super().__init__(printable(line))

    def worded(self, word: Callable[[str], str]) -> str:
        """The message, with `word(name)` for the name of each setting."""
        return str(self)


class UsageError(JaxmnistError, ValueError):
    """A user's mistake: a wrong setting, a bad file, a locked or unwritable directory."""

    exit_status = 2


class Named(str):
    """The name of a setting among the values of a `SettingError`."""


class SettingError(UsageError):
    """A mistake in a setting, whose message names settings as the user gave them.

    The exception's text has Python's keywords; `worded` gives it with flags, or a file's keys.

    Args:
      template: the message, in which `{max_trials}` stands for the setting of this name.
      values: what the other names in braces stand for: text, an error, or a setting as `Named`.

    >>> error = SettingError("{max_trials} must be at least {low}", low=1)
    >>> print(error, "or", error.worded(lambda name: "--" + name.replace("_", "-")))
    max_trials must be at least 1 or --max-trials must be at least 1
    """

    def __init__(self, template: str, /, **values: Any) -> None:
        self.template, self.values = template, values
        super().__init__(self.worded(str))

    def __reduce__(self) -> tuple[Any, ...]:
        return _setting_error, (self.template, self.values)

    @property
    def names(self) -> list[str]:
        """The settings that the message names, in order; the mistake is in the first."""
        return [str(value) for value in self._filled().values() if isinstance(value, Named)]

    def worded(self, word: Callable[[str], str]) -> str:
        """The message, with `word(name)` for the name of each setting."""

        def say(value: Any) -> Any:
            if isinstance(value, JaxmnistError):
                return value.worded(word)
            return word(value) if isinstance(value, Named) else value

        words = {name: say(value) for name, value in self._filled().items()}
        return printable(self.template.format_map(words))

    def _filled(self) -> dict[str, Any]:
        """The values of the names in the template's braces."""
        names = [name for _, name, _, _ in Formatter().parse(self.template) if name]
        return {name: self.values.get(name, Named(name)) for name in names}


def wrong(name: str, problem: str) -> SettingError:
    """Return the error for the value of a setting; the text is a predicate that follows the name.

    >>> str(wrong("max_trials", "must be a whole number"))
    'max_trials must be a whole number'
    """
    return SettingError("{setting} {problem}", setting=Named(name), problem=problem)


def _setting_error(template: str, values: dict[str, Any]) -> SettingError:
    return SettingError(template, **values)


class NetworkError(UsageError):
    """A network of one's own can't be asked, built, traced or trained as it is meant.

    traceback: of the exception in the user's code; empty if there was none.
    """

    def __init__(self, line: str, traceback: str = "") -> None:
        super().__init__(line)
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return NetworkError, (str(self), self.traceback)


class EnvironmentFailure(JaxmnistError, RuntimeError):
    """The environment failed: the disk is full, there is no network, or every trial failed."""


# The problem with a URL that is given as a path.
NOT_LOCAL = (
    "looks like a URL; a path on this machine is needed (a bucket can be mounted as a folder)"
)


def local_path(path: str | os.PathLike[str], name: str = "a path") -> str:
    """Return `path` with `~` expanded; raise `UsageError` if it looks like a URL.

    Python would take 's3://bucket' for a folder called 's3:'. `name` names the path in the error;
    that of a setting is `Named`.
    """
    text = os.fspath(path)
    if is_url(text):
        raise SettingError("{name}: {text} {problem}", name=name, text=text, problem=NOT_LOCAL)
    return os.path.expanduser(text)


def is_url(text: str) -> bool:
    """Return whether a text that a person gives for a path looks like a URL."""
    # At least two letters, since Windows has C:/; one slash, since pathlib merges two.
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) is not None


class Stopped(BaseException):
    """A signal asked the process to end; finished work has been saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_status = 128 + signal_number


def disk_error(what: str, error: OSError) -> JaxmnistError:
    """Return the error to raise for a file-system error: `UsageError` or `EnvironmentFailure`."""
    mistakes = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR)
    mistaken = error.errno in (*mistakes, errno.EEXIST, errno.EISDIR, errno.ELOOP)
    mend = "; raise the limit on open files (ulimit -n)" if error.errno == errno.EMFILE else ""
    kind = UsageError if mistaken else EnvironmentFailure
    return kind(f"{what}: {error.strerror or error}{mend}")


# --- Signals: SIGINT (Ctrl-C), SIGTERM and SIGHUP (hang-up) ---

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
TWICE = 1.0  # seconds within which a repeated signal may be the same one, delivered twice


@dataclass(frozen=True)
class _EndsProcess:
    """A signal handler that ends the process with one line and the signal's exit status."""

    advice: str

    def __call__(self, number: int, frame: Any) -> None:
        with suppress(OSError):  # the terminal may be closed
            if os.isatty(1):
                os.write(1, b"\x1b[?25h")  # show the cursor, which may be hidden
            os.write(2, f"jaxmnist: {stopped_by(number)}{self.advice}\n".encode())
        os._exit(128 + number)


@contextmanager
def signals(advice: str = "") -> Iterator[None]:
    """End the process on Ctrl-C, SIGTERM or SIGHUP, with one line and the signal's exit status.

    The process ends at once, which is safe because every write may be cut off anywhere. An
    exception, by contrast, may be lost or crash the process if it is raised during an import or a
    callback from compiled code. Work that has to finish first runs inside `signals_call`. The line
    ends with `advice`.
    """
    # nohup ignores SIGHUP; a search that it starts must ignore it, too.
    numbers = [number for number in _numbers() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _EndsProcess(advice)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Notes:
    """A signal handler that calls `action` the first time, and then the handler before it."""

    action: Callable[[], None]
    before: dict[int, Callable[[int, Any], Any]] = field(default_factory=dict)
    came: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, number: int, frame: Any) -> None:
        if not self.came:
            self.came.append((number, time.monotonic()))
            self.action()
        # Closing a terminal sends SIGHUP twice, from the shell and from the terminal; a Ctrl-C may
        # come from the terminal and from the parent process. Neither is a second request.
        elif number != self.came[0][0] or time.monotonic() - self.came[0][1] > TWICE:
            self.before[number](number, frame)


@contextmanager
def signals_call(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` on a signal that would end the process, and raise when the context ends.

    It raises `Stopped`, or KeyboardInterrupt where Python's default handler is set; other handlers
    are left alone. Work in progress finishes first. A second signal does what it would have done
    without this context.
    """
    note = _Notes(action)
    before, came = note.before, note.came
    if threading.current_thread() is threading.main_thread():  # only it receives signals
        for number in _numbers():
            handler = signal.getsignal(number)
            if isinstance(handler, _EndsProcess) or handler is signal.default_int_handler:
                before[number] = handler
    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came and before[came[0][0]] is signal.default_int_handler:
            raise KeyboardInterrupt
        if came:
            raise Stopped(came[0][0])


def may_interrupt() -> bool:
    """Return whether Ctrl-C can raise an exception here: not in a command, nor in other threads."""
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    handler = handler.before[signal.SIGINT] if isinstance(handler, _Notes) else handler
    return callable(handler) and not isinstance(handler, _EndsProcess)


def _numbers() -> list[int]:
    """Return the numbers of those `SIGNALS` that this system has."""
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


def stopped_by(number: int) -> str:
    """Return a phrase that names the signal that ended the process."""
    return f"stopped by {signal.Signals(number).name}"
