"""The store of a run: it reads the files of a run, and writes them under the run's lock.

A process that writes locks the run with `begin_run` or `continue_run`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmnist.errors import (
    EnvironmentFailure,
    JaxmnistError,
    SettingError,
    UsageError,
    disk_error,
    local_path,
    printable,
)
from jaxmnist.files import (
    LARGEST_JSON,
    DamagedFile,
    MissingFile,
    as_json,
    content_sha256,
    disk,
    from_json,
    json_bytes,
    read_array,
    read_bytes,
    read_json,
    read_record,
    read_sealed,
    record_of,
    sealed_bytes,
    unfinished,
    write_bytes,
)
from jaxmnist.runs import ledger, lock
from jaxmnist.runs.ledger import Look, Looks, kept_looks, ledger_path, read_lines
from jaxmnist.runs.records import (
    FORMAT,
    PROGRAM,
    Environment,
    File,
    Search,
    Session,
    Sharing,
    Stored,
    Times,
)
from jaxmnist.runs.trial import REFIT, Key, Trial
from jaxmnist.settings import SVM_BACKENDS

logger = logging.getLogger("jaxmnist")
R = TypeVar("R", bound=Stored)
T = TypeVar("T")
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


def exists(path: Path) -> bool:
    """Return whether a run has been started in a folder."""
    return os.path.lexists(path / File.SEARCH)


def gone(path: Path) -> EnvironmentFailure:
    """Return the error to raise where a run directory was expected."""
    return EnvironmentFailure(f"{path}: the run was moved or deleted, or its disk is gone")


def read_search(path: Path) -> Search:
    """Read search.json of a run directory; raise `UsageError` if it isn't one of this program."""
    check_ours(path)
    file = path / File.SEARCH
    if not exists(path):
        raise UsageError(f"{path}: is not a run of jaxmnist: it has no search.json")
    content = read_json(file)
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise UsageError(f"{file}: has format {found!r}; this version reads {FORMAT}")
    return record_of(file, content, Search)


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
        content = read_bytes(path / File.SEARCH, LARGEST_JSON)
    except DamagedFile:
        content = b""
    try:
        search = json.loads(content)
        program = search.get("program") if isinstance(search, dict) else None
    except (ValueError, RecursionError):
        program = damaged
    if program != PROGRAM:
        raise UsageError(f"{path}: is a run of another program: see its search.json")


