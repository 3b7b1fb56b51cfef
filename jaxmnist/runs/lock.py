"""A lock that lets one process at a time use a folder, also on a network file system.

The system's own lock (flock) decides: it is released when its process ends, however that happens.
NFS since Linux 2.6.12, SMB, Lustre and Ceph pass it on to their servers, unless they were mounted
with local locks; then two machines may both get the lock. For that case the lock file also names
its holder, and its modification time is a heartbeat. A process that takes a lock which another
machine never released waits for three heartbeats and gives way if one comes.

Not prevented: two machines that start at the same moment where locks are local; a holder that is
suspended, or cut off from its server, for longer than three heartbeats; two machines with the same
name. A file system without locks is refused.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jaxmnist.errors import EnvironmentFailure, UsageError, disk_error
from jaxmnist.files import disk

logger = logging.getLogger("jaxmnist")
HEARTBEAT = 5.0  # seconds
PATIENCE = 30.0  # seconds that `briefly` waits for another process
LONGEST_NAME = 200  # bytes that are read from the lock file


@contextmanager
def hold(path: Path) -> Iterator[int]:
    """Hold the lock at `path` during a context, whose value is the open file.

    Args:
      path: the lock file, in a folder that exists. The file stays when the lock is released.

    Raises:
      UsageError: another process, which the message names, holds the lock; or `path` is not a
        file.
      EnvironmentFailure: the file system is full, or doesn't support locks.
    """
    file = _take(path)
    try:
        _give_way(path, _holder(file))
        with disk(path):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            os.fsync(file)
        done = threading.Event()
        heart = threading.Thread(target=_beat, args=(file, done), name="heartbeat", daemon=True)
        heart.start()
        try:
            yield file
        finally:
            done.set()
            heart.join()
            # An empty file was released; one that names a process was left when that died.
            with suppress(OSError):  # the disk may be gone
                os.ftruncate(file, 0)
    finally:
        os.close(file)


@contextmanager
def briefly(path: Path, why: str = "can't be written") -> Iterator[None]:
    """Hold the lock at `path` for a moment; wait for another process that does the same.

    Args:
      path: the lock file, in a folder that exists.
      why: what an error says of the file if it can't be written.

    Raises:
      UsageError: another process holds the lock for longer than `PATIENCE`; or `path` is not a
        file, or can't be written.
      EnvironmentFailure: the file system is full, or doesn't support locks.
    """
    file = _take(path, why, PATIENCE)
    try:
        yield
    finally:
        os.close(file)


def held(path: Path, file: int) -> bool:
    """Return whether the open file that `hold` locked is still the one at `path`."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(file))


def _take(path: Path, why: str = "can't be written", patience: float = 0) -> int:
    """Lock the file at `path`, which is created if missing; return it open.

    patience: seconds to wait for another process that holds the lock.
    """
    until = time.monotonic() + patience
    while True:
        try:
            file = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666
            )
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV):
                raise UsageError(f"{path}: is not a lock file of jaxmnist: delete it") from None
            raise disk_error(f"{path}: {why}", error) from None
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise UsageError(f"{path}: is not a lock file of jaxmnist: delete it")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been deleted meanwhile, and another process may have locked a new one.
            if held(path, file):
                return file
            os.close(file)
        except BlockingIOError:
            if time.monotonic() < until:
                os.close(file)
                time.sleep(0.01)
                continue
            holder = _holder(file, patience=1)
            os.close(file)
            raise UsageError(f"{path.parent}: is in use by {holder or 'another process'}") from None
        except OSError as error:
            os.close(file)
            raise EnvironmentFailure(
                f"{path.parent}: its file system can't lock files ({error.strerror}):"
                " choose another one (--directory, in Python directory)"
            ) from None
        except BaseException:
            os.close(file)
            raise


def _holder(file: int, patience: float = 0) -> str:
    """Return the holder that the lock file names; empty if none is named in `patience` seconds."""
    while True:
        name = os.pread(file, LONGEST_NAME, 0).decode(errors="replace").strip()
        if name or patience <= 0:
            return name
        patience -= 0.05
        time.sleep(0.05)


def _give_way(path: Path, holder: str) -> None:
    """Raise `UsageError` if `holder`, on another machine, still has a heartbeat."""
    _, _, machine = holder.partition(" on ")
    if machine in ("", socket.gethostname()):
        return  # on this machine, holding the lock shows that it has ended
    logger.info(
        f"note: {holder} did not release {path.parent}; waiting {3 * HEARTBEAT:.0f} s to check that"
        " it has ended"
    )
    before = _beats(path)
    for _ in range(3):
        time.sleep(HEARTBEAT)
        if _beats(path) != before:
            raise UsageError(f"{path.parent}: is in use by {holder}")


def _beats(path: Path) -> int:
    """Return the lock file's modification time in ns, from the server: NFS asks it on opening."""
    with disk(path, "can't be read"):
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.fstat(file).st_mtime_ns
        finally:
            os.close(file)


def _beat(file: int, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT):
        try:
            os.utime(file)
        except OSError:
            return  # the run itself notices that its disk is gone
