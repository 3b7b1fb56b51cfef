"""How SIGINT (Ctrl-C), SIGTERM and SIGHUP (hang-up) are handled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from jaxmnist.errors import Stopped

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
