"""Full, read-only and vanishing disks, forbidden files, closed terminals and outputs.

Each time the finished work is kept, and the command ends with one clear line and the right status.
"""

from __future__ import annotations

import json
import os
import pty
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import slow_after
from processes import facts, flags, looks_of

from jaxmnist import EnvironmentFailure, JaxmnistError, Run, UsageError, random_search
from jaxmnist.errors import Stopped, one_line, signals, signals_call
from jaxmnist.machine import blas_threads, enough_threads
from jaxmnist.report.console import Console
from jaxmnist.report.page import write_page
from jaxmnist.runs.records import ModelReport
from jaxmnist.runs.trial import Key


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own, 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=2m,mode=755", "tmpfs", path)
    except (OSError, subprocess.CalledProcessError):
        assert "CI" not in os.environ, "no tmpfs can be mounted, and CI must see this test"
        pytest.skip("no tmpfs can be mounted here")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def fill(disk: Path, pages: int) -> None:
    """Leave so many pages of 4096 bytes free."""
    (disk / "filler").unlink(missing_ok=True)
    status = os.statvfs(disk)
    free = status.f_bavail * status.f_frsize
    (disk / "filler").write_bytes(bytes(free - 4096 * pages))


def records(run: Path, but: int) -> dict[str, bytes]:
    """The records of all trials but one."""
    paths = [path for path in run.glob("trials/*/trial.json") if int(path.parent.name) != but]
    return {str(path): path.read_bytes() for path in paths}


def test_a_disk_that_is_full_at_any_moment(disk, finished, options):
    """From no room at all to enough: each try ends in a line, and the one with room is right."""
    run = disk / "small"
    large = shutil.ignore_patterns("report.html", "tensorboard")
    shutil.copytree(finished.store.path, run, ignore=large)
    index = finished.best_trial.index
    for lost in (run / "trials" / f"{index:04d}", run / "best", run / "svm"):
        shutil.rmtree(lost)
    failures = 0
    for pages in (0, 1, 3, 6, 12, 25, 50, 100, 200):
        kept = records(run, index)
        fill(disk, pages)
        try:
            again = random_search(**options, directory=str(disk))
        except EnvironmentFailure as error:
            failures += 1
            assert error.exit_status == 1
            assert "No space left on device" in str(error)
            assert str(run) in str(error)
            assert not list(run.rglob(".*.tmp"))
        else:
            break
        finally:
            assert kept == records(run, index)
    assert failures > 2
    assert facts(again) == facts(finished)
    assert looks_of(again) == ["winner", "svm"]
    test = again.result("best/test.json", ModelReport)
    assert test.accuracy == finished.result("best/test.json", ModelReport).accuracy