class Store:
    """A run's files. Only the process that holds the run's lock may write.

    Args:
      path: the run directory.
      search: the content of its search.json, or what that will be.
      lock: the open lock file; None for a store that is only read.
    """

    def __init__(self, path: Path | str, search: Search, lock: int | None = None) -> None:
        self.path = Path(local_path(path))
        self.search = search
        self.lock = lock

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open an existing run for reading; raises like `read_search`."""
        return cls(path, read_search(Path(local_path(path))))

    def for_reading(self) -> Store:
        """The same run, to be read after the lock was released."""
        return Store(self.path, self.search)

    @property
    def identity_sha256(self) -> str:
        """The SHA-256 of the run's identity, by which trials and checkpoints refer to the run."""
        return content_sha256(self.search.identity)

    def __fspath__(self) -> str:
        return str(self.path)

    def check_there(self) -> None:
        """Raise `EnvironmentFailure` if the run is no longer at its path."""
        if self.lock is None:
            there = exists(self.path)
        else:  # also if another folder is there now
            there = lock.held(self.path / File.LOCK, self.lock)
        if not there:
            raise gone(self.path)

    def _check_writable(self) -> None:
        """Raise `UsageError` if the run was opened only for reading."""
        if self.lock is None:
            raise UsageError(f"{self.path}: was opened only for reading")

    # --- files ---

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

    def file(self, file: File, at: Key | Sequence[str] = ()) -> Path:
        """The path of a file.

        at: the trial or rerun, or the place of the SVM, whose file it is.
        """
        *folders, name = file.split("/")
        if isinstance(at, Key):
            return self.trial_folder(at) / name
        place = folders.index("{}") if at else len(folders)
        return self.folder(*folders[:place], *at, *folders[place + 1 :]) / name

    def read(self, kind: type[R], at: Key | Sequence[str] = ()) -> R:
        """Read the record of a JSON file; raises like `read_record`."""
        return read_record(self.file(kind.FILE, at), kind)

    def write(self, record: Any, at: Key | Sequence[str] = ()) -> None:
        """Write a record as its JSON file."""
        self.write_bytes(record.FILE, json_bytes(as_json(record)), at)

    def write_bytes(self, file: File, content: bytes, at: Key | Sequence[str] = ()) -> None:
        """Write a file."""
        path = self.file(file, at)
        self._check_writable()
        self.check_there()
        with disk(path):
            for folder in reversed(path.relative_to(self.path).parents[:-1]):
                (self.path / folder).mkdir(exist_ok=True)
        write_bytes(path, content)

    def delete(self, file: File, at: Key | Sequence[str] = ()) -> None:
        """Delete a file or a link, if there is one; a folder in its place is set aside.

        Also an unfinished one, which a killed process left.
        """
        self._check_writable()
        whole = self.file(file, at)
        for path in (whole, unfinished(whole)):
            if os.path.isdir(path) and not os.path.islink(path):
                logger.info(f"note: {path}: is not a file; moved to {self.set_aside(path)}")
            with disk(path, "can't be deleted"):
                path.unlink(missing_ok=True)

    @property
    def tensorboard_folder(self) -> Path:
        """TensorBoard's log directory."""
        return self.folder("tensorboard")

    # --- search.json ---

    def write_search(self) -> list[str]:
        """Write search.json; its `sessions` list the versions and devices that the run has used.

        Returns notes for the user: what results depend on and has changed since the last session.
        """
        search, session = self.search, self.search.session
        before = (
            read_search(self.path) if exists(self.path) else replace(search, sessions=(session,))
        )
        changes = _changes(before.sessions[-1], session) + _changed_lanes(before, search)
        known = before.sessions[-1] == session
        threads = before.threads or search.threads
        if threads != search.threads:
            changes.append(
                f"XLA's thread pool has {search.threads} threads, but had {threads} when this run"
                " began: new results may differ in the last digits (JAX had started already)"
            )
        sessions = before.sessions if known else (*before.sessions, session)
        self._keep(replace(search, stacking=before.stacking, threads=threads, sessions=sessions))
        return [printable(line) for line in changes]

    def write_stacking(self, stacking: Sharing) -> None:
        """Record in search.json how the trials of this run share programs."""
        self._keep(replace(self.search, stacking=stacking))

    def _keep(self, search: Search) -> None:
        self.write(search)
        self.search = search

    # --- damage ---

    def set_aside(self, path: Path) -> Path:
        """Move a damaged file to damaged/; returns its new path."""
        self._check_writable()
        self.check_there()
        target = self.folder("damaged") / f"{time.time_ns()}-{path.parent.name}-{path.name}"
        with disk(target):
            target.parent.mkdir(exist_ok=True)
            os.replace(path, target)
        return target

    def mended(self, read: Callable[[], T | None]) -> T | None:
        """Return `read()`; None if a file is missing. Damaged files are set aside with a note.

        read: reads files of the run; it is called again after each damaged file.
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

    def trial_folder(self, key: Key) -> Path:
        """Return the folder of a trial, or of a rerun, which lies in its trial's."""
        parts = ["trials", f"{key.index:04d}"]
        if key.rerun is not None:
            parts += ["refit"] if key.refit else ["reruns", str(key.rerun)]
        return self.folder(*parts)

    def trial_keys(self) -> list[Key]:
        """Return the trials that have a folder, in order; ignores folders not named like one."""
        names = _listed(self.folder("trials"))
        return sorted(Key(int(name)) for name in names if _is_index(name))

    def reruns(self) -> list[Key]:
        """Return the reruns and refits that have a folder, in order."""
        found = []
        for trial in self.trial_keys():
            folder = self.trial_folder(trial)
            found += [Key(trial.index, REFIT)] if os.path.lexists(folder / "refit") else []
            names = _listed(self.folder("trials", folder.name, "reruns"))
            found += [Key(trial.index, int(name)) for name in names if _is_number(name)]
        return sorted(found)

    def read_trial(self, key: Key) -> Trial | None:
        """Read the record of a trial or rerun; None if there is none.

        Raises `DamagedFile` if the record, or the validation.npy of a completed trial, is damaged;
        `MissingFile` if it has no validation.npy.
        """
        path = self.file(File.TRIAL, key)
        try:
            content = read_json(path)
        except MissingFile:
            return None
        try:
            trial = from_json(Trial, content)
        except ValueError:
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
            path = self.file(File.TRIAL, trial.key)
            raise DamagedFile(path, "does not refer to results on validation images")
        path = self.file(File.VALIDATION, trial.key)
        bits = read_array(path, trial.validation_sha256)
        if bits.dtype != np.uint8 or bits.ndim != 2 or len(bits) != len(trial.history):
            raise DamagedFile(path, "does not have the bits of each epoch")
        return tuple(row.tobytes() for row in bits)

    def write_trial(self, trial: Trial) -> None:
        """Write the record of a trial."""
        content = {**as_json(trial), "search_sha256": self.identity_sha256}
        self.write_bytes(File.TRIAL, json_bytes(content), trial.key)

    def read_checkpoint(self, key: Key) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Read a trial's checkpoint; raises like `read_json`, also if it is of another search."""
        path = self.file(File.CHECKPOINT, key)
        arrays, content = read_sealed(path)
        if content.get("search_sha256") != self.identity_sha256:
            raise DamagedFile(path, "is the checkpoint of another search's trial")
        return arrays, content

    def write_checkpoint(
        self, key: Key, arrays: dict[str, np.ndarray], content: dict[str, Any]
    ) -> None:
        """Write a running trial's checkpoint."""
        content = {**content, "search_sha256": self.identity_sha256}
        self.write_bytes(File.CHECKPOINT, sealed_bytes(arrays, content), key)

    def read_outputs(self, key: Key) -> dict[str, np.ndarray]:
        """Read the outputs of a network of one's own by which it can be told from others.

        Returns `images`, and the logits `initial`, and `trained` of a completed trial; see
        `results.matching`. Raises like `read_json`.
        """
        path = self.file(File.OUTPUTS, key)
        arrays, _ = read_sealed(path)
        if not {"images", "initial"} <= arrays.keys():
            raise DamagedFile(path, "lacks images and their outputs")
        return arrays

    # --- the SVMs ---

    def svm_places(self, backends: bool = False) -> list[tuple[str, ...]]:
        """Return the places of all SVMs with a report; with `backends` those of further ones last.

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

    # --- test-set evaluations ---

    @property
    def looks_paths(self) -> list[Path]:
        """The paths of the results that keep looks: of the winner, the ensemble and the SVMs.

        Files may be missing; those behind links are left out.
        """
        found = []
        with suppress(UsageError):  # a link
            found.append(self.file(File.TEST))
            found.append(self.file(File.ENSEMBLE))
        with suppress(UsageError):
            found += [self.file(File.SVM, place) for place in self.svm_places(backends=True)]
        return found

    @property
    def name(self) -> str:
        """The run's folder with the folder that holds it, as the ledger names it: 'runs/mnist'."""
        path = Path(os.path.abspath(self.path))
        return printable(f"{path.parent.name}/{path.name}")

    @property
    def test_sha256(self) -> str:
        """The fingerprint of the test images and labels."""
        return self.search.data.test_sha256

    def read_looks(self, test_sha256: str) -> Looks:
        """Return all evaluations on test images, by every run of the folder that holds this run.

        They are those of the ledger, and those that this run's results keep. A damaged line of the
        ledger may be about these images, and is counted. Raises like `files.read_bytes`.

        Args:
          test_sha256: the fingerprint of the test images; see `Dataset.test_sha256`.
        """
        recorded, damaged = read_lines(ledger_path(self.path))
        looks = [*recorded, *kept_looks(self.looks_paths)]
        return Looks.of((look for look in looks if look.test_sha256 == test_sha256), damaged)

    def record_look(
        self, purpose: str, model_sha256: str, test_sha256: str, details: str = ""
    ) -> None:
        """Record a test-set evaluation before it happens; the arguments are those of `Look`."""
        self._check_writable()
        self.check_there()
        look = Look(
            purpose, self.name, self.identity_sha256, model_sha256, test_sha256, details=details
        )
        ledger.record(ledger_path(self.path), look)

    def looks_to_keep(self, test_sha256: str) -> tuple[Look, ...]:
        """Return the field `looks` of a result: all evaluations on these images known so far."""
        return self.read_looks(test_sha256).found


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


