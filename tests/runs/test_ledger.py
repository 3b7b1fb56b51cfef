"""The ledger that the runs of a folder share: what counts, what is brought along, what is lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import searched, writing

from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.files import as_json, write_json
from jaxmnist.results.evaluation import describe_looks
from jaxmnist.runs import ledger, lock
from jaxmnist.runs.ledger import Look, Looks, ledger_path, read_lines, record
from jaxmnist.runs.records import File
from jaxmnist.runs.store import begin_run, continue_run, exists

IMAGES = "0" * 64
SEARCH = searched()
OTHER = searched(identity={**SEARCH.identity, "seed": 1})  # of the same test images
LOOK = Look("winner", "runs/a", "identity", "model", IMAGES)


def purposes(run, images=IMAGES):
    return [look.purpose for look in run.read_looks(images).found]


def keep(run, model="abc"):
    """Write a result, which keeps the looks that are known."""
    run.write_bytes(File.MODEL, b"")
    looks = as_json(run.looks_to_keep(run.test_sha256))
    write_json(run.file(File.TEST), {"model_sha256": model, "looks": looks})


@pytest.mark.parametrize("name", ["purpose", "identity_sha256", "model_sha256", "test_sha256"])
def test_an_identifier_that_comes_again_counts_once(tmp_path, name):
    path = tmp_path / "ledger.jsonl"
    for look in (LOOK, replace(LOOK, run="runs/b", time="later"), replace(LOOK, **{name: "x"})):
        record(path, look)
    looks, damaged = read_lines(path)
    assert (len(looks), damaged) == (3, 0)
    assert Looks.of(looks).count == 2
    assert Looks.of(looks).found[0] == LOOK
    assert replace(LOOK, details="another library").identifier != LOOK.identifier


def test_runs_on_the_same_images_share_the_count(tmp_path):
    first, second = (writing(tmp_path / name, SEARCH) for name in "ab")
    third = writing(tmp_path / "c", OTHER)
    first.record_look("winner", "abc", IMAGES)
    first.record_look("svm", "abc", IMAGES)
    first.record_look("svm", "abc", "other images")
    second.record_look("winner", "abc", IMAGES)  # the same search gave the same model
    third.record_look("winner", "abc", IMAGES)
    for run in (first, second, third):
        assert purposes(run) == ["winner", "svm", "winner"]
        assert purposes(run, "other images") == ["svm"]
    name = tmp_path.name
    assert describe_looks(first.read_looks(IMAGES), f"{name}/c") == (
        f"Test set evaluated 3 times: winner of {name}/c; winner and SVM of {name}/a."
    )


def test_the_sentence_about_looks():
    assert describe_looks(Looks(), "runs/a") == "The test set has not been evaluated."
    once = describe_looks(Looks((LOOK,)), "runs/a")
    assert once == "Test set evaluated once: winner of runs/a."
    many = [replace(LOOK, run=f"runs/{i}", model_sha256=str(i)) for i in range(9)]
    tuned = [replace(LOOK, purpose="svm", details=str(i)) for i in range(2)]
    said = describe_looks(Looks((*many, LOOK, *tuned), damaged=1), "runs/a")
    assert said.startswith("Test set evaluated 13 times: winner and 2 × SVM of runs/a; winner of")
    assert "5 more of 5 other runs; 1 unknown (a line of the ledger is damaged or missing)." in said
    own = [f"runs/{i}" for i in (*range(8), "untested")]  # of a comparison, all are named
    said = describe_looks(Looks((LOOK, *many)), *own)
    assert said.endswith("; winner of runs/7; winner of runs/a; 1 more of 1 other run.")
    lost = describe_looks(Looks(damaged=2), "runs/a")
    assert lost.endswith("2 times: 2 unknown (lines of the ledger are damaged or missing).")


def test_the_folder_of_all_runs_however_the_run_is_named(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    run = writing(tmp_path / "a", SEARCH)
    for path in (run.path, run.path / ".." / "a", type(run.path)(".")):
        assert ledger_path(path).resolve() == tmp_path / "ledger.jsonl"
    assert run.name == f"{tmp_path.name}/a"


def test_looks_outlast_an_overwrite(tmp_path):
    """They have happened, whatever becomes of the run; what is overwritten is all else."""
    path = tmp_path / "a"
    with begin_run(path, SEARCH, overwrite=False) as run:
        run.write_search()
        run.record_look("winner", "abc", IMAGES)
        keep(run)
    # The ledger is lost as well: what the run's results keep is saved before they are deleted.
    (tmp_path / "ledger.jsonl").unlink()
    with begin_run(path, OTHER, overwrite=True) as run:
        assert [file.name for file in path.iterdir()] == ["lock"]
        assert not exists(path)
        assert purposes(run) == ["winner"]
    # So does a search that is repeated after a kill at that moment.
    with begin_run(path, OTHER, overwrite=False) as run:
        run.write_search()
        run.record_look("winner", "def", IMAGES)
        assert purposes(run) == ["winner", "winner"]


def test_a_moved_run_brings_all_looks_along(tmp_path, said):
    """Those of other runs too: their results were known when it was made."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    writing(home / "a", SEARCH).record_look("winner", "abc", IMAGES)
    with begin_run(home / "b", OTHER, overwrite=False) as run:
        run.write_search()
        run.record_look("winner", "def", IMAGES)
        keep(run)
    shutil.move(home / "b", away / "b")
    moved = writing(away / "b")
    assert [look.run for look in moved.read_looks(IMAGES).found] == ["home/a", "home/b"]
    assert not (away / "ledger.jsonl").exists()  # reading writes nothing
    for _ in range(2):
        with continue_run(away / "b"):
            pass
    assert sum("lacked 2 test-set evaluations" in line for line in said) == 1
    assert len(read_lines(away / "ledger.jsonl")[0]) == 2
    assert purposes(writing(away / "c", SEARCH)) == ["winner", "winner"]


