"""Reading a run: the paths of its files, search.json, its trials, its test-set evaluations."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmnist.errors import EnvironmentFailure, UsageError, disk_error, local_path, printable
from jaxmnist.runs.keys import REFIT, Rerun, TrialKey, index_of
from jaxmnist.runs.ledger import Looks, kept_looks, ledger_path, read_lines
from jaxmnist.runs.trial import Trial
from jaxmnist.whole_files import (
    LARGEST_JSON,
    DamagedFile,
    MissingFile,
    content_sha256,
    fits,
    read_array,
    read_bytes,
    read_json,
    read_sealed,
)

logger = logging.getLogger("jaxmnist")
T = TypeVar("T")
MOST_THREADS = 4096  # the largest size of XLA's thread pool that search.json may state
PROGRAM = "jaxmnist"
FORMAT = 1
# What a run directory may hold; `--overwrite` deletes nothing else.
CONTENTS = (
    "search.json",
    "lock",
    "trials",
    "best",
    "svm",
    "damaged",
    "tensorboard",
    "report.html",
)
LASTING = ("lock",)  # what `--overwrite` leaves
# What search.json says about the run itself; `results.run.Run` reads what was searched.
SEARCH_SHAPE = {
    "identity": dict,
    "sessions": [{"versions": {str: str}, "device": dict}],
}
# Its field `stacking`, unless that is null: how the trials share programs.
STACKING_SHAPE = {"way": str, "lanes": int, "padding": {str: int}}


def exists(path: Path) -> bool:
    """Return whether a run has been started in a folder."""
    return os.path.lexists(path / "search.json")


def gone(path: Path) -> EnvironmentFailure:
    """Return the error to raise where a run directory was expected."""
    return EnvironmentFailure(f"{path}: the run was moved or deleted, or its disk is gone")


def read_search(path: Path) -> dict[str, Any]:
    """Read search.json of a run directory; raise `UsageError` if it isn't one of this program."""
    check_ours(path)
    file = path / "search.json"
    if not exists(path):
        raise UsageError(f"{path}: is not a run of jaxmnist: it has no search.json")
    search = read_json(file, {"format": None})
    if search["format"] != FORMAT:
        raise UsageError(f"{file}: has format {search['format']!r}; this version reads {FORMAT}")
    stacking = search.get("stacking")
    if not fits(search, SEARCH_SHAPE) or not (stacking is None or fits(stacking, STACKING_SHAPE)):
        raise DamagedFile(file, "lacks what was searched")
    return search