def test_the_command_on_a_full_disk(disk, options):
    fill(disk, 0)
    line = [sys.executable, "-m", "jaxmnist.search", *flags(options), "--directory", str(disk)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.endswith(": can't be written: No space left on device\n")


def at(kind: str, index: int, happens: Callable[[], object]) -> type[Console]:
    """A console that makes something happen when an event of a trial, or a stage, is reported."""

    def event(self, event):
        Console.event(self, event)
        if type(event).__name__ == kind and event.key == Key(index):
            happens()

    def stage(self, name):
        Console.stage(self, name)
        if name == kind:
            happens()

    return type("Watching", (Console,), {"event": event, "stage": stage})


def test_a_disk_that_becomes_read_only(disk, finished, options, monkeypatch):
    """As Linux makes a disk that fails: what is there can be read."""
    options = {**options, "max_trials": 2}

    run_folder = disk / "small"

    def seal() -> None:
        mount("--bind", run_folder, run_folder)
        mount("-o", "remount,ro,bind", run_folder)

    monkeypatch.setattr("jaxmnist.report.live.Console", at("TrialStarted", 1, seal))
    with pytest.raises(UsageError, match="can't be written: Read-only file system"):
        random_search(**options, jobs=1, directory=str(disk))
    first, second = facts(Run(run_folder))
    assert first == facts(finished)[0]
    assert second[2] == "running"
    with pytest.raises(UsageError, match="can't be written: Read-only file system"):
        random_search(**options, directory=str(disk))
    monkeypatch.undo()
    subprocess.run(["umount", str(run_folder)], check=True)
    assert facts(random_search(**options, svm=False, directory=str(disk))) == facts(finished)[:2]


def resume(options: dict, folder: Path) -> Run:
    """Repeat a search that has failed: what it had computed counts, and nothing was damaged."""
    done = {t.index: t.history for t in Run(folder / "small").trials if t.status == "completed"}
    run = random_search(**options, directory=str(folder))
    assert [t.attempts for t in run.trials if t.index in done] == [1] * len(done)
    assert not (folder / "small" / "damaged").exists()
    return run


@pytest.mark.parametrize("moment", slow_after(1, ["SVM", "training"]))
def test_threads_that_cannot_be_started(finished, options, tmp_path, monkeypatch, moment):
    """Whoever needs one: a library in the middle of the SVM, or the search for a trial."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        exhaust = partial(patch.setattr, threading.Thread, "start", refuse)
        patch.setattr("jaxmnist.report.live.Console", at(moment, 0, exhaust))
        with pytest.raises(EnvironmentFailure, match="no more threads can be started: raise the"):
            random_search(**options, directory=str(tmp_path))
    assert facts(resume(options, tmp_path)) == facts(finished)


@pytest.mark.parametrize("limit", [1, 12])
def test_a_command_with_too_few_threads(options, tmp_path, limit):
    """As another user, since root has no limit: for NumPy none, and then too few for JAX."""
    if shutil.which("setpriv") is None or shutil.which("prlimit") is None:
        assert "CI" not in os.environ, "setpriv or prlimit is missing, and CI must see this test"
        pytest.skip("setpriv or prlimit is missing here")
    rights = "+dac_override,+dac_read_search"  # to read what root reads
    user = ["setpriv", "--reuid=54321", "--clear-groups"]
    user += [f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    line = [*user, "prlimit", f"--nproc={limit}", sys.executable, "-m", "jaxmnist.search"]
    if subprocess.run([*user, "true"], capture_output=True, check=False).returncode:
        assert "CI" not in os.environ, "no other user's rights can be taken, and CI must see this"
        pytest.skip("no other user's rights can be taken here")
    line += [*flags(options), "--directory", str(tmp_path / "runs")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "threads are needed, but only " in done.stderr
    assert "ulimit -u" in done.stderr
    assert "OPENBLAS_NUM_THREADS=1 and PJRT_NPROC=2" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_threads_of_numpy(monkeypatch):
    """As many as it starts: its own library says how many it uses, of which one is there before."""
    names = "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"
    program = "import numpy, threadpoolctl as t; print(t.threadpool_info()[0]['num_threads'])"
    for values, cores, wanted in (
        ((None, None), 48, 47),
        ((None, None), 256, 63),
        (("2", "8"), 48, 1),
        ((" +02", None), 48, 1),
        ((None, "1"), 48, 0),
        (("0", "1"), 48, 0),
        (("many", "1,2"), 48, 0),
        (("99", None), 4, 3),
    ):
        for name, value in zip(names, values, strict=True):
            monkeypatch.delenv(name, raising=False)
            if value is not None:
                monkeypatch.setenv(name, value)
        assert blas_threads(cores) == wanted
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert int(done.stdout) == blas_threads(len(os.sched_getaffinity(0))) + 1, values


def test_the_reason_of_an_exception_is_followed_as_a_traceback_does():
    """A chain that is a circle ends; what `from None` hides is not the reason."""
    want = RuntimeError("can't start new thread")
    circle, other = ValueError("a"), ValueError("b")
    circle.__cause__, other.__cause__ = other, circle
    itself, hiding, caused = ValueError("c"), ValueError("d"), ValueError("e")
    itself.__cause__ = itself
    hiding.__context__, hiding.__suppress_context__ = want, True
    caused.__context__ = want
    for problem in (circle, itself, hiding):
        with pytest.raises(ValueError, match=r"^[acd]$") as found, enough_threads():
            raise problem
        assert found.value is problem
    for problem in (want, caused):
        with pytest.raises(EnvironmentFailure, match="no more threads"), enough_threads():
            raise problem


@pytest.mark.parametrize("moment", slow_after(1, ["TrialFinished", "training", "test", "SVM"]))
def test_files_that_cannot_be_opened(finished, options, tmp_path, monkeypatch, moment):
    """The process has as many open files as it may have."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def exhaust() -> None:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))

    with monkeypatch.context() as patch:
        patch.setattr("jaxmnist.report.live.Console", at(moment, 0, exhaust))
        try:
            with pytest.raises(EnvironmentFailure, match=r"Too many open files.*ulimit -n"):
                random_search(**options, directory=str(tmp_path))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert facts(resume(options, tmp_path)) == facts(finished)


# When a run's disk vanishes: at an event of a trial, or as a stage begins.
MOMENTS = ("EpochFinished", "TrialFinished", "training", "test", "SVM", "page")


@pytest.mark.parametrize("moment", slow_after(2, MOMENTS))
@pytest.mark.parametrize("of", slow_after(1, ["all runs", "the run"]))
def test_a_disk_that_vanishes(disk, options, monkeypatch, moment, of):
    """Nothing is written to the place that its mount leaves behind: no page, and no TensorBoard."""

    def vanish() -> None:
        subprocess.run(["umount", "-l", str(disk)], check=disk.is_mount())

    monkeypatch.setattr("jaxmnist.report.live.Console", at(moment, 0, vanish))
    given = {**options, "max_trials": 1, "report": True, "tensorboard": True}
    given["directory"] = str(disk if of == "all runs" else disk.parent)
    given["project_name"] = "small" if of == "all runs" else disk.name
    gone = "the run was moved or deleted, or its disk is gone"
    if moment == "page":  # all has ended, but the verdict reads what was kept
        gone = "has no best/test.json"
    with pytest.raises(JaxmnistError, match=gone):
        random_search(**given)
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("moment", slow_after(1, MOMENTS[1:4]))
def test_a_run_that_is_deleted_while_it_is_in_use(options, tmp_path, monkeypatch, moment):
    run = tmp_path / "small"
    monkeypatch.setattr("jaxmnist.report.live.Console", at(moment, 0, lambda: shutil.rmtree(run)))
    given = {**options, "max_trials": 1, "report": True, "tensorboard": True}
    with pytest.raises(EnvironmentFailure, match="was moved or deleted"):
        random_search(**given, directory=str(tmp_path))
    assert not run.exists()


def test_a_page_of_a_run_that_has_vanished(finished, tmp_path, monkeypatch):
    """`jaxmnist report`, which holds no lock, while the run is deleted: it is not made again."""
    shutil.copytree(finished.store.path, run := tmp_path / "small")
    monkeypatch.setattr("jaxmnist.report.page.make_page", lambda *_, **__: str(shutil.rmtree(run)))
    with pytest.raises(EnvironmentFailure, match="was moved or deleted"):
        write_page(Run(run))
    assert not run.exists()


# What is made unreadable in a run, by name, and the file or folder that loses its permissions.
FORBIDDEN = {
    "a record": "trials/0001/trial.json",
    "a trial": "trials/0001",
    "weights": "trials/{winner}/model.safetensors",
    "search.json": "search.json",
    "the report": "best/test.json",
    "the predictions": "best/test_probabilities.npy",
    "the winner": "best",
    "the SVM": "svm/small/svm.json",
    "the ledger": "../ledger.jsonl",
    "the ledger's lock": "../ledger.lock",
    "the lock": "lock",
}

CHILD = """
import contextlib, io, json, os, sys
from jaxmnist.commands.parser import run_command
from jaxmnist.commands.search import main
warm, *cases = json.load(sys.stdin)
with contextlib.redirect_stdout(io.StringIO()):
    assert run_command(main, warm) == 0  # all modules are imported before the rights are dropped
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
ends = []
for case in cases:
    with contextlib.redirect_stdout(io.StringIO()):
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            ends.append([run_command(main, case), errors.getvalue()])
print(json.dumps(ends))
"""


def test_files_that_may_not_be_read(finished, options, tmp_path):
    """A file that can't be read is not a damaged one: it stays where it is, and so do all."""
    for folder in {tmp_path, *tmp_path.parents, *Path(options["data_dir"]).parents}:
        let_pass(folder)
    cases = {}
    for number, (what, name) in enumerate(FORBIDDEN.items()):
        run = tmp_path / str(number) / "small"
        shutil.copytree(finished.store.path, run)
        for beside in ("ledger.jsonl", "ledger.lock"):
            shutil.copy(finished.store.path.parent / beside, run.parent)
        for path in (run.parent, *run.parent.rglob("*")):
            os.chown(path, 65534, 65534)
        path = run / name.format(winner=f"{finished.best_trial.index:04d}")
        path = Path(os.path.normpath(path))
        os.chown(path, 0, 0)
        path.chmod(0)
        cases[what] = run, path
    shutil.copytree(finished.store.path, tmp_path / "warm" / "small")
    lines = [[*flags(options), "--directory", str(tmp_path / "warm")]]
    lines += [[*flags(options), "--directory", str(run.parent)] for run, _ in cases.values()]
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env={**os.environ, "JAXMNIST_CACHE": "off"},
    )
    assert done.returncode == 0, done.stderr
    for (what, (run, path)), (status, errors) in zip(
        cases.items(), json.loads(done.stdout), strict=True
    ):
        assert status == 2, (what, errors)
        assert errors.count("\n") == 1, what
        assert "Permission denied" in errors, what
        assert str(path) in errors, what
        assert path.exists(), what
        assert not (run / "damaged").exists(), what
        path.chmod(0o755)
        assert looks_of(Run(run)) == ["winner", "svm"], what


