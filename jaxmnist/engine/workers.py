"""Threads that run groups of trials, and an iterator over their events."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from jaxmnist.engine.events import Checkpoint, Event
from jaxmnist.engine.lanes import Group


class Interrupted(Exception):
    """The engine was asked to stop while a trial was running."""


class Events:
    """An iterator over the events of a run's trials, in the order in which they happen."""

    def __init__(
        self,
        run_group: Callable[[Group, threading.Event], Iterator[Event]],
        groups: list[Group],
        jobs: int,
    ) -> None:
        self._run_group = run_group
        self._waiting: queue.SimpleQueue[Group] = queue.SimpleQueue()
        for group in groups:
            self._waiting.put(group)
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._over: Callable[[], bool] = lambda: False
        self._room = threading.Semaphore(jobs)  # for checkpoints waiting to be written
        self._failure: BaseException | None = None
        self._running = 0
        count = min(jobs, len(groups))
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]

    def start(self, *events: Event) -> None:
        """Start the trials; the iterator yields `events` first."""
        for event in events:
            self._events.put(event)
        for worker in self._workers:
            self._running += 1
            worker.start()

    def stop(self) -> None:
        """Ask the trials to stop; the events until then can still be iterated over."""
        self._stop.set()

    def end_when(self, over: Callable[[], bool]) -> None:
        """Start no further group of trials once `over()` is true; those that run finish.

        Each worker starts one group in any case, so that a search goes on however short its time.
        """
        self._over = over

    @property
    def stopping(self) -> bool:
        """Whether the trials were asked to stop."""
        return self._stop.is_set()

    def join(self) -> None:
        """Wait for the trials to stop."""
        for worker in self._workers:
            if worker.ident is not None:
                worker.join()

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> Event:
        event = self.within(None)
        assert event is not None
        return event

    def within(self, seconds: float | None) -> Event | None:
        """The next event, or None if none comes within the seconds; StopIteration at the end."""
        while self._running:
            try:
                event = self._events.get(timeout=seconds)
            except queue.Empty:
                return None
            if isinstance(event, Checkpoint):
                self._room.release()
            if event is not None:
                return event
            self._running -= 1
        if self._failure is not None:
            raise self._failure
        raise StopIteration

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                for event in self._run_group(self._waiting.get_nowait(), self._stop):
                    if isinstance(event, Checkpoint):
                        self._wait_for_room()
                    self._events.put(event)
                if self._over():
                    break
        except (queue.Empty, Interrupted):
            pass
        except BaseException as failure:
            # A trial's failure is an event; any other exception is raised in the iterating thread.
            self._failure = failure
        finally:
            self._events.put(None)

    def _wait_for_room(self) -> None:
        """Wait until earlier checkpoints were read, to limit how many of them are in memory."""
        while not self._room.acquire(timeout=0.1):
            if self._stop.is_set():  # the reader may be gone
                return
