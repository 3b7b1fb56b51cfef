"""A run's files: their paths, reading them, and writing them under the lock of one process."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmnist.errors import (
    EnvironmentFailure,
    JaxmnistError,
    UsageError,
    disk_error,
    local_path,
    printable,
)
from jaxmnist.files import (
    LARGEST_JSON,
    DamagedFile,
    MissingFile,
    content_sha256,
    disk,
    fits,
    read_array,
    read_bytes,
    read_json,
    read_sealed,
    sealed_bytes,
    unfinished,
    write_bytes,
    write_json,
)
from jaxmnist.runs import ledger, lock
from jaxmnist.runs.ledger import Look, Looks, kept_looks, ledger_path, read_lines
from jaxmnist.runs.trial import REFIT, Rerun, Trial, TrialKey, index_of
from jaxmnist.settings import SVM_BACKENDS

# --- Reading a run: the paths of its files, search.json, its trials, its test-set evaluations ---

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


# --- Writing a run: one process at a time, which locks it with `begin_run` or `continue_run` ---

# What search.json has of each session that differed from the one before.
SESSION = ("versions", "device", "environment")
# What people call the entries of its section `device`.
DEVICE_WORDS = {
    "kind": "the device",
    "devices": "the number of devices",
    "machine": "the processor's architecture",
    "processor": "the processor",
}


class WritableRunDirectory(RunDirectory):
    """A run's files, for the one process that holds its lock.

    Args:
      path: the run directory.
      search: the content of its search.json, or what that will be.
      lock: the open lock file.
    """

    def __init__(self, path: Path | str, search: dict[str, Any], lock: int) -> None:
        super().__init__(path, search)
        self._lock = lock

    def check_there(self) -> None:
        """Raise `EnvironmentFailure` if the locked folder is no longer the one at its path."""
        if not lock.held(self.path / "lock", self._lock):
            raise gone(self.path)

    def write_search(self) -> list[str]:
        """Write search.json; its `sessions` list the versions and devices that the run has used.

        Returns notes for the user: what results depend on and has changed since the last session.
        """
        search = self._search
        session = {key: search[key] for key in SESSION if key in search}
        before = read_search(self.path) if exists(self.path) else {"sessions": [session]}
        sessions = before["sessions"]
        changes = _changes(sessions[-1], session) + _changed_lanes(before, search)
        sessions = sessions if sessions[-1] == session else [*sessions, session]
        now = threads_of(search)
        threads = threads_of(before) or now
        if threads != now:
            changes.append(
                f"XLA's thread pool has {now} threads, but had {threads} when this run began: new"
                " results may differ in the last digits (JAX had started already)"
            )
        self._write(
            {
                "program": PROGRAM,
                "format": FORMAT,
                "stacking": before.get("stacking"),
                **search,
                "threads": threads,
                "sessions": sessions,
            }
        )
        return [printable(line) for line in changes]

    def write_stacking(self, stacking: dict[str, Any]) -> None:
        """Record in search.json how the trials of this run share programs."""
        self.check_there()
        self._write({**self._search, "stacking": stacking})

    def _write(self, search: dict[str, Any]) -> None:
        write_json(self.path / "search.json", search)
        self._search = search

    # --- damage ---

    def set_aside(self, path: Path) -> Path:
        """Move a damaged file to damaged/; returns its new path."""
        self.check_there()
        target = self.folder("damaged") / f"{time.time_ns()}-{path.parent.name}-{path.name}"
        with disk(target):
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        return target

    def mended(self, read: Callable[[], T | None]) -> T | None:
        """Return `read()`; None if a file is missing, or damaged and now set aside with a note.

        read: reads files of the run and doesn't catch `DamagedFile`.
        """
        while True:
            try:
                return read()
            except MissingFile:
                return None
            except DamagedFile as problem:
                moved = self.set_aside(problem.path)
                logger.info(f"note: {problem}; moved to {moved}, to be made again")

    def set_aside_misplaced(self) -> None:
        """Set aside files where folders should be."""
        folders = [self.path / name for name in ("trials", "best", "svm")]
        for above in (self.path / "trials", self.path / "svm"):
            if above.is_dir():
                folders += sorted(above.iterdir())
        folders += [self.trial_folder(key) for key in self.reruns()]
        folders += [path / "reruns" for path in folders if path.parent.name == "trials"]
        folders += [self.path / "best" / "ensemble"]
        if (self.path / "svm").is_dir():
            svms = [path for path in (self.path / "svm").iterdir() if path.is_dir()]
            folders += [path / backend for path in svms for backend in SVM_BACKENDS]
        for path in folders:
            if os.path.lexists(path) and not path.is_symlink() and not path.is_dir():
                logger.info(f"note: {path}: is not a folder; moved to {self.set_aside(path)}")

    # --- trials ---

    def write_trial(self, trial: Trial) -> None:
        """Write the record of a trial."""
        self.check_there()
        path = self.trial_folder(trial.key) / "trial.json"
        with disk(path):
            self.folder("trials").mkdir(exist_ok=True)
            if isinstance(trial.key, Rerun):
                self.trial_folder(trial.index).mkdir(exist_ok=True)
                path.parent.parent.mkdir(exist_ok=True)
        write_json(path, {**trial.to_json(), "search_sha256": self.identity_sha256})

    def write_weights(self, key: TrialKey, content: bytes) -> None:
        """Write a trial's weights."""
        self.check_there()
        write_bytes(self.weights_path(key), content)

    def write_file(self, path: Path, content: bytes) -> None:
        """Write a file of the winner, or of an SVM."""
        self.check_there()
        with disk(path):
            path.parent.parent.mkdir(exist_ok=True)
        write_bytes(path, content)

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Write a JSON file of the run."""
        self.check_there()
        write_json(path, content)

    def write_validation(self, key: TrialKey, content: bytes) -> None:
        """Write the record of which validation images a trial classified correctly."""
        self.check_there()
        write_bytes(self.validation_path(key), content)

    def write_outputs(self, key: TrialKey, arrays: dict[str, np.ndarray]) -> None:
        """Write the outputs of a network of one's own: see `read_outputs`."""
        self.check_there()
        write_bytes(self.outputs_path(key), sealed_bytes(arrays, {}))

    def write_error(self, key: TrialKey, traceback: str) -> None:
        """Write the traceback of a trial that has failed; an empty one deletes it."""
        self.check_there()
        if traceback:
            write_bytes(self.error_path(key), traceback.encode(errors="backslashreplace"))
        else:
            self._delete(self.error_path(key))

    def write_checkpoint(
        self, key: TrialKey, arrays: dict[str, np.ndarray], content: dict[str, Any]
    ) -> None:
        """Write a running trial's checkpoint."""
        self.check_there()
        content = {**content, "search_sha256": self.identity_sha256}
        write_bytes(self.checkpoint_path(key), sealed_bytes(arrays, content))

    def drop_checkpoint(self, key: TrialKey) -> None:
        """Delete a trial's checkpoint, also an unfinished one that a killed process left."""
        path = self.checkpoint_path(key)
        for each in (path, unfinished(path)):
            self._delete(each)

    def keep_weights(self, kept: Container[TrialKey], among: Iterable[TrialKey]) -> None:
        """Delete the weights of the trials `among` that are not in `kept`."""
        for key in among:
            if key not in kept:
                self._delete(self.weights_path(key))

    def _delete(self, path: Path) -> None:
        """Delete a file or a link; a folder in its place is set aside."""
        if os.path.isdir(path) and not os.path.islink(path):
            logger.info(f"note: {path}: is not a file; moved to {self.set_aside(path)}")
        with disk(path, "can't be deleted"):
            path.unlink(missing_ok=True)

    # --- test-set evaluations ---

    def record_look(
        self, purpose: str, model_sha256: str, test_sha256: str, details: str = ""
    ) -> None:
        """Record a test-set evaluation before it happens; the arguments are those of `Look`."""
        self.check_there()
        look = Look(
            purpose, self.name, self.identity_sha256, model_sha256, test_sha256, details=details
        )
        ledger.record(ledger_path(self.path), look)

    def looks_to_keep(self, test_sha256: str) -> list[dict[str, str]]:
        """Return the field `looks` of a result: all evaluations on these images known so far."""
        return [look.to_json() for look in self.read_looks(test_sha256).found]