def let_pass(folder: Path) -> None:
    """Let anybody pass through a folder of ours."""
    status = folder.stat()
    if status.st_uid == os.getuid() and str(folder).startswith("/tmp/"):
        folder.chmod(status.st_mode | 0o755)


# --- Closed terminals and outputs ----------------------------------------------------------------


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal's two ends: what a window holds, and what programs hold."""
    window, program = pty.openpty()
    try:
        yield window, program
    finally:
        for end in (window, program):
            with suppress(OSError):  # closed already
                os.close(end)


@pytest.mark.parametrize(
    ("kind", "until"),
    [("dumb", b"trial 1:"), pytest.param("xterm", b"trial 1 ", marks=pytest.mark.slow)],
)
def test_a_closed_terminal(options, tmp_path, kind, until):
    """The window is closed: the search keeps what is finished and ends with its status."""
    heed = (
        "import fcntl, os, signal, sys, termios;"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    given = {name: value for name, value in options.items() if name != "quiet"}
    search = ["-m", "jaxmnist.search", *flags(given), "--jobs", "1", "--directory", str(tmp_path)]
    with terminal() as (window, program):
        process = subprocess.Popen(
            [sys.executable, "-c", heed, *search],
            stdin=program,
            stdout=program,
            stderr=program,
            start_new_session=True,
            env={**os.environ, "TERM": kind},
        )
        os.close(program)
        seen = b""
        while until not in seen:
            seen += os.read(window, 1024)
        os.close(window)
        process.send_signal(signal.SIGHUP)  # shells signal their jobs, too
        assert process.wait(timeout=60) == 129
    trials = Run(tmp_path / "small").trials
    assert trials[0].status == "completed"
    assert [trial.deaths for trial in trials if trial.status == "running"] in ([], [0])
    assert not (tmp_path / "small" / "best").exists()


# With unbuffered output argparse itself ignores what can't be written.
BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"]])
def test_an_output_that_is_full(arguments):
    line = [sys.executable, "-m", "jaxmnist.search", *arguments]
    with open("/dev/full", "w") as full:
        done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    assert done.returncode == 1
    assert done.stderr == "jaxmnist: output: No space left on device\n"


def test_an_output_that_nobody_reads():
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "jaxmnist.search", "--help"]
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, text=True, env=BUFFERED)
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""


