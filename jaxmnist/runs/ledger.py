"""The ledger of evaluations on test images (in the code: looks), shared by all runs of a folder.

A look is a line that is appended, under a lock and flushed to disk, before the look happens. Looks
with the same identifier show nothing new and count once. A line has a number and a SHA-256: one
that can't be read counts as a look, and so does a number that is missing. A last line that was cut
short counts until the next one is written: its look did not happen. Results keep the looks
that were known when they were made, so that a lost ledger is completed from them, and a run that is
moved to another folder brings its looks along.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from jaxmnist.errors import SettingError, printable
from jaxmnist.files import (
    DamagedFile,
    MissingFile,
    as_json,
    content_sha256,
    disk,
    flush_folder,
    from_json,
    read_bytes,
    read_record,
)
from jaxmnist.runs import lock

LEDGER = "ledger.jsonl"
LOCK = "ledger.lock"
BEGINNING = b'{"number": '  # of each line
MOST_LINES = 10**6  # a line with a larger number is damaged
WHY = "can't be written, and each evaluation on test images is recorded beside its run"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Look:
    """An evaluation of a model on test images.

    purpose: what it is for: 'winner', 'evaluation', 'svm', ….
    run: the run's folder with the folder that holds it: 'runs/mnist'.
    identity_sha256: the SHA-256 of the run's identity.
    model_sha256: the SHA-256 of the model's weights.
    test_sha256: the fingerprint of the test images and labels: `Dataset.test_sha256`.
    details: what else makes another evaluation of it, such as the library that fits an SVM and the
      data that it is fitted on.
    time: when it was recorded, UTC.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("identifier",)

    purpose: str
    run: str
    identity_sha256: str
    model_sha256: str
    test_sha256: str
    details: str = ""
    time: str = field(default_factory=_now)

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, printable(getattr(self, item.name)))

    @property
    def identifier(self) -> str:
        """A SHA-256 that looks have in common if the later one shows nothing new."""
        parts = (self.identity_sha256, self.model_sha256, self.test_sha256)
        return content_sha256([*parts, self.purpose, self.details])


@dataclass(frozen=True)
class Kept:
    """What results of every kind have: the evaluations that were known when they were made."""

    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Looks:
    """Looks, oldest first, each identifier once.

    damaged: number of lines of the ledger that can't be read or are missing: each may be a look.
    """

    found: tuple[Look, ...] = ()
    damaged: int = 0

    @classmethod
    def of(cls, looks: Iterable[Look], damaged: int = 0) -> Looks:
        """The first look of each identifier, by time."""
        first: dict[str, Look] = {}
        for look in sorted(looks, key=lambda look: look.time):
            first.setdefault(look.identifier, look)
        return cls(tuple(first.values()), damaged)

    @property
    def count(self) -> int:
        """The number of evaluations."""
        return len(self.found) + self.damaged


def record(path: Path, look: Look) -> None:
    """Append a look to the ledger at `path`, before it happens.

    Raises:
      UsageError: the folder can't be written, another process holds its lock for long, or the
        file is another program's.
      EnvironmentFailure: the file system is full or fails.
    """
    with _locked(path):
        _append(path, [look])


def complete(path: Path, kept: Iterable[Look]) -> int:
    """Append those of the looks `kept` that the ledger lacks; return their number.

    Raises like `record`, also if nothing is missing: the ledger must be writable.
    """
    with _locked(path):
        known = {look.identifier for look in read_lines(path)[0]}
        missing = [look for look in Looks.of(kept).found if look.identifier not in known]
        if missing or os.path.lexists(path):
            _append(path, missing)
    return len(missing)


def read_lines(path: Path) -> tuple[list[Look], int]:
    """Return the looks of all lines, in their order, and the number of damaged and missing lines.

    Raises like `files.read_bytes`, except if there is no ledger: there were no looks; and
    `UsageError` if the file is another program's.
    """
    return _parse_all(_content(path))


def _content(path: Path) -> bytes:
    """The content of the ledger; nothing if there is none. Raises like `read_lines`."""
    try:
        content = read_bytes(path)
    except MissingFile:
        return b""
    # Of a first line that was cut short anything may be left, and zeros after a power failure.
    begun = BEGINNING.startswith(content.rstrip(b"\0\r\n"))
    if not begun and not any(map(_is_ours, content.splitlines())):
        raise SettingError(
            "{path}: is not a ledger of jaxmnist, which records each evaluation on test images in a"
            " file of this name: move it away, or choose another folder with {directory}",
            path=path,
        )
    return content


def _is_ours(line: bytes) -> bool:
    """Whether this program wrote a line, which may be damaged."""
    return line.startswith(BEGINNING) or _parse(line)[1] is not None


def _parse_all(content: bytes) -> tuple[list[Look], int]:
    """The looks of all lines, and the number of damaged and missing lines."""
    looks: list[Look] = []
    damaged = 0
    for line in content.splitlines():
        if line.strip():
            number, look = _parse(line)
            damaged += max(0, number - 1 - len(looks) - damaged)
            if look is None:
                damaged += 1
            else:
                looks.append(look)
    return looks, damaged


def ledger_path(path: Path) -> Path:
    """Return the path of the ledger: in the folder that holds the run directory `path`."""
    whole = path if path.name not in ("", "..") else Path(os.path.abspath(path))
    return whole.parent / LEDGER


def kept_looks(results: Iterable[Path]) -> list[Look]:
    """Return the test-set evaluations that results keep.

    Damaged and missing results are skipped; other errors are raised as by `files.read_bytes`.

    Args:
      results: the paths of JSON files; see `Store.looks_paths`.
    """
    found: list[Look] = []
    for file in results:
        try:
            found += read_record(file, Kept).looks
        except DamagedFile:
            continue
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with lock.briefly(path.with_name(LOCK), WHY):
        yield


def _append(path: Path, looks: list[Look]) -> None:
    """Append a line for each look; the caller holds the lock."""
    content = _content(path)
    kept = _without_cut(content)
    before, damaged = _parse_all(kept)
    lines = b"\n" if kept and not kept.endswith(b"\n") else b""
    for number, look in enumerate(looks, len(before) + damaged + 1):
        line = {"number": number, **as_json(look)}
        lines += json.dumps({**line, "sha256": content_sha256(line)}).encode() + b"\n"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with disk(path, WHY), open(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        if len(kept) < len(content):
            os.ftruncate(file.fileno(), len(kept))
        while lines:
            lines = lines[file.write(lines) :]
        os.fsync(file.fileno())
    if not kept:  # the file may be new
        flush_folder(path.parent)


def _without_cut(content: bytes) -> bytes:
    """The content without a last line that was cut short, before its look happened."""
    end = content.rfind(b"\n") + 1
    _, whole = _parse(content[end:])
    return content if whole else content[:end]


def _parse(line: bytes) -> tuple[int, Look | None]:
    """The number and the look of a line; (0, None) if it is damaged."""
    try:
        content = json.loads(line)
        genuine = content.pop("sha256", None) == content_sha256(content)
        number, look = from_json(int, content["number"]), from_json(Look, content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0, None
    return (number, look) if genuine and number in range(1, MOST_LINES) else (0, None)