def _said(value: Any) -> str:
    return "not set" if value is None else str(value)


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a note for each entry of a session that differs from the last session's.

    Of processors only where both computed on one: that of a GPU's or TPU's host has no effect.
    """
    lines = []
    for section, values in now.items():
        old = before.get(section)
        if not isinstance(old, dict):
            continue
        changed = [key for key, value in values.items() if key in old and old[key] != value]
        if section == "device":
            on_cpus = all(str(each.get("kind")).startswith("cpu") for each in (old, values))
            changed = [
                key for key in changed if on_cpus or key not in ("processor", "instructions")
            ]
        if "instructions" in changed:
            changed.remove("instructions")
            if "processor" not in changed:
                lines += _changed_instructions(old["instructions"], values["instructions"])
        lines += [
            f"{DEVICE_WORDS.get(key, key) if section == 'device' else key} was {_said(old[key])},"
            f" is now {_said(values[key])}: new results may differ"
            for key in changed
        ]
    return lines


def _changed_instructions(before: Any, now: Any) -> list[str]:
    """Return a note on vector instructions that the same processor has more, or no longer."""
    old, new = set(str(before).split()), set(str(now).split())
    parts = [
        f"{verb} {' '.join(sorted(words))}"
        for verb, words in (("has", new - old), ("lacks", old - new))
        if words
    ]
    return [f"the processor now {' and '.join(parts)}: new results may differ"] if parts else []


def _changed_lanes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a note if `--lanes` has changed so that trials share programs in another way.

    An accelerator shares them as the run has recorded it, unless another number is asked for; on a
    CPU each is alone unless a number is asked for.
    """
    recorded = (before.get("stacking") or {}).get("lanes")
    given, used = [], []
    for search in (before, now):
        if not fits(search, {"settings": dict, "device": {"kind": str}}):
            return []
        given.append(search["settings"].get("lanes"))
        cpu = search["device"]["kind"].startswith("cpu")
        used.append(given[-1] or (None if cpu else recorded))
    if given[0] == given[1] or used[0] == used[1]:
        return []
    return [f"--lanes was {_said(given[0])}, is now {_said(given[1])}: new results may differ"]