# What people call the entries of its section `device`.
DEVICE_WORDS = {
    "kind": "the device",
    "devices": "the number of devices",
    "machine": "the processor's architecture",
    "processor": "the processor",
}


def _value(value: Any) -> str:
    return "not set" if value is None else str(value)


def _changes(before: Environment, now: Environment) -> list[str]:
    """Return a note for each entry of a session that differs from the last session's.

    Of processors only where both computed on one: that of a GPU's or TPU's host has no effect.
    """
    lines = []
    for section, values in vars(now).items():
        old = getattr(before, section)
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
            f"{DEVICE_WORDS.get(key, key) if section == 'device' else key} was {_value(old[key])},"
            f" is now {_value(values[key])}: new results may differ"
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


def _changed_lanes(before: Search, now: Search) -> list[str]:
    """Return a note if `--lanes` has changed so that trials share programs in another way.

    An accelerator shares them as the run has recorded it, unless another number is asked for; on a
    CPU each is alone unless a number is asked for.
    """
    recorded = before.stacking.lanes if before.stacking else None
    given = [search.settings.get("lanes") for search in (before, now)]
    used = [
        lanes or (None if search.device["kind"].startswith("cpu") else recorded)
        for lanes, search in zip(given, (before, now), strict=True)
    ]
    if given[0] == given[1] or used[0] == used[1]:
        return []
    return [f"--lanes was {_value(given[0])}, is now {_value(given[1])}: new results may differ"]


