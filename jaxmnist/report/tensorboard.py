"""A search in TensorBoard: a run for each trial, with its curves and its row in HParams.

Written by tensorboardX, record by record in this thread, so that a full disk raises an error here
and not in another thread. `tensorboard --logdir RUN/tensorboard` shows it.
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.api_pb2 import Status
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams, scalar, text

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.hyperparameters import text as value_text
from jaxmnist.models.questions import is_number
from jaxmnist.models.space import SpaceDescription
from jaxmnist.report.drawing import any_text, drawable, plotting
from jaxmnist.report.figures import cells_of, ticks
from jaxmnist.results.confusion import Evaluation
from jaxmnist.runs.trial import METRICS, History, Key, Metrics, Trial

CLOSED = b"_hparams_/session_end_info"  # contained in the file of a trial that ended
MOST_NAMES = 30  # class names along a side of the confusion matrix
LEVEL = 3  # letters of a class name that is not turned
LARGEST_FIGURE = 16.0  # inches along a side, 1600 pixels
WINNER = ".winner"  # suffix of the file with the winner's summary


@dataclass
class _Curves:
    """The open file of a running trial.

    node: the cluster's node, if it is named. epochs: the last epoch that was written.
    even: whether epochs came in order.
    """

    file: Any
    node: str | None
    epochs: int = 0
    even: bool = True


class TensorBoard:
    """Writes the files under a run's tensorboard/.

    A trial's file is replaced when the trial begins again, so that a resumed run has no duplicates.

    Args:
      folder: the folder to write them in.
      space: the search space; the hyperparameters that it varies are columns of HParams.
    """

    def __init__(self, folder: Path, space: SpaceDescription) -> None:
        self.folder = folder
        self._space = space
        self._writers: dict[Key, _Curves] = {}

    def trial_folder(self, key: Key) -> Path:
        """The folder of a trial or rerun, which is the name that TensorBoard shows."""
        name = f"trial-{key.index:04d}"
        if key.rerun is not None:
            name += "-refit" if key.refit else f"-rerun-{key.rerun}"
        return self.folder / name

    def start(
        self,
        key: Key,
        hyperparameters: Hyperparameters,
        history: History = (),
        node: str | None = None,
    ) -> None:
        """Begin a trial, with the epochs that it has, on a cluster's node if one is named."""
        if key in self._writers:
            self._writers.pop(key).file.close()
        folder = self.trial_folder(key)
        if folder.is_symlink():
            folder.unlink()  # it may point outside the run directory
        shutil.rmtree(folder, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)  # without the run's, which may have vanished with its disk
        folder.mkdir(exist_ok=True)
        self._writers[key] = _Curves(EventsWriter(str(folder / "events")), node)
        experiment, began, _ = _hparams(columns(self._space, hyperparameters))
        self._write(key, experiment)
        self._write(key, began)
        if node:
            self._write(key, text("node", node))
        for epoch, metrics in enumerate(history, 1):
            self.epoch(key, epoch, metrics)

    def epoch(self, key: Key, epoch: int, metrics: Metrics) -> None:
        """Add an epoch, counted from 1, to the curves of a trial."""
        curves = self._writers[key]
        curves.even &= epoch == curves.epochs + 1
        curves.epochs = epoch
        for name in METRICS:
            if math.isfinite(value := getattr(metrics, name)):
                self._write(key, scalar(name, value), epoch)

    def end(
        self, key: Key, hyperparameters: Hyperparameters, history: History, failed: bool
    ) -> None:
        """End a trial; its file is written anew if its epochs aren't those of the history.

        A trial of a group that failed is tried again from an earlier epoch, and an epoch that
        diverged has no event.
        """
        curves = self._writers[key]
        if not curves.even or curves.epochs != len(history):
            self.start(key, hyperparameters, history, curves.node)
        ended = _hparams(columns(self._space, hyperparameters))[2]
        self._write(key, _failed() if failed else ended)
        self._writers.pop(key).file.close()

    def catch_up(self, trials: Sequence[Trial], cluster: bool = False) -> None:
        """Write files that ended trials lack: TensorBoard was off, or the disk was full.

        cluster: whether to name the node of each.
        """
        for trial in trials:
            if trial.status == "running" or self._closed(trial.key):
                continue
            node = trial.node if cluster else None
            self.start(trial.key, trial.hyperparameters, trial.history, node)
            self.end(trial.key, trial.hyperparameters, trial.history, trial.status == "failed")

    def winner(self, key: Key, epoch: int, summary: str, test: Evaluation) -> None:
        """Write the winner's summary and confusion matrix beside its curves; delete older ones."""
        for old in self.folder.glob(f"trial-*/*{WINNER}"):
            old.unlink()
        writer = EventsWriter(str(self.trial_folder(key) / "events"), WINNER)
        fenced = "\n".join(f"    {line}" for line in summary.splitlines())
        for content in (text("summary", fenced), _picture(test)):
            writer.write_event(_event(content, epoch))
        writer.close()

    def close(self) -> None:
        """Close the files of trials that were stopped."""
        while self._writers:
            with contextlib.suppress(OSError):  # a failed write was reported before
                self._writers.popitem()[1].file.close()

    def _write(self, key: Key, summary: Any, step: int = 0) -> None:
        file = self._writers[key].file
        file.write_event(_event(summary, step))
        file.flush()

    def _closed(self, key: Key) -> bool:
        files = sorted(self.trial_folder(key).glob("*tfevents*"))
        return any(CLOSED in file.read_bytes() for file in files)


