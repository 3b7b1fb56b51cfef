"""Live display of a search, by rich, on a terminal or in a notebook: redrawn as trials run."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxmnist.engine.events import TrialEvent, TrialFinished, TrialLost
from jaxmnist.errors import printable
from jaxmnist.report.console import Console
from jaxmnist.report.progress import Progress, Running
from jaxmnist.report.words import lost
from jaxmnist.results import finalists
from jaxmnist.results.layout import wrapped
from jaxmnist.runs.keys import in_order

if TYPE_CHECKING:
    from jaxmnist.results.run import Run


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

    def result(self, text: str) -> None:
        """Print a result: sentences are wrapped, tables are not."""
        self._console.print(Text(wrapped(text, self._console.width)), soft_wrap=True)

    def results(self, run: Run) -> None:
        """Print the ranking as a table, and what `Console.results` says below it."""
        self.close()
        table = Table(header_style="dim", show_edge=False, pad_edge=False, box=SIMPLE)
        (head, *rows), left = self.first_rows(run)
        for name in head:
            table.add_column(name, justify="left" if name == head[-1] else "right")
        winner = str(run.best_trial.index)
        for place, row in enumerate(rows):
            failed = "dim" if place >= len(run.ranked) else ""
            table.add_row(*map(Text, row), style="bold green" if row[0] == winner else failed)
        for part in ("", table, Text(left, style="dim"), Text(run.why())):
            self._console.print(part)
        if run.finals:
            self.result(f"\n{finalists.table_as_text(run.finals)}\n")
        for said in self.about(run):
            self.result(said)

    def show(self, event: TrialEvent, progress: Progress) -> None:
        """Print a line for a trial that has ended, or that is lost."""
        if isinstance(event, TrialLost):
            self.note(f"trial {event.index}: {lost(event)}")
        if not isinstance(event, TrialFinished):
            return
        draw = progress.configurations[event.index]
        line = Text.assemble(("✓ " if event.error is None else "✗ "), f"trial {event.index} ")
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
        table = Table(header_style="dim", show_edge=False, pad_edge=False, box=None)
        for name in ("trial", "epoch", "accuracy", "val_accuracy", "images/s"):
            table.add_column(name, justify="right")
        table.add_column("hyperparameters", style="dim")
        if progress.cluster:
            table.add_column("node")
        for index, trial in sorted(progress.running.items(), key=lambda item: in_order(item[0])):
            cells = _cells(trial, progress.epochs)
            where = [Text(trial.node)] if progress.cluster else []
            table.add_row(str(index), *cells, Text(str(progress.configurations[index])), *where)
        line = Table.grid(padding=(0, 2))
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
