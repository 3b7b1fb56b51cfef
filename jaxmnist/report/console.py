"""The progress of a search on the console: redrawn on a terminal, else a line for each event.

`live.open_console` chooses lines where the output can't be redrawn: in a pipe, a file or a log.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.cells import cell_len
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as RichTable
from rich.text import Text

from jaxmnist.engine.events import (
    EpochFinished,
    Event,
    StackingChosen,
    StepsFinished,
    TrialCompiled,
    TrialEvent,
    TrialFinished,
    TrialLost,
    TrialStarted,
)
from jaxmnist.errors import printable
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.report.sentences import about_more, lost
from jaxmnist.results.selection import Rule, Standing
from jaxmnist.results.table import Laid, Table, duration, finalists_table
from jaxmnist.runs.trial import Key

if TYPE_CHECKING:
    from jaxmnist.results.run import Run


# --- Sentences broken into the lines of a terminal ---


def wrapped(text: str, width: int) -> str:
    """A text whose lines are broken between words to have at most `width` columns, unless `Laid`.

    A word that is wider stays whole. A line that goes on is indented as far as it was.

    >>> print(wrapped("  the trials of a search", 16))
      the trials of
      a search
    """
    if isinstance(text, Laid):
        return text
    lines = []
    for line in text.split("\n"):
        lines += [line] if cell_len(line) <= width else _broken(line, width)
    return "\n".join(lines)


def _broken(line: str, width: int) -> list[str]:
    """The lines of a sentence that is wider than `width` columns."""
    words = line.strip(" ").split(" ")  # two spaces may belong to a file's name
    indent = " " * (len(line) - len(line.lstrip(" ")))
    lines, last = [], indent + words[0]
    for word in words[1:]:
        if cell_len(last) + 1 + cell_len(word) <= width:
            last += f" {word}"
        else:
            lines.append(last)
            last = indent + word
    return [*lines, last]


def fitted(*lines: str) -> str:
    """Lines as they are to be printed: `wrapped` for a terminal, and else as they are."""
    if sys.stdout is None or not sys.stdout.isatty():
        return "\n".join(lines)
    width = shutil.get_terminal_size().columns
    return "\n".join(wrapped(line, width) for line in lines)


# --- The progress of a search, as the console shows it ---


def stopping(running: int) -> str:
    """What is said when a signal has asked a search to stop."""
    trials = "trial" if running == 1 else "trials"
    saving = f": saving {running} running {trials}" if running else ""
    return f"stopping{saving} … (a second Ctrl-C doesn't wait)"


@dataclass
class Running:
    """The state of a running trial, from its events.

    node: the machine that it runs on.
    compiled: whether its programs are compiled.
    epochs: number of finished epochs.
    share: finished fraction of the next epoch, from 0 to 1.
    accuracy: training accuracy of that part, or of the last epoch.
    val_accuracy: validation accuracy after the last epoch.
    rate: training images per second in the latest epoch.
    since: where `rate` starts: images of the epoch, and seconds since the trial began.
    """

    node: str = ""
    compiled: bool = False
    epochs: int = 0
    share: float = 0.0
    accuracy: float | None = None
    val_accuracy: float | None = None
    rate: float | None = None
    since: tuple[int, float] = (0, 0.0)

    def clock(self, images: int, seconds: float) -> None:
        """Set `rate`, with `images` of the epoch done `seconds` after the trial began."""
        self.rate = (images - self.since[0]) / max(seconds - self.since[1], 1e-9)


@dataclass
class Progress:
    """The progress of a search.

    budget: number of trials to run, with the reruns that were added to them.
    epochs, images: epochs of a trial, and training images of an epoch.
    rule: the rule that ranks completed trials.
    ended: the trials and reruns that have ended.
    completed: the standings of the completed trials, by key; reruns are ranked apart.
    running: the running trials and reruns.
    configurations: hyperparameters of each trial that has begun, as `shown` gives them.
    shown: what to show of a configuration.
    seconds: time after which no further trial starts; None for no limit.
    cluster: whether trials run on several machines.
    clock: the time now, in seconds.
    """

    budget: int
    epochs: int
    images: int
    rule: Rule
    ended: set[Key] = field(default_factory=set)
    completed: dict[Key, Standing] = field(default_factory=dict)
    running: dict[Key, Running] = field(default_factory=dict)
    configurations: dict[Key, Hyperparameters] = field(default_factory=dict)
    shown: Callable[[Hyperparameters], Hyperparameters] = lambda hyperparameters: hyperparameters
    seconds: float | None = None
    cluster: bool = False
    clock: Callable[[], float] = time.perf_counter
    reruns: bool = field(default=False, init=False)
    stopping: bool = field(default=False, init=False)  # whether a signal has asked for it
    _began: float = 0.0
    _before: float = 0.0  # epochs of earlier sessions
    _lost: set[Key] = field(default_factory=set)  # trials that will start again
    _trials_of: Counter[str] = field(default_factory=Counter)  # that ended, by node

    def __post_init__(self) -> None:
        self._before = self.epochs * len(self.ended)
        self._began = self.clock()

    def add(self, further: Collection[Key], ended: Collection[Key], images: int) -> None:
        """Add reruns, when all trials that are to run have ended.

        Args:
          further: the reruns.
          ended: those that have ended in an earlier session.
          images: their training images of an epoch.
        """
        self.budget = len(self.ended) + len(further)
        self.images = images
        self.reruns = True
        self.ended.update(ended)
        self._before += self.epochs * len(ended)

    def update(self, event: TrialEvent) -> None:
        """Update from an event of a trial."""
        key = event.key
        if isinstance(event, TrialStarted):
            last = event.history[-1] if event.history else None
            self.configurations[key] = self.shown(event.hyperparameters)
            self.running[key] = Running(
                event.node,
                epochs=len(event.history),
                accuracy=last.accuracy if last else None,
                val_accuracy=last.val_accuracy if last and isfinite(last.val_accuracy) else None,
            )
            # A trial that ended may be tried again. Epochs of a lost one are of this session.
            if key not in self._lost:
                self._before += len(event.history)
            self._lost.discard(key)
            self._before -= self.epochs * (key in self.ended)
            self.ended.discard(key)
        elif isinstance(event, TrialFinished):
            if running := self.running.pop(key, None):
                self._trials_of[running.node] += 1
            self.ended.add(key)
            if event.error is None and key.rerun is None:
                self.completed[key] = self.rule.standing(key.index, event.validation)
        elif isinstance(event, TrialLost):
            self.running.pop(key, None)
            self._lost.add(key)
        else:
            self._update_running(self.running[key], event)

    def _update_running(self, trial: Running, event: TrialEvent) -> None:
        """Update a running trial from one of its events."""
        if isinstance(event, TrialCompiled):
            trial.share = event.images / self.images
            # An earlier session did this part. It counts once, though after a failure half of a
            # group is compiled again.
            self._before += 0 if trial.compiled else trial.share
            trial.compiled, trial.epochs = True, event.epoch
            trial.since = event.images, event.seconds
        elif isinstance(event, StepsFinished):
            trial.share = event.images / self.images
            trial.accuracy = event.accuracy
            trial.clock(event.images, event.seconds)
        elif isinstance(event, EpochFinished):
            trial.epochs, trial.share = event.epoch, 0.0
            trial.accuracy = event.metrics.accuracy
            known = isfinite(event.metrics.val_accuracy)  # a refit has no validation images
            trial.val_accuracy = event.metrics.val_accuracy if known else None
            trial.clock(self.images, event.seconds)
            trial.since = 0, event.seconds

    @property
    def share(self) -> float:
        """The finished fraction of this session's training, or of its time, from 0 to 1."""
        running = sum(trial.epochs + trial.share for trial in list(self.running.values()))
        done = self.epochs * len(self.ended) + running - self._before
        trained = done / max(1, self.epochs * self.budget - self._before)
        passed = (
            (self.clock() - self._began) / self.seconds if self.seconds and not self.reruns else 0.0
        )
        return min(1.0, max(0.0, trained, passed))

    def left(self) -> str:
        """The time left, extrapolated from the time taken, as text; with a limit, the time."""
        passed = self.clock() - self._began
        if self.seconds is not None and not self.reruns:
            rest = ", running trials finish" if passed >= self.seconds and self.running else ""
            return f"{duration(passed)} of {duration(self.seconds)}{rest}"
        share = self.share
        if share >= 1:
            return "all done"
        if share <= 0:
            return "time left not known yet"
        return f"about {duration(passed * (1 - share) / share)} left"

    @property
    def best(self) -> tuple[int, float] | None:
        """Index and score of the trial that would win now."""
        completed = list(self.completed.values())  # the display reads it in a thread of its own
        if not completed:
            return None
        first = min(completed)
        return first.index, first.score

    @property
    def nodes(self) -> str:
        """How many trials each node has trained in this session, as text."""
        counts = sorted(self._trials_of.copy().items())  # the display reads it in its own thread
        return ", ".join(f"{node} {trials}" for node, trials in counts)

    def __str__(self) -> str:
        if self.stopping:
            return stopping(len(self.running))
        best = f", best so far {self.best[1]:.4f} (trial {self.best[0]})" if self.best else ""
        what = "trials and reruns" if self.reruns else "trials"
        return f"{len(self.ended)} of {self.budget} {what}{best}, {self.left()}"


