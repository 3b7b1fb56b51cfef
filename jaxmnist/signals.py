"""What Ctrl-C, TERM and a hang-up do."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from jaxmnist.errors import Stopped

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
TWICE = 1.0  # seconds within which a signal may be the same one, come on two ways


@dataclass(frozen=True)
class _EndsProcess:
    """What a signal does: it ends the process, with its line and its status."""

    advice: str

    def __call__(self, number: int, frame: Any) -> None:
        with suppress(OSError):  # nobody can see it
            if os.isatty(1):
                os.write(1, b"\x1b[?25h")  # the cursor, if it was hidden
            os.write(2, f"jaxmnist: {stopped_by(number)}{self.advice}\n".encode())
        os._exit(128 + number)


@contextmanager
def signals(advice: str = "") -> Iterator[None]:
    """End the process at Ctrl-C, TERM or hang-up, with its line and its status.

    At once, as whatever is written may be cut anywhere; an exception that is raised anywhere, in
    the middle of an import or of a callback from compiled code, may be lost there or crash it.
    What has to be brought to an end first stands in `signals_call`. The line ends with `advice`.
    """
    # nohup ignores hang-ups; so does a search that it starts.
    numbers = [number for number in _numbers() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _EndsProcess(advice)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_call(action: Callable[[], None]) -> Iterator[None]:
    """Let a signal that would end the process call `action`, and raise when the context ends.

    It is `Stopped` that is raised then, or KeyboardInterrupt where nobody set a handler; other
    handlers are left alone. Work in progress finishes first. A second signal does what it would
    have done without this.
    """
    came: list[tuple[int, float]] = []

    def note(number: int, frame: Any) -> None:
        if not came:
            came.append((number, time.monotonic()))
            action()
        # A closed terminal hangs up twice, of its shell's and of its own; so may a Ctrl-C come
        # from the terminal and from whoever started this. That is not a second thought.
        elif number != came[0][0] or time.monotonic() - came[0][1] > TWICE:
            before[number](number, frame)

    before: dict[int, Callable[[int, Any], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # no other one gets signals
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


def _numbers() -> list[int]:
    """The signals that end a command, those that this system has."""
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


def stopped_by(number: int) -> str:
    """Which signal ended the process, in words."""
    return f"stopped by {signal.Signals(number).name}"