# --- Locking a run ---


@contextmanager
def begin_run(
    path: Path | str,
    search: Search,
    *,
    overwrite: bool,
) -> Iterator[Store]:
    """Lock a run directory in which a search may begin or continue.

    Args:
      path: the run directory; created if missing.
      search: the content for its search.json; `identity` distinguishes it from other searches.
      overwrite: first delete any run in the directory; the ledger beside it stays.

    Raises:
      UsageError: the run in the directory has another identity, or an unknown one; or another
        process, which the message names, has locked it.
    """
    with _locked(path, search) as store:
        if overwrite:
            _delete_run(store.path)
        _check_identity(store)
        yield store


@contextmanager
def continue_run(path: Path | str) -> Iterator[Store]:
    """Lock an existing run directory; raises like `read_search` and `begin_run`."""
    # First, so that other folders get no lock file.
    search = read_search(Path(local_path(path)))
    with _locked(path, search) as store:
        yield Store(store.path, read_search(store.path), store.lock)


@contextmanager
def _locked(path: Path | str, search: Search) -> Iterator[Store]:
    """Lock a run directory, which is created if missing, and complete the ledger beside it."""
    path = Path(local_path(path))
    check_ours(path)
    with disk(path):
        path.mkdir(parents=True, exist_ok=True)
    with lock.hold(path / File.LOCK) as held:
        store = Store(path, search, held)
        _complete_ledger(store)
        try:
            yield store
        except (JaxmnistError, OSError):
            # If the run has vanished, that is the cause of any other error.
            if not lock.held(path / File.LOCK, held):
                raise gone(path) from None
            raise


def _complete_ledger(store: Store) -> None:
    """Add evaluations that the run's results keep and that the ledger beside it lacks.

    The ledger was lost, or the run was moved here. Raises like `ledger.complete`: a search can't
    end with its test if the ledger can't be written.
    """
    beside = ledger_path(store.path)
    if added := ledger.complete(beside, kept_looks(store.looks_paths)):
        what = "evaluation" if added == 1 else "evaluations"
        logger.info(
            f"note: {beside} lacked {added} test-set {what} of {store.path}'s results: added"
        )


def _check_identity(store: Store) -> None:
    """Raise `UsageError` unless the folder is empty or has files of this run."""
    path, identity = store.path, store.search.identity
    try:
        before = read_search(path).identity if exists(path) else None
    except DamagedFile as problem:
        if not _are_trials_of(store):
            raise SettingError(
                "{problem}, and no trial shows which search it is; {overwrite} starts over",
                problem=problem,
            ) from None
        moved = store.set_aside(problem.path)
        logger.info(
            f"note: {problem}; moved to {moved}, and written again, as the trials are this run's"
        )
        return
    if before is None:
        left = [name for name in CONTENTS if name not in LASTING and (path / name).exists()]
        if left and not _are_trials_of(store):
            raise SettingError(
                "{path}: has {left} but no search.json; {overwrite} starts over",
                path=path,
                left=left[0],
            )
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
        raise SettingError(
            "{path}: holds another search: {different} ({overwrite} deletes it, {project_name}"
            " starts one beside it)",
            path=path,
            different="; ".join(different),
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


def _are_trials_of(store: Store) -> bool:
    """Return whether there are trials, and all that can be read belong to this run."""
    found = set()
    for key in store.trial_keys():
        try:
            record = read_json(store.file(File.TRIAL, key))
        except DamagedFile:
            continue
        found.add(record.get("search_sha256"))
    return found == {store.identity_sha256}


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


# --- The wall time of each stage ---


def write_times(store: Store, seconds: dict[str, float]) -> None:
    """Record the wall time, in seconds, of each stage of a search that has just ended."""
    session = Session(
        time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        {stage: round(value, 3) for stage, value in seconds.items()},
    )
    before = store.mended(lambda: store.read(Times)) or Times(())
    store.write(Times((*before.sessions, session)))


def read_times(store: Store) -> tuple[Session, ...]:
    """Return the records of `write_times`, oldest first; none if they can't be read."""
    try:
        return store.read(Times).sessions
    except UsageError:
        return ()
