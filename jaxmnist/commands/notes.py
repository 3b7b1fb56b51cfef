"""Notes on the way, printed by commands that have nothing else to show."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from jaxmnist.errors import printable


class _Printer(logging.Handler):
    """Prints notes, as far as nothing else shows them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a note."""
        print(printable(record.getMessage()), flush=True)


@contextmanager
def notes_printed() -> Iterator[None]:
    """Notes on the way are printed."""
    logger, handler = logging.getLogger("jaxmnist"), _Printer()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
