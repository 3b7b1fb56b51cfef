"""The errors that users can see, each with the exit status of a command."""

from __future__ import annotations

import errno
import os
import re
import traceback
from typing import Any


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


class UsageError(JaxmnistError, ValueError):
    """A user's mistake: a wrong setting, a bad file, a locked or unwritable directory."""

    exit_status = 2


class NetworkError(UsageError):
    """A network of one's own can't be asked, built, traced or trained as it is meant.

    traceback: the whole traceback of the exception in a person's code; empty if there was none.
    """

    def __init__(self, line: str, traceback: str = "") -> None:
        super().__init__(line)
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return NetworkError, (str(self), self.traceback)


class EnvironmentFailure(JaxmnistError, RuntimeError):
    """The environment failed: the disk is full, there is no network, or every trial failed."""


def local_path(path: str | os.PathLike[str], name: str = "a path") -> str:
    """Return `path` with `~` expanded; raise `UsageError` if it looks like a URL.

    Python would take 's3://bucket' for a folder called 's3:'. `name` names the path in the error.
    """
    text = os.fspath(path)
    # At least two letters, since Windows has C:/; one slash, since pathlib merges two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UsageError(
            f"{name}: {text} looks like a URL; a path on this machine is needed (a bucket can be"
            " mounted as a folder)"
        )
    return os.path.expanduser(text)


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
