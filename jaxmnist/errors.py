"""The errors that a user can meet, each with the exit status of a command."""

from __future__ import annotations

import errno
import os
import re


def printable(text: str) -> str:
    """`text` as one line that can't command a terminal: what isn't printable is escaped.

    >>> printable("a\\x1b[2Jb\\nc")
    'a\\\\x1b[2Jb\\\\nc'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(error: BaseException, named: bool = False) -> str:
    """An exception's message in one line, cut off where it is long; it may begin with its type."""
    text, kind = " ".join(str(error).split())[:300], type(error).__name__
    return (f"{kind}: {text}" if named else text) if text else kind


class JaxmnistError(Exception):
    """Base of every error that jaxmnist raises on purpose; its text is one clear line."""

    exit_status = 1

    def __init__(self, line: str) -> None:
        # Names of files and strings in them go into messages, and may hold anything.
        super().__init__(printable(line))


class UsageError(JaxmnistError, ValueError):
    """A user's mistake: a wrong setting, a bad file, a locked or unwritable directory."""

    exit_status = 2


class EnvironmentFailure(JaxmnistError, RuntimeError):
    """The environment failed: a full disk, no network, or every trial of a search."""


def local_path(path: str | os.PathLike[str], name: str = "a path") -> str:
    """`path` with its `~` expanded; `UsageError` if it looks like an address of another machine.

    Python would make a folder called 's3:' of one. `name` is what to call it in the error.
    """
    text = os.fspath(path)
    # Two letters at least, as Windows has C:/; pathlib leaves one slash of two.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UsageError(
            f"{name}: {text} looks like an address; a path on this machine is needed (a bucket can"
            " be mounted as a folder)"
        )
    return os.path.expanduser(text)


class Stopped(BaseException):
    """A signal asked the process to end; what is finished has been kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_status = 128 + signal_number


def disk_error(what: str, error: OSError) -> JaxmnistError:
    """The error to raise for one of the file system: a user's mistake, or the environment's."""
    mistakes = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR)
    mistaken = error.errno in (*mistakes, errno.EEXIST, errno.EISDIR, errno.ELOOP)
    return (UsageError if mistaken else EnvironmentFailure)(f"{what}: {error.strerror or error}")