def _event(summary: Any, step: int) -> Any:
    return Event(summary=summary, step=step, wall_time=time.time())


def columns(space: SpaceDescription, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """The values of HParams' columns: every hyperparameter that the space varies.

    The first run that TensorBoard reads determines the columns and their types, so every run must
    have all of them: a hyperparameter that a trial doesn't have is 0, or '–' in a text column.
    """
    found: dict[str, Any] = {}
    for name in space.varied:
        numbers = all(is_number(value) for value in space.some_values(name))
        value = hyperparameters.get(name)
        if numbers:
            found[name] = value or 0
        else:
            found[name] = value_text(value) if name in hyperparameters else "–"
    return found


def _hparams(values: dict[str, Any]) -> tuple[Any, Any, Any]:
    """HParams' three summaries of a trial: two to write before its curves, and one after them."""
    experiment, began, ended = hparams(values, dict.fromkeys(METRICS, 0.0))
    return experiment, began, ended


def _failed() -> Any:
    """HParams' summary of the end of a failed trial; tensorboardX itself has only success."""
    summary = _hparams({})[2]
    state = Status.Value("STATUS_FAILURE")
    content = HParamsPluginData(session_end_info=SessionEndInfo(status=state), version=0)
    summary.value[0].metadata.plugin_data.content = content.SerializeToString()
    return summary


def _picture(evaluation: Evaluation) -> Any:
    """The confusion matrix as an image: correct in blue, wrong in orange, counts in the cells.

    Its size is bounded: with many classes a cell is a few pixels, with very many it stands for a
    block of classes, and not every class is named.
    """
    figure_class, classes = plotting().figure.Figure, len(evaluation.labels)
    cells, starts, block = cells_of(evaluation.confusion_matrix)
    shades = np.ones((*cells.shape, 3))
    diagonal = np.arange(len(cells))
    shades[diagonal, diagonal] = [0.8, 0.86, 0.92]
    share = (cells / max(1, cells.max()))[..., None]
    shades -= share * (shades - np.array([0.84, 0.37, 0.0]))
    size = min(max(4.0, 0.5 * classes + 1), LARGEST_FIGURE)
    buffer = io.BytesIO()
    with any_text():
        figure = figure_class(figsize=(size, size), dpi=100, layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(shades)
        if classes <= MOST_NAMES:
            for (row, column), count in np.ndenumerate(evaluation.confusion_matrix):
                if count:
                    axes.text(column, row, str(count), ha="center", va="center", fontsize=9)
        pairs = zip(evaluation.class_names, evaluation.labels, strict=True)
        names = [name if drawable(name) else str(label) for name, label in pairs]
        places, shown = ticks(starts, names, MOST_NAMES)
        upright = classes > MOST_NAMES or max(map(len, shown)) > LEVEL
        axes.set_xticks(places, shown, rotation=90 if upright else 0)
        axes.set_yticks(places, shown)
        title = "Confusion matrix on the test set"
        title += f" (a cell: {block}×{block} classes)" if block > 1 else ""
        axes.set(xlabel="prediction", ylabel="truth", title=title)
        figure.savefig(buffer, format="png")
    width, height = (int(side) for side in figure.canvas.get_width_height())
    image = Summary.Image(
        height=height, width=width, colorspace=4, encoded_image_string=buffer.getvalue()
    )
    return Summary(value=[Summary.Value(tag="confusion_matrix", image=image)])