# --- Plain console output of a search: one line for each event, easy to grep ---

MOST_ROWS = 10  # trials of the ranking that are printed without --verbose


class Console:
    """Prints a line for each event, and at the end the ranking.

    quiet: print only results and warnings. silent: only warnings.
    verbose: also print long reports, which the run's files and its page have.
    """

    def __init__(self, quiet: bool = False, silent: bool = False, verbose: bool = False) -> None:
        self.quiet = quiet or silent
        self.verbose = verbose
        self._silent = silent
        self._started = time.perf_counter()
        self._stages = [("data", self._started)]
        self.progress: Progress | None = None

    def stage(self, name: str) -> None:
        """Begin a stage of the run and end the one before."""
        self._stages.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """The wall time of each stage so far."""
        ends = [*(began for _, began in self._stages[1:]), time.perf_counter()]
        return {name: end - began for (name, began), end in zip(self._stages, ends, strict=True)}

    def times(self) -> str:
        """The wall time of each stage, and the total, as text."""
        parts = [f"{name} {value:.1f} s" for name, value in self.seconds().items()]
        return f"{', '.join(parts)}; {time.perf_counter() - self._started:.1f} s in all"

    def begin(self, progress: Progress) -> None:
        """Begin training; from now on events update `progress`."""
        self.progress = progress

    def close(self) -> None:
        """End training."""

    def stopping(self) -> None:
        """Say that the search is being stopped; called in a signal's handler.

        It writes past Python's streams, in which the signal may have interrupted another line.
        """
        if self._silent or self.progress is None:
            return
        line = f"jaxmnist: {stopping(len(self.progress.running))}\n"
        with suppress(OSError):  # the terminal may be closed
            os.write(2, line.encode())

    def note(self, line: str) -> None:
        """Print a note."""
        if not self.quiet:
            print(printable(line), flush=True)

    def warn(self, line: str) -> None:
        """Print a failure that doesn't end the search, even if quiet."""
        if sys.stderr is not None:
            with suppress(OSError):  # standard error may be full or closed
                print(f"jaxmnist: {printable(line)}", file=sys.stderr, flush=True)

    def result(self, *lines: str) -> None:
        """Print a result; on a terminal its sentences are wrapped."""
        if not self._silent:
            print(fitted(*lines), flush=True)

    def detail(self, lines: Sequence[str]) -> None:
        """Print a long report, if that is wanted."""
        if self.verbose:
            self.result(*lines)

    def verdict(self, lines: Sequence[str]) -> None:
        """Print the verdict, apart from what was printed before it."""
        self.result(*([] if self.quiet and not self.verbose else [""]), *lines)

    def results(self, run: Run) -> None:
        """Print the first trials of the ranking, and why the winner won.

        With `verbose` print all trials, what is known of the winner's score, and what more trials
        would bring; with `quiet` alone nothing.
        """
        if self.quiet and not self.verbose:
            return
        shown, left = self.first_rows(run)
        self.result("", str(shown), *([left] if left else []), "", run.ranking.why())
        if run.ranking.finals:
            self.result("", str(finalists_table(run.ranking.finals)), "")
        for line in self.about(run):
            self.result(line)

    def first_rows(self, run: Run) -> tuple[Table, str]:
        """The rows of the ranking to print, and a line on those that are left out, if any are."""
        whole = run.results_table()
        if self.verbose or len(whole) <= MOST_ROWS:
            return whole, ""
        without = run.table.columns["status"].values[MOST_ROWS:].count("failed")
        some = f", {without} of them failed" if without else ""
        more = f"… and {len(whole) - MOST_ROWS} more trials{some} (--verbose shows all)"
        return whole.first(MOST_ROWS), more

    def about(self, run: Run) -> list[str]:
        """What is said of the winner's score beside the verdict, in sentences."""
        said = [run.ranking.about_score()] if self.verbose or run.ranking.finals else []
        return [*said, about_more(run)[0]] if self.verbose else said

    def event(self, event: Event) -> None:
        """Show an event."""
        assert self.progress is not None
        if isinstance(event, StackingChosen):
            self.note(f"training {event.stacking}")
            return
        self.progress.update(event)
        self.show(event, self.progress)

    def show(self, event: TrialEvent, progress: Progress) -> None:
        """Show a trial's event, after which `progress` is already updated."""
        key = event.key
        clock = f"[{time.perf_counter() - self._started:6.1f} s] trial {key}"
        if isinstance(event, TrialStarted):
            after = f" after epoch {len(event.history)}" if event.history else ""
            configuration = progress.configurations[key]
            where = f" on {event.node}" if progress.cluster else ""
            self.note(f"{clock}: {configuration}: compiling and training{after}{where}")
        elif isinstance(event, EpochFinished):
            m = event.metrics
            shown = f"loss {m.loss:.4f} accuracy {m.accuracy:.4f}"
            if math.isfinite(m.val_loss):  # a refit has no validation images
                shown += f" val_loss {m.val_loss:.4f} val_accuracy {m.val_accuracy:.4f}"
            self.note(
                f"{clock} epoch {event.epoch}/{progress.epochs}: {shown}"
                f" {progress.running[key].rate:.0f} images/s"
            )
        elif isinstance(event, TrialLost):
            self.note(f"{clock}: {lost(event)}")
        elif isinstance(event, TrialFinished) and event.error is None:
            score = event.history[-1].val_accuracy
            scored = f", score {score:.4f}" if math.isfinite(score) else ""
            self.note(f"{clock}: completed in {event.seconds:.1f} s{scored}; {progress}")
        elif isinstance(event, TrialFinished):
            self.note(f"{clock}: failed after {event.seconds:.1f} s: {event.error}; {progress}")


