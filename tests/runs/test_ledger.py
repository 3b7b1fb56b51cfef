from __future__ import annotations

from conftest import writing

from jaxmnist.runs.directory import exists
from jaxmnist.runs.writing import begin_run

SEARCH = {
    "identity": {"data": "data", "seed": 0},
    "versions": {},
    "device": {},
    "threads": 2,
}


def test_looks_are_written_in_order(tmp_path):
    run = writing(tmp_path, SEARCH)
    assert run.read_looks() == []
    run.write_look("winner", "abc", "data")
    run.write_look("svm", "abc", "data")
    assert [look["purpose"] for look in run.read_looks()] == ["winner", "svm"]
    with open(tmp_path / "ledger.jsonl", "a") as file:
        file.write('{"purpose": "cut sh')
    run.write_look("evaluation", "abc", "data")
    purposes = [look["purpose"] for look in run.read_looks()]
    assert purposes == ["winner", "svm", "unreadable", "evaluation"]


def test_a_lost_look_is_a_look_all_the_same(tmp_path, said):
    run = writing(tmp_path, SEARCH)
    for purpose in ("winner", "svm", "evaluation", "evaluation"):
        run.write_look(purpose, "abc", "data")
    path = tmp_path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[3])
    purposes = [look["purpose"] for look in run.read_looks()]
    assert purposes == ["winner", "unreadable", "unreadable", "evaluation"]
    path.write_bytes(b"".join(lines).replace(b'"svm"', b'"SVM"'))
    assert [look["purpose"] for look in run.read_looks()][1] == "unreadable"
    path.write_bytes(b"".join(lines).replace(b"\n", b"x", 1))
    assert len(run.read_looks()) == 4
    assert run.looks_at("data") == 4
    assert run.looks_at("other") == 2  # unreadable lines may have been about it
    path.unlink()
    run.complete_ledger({"evaluations": 4, "model_sha256": "abc"}, "data")
    assert [look["purpose"] for look in run.read_looks()] == ["lost"] * 4
    assert "had lost 4 of 4 evaluations" in said[0]
    run.complete_ledger({"evaluations": 4, "model_sha256": "abc"}, "data")
    assert len(said) == 1


def test_looks_outlast_an_overwrite(tmp_path):
    """They have happened, whatever becomes of the run; what is overwritten is all else."""
    with begin_run(tmp_path, SEARCH, overwrite=False) as run:
        run.write_search()
        run.write_look("winner", "abc", "data")
        run.model_path.parent.mkdir()
    other = {**SEARCH, "identity": {"data": "data", "seed": 1}}
    with begin_run(tmp_path, other, overwrite=True):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ledger.jsonl", "lock"]
        assert not exists(tmp_path)
    # So does a search that is repeated after a kill at that moment.
    with begin_run(tmp_path, SEARCH, overwrite=False) as run:
        run.write_search()
        run.write_look("winner", "def", "data")
        assert [look["look"] for look in run.read_looks()] == [1, 2]
        assert run.looks_at("data") == 2