def check_ours(path: Path) -> None:
    """Raise `UsageError` if the folder exists and belongs to another program."""
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
    # A damaged search.json may be replaced, unless other programs' files are in the folder.
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
      search: the content of its search.json, or what that will be.
    """

    def __init__(self, path: Path | str, search: dict[str, Any]) -> None:
        self.path = Path(local_path(path))
        self._search = search

    @classmethod
    def open(cls, path: Path | str) -> RunDirectory:
        """Open an existing run; raises like `read_search`."""
        return cls(path, read_search(Path(local_path(path))))

    @property
    def search(self) -> dict[str, Any]:
        """The content of search.json."""
        return self._search

    @property
    def identity_sha256(self) -> str:
        """The SHA-256 of the run's identity, by which trials and checkpoints refer to the run."""
        return content_sha256(self._search["identity"])

    def __fspath__(self) -> str:
        return str(self.path)

    def check_there(self) -> None:
        """Raise `EnvironmentFailure` if the run is no longer at its path."""
        if not exists(self.path):
            raise gone(self.path)

    def folder(self, *parts: str) -> Path:
        """Return a folder of the run; `UsageError` if a link, which may lead out, is on the way."""
        path = self.path
        for part in parts:
            path /= part
            if part in ("..", "") or os.path.isabs(part):
                raise UsageError(f"{path}: is outside the run directory")
            if os.path.islink(path):
                raise UsageError(f"{path}: is a link; a run must have its files in its own folder")
        return path

    # --- the winner ---

    @property
    def config_path(self) -> Path:
        """The description of the winner, as JSON."""
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
        """The winner's probabilities for the test images: float32[N, K]."""
        return self.folder("best") / "test_probabilities.npy"

    @property
    def ensemble_path(self) -> Path:
        """The report of the best trials' ensemble on the test set."""
        return self.folder("best", "ensemble") / "ensemble.json"

    @property
    def ensemble_probabilities_path(self) -> Path:
        """The ensemble's probabilities for the test images: float32[N, K]."""
        return self.folder("best", "ensemble") / "test_probabilities.npy"

    @property
    def comparisons_path(self) -> Path:
        """The paired comparisons of all models on the test set."""
        return self.folder("best") / "comparisons.json"

    @property
    def times_path(self) -> Path:
        """The wall time of each stage."""
        return self.folder("best") / "times.json"

    # --- the SVM on a dataset ---

    # place: the name of the dataset, and for an SVM beside the first one its backend.

    def svm_path(self, *place: str) -> Path:
        """Return the path of the SVM's report."""
        return self.folder("svm", *place) / "svm.json"

    def pipeline_path(self, *place: str) -> Path:
        """Return the path of the fitted SVM."""
        return self.folder("svm", *place) / "pipeline.safetensors"

    def predictions_path(self, *place: str) -> Path:
        """Return the path of the SVM's predictions for the test images: classes int64[N]."""
        return self.folder("svm", *place) / "test_predictions.npy"

    def svm_paths(self, backends: bool = False) -> list[Path]:
        """Return the paths of all SVMs' reports, as `svm_places` does their places."""
        return [self.svm_path(*place) for place in self.svm_places(backends)]

    def svm_places(self, backends: bool = False) -> list[tuple[str, ...]]:
        """Return the places of all SVMs with a report; with `backends` other backends' last.

        Folders that are links are left out.
        """
        folder = self.folder("svm")
        found = sorted(folder.glob("*/svm.json"))
        found += sorted(folder.glob("*/*/svm.json")) if backends else []
        return [
            path.relative_to(folder).parts[:-1]
            for path in found
            if not (path.parent.is_symlink() or path.parent.parent.is_symlink())
        ]

    # --- the report ---

    @property
    def page_path(self) -> Path:
        """The report page."""
        return self.path / "report.html"

    @property
    def tensorboard_folder(self) -> Path:
        """TensorBoard's log directory."""
        return self.folder("tensorboard")

    # --- trials ---

    def trial_folder(self, key: TrialKey) -> Path:
        """Return the folder of a trial, or of a rerun, which lies in its trial's."""
        parts = ["trials", f"{index_of(key):04d}"]
        if isinstance(key, Rerun):
            parts += ["refit"] if key.refit else ["reruns", str(key.number)]
        return self.folder(*parts)

    def read_trial(self, key: TrialKey) -> Trial | None:
        """Read the record of a trial or rerun; None if there is none.

        Raises `DamagedFile` if the record, or the validation.npy of a completed trial, is damaged;
        `MissingFile` if it has no validation.npy.
        """
        path = self.trial_folder(key) / "trial.json"
        try:
            content = read_json(path)
        except MissingFile:
            return None
        try:
            trial = Trial.from_json(content)
        except (ValueError, TypeError):
            raise DamagedFile(path, "is not the record of a trial") from None
        if trial.key != key:
            raise DamagedFile(path, f"is the record of trial {trial.key}")
        if content.get("search_sha256") != self.identity_sha256:
            raise DamagedFile(path, "is the record of another search's trial")
        if trial.status != "completed":
            return trial
        return replace(trial, validation=self._read_validation(trial))

    def _read_validation(self, trial: Trial) -> tuple[bytes, ...]:
        """Read which validation images a completed trial classified correctly, by epoch."""
        if trial.validation_sha256 is None:
            path = self.trial_folder(trial.key) / "trial.json"
            raise DamagedFile(path, "does not refer to results on validation images")
        path = self.validation_path(trial.key)
        bits = read_array(path, trial.validation_sha256)
        if bits.dtype != np.uint8 or bits.ndim != 2 or len(bits) != len(trial.history):
            raise DamagedFile(path, "does not have the bits of each epoch")
        return tuple(row.tobytes() for row in bits)

    def trial_indices(self) -> list[int]:
        """Return the trials that have a folder, ascending; ignores folders not named like one."""
        names = _listed(self.folder("trials"))
        return sorted(int(name) for name in names if _is_index(name))

    def reruns(self) -> list[Rerun]:
        """Return the reruns and refits that have a folder, in order."""
        found = []
        for index in self.trial_indices():
            folder = self.trial_folder(index)
            found += [Rerun(index, REFIT)] if os.path.lexists(folder / "refit") else []
            names = _listed(self.folder("trials", folder.name, "reruns"))
            found += [Rerun(index, int(name)) for name in names if _is_number(name)]
        return sorted(found)

    def weights_path(self, key: TrialKey) -> Path:
        """Return the path of a trial's weights, which exist while it is among the best."""
        return self.trial_folder(key) / "model.safetensors"

    def validation_path(self, key: TrialKey) -> Path:
        """Return the path of the record of which validation images a trial classified correctly."""
        return self.trial_folder(key) / "validation.npy"

    def checkpoint_path(self, key: TrialKey) -> Path:
        """Return the path of a trial's checkpoint, which exists while it runs."""
        return self.trial_folder(key) / "checkpoint.safetensors"

    def read_checkpoint(self, key: TrialKey) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Read a trial's checkpoint; raises like `read_json`, also if it is of another search."""
        path = self.checkpoint_path(key)
        arrays, content = read_sealed(path)
        if content.get("search_sha256") != self.identity_sha256:
            raise DamagedFile(path, "is the checkpoint of another search's trial")
        return arrays, content

    def outputs_path(self, key: TrialKey) -> Path:
        """Return the path of a few images with a trial's outputs for them: see `read_outputs`."""
        return self.trial_folder(key) / "outputs.safetensors"

    def error_path(self, key: TrialKey) -> Path:
        """Return the path of the traceback of a trial that has failed."""
        return self.trial_folder(key) / "error.txt"

    def read_outputs(self, key: TrialKey) -> dict[str, np.ndarray]:
        """Read the outputs of a network of one's own by which it can be told from others.

        Returns `images`, and the logits `initial`, and `trained` of a completed trial; see
        `results.matching`. Raises like `read_json`.
        """
        path = self.outputs_path(key)
        arrays, _ = read_sealed(path)
        if not {"images", "initial"} <= arrays.keys():
            raise DamagedFile(path, "lacks images and their outputs")
        return arrays

    # --- test-set evaluations ---

    @property
    def looks_paths(self) -> list[Path]:
        """The paths of all results that keep looks, if they exist; those behind links are left out.

        They are those of the winner, the ensemble and the SVMs.
        """
        found = []
        with suppress(UsageError):  # a link
            found.append(self.test_path)
            found.append(self.ensemble_path)
        with suppress(UsageError):
            found += self.svm_paths(backends=True)
        return found

    @property
    def name(self) -> str:
        """The run's folder with the folder that holds it, as the ledger names it: 'runs/mnist'."""
        path = Path(os.path.abspath(self.path))
        return printable(f"{path.parent.name}/{path.name}")

    @property
    def test_sha256(self) -> str:
        """The fingerprint of the test images and labels; `DamagedFile` if none is recorded."""
        if not fits(self._search, {"data": {"test_sha256": str}}):
            raise DamagedFile(self.path / "search.json", "lacks the SHA-256 of the test images")
        found: str = self._search["data"]["test_sha256"]
        return found

    def read_looks(self, test_sha256: str) -> Looks:
        """Return all evaluations on test images, by every run of the folder that holds this run.

        They are those of the ledger, and those that this run's results keep. A damaged line of the
        ledger may be about these images, and is counted. Raises like `whole_files.read_bytes`.

        Args:
          test_sha256: the fingerprint of the test images; see `Dataset.test_sha256`.
        """
        recorded, damaged = read_lines(ledger_path(self.path))
        looks = [*recorded, *kept_looks(self.looks_paths)]
        return Looks.of((look for look in looks if look.test_sha256 == test_sha256), damaged)


def threads_of(search: dict[str, Any]) -> int | None:
    """Return the size of XLA's thread pool that search.json records; None if it records none."""
    threads = search.get("threads")
    if isinstance(threads, bool) or not isinstance(threads, int):
        return None
    return threads if 0 < threads <= MOST_THREADS else None


def _listed(folder: Path) -> list[str]:
    """Return the names in a folder; none if there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise disk_error(f"{folder}: can't be read", error) from None


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) > 0 and name == str(int(name))


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdecimal() and name == f"{int(name):04d}"