class _Notes(logging.Handler):
    """A logging handler that shows log records on a console."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record as a note, or as a warning if its level is WARNING or above."""
        show = self._console.warn if record.levelno >= logging.WARNING else self._console.note
        show(record.getMessage())


@contextmanager
def notes_on(console: Console) -> Iterator[None]:
    """While in this context, show jaxmnist's log records on the console."""
    logger, handler = logging.getLogger("jaxmnist"), _Notes(console)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# --- Live display of a search, by rich, on a terminal or in a notebook: redrawn as trials run ---


def can_display(console: RichConsole | None = None) -> bool:
    """Whether output can be redrawn: on a real terminal, or in a notebook with ipywidgets."""
    console = console or RichConsole()
    if console.is_jupyter:
        return find_spec("ipywidgets") is not None
    return console.is_terminal and not console.is_dumb_terminal


class Display(Console):
    """Shows a line for each trial that has ended, and below them a table of the running trials."""

    def __init__(self, console: RichConsole | None = None, verbose: bool = False) -> None:
        super().__init__(verbose=verbose)
        self._console = console or RichConsole()
        self._live: Live | None = None

    def stage(self, name: str) -> None:
        """Begin a stage; after training, remove the display of running trials."""
        super().stage(name)
        if name != "training":
            self.close()
            self.note(f"{name} …")

    def begin(self, progress: Progress) -> None:
        """Show the running trials from now on."""
        super().begin(progress)
        self._live = Live(
            console=self._console,
            get_renderable=self.picture,
            refresh_per_second=4,
            transient=True,
        )
        self._live.start()

    def close(self) -> None:
        """Remove the display of running trials; after a signal say what is still done."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()
            if self.progress and self.progress.stopping:
                self.note("stopping: running trials are saved, the reports follow …")

    def stopping(self) -> None:
        """Say that the search is being stopped, where the progress stands: within 0.25 s.

        Printing it isn't safe here, as the signal may have come while something is printed.
        """
        if self.progress is not None:
            self.progress.stopping = True

    def note(self, line: str) -> None:
        """Print a note above the running trials."""
        self._console.print(Text(printable(line), style="dim"))

    def result(self, *lines: str) -> None:
        """Print a result: sentences are wrapped, tables are not."""
        for line in lines:
            self._console.print(Text(wrapped(line, self._console.width)), soft_wrap=True)

    def results(self, run: Run) -> None:
        """Print the ranking as a table, and what `Console.results` says below it."""
        self.close()
        table = RichTable(header_style="dim", show_edge=False, pad_edge=False, box=SIMPLE)
        shown, left = self.first_rows(run)
        for name, column in shown.columns.items():
            table.add_column(name, justify="left" if column.holds_text else "right")
        winner = run.best_trial.index
        for (index, *_), row, score in zip(
            shown.rows, shown.texts, run.table.columns["score"].values, strict=False
        ):
            failed = "dim" if score is None else ""
            table.add_row(*map(Text, row), style="bold green" if index == winner else failed)
        for part in ("", table, Text(left, style="dim"), Text(run.ranking.why())):
            self._console.print(part)
        if run.ranking.finals:
            self.result("", str(finalists_table(run.ranking.finals)), "")
        for said in self.about(run):
            self.result(said)

    def show(self, event: TrialEvent, progress: Progress) -> None:
        """Print a line for a trial that has ended, or that is lost."""
        if isinstance(event, TrialLost):
            self.note(f"trial {event.key}: {lost(event)}")
        if not isinstance(event, TrialFinished):
            return
        draw = progress.configurations[event.key]
        line = Text.assemble(("✓ " if event.error is None else "✗ "), f"trial {event.key} ")
        line.stylize("green" if event.error is None else "red")
        ended = f"in {event.seconds:.1f} s"
        if event.error is not None:
            ended = f"failed after {event.seconds:.1f} s: {printable(event.error)}"
        elif math.isfinite(score := event.history[-1].val_accuracy):  # a refit has none
            ended = f"{score:.4f} {ended}"
        line.append(f"{ended}  ", style="not dim")
        line.append(str(draw), style="dim")
        self._console.print(line)

    def picture(self) -> RenderableType:
        """The running trials, and the progress of the search."""
        progress = self.progress
        assert progress is not None
        table = RichTable(header_style="dim", show_edge=False, pad_edge=False, box=None)
        for name in ("trial", "epoch", "accuracy", "val_accuracy", "images/s"):
            table.add_column(name, justify="right")
        table.add_column("hyperparameters", style="dim")
        if progress.cluster:
            table.add_column("node")
        for key, trial in sorted(progress.running.copy().items(), key=lambda item: item[0]):
            cells = _cells(trial, progress.epochs)
            where = [Text(trial.node)] if progress.cluster else []
            table.add_row(str(key), *cells, Text(str(progress.configurations[key])), *where)
        line = RichTable.grid(padding=(0, 2))
        bar = ProgressBar(total=1.0, completed=progress.share, width=24)
        line.add_row(bar, Text(str(progress), style="bold"))
        shares = [Text(f"trials by node: {progress.nodes}", style="dim")] if progress.nodes else []
        return Group("", table, "", line, *(shares if progress.cluster else []))


def _cells(trial: Running, epochs: int) -> list[str]:
    """Epoch, accuracies and rate of a running trial."""
    known = [
        "" if value is None else f"{value:{form}}"
        for value, form in (
            (trial.accuracy, ".4f"),
            (trial.val_accuracy, ".4f"),
            (trial.rate, ",.0f"),
        )
    ]
    if not trial.compiled:
        return ["compiling", *known]
    return [f"{trial.epochs + trial.share:.1f}/{epochs}", *known]
