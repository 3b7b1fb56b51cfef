"""Reading a run: where its files are, what it is, its trials, its ledger."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmnist.errors import UsageError, disk_error, local_path
from jaxmnist.runs import ledger
from jaxmnist.runs.trial import Trial
from jaxmnist.whole_files import (
    LARGEST_JSON,
    DamagedFile,
    MissingFile,
    content_sha256,
    fits,
    read_bytes,
    read_json,
    read_sealed,
)

logger = logging.getLogger("jaxmnist")
T = TypeVar("T")
MOST_THREADS = 4096  # that a run may ask XLA's thread pool to have
PROGRAM = "jaxmnist"
FORMAT = 1
# What a run directory may hold; `--overwrite` deletes nothing else.
CONTENTS = (
    "search.json",
    "lock",
    "trials",
    "best",
    "svm",
    "ledger.jsonl",
    "damaged",
    "tensorboard",
    "report.html",
)
# What `--overwrite` leaves there: a look at a test set has happened, whatever becomes of the run.
LASTING = ("lock", "ledger.jsonl")
# What search.json says of the run itself; what was searched is for `run.Run` to read.
SEARCH_SHAPE = {
    "identity": dict,
    "sessions": [{"versions": {str: str}, "device": dict}],
}
# What it says under `stacking`, unless that is null: how the trials share programs.
STACKING_SHAPE = {"way": str, "lanes": int, "padding": {str: int}}


def exists(path: Path) -> bool:
    """Whether a run has been started in a folder."""
    return os.path.lexists(path / "search.json")


def read_search(path: Path) -> dict[str, Any]:
    """What search.json of a run directory says; `UsageError` if it isn't one of this program."""
    check_ours(path)
    file = path / "search.json"
    if not exists(path):
        raise UsageError(f"{path}: is not a run of jaxmnist: it has no search.json")
    search = read_json(file, {"format": None})
    if search["format"] != FORMAT:
        raise UsageError(f"{file}: is of format {search['format']!r}; this version reads {FORMAT}")
    stacking = search.get("stacking")
    if not fits(search, SEARCH_SHAPE) or not (stacking is None or fits(stacking, STACKING_SHAPE)):
        raise DamagedFile(file, "lacks what was searched")
    return search


