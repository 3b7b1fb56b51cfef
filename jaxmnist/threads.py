"""Whether a process may start the threads that it needs, before libraries rely on that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from jaxmnist.errors import EnvironmentFailure, JaxmnistError

MEND = "raise the limit on processes of this user (ulimit -u) or container, or end other ones"
REFUSED = "can't start new thread"  # as Python words it


def check_threads(needed: int) -> None:
    """Raise `EnvironmentFailure` unless so many more threads can be started now.

    They are started: XLA and OpenBLAS end the process when they get too few, without an exception.
    """
    over = threading.Event()
    started: list[threading.Thread] = []
    try:
        for _ in range(needed):
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise EnvironmentFailure(
            f"{needed} threads are needed, and no more than {len(started)} can be started: {MEND}"
        ) from None
    finally:
        over.set()
        for thread in started:
            thread.join()


@contextmanager
def enough_threads() -> Iterator[None]:
    """While in this context, an exception for want of threads becomes an `EnvironmentFailure`."""
    try:
        yield
    except JaxmnistError:
        raise
    except Exception as problem:
        cause: BaseException | None = problem
        while cause is not None:
            if isinstance(cause, RuntimeError) and str(cause) == REFUSED:
                raise EnvironmentFailure(f"no more threads can be started: {MEND}") from problem
            cause = cause.__cause__ or cause.__context__
        raise
