"""What a real TensorBoard server shows of a search."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import last_metrics
from PIL import Image

from jaxmnist import Run, random_search
from jaxmnist.report.tensorboard import TensorBoard, _picture
from jaxmnist.results.confusion import Evaluation
from jaxmnist.runs.trial import METRICS, Metrics

Ask = Callable[..., Any]


@contextmanager
def server(folder: Path) -> Iterator[Ask]:
    """A TensorBoard of this machine; asks it for a route's JSON."""
    line = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder)]
    line += ["--host", "127.0.0.1", "--port", "0", "--load_fast", "false", "--reload_interval", "1"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        for text in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", text):
                break
        else:
            raise AssertionError("TensorBoard did not start")

        def ask(route: str, body: dict | None = None, **query: str) -> Any:
            address = f"{found[0]}data/{route}?{urllib.parse.urlencode(query)}"
            content = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(address, content)
            if body is not None:
                request.add_header("Content-Type", "application/json")
            with urllib.request.urlopen(request, timeout=20) as answer:
                raw = answer.read()
                return json.loads(raw) if "json" in answer.headers["Content-Type"] else raw

        yield ask
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()


def until(ask: Ask, runs: int) -> dict[str, Any]:
    """The scalars' tags by run, once the server has read so many runs to their ends."""
    for _ in range(100):
        tags = ask("plugin/scalars/tags")
        if len(tags) >= runs and all(set(METRICS) <= set(run) for run in tags.values()):
            return tags
        time.sleep(0.2)
    raise AssertionError(f"TensorBoard shows {tags}")


def session_groups(ask: Ask, run: Run) -> list[dict[str, Any]]:
    """What HParams lists."""
    columns = [{"metric": {"group": "", "tag": name}} for name in METRICS]
    body = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING", "STATUS_UNKNOWN"],
        "colParams": columns,
        "startIndex": 0,
        "sliceSize": 100,
        "includeMetrics": True,
    }
    return ask("plugin/hparams/session_groups", body)["sessionGroups"]


@pytest.mark.slow
def test_tensorboard_lists_exactly_the_trials(finished):
    names = {f"trial-{trial.index:04d}": trial for trial in finished.trials}
    with server(finished.store.path / "tensorboard") as ask:
        tags = until(ask, len(names))
        assert set(tags) == set(ask("runs")) == set(names)
        for name, trial in names.items():
            assert set(tags[name]) == set(METRICS)
            for metric in METRICS:
                points = ask("plugin/scalars/scalars", run=name, tag=metric)
                assert [step for _, step, _ in points] == [1, 2, 3]
                values = [value for _, _, value in points]
                assert values == pytest.approx(trial.metric(metric), rel=1e-6)
        groups = session_groups(ask, finished)
        assert len(groups) == len(names)
        for group in groups:
            (session,) = group["sessions"]
            trial = names[session["name"]]
            # Every column is there; `units` has only one value, and so no column.
            wanted = ("filters", "conv_layers", "dense_layers")
            assert group["hparams"] == {name: trial.hyperparameters[name] for name in wanted}
            assert session["status"] == "STATUS_SUCCESS"
            found = {m["name"]["tag"]: m["value"] for m in group["metricValues"]}
            assert found == pytest.approx(last_metrics(trial), rel=1e-6)
        best = f"trial-{finished.best_trial.index:04d}"
        assert ask("plugin/text/tags") == {best: ["summary/text_summary"]}
        (text,) = ask("plugin/text/text", run=best, tag="summary/text_summary")
        assert "Total params:" in text["text"]
        assert list(ask("plugin/images/tags")) == [best]
        (image,) = ask("plugin/images/images", run=best, tag="confusion_matrix", sample="0")
        picture = urllib.parse.parse_qs(image["query"])
        png = ask("plugin/images/individualImage", **{k: v[0] for k, v in picture.items()})
        assert Image.open(io.BytesIO(png)).size == (600, 600)


@pytest.mark.slow
def test_a_resumed_run_has_nothing_twice(finished, options, tmp_path):
    """Files cut short, a trial to run again, a larger budget: the server shows each value once."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    board = tmp_path / "small" / "tensorboard"
    cut = next((board / "trial-0000").glob("*tfevents*"))
    cut.write_bytes(cut.read_bytes()[:700])  # its trial is done, its file is not
    shutil.rmtree(board / "trial-0001")  # as in a run without TensorBoard
    (tmp_path / "small" / "trials" / "0002" / "trial.json").unlink()  # to be run again
    given = {**options, "tensorboard": True, "max_trials": 5, "svm": False}
    run = random_search(**given, directory=str(tmp_path))
    with server(board) as ask:
        assert set(until(ask, 5)) == {f"trial-{index:04d}" for index in range(5)}
        for trial in run.trials:
            for metric in METRICS:
                name = f"trial-{trial.index:04d}"
                points = ask("plugin/scalars/scalars", run=name, tag=metric)
                assert [point[1] for point in points] == [1, 2, 3]
                values = [value for _, _, value in points]
                assert values == pytest.approx(trial.metric(metric), rel=1e-6)
        assert len(session_groups(ask, run)) == 5
        assert list(ask("plugin/text/tags")) == [f"trial-{run.best_trial.index:04d}"]


@pytest.mark.slow
def test_a_failed_trial_is_shown_as_failed(finished, tmp_path):
    trial = finished.trials[1]
    lost = Metrics(*[float("nan")] * 4)
    failed = replace(trial, status="failed", history=(trial.history[0], lost))
    TensorBoard(tmp_path, finished.space).catch_up([finished.trials[0], failed])
    with server(tmp_path) as ask:
        until(ask, 2)
        status = {
            g["sessions"][0]["name"]: g["sessions"][0]["status"]
            for g in session_groups(ask, finished)
        }
        assert status == {"trial-0000": "STATUS_SUCCESS", "trial-0001": "STATUS_FAILURE"}
        points = ask("plugin/scalars/scalars", run="trial-0001", tag="val_loss")
        assert [step for _, step, _ in points] == [1]


@pytest.mark.parametrize(
    ("classes", "name"),
    [(2, ""), (10, ""), (31, ""), (200, ""), (3, "$\\frac{1}{0}$ "), (1000, "数字 of a language ")],
)
def test_the_confusion_matrix_is_bounded_and_shows_every_mistake(classes, name):
    matrix = np.diag(np.full(classes, 5))
    matrix[0, classes - 1] = 1
    names = tuple(f"{name}{k}" for k in range(classes))
    (value,) = _picture(Evaluation(tuple(range(classes)), matrix, names)).value
    picture = Image.open(io.BytesIO(value.image.encoded_image_string)).convert("RGB")
    assert picture.size == (value.image.width, value.image.height)
    assert max(picture.size) <= 1600
    pixels = np.asarray(picture).reshape(-1, 3)
    assert (np.abs(pixels - np.array([214, 94, 0])) <= 1).all(1).sum() >= 4  # the one mistake
