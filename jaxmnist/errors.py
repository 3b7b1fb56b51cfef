"""What can go wrong for a user, each with the exit status of a command that meets it."""

from __future__ import annotations


class JaxmnistError(Exception):
    """Base of every error that jaxmnist raises on purpose; its text is one clear line."""

    exit_status = 1


class UsageError(JaxmnistError, ValueError):
    """A person's mistake: a wrong setting, a bad file, a locked or unwritable directory."""

    exit_status = 2


class SurroundingsError(JaxmnistError, RuntimeError):
    """The surroundings failed: a full disk, no network, or every trial of a search."""


class Stopped(BaseException):
    """A signal asked the process to end; what is finished has been kept."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_status = 128 + signal_number