def test_each_result_keeps_looks_but_not_behind_a_link(tmp_path):
    """Of the winner, the ensemble and all SVMs."""
    (tmp_path / "a").mkdir()
    run = writing(tmp_path / "a" / "run", SEARCH)
    results = {
        "winner": run.file(File.TEST),
        "ensemble": run.file(File.ENSEMBLE),
        "svm": run.file(File.SVM, ("small",)),
        "another svm": run.file(File.SVM, ("small", "cuml")),
    }
    for purpose, path in results.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"looks": [as_json(replace(LOOK, purpose=purpose))]})
    assert set(purposes(run)) == set(results)
    assert [run.file(File.SVM, place) for place in run.svm_places()] == [results["svm"]]
    backends = run.svm_places(backends=True)
    assert [run.file(File.SVM, place) for place in backends] == [
        results["svm"],
        results["another svm"],
    ]
    for folder, left in (
        ("svm/small/cuml", {"winner", "ensemble", "svm"}),
        ("svm/small", {"winner", "ensemble"}),
        ("best/ensemble", {"winner"}),
        ("best", set()),
    ):
        (run.path / folder).rename(tmp_path / folder.replace("/", "-"))
        (run.path / folder).symlink_to(tmp_path / folder.replace("/", "-"))
        assert set(purposes(run)) == left


def test_damage_does_not_reduce_the_count(tmp_path):
    run = writing(tmp_path / "a", SEARCH)
    path = tmp_path / "ledger.jsonl"
    for number in range(4):
        run.record_look("winner", f"model {number}", IMAGES)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (
        lines[0] + lines[3],  # two lines are missing
        whole.replace(b'"model 1"', b'"model 7"'),
        whole.replace(b"\n", b"x", 1),
        whole[:-10],
        whole.replace(lines[1], b"\xff\x00[[[\n"),
    ):
        path.write_bytes(damaged)
        looks = run.read_looks(IMAGES)
        assert looks.count == 4
        assert looks.damaged > 0
        assert run.read_looks("other images").count == looks.damaged  # may have been about them
    path.write_bytes(whole.replace(b'"model 3"', b'"model 7"'))
    run.record_look("winner", "model 4", IMAGES)
    assert run.read_looks(IMAGES).count == 5
    # A result that was made before knows its looks, and damage to the results leaves the ledger.
    path.write_bytes(whole)
    keep(run)
    path.unlink()
    assert run.read_looks(IMAGES).count == 4
    run.file(File.TEST).write_bytes(run.file(File.TEST).read_bytes()[:-30])
    path.write_bytes(whole)
    assert run.read_looks(IMAGES).count == 4


@pytest.mark.parametrize("earlier", [0, 2])
def test_an_append_that_is_cut_short_at_any_byte(tmp_path, earlier, monkeypatch):
    """The process died before the look: the same look, when the command is repeated, is one."""
    monkeypatch.setattr(ledger.os, "fsync", lambda file: None)  # a thousand would take long
    path = tmp_path / "ledger.jsonl"
    for number in range(earlier):
        record(path, replace(LOOK, model_sha256=str(number)))
    before = path.stat().st_size if earlier else 0
    record(path, LOOK)
    whole = path.read_bytes()
    for size in range(before, len(whole)) if earlier else range(40):
        path.write_bytes(whole[:size])
        looks, damaged = read_lines(path)
        assert len(looks) + damaged == earlier + (size > before)  # it may have been about to happen
        record(path, replace(LOOK, time="later"))
        looks, damaged = read_lines(path)
        assert damaged == 0
        assert Looks.of(looks).count == earlier + 1
    # A session that looks at nothing removes what is left, too.
    path.write_bytes(whole[:-2])
    ledger.complete(path, [])
    assert path.read_bytes() == whole[:before]