def test_errors_that_nobody_can_see():
    """Standard error is full, or closed: the status still tells."""
    line = [sys.executable, "-m", "jaxmnist.search", "--epochs", "0"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(line, stdout=full, stderr=full).returncode == 2
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *line]
    assert subprocess.run(closed).returncode == 2


def test_commands_heed_signals_before_they_import_anything_slow():
    program = "import sys; from jaxmnist.commands import evaluate, predict, report, search, svm\n"
    program += "print([m for m in ('jax', 'sklearn', 'scipy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("error", "says", "named"),
    [
        (ValueError("a\n b"), "a b", "ValueError: a b"),
        (MemoryError(), "MemoryError", "MemoryError"),
        (ValueError("x" * 5000), "x" * 300, "ValueError: " + "x" * 300),
    ],
)
def test_what_an_exception_says_in_one_line(error, says, named):
    assert one_line(error) == says
    assert one_line(error, named=True) == named


def test_an_error_is_always_one_line():
    error = JaxmnistError("a\nb\x1b[2Jc\u202ed\udcff")
    assert str(error) == "a\\nb\\x1b[2Jc\\u202ed\\udcff"


def test_a_signal_waits_for_what_is_in_hand():
    called, order = [], []

    def work():
        with signals_call(lambda: called.append(True)):
            order.append("before")
            signal.raise_signal(signal.SIGTERM)
            order.append("after")
        order.append("never")

    with pytest.raises(Stopped) as stopped, signals():
        work()
    assert called == [True]
    assert order == ["before", "after"]
    assert stopped.value.exit_status == 128 + signal.SIGTERM


