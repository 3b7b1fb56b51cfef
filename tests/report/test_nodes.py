"""Each node's share of a search's trials."""

from __future__ import annotations

from dataclasses import replace

from jaxmnist.report.nodes import NodeShare, shares_of


def test_shares_add_up(finished):
    first, second, third, fourth = finished.trials
    trials = [
        replace(first, node="a", device="cpu cpu", seconds=30.0),
        replace(second, node="b", device="gpu H100", seconds=60.0),
        replace(third, node="a", device="cpu cpu", seconds=10.0, status="failed"),
        replace(fourth, node="b", seconds=99.0, status="running"),
    ]
    assert shares_of(trials) == [
        NodeShare("b", "gpu H100", 1, 60.0, 0.6),
        NodeShare("a", "cpu cpu", 2, 40.0, 0.4),
    ]
    assert shares_of([replace(first, node=None)]) == []