def check_ours(path: Path) -> None:
    """Raise `UsageError` if the folder is there and is another program's."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise disk_error(f"{path}: can't be used", error) from None
    strangers = [name for name in names if name.strip(".").removesuffix(".tmp") not in CONTENTS]
    if "search.json" not in names:
        if strangers:
            raise UsageError(f"{path}: is not a run of jaxmnist: it has {min(strangers)!r}")
        return
    # Ours, damaged, may be replaced; what stands beside strangers is not touched.
    damaged = None if strangers else PROGRAM
    try:
        content = read_bytes(path / "search.json", LARGEST_JSON)
    except DamagedFile:
        content = b""
    try:
        search = json.loads(content)
        program = search.get("program") if isinstance(search, dict) else None
    except (ValueError, RecursionError):
        program = damaged
    if program != PROGRAM:
        raise UsageError(f"{path}: is a run of another program: see its search.json")


class RunDirectory:
    """A run's files, for reading.

    Args:
      path: the run directory.
      search: what its search.json says, or will say.
    """

    def __init__(self, path: Path | str, search: dict[str, Any]) -> None:
        self.path = Path(local_path(path))
        self._search = search

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """A run that is there; raises as `read_search`."""
        return cls(path, read_search(Path(local_path(path))))

    @property
    def search(self) -> dict[str, Any]:
        """What search.json says."""
        return self._search

    @property
    def identity_sha256(self) -> str:
        """The SHA-256 of what makes the run what it is; what belongs to the run names it."""
        return content_sha256(self._search["identity"])

    def __fspath__(self) -> str:
        return str(self.path)

    def folder(self, *parts: str) -> Path:
        """A folder of the run; `UsageError` if it is reached through a link, which may lead out."""
        path = self.path
        for part in parts:
            path /= part
            if part in ("..", "") or os.path.isabs(part):
                raise UsageError(f"{path}: is outside of the run")
            if os.path.islink(path):
                raise UsageError(f"{path}: is a link; a run must have its files in its own folder")
        return path

    # --- the winner ---

    @property
    def config_path(self) -> Path:
        """What the winner is."""
        return self.folder("best") / "config.json"

    @property
    def model_path(self) -> Path:
        """The winner's weights."""
        return self.folder("best") / "model.safetensors"

    @property
    def summary_path(self) -> Path:
        """The winner's layer table as text."""
        return self.folder("best") / "summary.txt"

    @property
    def test_path(self) -> Path:
        """The winner's report on the test set."""
        return self.folder("best") / "test.json"

    @property
    def probabilities_path(self) -> Path:
        """The winner's probabilities of the test images: float32[N, K]."""
        return self.folder("best") / "test_probabilities.npy"

    @property
    def times_path(self) -> Path:
        """The wall time of each stage."""
        return self.folder("best") / "times.json"

    # --- the SVM on a dataset ---

    def svm_path(self, name: str) -> Path:
        """The SVM's report."""
        return self.folder("svm", name) / "svm.json"

    def pipeline_path(self, name: str) -> Path:
        """The fitted SVM."""
        return self.folder("svm", name) / "pipeline.safetensors"

    def predictions_path(self, name: str) -> Path:
        """The SVM's classes of the test images: int64[N]."""
        return self.folder("svm", name) / "test_predictions.npy"

    def svm_paths(self) -> list[Path]:
        """The reports of all SVMs."""
        return sorted(self.folder("svm").glob("*/svm.json"))

    # --- what shows it ---

    @property
    def page_path(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def tensorboard_folder(self) -> Path:
        """TensorBoard's log directory."""
        return self.folder("tensorboard")

    # --- trials ---

    def trial_folder(self, index: int) -> Path:
        """The folder of a trial."""
        return self.folder("trials", f"{index:04d}")

    def read_trial(self, index: int) -> Trial | None:
        """The record of a trial; None if there is none; `DamagedFile` if it can't be believed."""
        path = self.trial_folder(index) / "trial.json"
        try:
            content = read_json(path)
        except MissingFile:
            return None
        try:
            trial = Trial.from_json(content)
        except (ValueError, TypeError):
            raise DamagedFile(path, "is not the record of a trial") from None
        if trial.index != index:
            raise DamagedFile(path, f"is the record of trial {trial.index}")
        if content.get("search_sha256") != self.identity_sha256:
            raise DamagedFile(path, "is the record of another search's trial")
        return trial

    def trial_indices(self) -> list[int]:
        """The trials that have a folder, ascending; ignores folders that are named otherwise."""
        folder = self.folder("trials")
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise disk_error(f"{folder}: can't be read", error) from None
        return sorted(int(name) for name in names if _is_index(name))

    def weights_path(self, index: int) -> Path:
        """Where a trial's weights are, while it is among the best."""
        return self.trial_folder(index) / "model.safetensors"

    def validation_path(self, index: int) -> Path:
        """Where it is kept which validation images a trial had right."""
        return self.trial_folder(index) / "validation.npy"

    def checkpoint_path(self, index: int) -> Path:
        """Where a trial's state is, while it runs."""
        return self.trial_folder(index) / "checkpoint.safetensors"

    def read_checkpoint(self, index: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """A trial's state; raises as `read_json`, also if it is of another search."""
        path = self.checkpoint_path(index)
        arrays, content = read_sealed(path)
        if content.get("search_sha256") != self.identity_sha256:
            raise DamagedFile(path, "is the checkpoint of another search's trial")
        return arrays, content

    # --- looks at the test set ---

    def read_looks(self) -> list[dict[str, Any]]:
        """Every look at a test set, oldest first: see `ledger.read_looks`."""
        return ledger.read_looks(self.path / "ledger.jsonl")

    def looks_at(self, data: str) -> int:
        """How many looks there were at the dataset of fingerprint `data`.

        Looks that can't be read may have been at it, and count.
        """
        return sum(look.get("data", data) == data for look in self.read_looks())


def threads_of(search: dict[str, Any]) -> int | None:
    """The size of XLA's thread pool that search.json records; None where it doesn't."""
    threads = search.get("threads")
    if isinstance(threads, bool) or not isinstance(threads, int):
        return None
    return threads if 0 < threads <= MOST_THREADS else None


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == f"{int(name):04d}"