@contextmanager
def begin_run(
    path: Path | str,
    search: dict[str, Any],
    *,
    overwrite: bool,
) -> Iterator[WritableRunDirectory]:
    """Lock a run directory in which a search may begin or continue.

    Args:
      path: the run directory; created if missing.
      search: the content for its search.json; `identity` distinguishes it from other searches.
      overwrite: first delete any run in the directory; the ledger beside it stays.

    Raises:
      UsageError: the run in the directory has another identity, or an unknown one; or another
        process, which the message names, has locked it.
    """
    with _locked(Path(local_path(path))) as (folder, held):
        if overwrite:
            _delete_run(folder)
        directory = WritableRunDirectory(folder, search, held)
        _check_identity(directory)
        yield directory


@contextmanager
def continue_run(path: Path | str) -> Iterator[WritableRunDirectory]:
    """Lock an existing run directory; raises like `read_search` and `begin_run`."""
    read_search(Path(local_path(path)))  # first, so that other folders get no lock file
    with _locked(Path(local_path(path))) as (folder, held):
        yield WritableRunDirectory(folder, read_search(folder), held)


@contextmanager
def _locked(path: Path) -> Iterator[tuple[Path, int]]:
    """Lock the folder at `path`, which is created if missing; give it and the open lock file."""
    check_ours(path)
    with disk(path):
        path.mkdir(parents=True, exist_ok=True)
    with lock.hold(path / "lock") as held:
        _complete_ledger(path)
        try:
            yield path, held
        except (JaxmnistError, OSError):
            # Whatever a run lacks that has vanished: that it has is what there is to say.
            if not lock.held(path / "lock", held):
                raise gone(path) from None
            raise


