"""Writing a run: one process at a time, which locks it with `begin_run` or `continue_run`."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmnist.errors import JaxmnistError, UsageError, local_path, printable
from jaxmnist.runs import ledger, lock
from jaxmnist.runs.directory import (
    CONTENTS,
    FORMAT,
    LASTING,
    PROGRAM,
    RunDirectory,
    check_ours,
    exists,
    gone,
    read_search,
    threads_of,
)
from jaxmnist.runs.keys import Rerun, TrialKey
from jaxmnist.runs.ledger import Look, kept_looks, ledger_path
from jaxmnist.runs.trial import Trial
from jaxmnist.settings import SVM_BACKENDS
from jaxmnist.whole_files import (
    DamagedFile,
    MissingFile,
    disk,
    fits,
    read_json,
    sealed_bytes,
    unfinished,
    write_bytes,
    write_json,
)

logger = logging.getLogger("jaxmnist")
# What search.json has of each session that differed from the one before.
SESSION = ("versions", "device", "environment")
# What people call the entries of its section `device`.
DEVICE_WORDS = {
    "kind": "the device",
    "devices": "the number of devices",
    "machine": "the processor's architecture",
    "processor": "the processor",
}
T = TypeVar("T")


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
