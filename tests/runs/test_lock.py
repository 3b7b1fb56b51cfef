"""One process at a time: the system's lock, and the heartbeat where that lock is local."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.runs import lock

OTHER = "process 4321 on another-machine"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hearts beat twenty times a second."""
    monkeypatch.setattr(lock, "HEARTBEAT", 0.05)


def holder(path: Path) -> subprocess.Popen:
    """Another process that holds the lock until its input ends."""
    program = (
        "import sys; from pathlib import Path; from jaxmnist.runs import lock\n"
        f"with lock.hold(Path({str(path)!r})):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught, lock.hold(path):
        pass
    return str(caught.value)


def test_a_second_process_is_told_of_the_first_and_takes_over_from_the_dead(tmp_path):
    path = tmp_path / "lock"
    first = holder(path)
    in_use = f"{tmp_path}: is in use by process {first.pid} on {socket.gethostname()}"
    assert refusal(path) == in_use
    assert refusal(path) == in_use  # a refusal changes nothing
    first.kill()
    first.communicate()
    assert f"process {first.pid}" in path.read_text()
    started = time.monotonic()
    with lock.hold(path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert time.monotonic() - started < 2  # no heartbeat is awaited on the same machine
    assert path.read_text() == ""
    with lock.hold(path):
        assert refusal(path).endswith(f"in use by process {os.getpid()} on {socket.gethostname()}")


def test_another_machine_that_died_is_taken_over_after_watching(tmp_path, quick, said):
    path = tmp_path / "lock"
    path.write_text(OTHER + "\n")
    started = time.monotonic()
    with lock.hold(path):
        assert f"process {os.getpid()} on" in path.read_text()
    assert 0.15 <= time.monotonic() - started < 5
    assert len(said) == 1
    assert OTHER in said[0]


def test_another_machine_that_lives_is_given_way(tmp_path, quick):
    """Locks that a mount keeps local show nothing of the other machine but its heartbeat."""
    path, done = tmp_path / "lock", threading.Event()
    path.write_text(OTHER + "\n")
    file = os.open(path, os.O_RDWR)
    heart = threading.Thread(target=lock._beat, args=(file, done))
    heart.start()
    try:
        assert refusal(path) == f"{tmp_path}: is in use by {OTHER}"
        assert path.read_text() == OTHER + "\n"
    finally:
        done.set()
        heart.join()
        os.close(file)


def test_the_heart_beats_while_the_lock_is_held(tmp_path, quick):
    path = tmp_path / "lock"
    with lock.hold(path):
        first = path.stat().st_mtime_ns
        deadline = time.monotonic() + 5
        while path.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "heartbeat" not in [thread.name for thread in threading.enumerate()]


def test_only_one_of_many_gets_it(tmp_path):
    path, inside, most = tmp_path / "lock", [], []

    def compete() -> None:
        for _ in range(50):
            try:
                with lock.hold(path):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except UsageError:
                pass

    threads = [threading.Thread(target=compete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most
    assert set(most) == {1}


def test_a_lock_that_was_deleted_is_not_held_any_more(tmp_path):
    path = tmp_path / "lock"
    with lock.hold(path) as file:
        assert lock.held(path, file)
        path.unlink()
        assert not lock.held(path, file)
        with lock.hold(path) as other:
            assert lock.held(path, other)
            assert not lock.held(path, file)


def test_a_lock_that_is_deleted_between_opening_and_locking(tmp_path, monkeypatch):
    """Who locks a deleted file holds nothing: it is noticed, and the new file is locked."""
    path, flock = tmp_path / "lock", fcntl.flock

    def slow(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with lock.hold(path) as file:
        assert lock.held(path, file)


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "dangling"])
def test_something_else_in_its_place(tmp_path, kind):
    path, outside = tmp_path / "lock", tmp_path / "outside"
    outside.write_text("precious")
    {
        "link": lambda: path.symlink_to(outside),
        "dangling": lambda: path.symlink_to(tmp_path / "nothing"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
    }[kind]()
    assert refusal(path) == f"{path}: is not a lock file of jaxmnist: delete it"
    assert outside.read_text() == "precious"
    assert not (tmp_path / "nothing").exists()


def test_what_the_lock_says_can_not_command_a_terminal(tmp_path):
    path = tmp_path / "lock"
    path.write_bytes(b"process 1\x1b[2J\n on \xff" + b"x" * 10**6)
    with open(path) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        line = refusal(path)
    assert line.isprintable()
    assert len(line) < 1000


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(EnvironmentFailure, match=r"can't lock files \(No locks available\): choose"),
        lock.hold(tmp_path / "lock"),
    ):
        pass
