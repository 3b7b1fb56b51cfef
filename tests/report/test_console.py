"""Console output of a running search: in a pipe, on a terminal, and if quiet."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import bits
from processes import flags
from rich.console import Console as RichConsole

from jaxmnist import Run
from jaxmnist.engine.events import (
    EpochFinished,
    StepsFinished,
    TrialCompiled,
    TrialFinished,
    TrialStarted,
)
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION, configuration
from jaxmnist.report.console import Console, Display, Progress, can_display
from jaxmnist.report.live import open_console
from jaxmnist.report.sentences import about_more, verdict
from jaxmnist.results.ranking import describe_corrected
from jaxmnist.results.selection import Standing, rule_of
from jaxmnist.runs.trial import History, Key, Metrics

DRAWS = {index: configuration(4 * index + 4, 1, 0) for index in range(4)}


def metrics(accuracy: float) -> Metrics:
    return Metrics(0.5, accuracy, 0.6, accuracy - 0.01)


def trial(index: int, accuracy: float, seconds: float = 4.0) -> list:
    """The events of a trial of two epochs."""
    key, history = Key(index), (metrics(0.5), metrics(accuracy))
    return [
        TrialStarted(key, DRAWS[index]),
        EpochFinished(key, 1, history[0], seconds * 0.75),
        EpochFinished(key, 2, history[1], seconds),
        TrialFinished(key, history, {}, seconds, validation=bits(*accuracies(history))),
    ]


def accuracies(history: History) -> list[float]:
    return [epoch.val_accuracy for epoch in history]


def progress(done: int = 0) -> Progress:
    rule = rule_of("steady", 100)
    shown = Space(DEFINITION).describe().shown
    return Progress(
        len(DRAWS),
        epochs=2,
        images=100,
        rule=rule,
        ended={Key(index) for index in range(done)},
        shown=shown,
    )


def test_progress():
    found = progress()
    assert found.left() == "time left not known yet"
    for event in trial(0, 0.9)[:3]:
        found.update(event)
    assert found.running[Key(0)].rate == pytest.approx(
        100
    )  # 100 images in the second that the epoch took
    assert found.share == pytest.approx(2 / 8)
    found.update(trial(0, 0.9)[3])
    for event in trial(1, 0.95):
        found.update(event)
    found.update(TrialStarted(Key(2), DRAWS[2]))
    found.update(
        TrialFinished(Key(2), (metrics(0.99),), None, 1.0, "the loss stopped being finite")
    )
    assert found.ended == {Key(0), Key(1), Key(2)}
    assert found.best == (1, pytest.approx(0.94))
    assert found.share == pytest.approx(6 / 8)
    assert str(found).startswith("3 of 4 trials, best so far 0.9400 (trial 1), about ")


def test_progress_of_a_resumed_run_counts_what_is_left():
    found = progress(done=2)
    assert found.share == 0
    for event in trial(2, 0.9):
        found.update(event)
    assert found.share == pytest.approx(1 / 2)
    found.update(TrialStarted(Key(3), DRAWS[3], (metrics(0.7),)))
    assert found.share == pytest.approx(2 / 3)  # 2 of the 3 epochs that remained


def test_the_clock_of_a_search_that_has_a_time():
    now = [100.0]
    found = Progress(100, 2, 100, rule_of("steady", 100), seconds=600, clock=lambda: now[0])
    now[0] += 150
    for event in trial(0, 0.9):
        found.update(event)
    assert str(found) == "1 of 100 trials, best so far 0.8900 (trial 0), 2 min 30 s of 10 min 00 s"
    assert found.share == pytest.approx(0.25)
    now[0] += 455
    found.update(TrialStarted(Key(1), DRAWS[1]))
    assert found.left() == "10 min 05 s of 10 min 00 s, running trials finish"
    assert found.share == 1
    for event in trial(1, 0.8)[1:]:
        found.update(event)
    # The limit is for trials: of two trials and two reruns, half took 605 s.
    found.add([Key(0, 1), Key(1, 1)], [], 100)
    assert found.share == pytest.approx(0.5)
    assert str(found) == (
        "2 of 4 trials and reruns, best so far 0.8900 (trial 0), about 10 min 05 s left"
    )


def test_progress_within_an_epoch():
    found = progress()
    found.update(TrialStarted(Key(0), DRAWS[0]))
    found.update(TrialCompiled(Key(0), 0, 0, 1.0))  # compiling took a second
    found.update(EpochFinished(Key(0), 1, metrics(0.8), 2.0))
    assert found.running[Key(0)].rate == pytest.approx(100)
    found.update(StepsFinished(Key(0), 2, 50, 0.85, 2.5))
    trial = found.running[Key(0)]
    assert (trial.epochs, trial.share, trial.accuracy, trial.rate) == (1, 0.5, 0.85, 100.0)
    assert trial.val_accuracy == pytest.approx(0.79)
    assert found.share == pytest.approx(1.5 / 8)


def test_the_rate_of_a_trial_that_goes_on():
    """Neither the images nor the time of an earlier session count."""
    found = progress()
    found.update(TrialStarted(Key(0), DRAWS[0], (metrics(0.7),)))
    found.update(TrialCompiled(Key(0), 1, 60, 180.0))
    found.update(StepsFinished(Key(0), 2, 80, 0.85, 180.5))
    assert found.running[Key(0)].rate == pytest.approx(40)
    found.update(EpochFinished(Key(0), 2, metrics(0.8), 181.0))
    assert found.running[Key(0)].rate == pytest.approx(40)
    assert found.share == pytest.approx(0.4 / 6.4)  # 1.6 of the 8 epochs were done before
    # A group that was split starts over, with its own clock.
    found.update(TrialCompiled(Key(0), 0, 0, 0.5))
    found.update(StepsFinished(Key(0), 1, 50, 0.85, 1.0))
    assert (found.running[Key(0)].epochs, found.running[Key(0)].rate) == (0, 100.0)


def test_a_trial_that_failed_and_is_tried_again_counts_once():
    found = progress()
    found.update(TrialStarted(Key(0), DRAWS[0]))
    found.update(TrialFinished(Key(0), (), None, 1.0, "MemoryError"))
    assert found.share == pytest.approx(1 / 4)
    found.update(TrialStarted(Key(0), DRAWS[0]))
    assert found.ended == set()
    for event in trial(0, 0.9):
        found.update(event)
    assert (found.ended, found.best) == ({Key(0)}, (0, pytest.approx(0.89)))


def test_a_line_for_each_trial_and_epoch(capsys):
    console = Console()
    console.begin(progress())
    failed = TrialFinished(Key(1), (), None, 1.5, "ValueError: no")
    for event in [*trial(0, 0.9), TrialStarted(Key(1), DRAWS[1]), failed]:
        console.event(event)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert "trial 0: filters=4 conv_layers=1 dense_layers=0: compiling and training" in lines[0]
    assert lines[2].endswith(
        "trial 0 epoch 2/2: loss 0.5000 accuracy 0.9000 val_loss 0.6000 val_accuracy 0.8900"
        " 100 images/s"
    )
    assert "trial 0: completed in 4.0 s, score 0.8900; 1 of 4 trials" in lines[3]
    assert "trial 1: failed after 1.5 s: ValueError: no; 2 of 4 trials" in lines[5]
    assert not any("\x1b" in line for line in lines)


def test_the_best_so_far_while_trials_complete():
    """The display asks for it in a thread of its own."""
    found = progress()

    class Slow(Standing):
        def __lt__(self, other):
            found.completed[Key(len(found.completed))] = self  # another trial completes meanwhile
            return super().__lt__(other)

    found.completed = {Key(index): Slow((0.5,), index, 0.5) for index in range(2)}
    assert found.best == (0, 0.5)
    assert len(found.completed) > 2


def test_quiet_says_only_results_and_what_went_wrong(capsys):
    console = open_console(quiet=True)
    console.begin(progress())
    for event in trial(0, 0.9):
        console.event(event)
    console.note("on the way")
    console.result("the result")
    console.warn("the page can't be written")
    output = capsys.readouterr()
    assert output.out == "the result\n"
    assert output.err == "jaxmnist: the page can't be written\n"


def test_a_signal_is_acknowledged_past_the_streams(capfd):
    """In the middle of a line, as a signal may come, and once."""
    console = Console()
    console.stopping()  # before training: nothing is to be saved
    console.begin(progress())
    for event in (*trial(0, 0.9), TrialStarted(Key(1), DRAWS[1]), TrialStarted(Key(2), DRAWS[2])):
        console.event(event)
    capfd.readouterr()
    console.stopping()
    line = "jaxmnist: stopping: saving 2 running trials … (a second Ctrl-C doesn't wait)\n"
    assert capfd.readouterr() == ("", line)
    silent = Console(silent=True)
    silent.begin(progress())
    silent.stopping()
    assert capfd.readouterr() == ("", "")


def test_who_gets_what(monkeypatch):
    assert type(open_console()) is Console  # the tests' output is not a terminal
    terminal = RichConsole(force_terminal=True, file=io.StringIO())
    monkeypatch.setenv("TERM", "xterm-256color")
    assert can_display(terminal)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_display(RichConsole(force_terminal=True, file=io.StringIO()))
    assert not can_display(RichConsole(file=io.StringIO()))


def test_what_a_terminal_shows(finished):
    file = io.StringIO()
    terminal = RichConsole(force_terminal=True, width=100, file=file, color_system=None)
    display = Display(terminal, verbose=True)
    display.stage("training")
    display.begin(progress())
    for event in [
        *trial(0, 0.9),
        *trial(1, 0.8)[:2],
        TrialStarted(Key(2), DRAWS[2]),
        TrialStarted(Key(3), DRAWS[3]),
    ]:
        display.event(event)
    for event in (
        TrialCompiled(Key(1), 1, 0, 3.0),
        TrialCompiled(Key(3)),
        StepsFinished(Key(1), 2, 50, 0.75, 4.0),
    ):
        display.event(event)
    terminal.print(display.picture())
    display.stopping()
    terminal.print(display.picture())
    display.results(finished)
    display.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "✓ trial 0 0.8900 in 4.0 s" in shown
    rows = [line.split()[:5] for line in shown.splitlines()]
    assert ["1", "1.5/2", "0.7500", "0.4900", "50"] in rows
    assert re.search(r"2 +compiling .*filters=12", shown)
    assert re.search(r"3 +0\.0/2 .*filters=16", shown)
    assert "1 of 4 trials, best so far 0.8900 (trial 0)" in shown
    assert "stopping: saving 3 running trials …" in shown
    scores = [f"{entry.score:.4f}" for entry in finished.ranking.ranked]
    table = shown[shown.index("largest fall") :]
    assert [table.index(score) for score in dict.fromkeys(scores)] == sorted(
        table.index(score) for score in dict.fromkeys(scores)
    )
    assert describe_corrected(finished.ranking.corrected) in " ".join(shown.split())
    assert about_more(finished)[0] in " ".join(shown.split())
    assert "\x1b[?25h" in file.getvalue()  # the cursor is visible again


def test_failed_trials_on_a_terminal(finished):
    file = io.StringIO()
    display = Display(RichConsole(force_terminal=True, width=100, file=file))
    display.begin(progress())
    display.event(TrialStarted(Key(0), DRAWS[0]))
    display.event(TrialFinished(Key(0), (), None, 1.0, "[red]not markup[/red]"))
    display.close()
    assert "[red]not markup[/red]" in file.getvalue()


def on_a_terminal(options: dict, directory: Path, signal_at: str | None = None) -> tuple[int, str]:
    """The status of a search, and what a terminal of 110 columns gets.

    signal_at: what it prints when it gets a SIGINT.
    """
    given = {**options, "quiet": None, "svm": False, "max_trials": 2}
    line = [sys.executable, "-m", "jaxmnist.search", "--directory", str(directory)]
    line += flags({name: value for name, value in given.items() if value is not None})
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        line,
        stdout=follower,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "110"},
    )
    os.close(follower)
    output = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # Linux raises it when the other end has closed
            break
        if not part:
            break
        output += part
        if signal_at is not None and signal_at.encode() in output:
            process.send_signal(signal.SIGINT)
            signal_at = None
    os.close(leader)
    return process.wait(timeout=60), output.decode()


@pytest.mark.slow
def test_ctrl_c_on_a_real_terminal(options: dict, tmp_path: Path):
    """It is acknowledged where the progress stands, while a block of steps or a program ends."""
    endless = {**options, "jobs": 1, "epochs": 100_000}
    status, text = on_a_terminal(endless, tmp_path, signal_at="compiling")
    assert status == 130
    assert "stopping: saving 1 running trial …" in text
    assert "stopping: running trials are saved, the reports follow …" in text
    assert text.endswith("jaxmnist: stopped by SIGINT; the same command goes on from here\r\n")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is visible again


@pytest.mark.slow
def test_a_search_on_a_real_terminal(options: dict, tmp_path: Path):
    status, text = on_a_terminal(options, tmp_path)
    assert status == 0
    assert "compiling" in text
    assert "✓" in text
    assert "of 2 trials" in text
    assert "wins with validation accuracy" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is visible again
    assert "trial 0 epoch" not in text  # such lines are for pipes
    # The end is the verdict, wrapped between words; commands and links are not.
    end = text[text.index("Test accuracy: ") :].replace("\r\n", "\n")
    words = "\n".join(verdict(Run(tmp_path / "small"), f"{sys.executable} -m jaxmnist"))
    assert end.split() == words.split()
    lines = end.splitlines()
    assert len(lines) > len(words.splitlines())
    for line in lines:
        assert len(line) <= 110 or " " not in line.strip() or " jaxmnist " in line


def test_results_summary_is_the_same_table(finished):
    lines = finished.results_summary().split("\n\n")[0].splitlines()
    assert lines[0].split()[:2] == ["trial", "val_accuracy"]
    assert [line.split()[1] for line in lines[1:]] == [
        f"{e.score:.4f}" for e in finished.ranking.ranked
    ]


def test_a_line_of_a_trial_that_was_tried_again():
    """A group that ran out of memory is tried again in halves: epochs may come twice."""
    found = progress()
    for event in [*trial(0, 0.9)[:2], *trial(0, 0.9)]:
        found.update(event)
    assert found.ended == {Key(0)}


@pytest.mark.parametrize(("select", "best"), [("steady", 1), ("best", 0)])
def test_the_best_so_far_follows_the_rule(select, best):
    """Trial 0 scores higher, but fell by more than chance explains."""
    found = progress()
    found.rule = rule_of(select, 100)
    for index, shares in ((0, (0.99, 0.80)), (1, (0.5, 0.70))):
        history = tuple(Metrics(0.5, 0.5, 0.5, accuracy) for accuracy in shares)
        found.update(TrialStarted(Key(index), DRAWS[index]))
        found.update(TrialFinished(Key(index), history, {}, 1.0, validation=bits(*shares)))
    assert found.best == (best, (0.80, 0.70)[best])
