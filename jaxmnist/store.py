"""The run directory: atomic files, lock, resume, ledger.

Every JSON file carries the SHA-256 of its content. Files are written beside their place, flushed
to disk and renamed, so that a reader finds the old or the new one, whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from jaxmnist.config import Hyperparameters
from jaxmnist.errors import SurroundingsError, UsageError, disk_error

PROGRAM = "jaxmnist"
FORMAT = 1
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
STATUSES = ("running", "completed", "failed")
# What a run directory may hold; `--overwrite` deletes these and nothing else.
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


class DamagedFile(UsageError):
    """A file of a run that is not as it was written."""


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Say a failure to write in one line: a person's mistake, or a disk that is full or gone."""
    try:
        yield
    except OSError as error:
        raise disk_error(f"{path}: can't be written", error) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole, or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with _disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _content_hash(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object with its SHA-256 under `sha256`."""
    content = {**content, "sha256": _content_hash(content)}
    write_bytes(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read what `write_json` wrote, without `sha256`; `DamagedFile` if it isn't that."""
    try:
        content = json.loads(path.read_bytes())
        stated = content.pop("sha256", None)
        if _content_hash(content) == stated:
            return content
        problem = "its content does not match its SHA-256"
    except OSError as error:
        problem = f"can't be read: {error.strerror}"
    except (ValueError, AttributeError, TypeError, RecursionError):
        problem = "is no JSON object"
    raise DamagedFile(f"{path}: {problem}")


def array_bytes(array: np.ndarray) -> bytes:
    """An array as a `.npy` file, which can't hold code."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


@dataclass(frozen=True)
class Trial:
    """The record of a trial.

    history: a list for each of loss, accuracy, val_loss and val_accuracy; NaN where not finite.
    seconds: wall time of the trial.
    weights_sha256: of the safetensors file, wherever it is kept.
    """

    index: int
    hyperparameters: Hyperparameters
    status: str
    history: dict[str, list[float]]
    parameters: int
    seconds: float = 0.0
    attempts: int = 1
    error: str | None = None
    weights_sha256: str | None = None

    @property
    def score(self) -> float | None:
        """The validation accuracy of the last epoch; None unless the trial completed."""
        return self.history["val_accuracy"][-1] if self.status == "completed" else None

    def to_json(self) -> dict[str, Any]:
        """The object in trial.json; numbers that are not finite are null."""
        history = {key: [_finite(x) for x in values] for key, values in self.history.items()}
        return {
            "index": self.index,
            "hyperparameters": self.hyperparameters.to_json(),
            "status": self.status,
            "history": history,
            "score": self.score,
            "seconds": self.seconds,
            "parameters": self.parameters,
            "attempts": self.attempts,
            "error": self.error,
            "weights_sha256": self.weights_sha256,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Trial:
        """The trial of `to_json`; ValueError, KeyError or TypeError if it isn't one."""
        history = {
            key: [math.nan if x is None else float(x) for x in content["history"][key]]
            for key in METRICS
        }
        if content["status"] not in STATUSES or len({len(x) for x in history.values()}) != 1:
            raise ValueError("not a trial")
        if content["status"] == "completed" and not history["val_accuracy"]:
            raise ValueError("a completed trial without epochs")
        return cls(
            int(content["index"]),
            Hyperparameters(**content["hyperparameters"]),
            content["status"],
            history,
            int(content["parameters"]),
            float(content["seconds"]),
            int(content["attempts"]),
            content["error"],
            content["weights_sha256"],
        )


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def read_tensors(path: Path, key: str) -> tuple[dict[str, np.ndarray], Any, str]:
    """The arrays of a safetensors file, the JSON in its metadata under `key`, and its SHA-256.

    Raises `DamagedFile` if it isn't such a file.
    """
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = json.loads(header["__metadata__"][key])
        return load_tensors(content), metadata, hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise DamagedFile(f"{path}: can't be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, SafetensorError, RecursionError):
        raise DamagedFile(f"{path}: is no safetensors file of jaxmnist") from None


class RunDirectory:
    """A run's files. Reading needs nothing more; writing is for who holds `locked`."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def best(self) -> Path:
        """The folder of the winner."""
        return self.path / "best"

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return os.path.lexists(self.path / "search.json")

    def read_search(self) -> dict[str, Any]:
        """What search.json says; `UsageError` if this isn't a run of this program."""
        self.check_ours()
        path = self.path / "search.json"
        if not self.exists():
            raise UsageError(f"{self.path}: is not a run of jaxmnist: it has no search.json")
        search = read_json(path)
        if search.get("format") != FORMAT:
            raise UsageError(
                f"{path}: is of format {search.get('format')!r}; this version reads {FORMAT}"
            )
        return search

    def check_ours(self) -> None:
        """Raise `UsageError` if the folder is there and is another program's."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise disk_error(f"{self.path}: can't be used", error) from None
        strangers = [name for name in names if name.strip(".").removesuffix(".tmp") not in CONTENTS]
        if "search.json" not in names:
            if strangers:
                raise UsageError(
                    f"{self.path}: is not a run of jaxmnist: it has {min(strangers)!r}"
                )
            return
        try:
            search = json.loads((self.path / "search.json").read_bytes())
            program = search.get("program") if isinstance(search, dict) else None
        except (OSError, ValueError, RecursionError):
            # Ours, damaged, may be replaced; what stands beside strangers is not touched.
            program = None if strangers else PROGRAM
        if program != PROGRAM:
            raise UsageError(f"{self.path}: is a run of another program: see its search.json")

    @contextmanager
    def locked(self) -> Iterator[RunDirectory]:
        """Hold the run for this process alone; `UsageError` names whoever holds it already."""
        self.check_ours()
        with _disk(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / "lock", "a+")  # noqa: SIM115
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UsageError(f"{self.path}: is in use by {holder}") from None
            except OSError as error:
                raise SurroundingsError(f"{self.path}: can't be locked: {error.strerror}") from None
            with _disk(self.path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            # The system drops the lock when the process ends, however it ends.
            yield self

    def prepare(self, identity: dict[str, Any], *, overwrite: bool) -> None:
        """Make sure that a search of this identity may begin or go on here; writes nothing.

        Args:
          identity: what makes a run what it is.
          overwrite: delete the run that is here first, whatever it is.

        Raises:
          UsageError: the run that is here has another identity.
        """
        if overwrite:
            self._clear()
        if not self.exists():
            left = [name for name in CONTENTS if name != "lock" and (self.path / name).exists()]
            if left:
                raise UsageError(
                    f"{self.path}: has {left[0]} but no search.json; --overwrite starts anew"
                )
            return
        before = self.read_search()["identity"]
        different = [
            f"{key} was {before.get(key)!r}, not {value!r}"
            for key, value in identity.items()
            if before.get(key) != value
        ]
        if different:
            raise UsageError(
                f"{self.path}: is another search: {'; '.join(different)}"
                " (--overwrite deletes it, --project-name starts one beside it)"
            )

    def begin(self, search: dict[str, Any]) -> list[str]:
        """Write search.json; `sessions` keeps the versions and devices that had a part in the run.

        Returns lines of what a person should know: other versions or another device than before.
        """
        session = {key: search[key] for key in ("versions", "device")}
        sessions = self.read_search()["sessions"] if self.exists() else [session]
        changes = [
            f"{key} was {sessions[-1][section].get(key)}, is {value}: what follows may differ"
            for section, values in session.items()
            for key, value in values.items()
            if sessions[-1][section].get(key) != value
        ]
        sessions = [*sessions, session] if changes else sessions
        head = {"program": PROGRAM, "format": FORMAT}
        write_json(self.path / "search.json", {**head, **search, "sessions": sessions})
        return changes

    def _clear(self) -> None:
        with _disk(self.path):
            # search.json goes first: without it what is left is no run.
            for name in CONTENTS:
                if name == "lock":
                    continue
                path = self.path / name
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    # --- trials ---

    def trial_folder(self, index: int) -> Path:
        """The folder of a trial."""
        return self.path / "trials" / f"{index:04d}"

    def write_trial(self, trial: Trial) -> None:
        """Keep the record of a trial."""
        write_json(self.trial_folder(trial.index) / "trial.json", trial.to_json())

    def read_trial(self, index: int) -> Trial | None:
        """The record of a trial; None if there is none; `DamagedFile` if it can't be believed."""
        path = self.trial_folder(index) / "trial.json"
        if not path.exists():
            return None
        content = read_json(path)
        try:
            trial = Trial.from_json(content)
        except (ValueError, KeyError, TypeError):
            raise DamagedFile(f"{path}: is no record of a trial") from None
        if trial.index != index:
            raise DamagedFile(f"{path}: is the record of trial {trial.index}")
        return trial

    def trial_indices(self) -> list[int]:
        """The trials that have a folder, ascending; other folders are none of ours."""
        folder = self.path / "trials"
        names = os.listdir(folder) if folder.is_dir() else []
        indices = [int(name) for name in names if name.isascii() and name.isdecimal()]
        return sorted(i for i in indices if self.trial_folder(i).name in names)

    def set_aside(self, path: Path) -> Path:
        """Move a file that can't be believed to damaged/; returns where it is now."""
        target = self.path / "damaged" / f"{time.time_ns()}-{path.parent.name}-{path.name}"
        with _disk(target):
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        return target

    def weights_path(self, index: int) -> Path:
        """Where a trial's weights are, while it is among the best."""
        return self.trial_folder(index) / "model.safetensors"

    def keep_weights(self, kept: set[int]) -> None:
        """Delete the weights of trials that are not in `kept`."""
        for index in self.trial_indices():
            if index not in kept:
                with _disk(self.weights_path(index)):
                    self.weights_path(index).unlink(missing_ok=True)

    # --- looks at the test set ---

    def write_look(self, purpose: str, model_sha256: str, data: str) -> None:
        """Write down, before it happens, that a model is evaluated on test images.

        Args:
          purpose: what looks: 'winner', 'evaluation', 'svm', ….
          model_sha256: of the model's weights.
          data: the fingerprint of the dataset.
        """
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "purpose": purpose,
            "model_sha256": model_sha256,
            "data": data,
        }
        path = self.path / "ledger.jsonl"
        with _disk(path), open(path, "a+b") as file:
            # A line that was cut short stays a line of its own.
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def read_looks(self) -> list[dict[str, Any]]:
        """Every look at a test set, oldest first; one that can't be read is a look all the same."""
        path = self.path / "ledger.jsonl"
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DamagedFile(f"{path}: can't be read: {error.strerror}") from None
        return [_parse_look(line) for line in lines if line.strip()]


def _parse_look(line: bytes) -> dict[str, Any]:
    try:
        look = json.loads(line)
    except (ValueError, RecursionError):
        look = None
    return look if isinstance(look, dict) else {"purpose": "unreadable"}
