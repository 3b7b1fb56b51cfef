"""Reporting never harms a search, and the page is written while it runs."""

from __future__ import annotations

import itertools
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import bits, writing
from pages import check
from processes import looks_of

from jaxmnist import Run, random_search
from jaxmnist.engine.events import EpochFinished, TrialFinished, TrialStarted
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.report import live
from jaxmnist.report.console import Console
from jaxmnist.report.live import Reports
from jaxmnist.report.tensorboard import TensorBoard
from jaxmnist.runs.trial import Key, Metrics


@pytest.fixture
def reports(finished, tmp_path):
    """Reports on a copy of the finished run, whose page and TensorBoard are gone."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    (tmp_path / "small" / "report.html").unlink()
    run = writing(tmp_path / "small")
    data = finished.load_dataset()
    return Reports(run, STUDY, finished.settings, data, 4, Console(quiet=True))


def started(index: int) -> TrialStarted:
    return TrialStarted(Key(index), configuration(4, 1, 0))


def history(count: int) -> list[Metrics]:
    return [Metrics(0.5, 0.8 + epoch / 100, 0.5, 0.8) for epoch in range(count)]


def test_pages_come_at_most_twice_a_minute(reports, tmp_path, monkeypatch):
    made: list[float] = []
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live, "write_page", lambda *_, **__: made.append(clock[0]))
    again = Reports(
        *(
            getattr(reports, f"_{name}")
            for name in ("store", "network", "settings", "dataset", "budget", "console")
        )
    )
    with again:
        again.event(started(0))
        for epoch in range(1, 200):
            clock[0] += 1
            again.event(EpochFinished(Key(0), epoch, history(1)[0], epoch))
    during, last = made[:-1], made[-1]
    assert during[0] >= 1030
    assert all(b - a >= 30 for a, b in itertools.pairwise(during))
    assert len(during) == 6
    assert last == clock[0]


def test_slow_pages_come_less_often(reports, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(*_, **__):
        clock[0] += 5

    monkeypatch.setattr(live, "write_page", slow)
    reports._write_page()
    assert reports._next_page - clock[0] == pytest.approx(250)


def test_a_page_while_a_trial_runs(reports, finished, tmp_path):
    index = finished.trials[2].index
    folder = tmp_path / "small" / "trials" / f"{index:04d}"
    record = (folder / "trial.json").read_text()
    run = writing(tmp_path / "small")
    from dataclasses import replace

    trial = run.read_trial(Key(index))
    run.write_trial(replace(trial, status="running", history=history(2)))
    with reports:
        reports.event(started(index))
        reports.event(EpochFinished(Key(index), 1, history(1)[0], 1.0))
        reports._next_page = 0.0
        reports.event(EpochFinished(Key(index), 2, history(2)[1], 2.0))
        page = check((tmp_path / "small" / "report.html").read_text("utf-8"))
        assert any(a.get("http-equiv") == "refresh" for a in page.all("meta"))
        labels = [attributes["aria-label"] for attributes in page.all("svg")]
        curves = [label for label in labels if "accuracy by epoch" in label]
        assert len(curves) == 2
        assert all("of 4 trials" in label for label in curves)
        (folder / "trial.json").write_text(record)
        # From now on a signal may end the process, and the page must not reload for ever.
        reports.trained()
        page = check((tmp_path / "small" / "report.html").read_text("utf-8"))
        assert not any(a.get("http-equiv") == "refresh" for a in page.all("meta"))
    page = check((tmp_path / "small" / "report.html").read_text("utf-8"))
    assert not any(a.get("http-equiv") == "refresh" for a in page.all("meta"))


def test_a_trial_that_is_tried_again_has_each_epoch_once(reports, tmp_path):
    """A group falls apart after an epoch: its events come again."""
    with reports:
        reports.event(started(0))
        for epoch in (1, 2, 1, 2, 3):
            reports.event(EpochFinished(Key(0), epoch, history(3)[epoch - 1], epoch))
        right = bits(*(epoch.val_accuracy for epoch in history(3)))
        reports.event(TrialFinished(Key(0), tuple(history(3)), {}, 3.0, validation=right))
    (file,) = (
        path
        for path in (tmp_path / "small" / "tensorboard" / "trial-0000").iterdir()
        if not path.name.endswith(".winner")
    )
    assert len(re.findall(rb"\x0a\x08accuracy", file.read_bytes())) == 3


@pytest.mark.parametrize("broken", ["tensorboard", "page"])
def test_no_room_for_reports_loses_no_trial(broken, options, tmp_path, monkeypatch, capsys):
    """What would be written is refused as by a full disk; the search ends as if it were not."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if broken == "page":
        monkeypatch.setattr(live, "write_page", full)
        monkeypatch.setattr(live, "PAGE_EVERY", 0.0)
    else:
        monkeypatch.setattr(TensorBoard, "epoch", full)
    given = {**options, "max_trials": 2, "epochs": 1, "svm": False, broken: True}
    given["report"] = broken == "page"
    given.pop("page", None)
    run = random_search(**given, directory=str(tmp_path))
    assert [trial.status for trial in run.trials] == ["completed"] * 2
    assert looks_of(run) == ["winner"]
    errors = capsys.readouterr().err
    assert errors.count("No space left on device") == 1
    assert "the search goes on" in errors


def test_a_search_whose_trials_all_fail_has_a_page(options, tmp_path: Path):
    from jaxmnist import EnvironmentFailure

    given = {**options, "learning_rate": 1e30, "max_trials": 2, "report": True}
    with pytest.raises(EnvironmentFailure, match="every trial failed"):
        random_search(**given, directory=str(tmp_path))
    page = check((tmp_path / "small" / "report.html").read_text("utf-8"))
    assert "Every trial failed" in page.text["head"]
    assert "stopped being finite" in page.text["trials"]


def test_times_are_kept_once_for_each_time_that_trained(finished):
    from jaxmnist.runs.store import read_times

    (session,) = read_times(finished.store)
    assert {"data", "training", "test", "SVM"} <= set(session.seconds)
    assert Run(finished.store.path).store.search.machine["cores"] >= 1
