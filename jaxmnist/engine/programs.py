"""Compiled programs, kept while a group needs them, and compiled ahead if that is faster."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from jaxmnist.engine.lanes import Group

TIDY_EVERY = 8  # dropped pairs of programs between two releases of memory


class Pair(NamedTuple):
    """The programs of a group: one trains all its lanes for some steps, one evaluates them."""

    train: jax.stages.Compiled
    evaluate: jax.stages.Compiled


Compiler = Callable[[], jax.stages.Compiled]
Compilers = tuple[Compiler, Compiler]
Half = Future[jax.stages.Compiled]


class Programs:
    """The programs of groups of trials; groups of the same shape share them.

    Args:
      build: returns the two functions that compile the programs of a group.
      groups: the groups that will request their programs, in this order.
      ahead: the number of threads that compile programs before they are requested, in the order of
        the groups. With zero, the thread that requests a program compiles it, which is best if
        compiling competes with training for cores.

    Attributes:
      compiled: the number of pairs compiled so far.
    """

    def __init__(
        self, build: Callable[[Group], Compilers], groups: Iterable[Group], ahead: int
    ) -> None:
        self.compiled = 0
        self._dropped = 0
        self._build = build
        self._lock = threading.Lock()
        self._pairs: dict[tuple[Any, ...], tuple[Half, Half]] = {}
        groups = list(groups)
        self._waiting = Counter(group.program for group in groups)
        self._threads = ThreadPoolExecutor(ahead, "compile") if ahead else None
        if self._threads:
            for group in groups:
                if group.program not in self._pairs:
                    submit = self._threads.submit
                    self._pairs[group.program] = (
                        submit(self._compile, group, 0),
                        submit(self._compile, group, 1),
                    )
                    self.compiled += 1

    def get(self, group: Group) -> Pair:
        """The programs of a group; the first caller compiles them, the others wait."""
        with self._lock:
            pair = self._pairs.get(group.program)
            mine = pair is None
            if pair is None:
                pair = self._pairs[group.program] = Future(), Future()
                self.compiled += 1
        if mine:
            for i, half in enumerate(pair):
                try:
                    half.set_result(self._compile(group, i))
                except BaseException as failure:
                    half.set_exception(failure)
        return Pair(*(half.result() for half in pair))

    def release(self, group: Group) -> None:
        """Drop a group's programs unless another group still needs them."""
        with self._lock:
            self._waiting[group.program] -= 1
            if self._waiting[group.program] > 0:
                return
            self._pairs.pop(group.program, None)
            self._dropped += 1
            tidy = self._dropped % TIDY_EVERY == 0
        if tidy:
            _give_back_memory()

    def close(self) -> None:
        """Cancel compilations that have not begun, and wait for the others."""
        if self._threads:
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _compile(self, group: Group, i: int) -> jax.stages.Compiled:
        # Building is done here, so that an error in it also counts as an error of the group.
        return self._build(group)[i]()


def _give_back_memory() -> None:
    """Release memory that dropped programs still occupy.

    JAX caches traced functions, about 1 MB per program; the C library retains memory that the
    compiler freed, about 20 MB per program.
    """
    jax.clear_caches()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only in glibc
        if trim is not None:
            trim(0)