def test_what_is_no_ledger_is_refused(tmp_path):
    run = writing(tmp_path / "a", SEARCH)
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"ledger\.jsonl: is not a file"):
        run.record_look("winner", "abc", IMAGES)
    with (
        pytest.raises(UsageError, match=r"ledger\.jsonl: is not a file"),
        begin_run(tmp_path / "b", SEARCH, overwrite=False),
    ):
        pass


@pytest.mark.parametrize(
    "content",
    [b"an account book\n", b"{}\n", b'{"Number": 1, "identifier": "x"}\n', b"{\n}", b"\xff\0\n\n["],
)
def test_a_file_of_another_program_is_refused_and_stays(tmp_path, content):
    """Its lines are no evaluations; it is refused before anything is trained."""
    run = writing(tmp_path / "a", SEARCH)
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)

    def start():
        with begin_run(tmp_path / "b", SEARCH, overwrite=False):
            pass

    for action in (
        start,
        lambda: run.record_look("winner", "abc", IMAGES),
        lambda: run.read_looks(IMAGES),
    ):
        with pytest.raises(UsageError, match=r"ledger\.jsonl: is not a ledger of jaxmnist, which"):
            action()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"\0\0\0", b"{", b'{"number": 1, "identifier"\n']
)
def test_what_is_left_of_the_only_line_is_a_ledger(tmp_path, content):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    record(path, LOOK)
    looks, damaged = read_lines(path)
    assert (looks, damaged) == ([LOOK], int(content.startswith(b'{"number"')))


def test_a_folder_that_can_not_be_written(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with begin_run(tmp_path / "a", SEARCH, overwrite=False) as run:
        monkeypatch.setattr(lock.os, "open", refuse)
        with pytest.raises(UsageError, match=r"ledger\.lock: can't be written, and each") as caught:
            ledger.record(tmp_path / "ledger.jsonl", LOOK)
        monkeypatch.undo()
        assert str(caught.value).endswith("is recorded beside its run: Permission denied")
        assert run.read_looks(IMAGES).count == 0


def test_a_lock_that_is_not_released(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    with (
        lock.briefly(tmp_path / "ledger.lock"),
        pytest.raises(UsageError, match="is in use by another process"),
    ):
        record(tmp_path / "ledger.jsonl", LOOK)
    record(tmp_path / "ledger.jsonl", LOOK)


def test_two_processes_at_once(tmp_path):
    """Neither loses a line of the other, and each line has a number of its own."""
    program = (
        "import sys; from pathlib import Path; from jaxmnist.runs.ledger import Look, record\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for i in range(40):\n"
        "    look = Look('winner', sys.argv[2], sys.argv[2], str(i), 'images')\n"
        "    record(Path(sys.argv[1]), look)"
    )
    path = tmp_path / "ledger.jsonl"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    looks, damaged = read_lines(path)
    assert damaged == 0
    assert {(look.run, look.model_sha256) for look in looks} == {
        (name, str(i)) for name in "ab" for i in range(40)
    }
    numbers = [json.loads(line)["number"] for line in path.read_text().splitlines()]
    assert numbers == list(range(1, 81))
    assert len({look.identifier for look in looks}) == 80


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    record(tmp_path / "ledger.jsonl", LOOK)
    monkeypatch.setattr(ledger.os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match="No space left on device"):
        record(tmp_path / "ledger.jsonl", replace(LOOK, purpose="svm"))


def test_a_new_ledger_is_flushed_with_its_name(tmp_path, monkeypatch):
    """Before the look: else a power failure could lose the file, whose content is on disk."""
    flushed, flush = [], ledger.os.fsync

    def fsync(file):
        flush(file)
        flushed.append((ledger.os.fstat(file).st_ino, (tmp_path / "ledger.jsonl").stat().st_size))

    monkeypatch.setattr(ledger.os, "fsync", fsync)
    record(tmp_path / "ledger.jsonl", LOOK)
    size = (tmp_path / "ledger.jsonl").stat().st_size
    file, folder = ((tmp_path / name).stat().st_ino for name in ("ledger.jsonl", "."))
    assert flushed == [(file, size), (folder, size)]
    record(tmp_path / "ledger.jsonl", LOOK)
    assert [number for number, _ in flushed] == [file, folder, file]