def _complete_ledger(path: Path) -> None:
    """Add evaluations that the run's results keep and that the ledger beside it lacks.

    The ledger was lost, or the run was moved here. Raises like `ledger.complete`: a search can't
    end with its test if the ledger can't be written.
    """
    beside = ledger_path(path)
    results = RunDirectory(path, {}).looks_paths
    if added := ledger.complete(beside, kept_looks(results)):
        what = "evaluation" if added == 1 else "evaluations"
        logger.info(f"note: {beside} lacked {added} test-set {what} of {path}'s results: added")


def _check_identity(directory: WritableRunDirectory) -> None:
    """Raise `UsageError` unless the folder is empty or has files of this run."""
    path, identity = directory.path, directory.search["identity"]
    try:
        before = read_search(path)["identity"] if exists(path) else None
    except DamagedFile as problem:
        if not _are_trials_of(directory):
            raise UsageError(
                f"{problem}, and no trial shows which search it is; --overwrite starts over"
            ) from None
        moved = directory.set_aside(problem.path)
        logger.info(
            f"note: {problem}; moved to {moved}, and written again, as the trials are this run's"
        )
        return
    if before is None:
        left = [name for name in CONTENTS if name not in LASTING and (path / name).exists()]
        if left and not _are_trials_of(directory):
            raise UsageError(f"{path}: has {left[0]} but no search.json; --overwrite starts over")
        if left:
            logger.info(
                "note: search.json was missing, and is written again, as the trials are this run's"
            )
        return
    check_same(path, before, identity)


def check_same(path: Path, before: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raise `UsageError` if a run's identity, from before, is not that of the present search."""
    different = _differences(before, identity)
    if different:
        raise UsageError(
            f"{path}: holds another search: {'; '.join(different)}"
            " (--overwrite deletes it, --project-name starts one beside it)"
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return a line for each difference between two identities; of the space, each range."""
    lines = []
    for key in dict.fromkeys((*now, *before)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new)
        elif old != new:
            lines.append(f"{key} was {old!r}, not {new!r}")
    return lines


def _are_trials_of(directory: RunDirectory) -> bool:
    """Return whether there are trials, and all that can be read belong to this run."""
    found = set()
    for index in directory.trial_indices():
        try:
            record = read_json(directory.trial_folder(index) / "trial.json")
        except DamagedFile:
            continue
        found.add(record.get("search_sha256"))
    return found == {directory.identity_sha256}


def _delete_run(path: Path) -> None:
    with disk(path, "can't be deleted"):
        # search.json goes first: without it, what is left is not a run.
        for name in CONTENTS:
            if name in LASTING:
                continue
            entry = path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)


# --- The wall time of each stage of a search, stored beside its winner ---

TIMES_SHAPE = {"sessions": [{"finished": str, "seconds": {str: float}}]}


def write_times(directory: WritableRunDirectory, seconds: dict[str, float]) -> None:
    """Record the wall time, in seconds, of each stage of a search that has just ended."""
    session = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": {stage: round(value, 3) for stage, value in seconds.items()},
    }
    before = directory.mended(lambda: _read(directory)) or []
    directory.write_json(directory.times_path, {"sessions": [*before, session]})


def read_times(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the records of `write_times`, oldest first; none if they can't be read."""
    try:
        return _read(directory)
    except UsageError:
        return []


def _read(directory: RunDirectory) -> list[dict[str, Any]]:
    sessions: list[dict[str, Any]] = read_json(directory.times_path, TIMES_SHAPE)["sessions"]
    return sessions