def test_the_same_signal_twice_at_once_is_one(monkeypatch):
    called = []

    def twice():
        with signals(), signals_call(lambda: called.append(True)):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        twice()
    assert called == [True]
    # A second signal that comes later acts like a first one.
    monkeypatch.setattr("jaxmnist.errors.TWICE", -1.0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    order = []

    def again():
        with signals_call(lambda: order.append("first")):
            signal.raise_signal(signal.SIGINT)
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                order.append("second")

    with pytest.raises(KeyboardInterrupt):
        again()
    assert order == ["first", "second"]


def test_a_second_ctrl_c_does_not_wait():
    """In a process that takes for ever to bring to an end what the first one stopped."""
    program = """
import signal, time
from jaxmnist import errors as command
command.TWICE = 0.0
signal.signal(signal.SIGINT, signal.SIG_DFL)
with command.signals("; advice"), command.signals_call(lambda: print("first", flush=True)):
    print("ready", flush=True)
    while True:
        time.sleep(60)
"""
    line = [sys.executable, "-c", program]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        for says in ("ready\n", "first\n"):
            assert process.stdout.readline() == says
            process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read() == "jaxmnist: stopped by SIGINT; advice\n"


def test_handlers_of_others_are_left_alone():
    came = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with signals_call(lambda: came.append("ours")):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM]


def test_ctrl_c_in_a_session_of_python_waits_too():
    # If the tests run in the background, SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), signals_call(lambda: None):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_are_left_alone_outside_of_the_main_thread():
    with ThreadPoolExecutor(1) as thread, signals():
        before = signal.getsignal(signal.SIGTERM)

        def run():
            with signals_call(lambda: None):
                return signal.getsignal(signal.SIGTERM)

        assert thread.submit(run).result() is before


@pytest.mark.parametrize(
    "failure", slow_after(1, [OSError(28, "No space left on device"), Stopped(15)])
)
def test_whatever_ends_a_search_what_ran_can_go_on(failure, options, tmp_path, monkeypatch):
    """A terminal that has gone, or a page in whose middle something raises."""
    from jaxmnist.report.live import Reports

    event = Reports.event

    def fail(reports, happened):
        if type(happened).__name__ == "EpochFinished" and happened.key == Key(1):
            raise failure
        event(reports, happened)

    # Epochs enough that the trial is still running when it is stopped.
    given = {**options, "jobs": 1, "svm": False, "epochs": 8}
    whole = random_search(**given, directory=str(tmp_path / "whole"))
    with monkeypatch.context() as patch:
        patch.setattr(Reports, "event", fail)
        with pytest.raises(type(failure)):
            random_search(**given, directory=str(tmp_path))
    folder = tmp_path / "small" / "trials" / "0001"
    assert (folder / "checkpoint.safetensors").exists()
    record = json.loads((folder / "trial.json").read_text())
    assert (record["status"], record["attempts"], record["deaths"]) == ("running", 0, 0)
    run = random_search(**given, directory=str(tmp_path))
    assert [t.history for t in run.trials] == [t.history for t in whole.trials]
    assert run.trials[1].attempts == 1
