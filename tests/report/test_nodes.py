"""What a person sees of a cluster's nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jaxmnist.engine.events import TrialFinished, TrialLost, TrialStarted
from jaxmnist.report.console import Console, Progress
from jaxmnist.report.facts import NodeShare, shares_of
from jaxmnist.results.selection import rule_of
from jaxmnist.runs.trial import Key


def test_shares_add_up(finished):
    first, second, third, fourth = finished.trials
    trials = [
        replace(first, node="a", device="cpu", seconds=30.0),
        replace(second, node="b", device="gpu H100", seconds=60.0),
        replace(third, node="a", device="cpu", seconds=10.0, status="failed"),
        replace(fourth, node="b", seconds=99.0, status="running"),
    ]
    assert shares_of(trials) == [
        NodeShare("b", "gpu H100", 1, 60.0, 0.6),
        NodeShare("a", "cpu", 2, 40.0, 0.4),
    ]
    assert shares_of([replace(first, node=None)]) == []


def test_the_console_says_where_a_trial_runs(capsys, finished):
    rule = rule_of("best", 100, None)
    console = Console()
    console.begin(Progress(2, 3, 300, rule, cluster=True))
    drawn = finished.trials[0].hyperparameters
    console.event(TrialStarted(Key(0), drawn, (), "cpu", "second"))
    console.event(TrialLost(Key(0), "second", node_lost=True))
    console.event(TrialStarted(Key(0), drawn, finished.trials[0].history[:2], "cpu", "first"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("compiling and training on second")
    assert "node second is lost; the trial goes on elsewhere from its last checkpoint" in lines[1]
    assert lines[2].endswith("after epoch 2 on first")
    # Two of the six epochs are done, all in this session.
    assert console.progress is not None
    assert console.progress.share == pytest.approx(2 / 6)
    finish = TrialFinished(Key(0), finished.trials[0].history, {}, 1.0, validation=(bytes(13),) * 3)
    console.event(finish)
    assert console.progress.nodes == "first 1"
