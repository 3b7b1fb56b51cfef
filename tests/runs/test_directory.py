from __future__ import annotations

import errno
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import a_trial, bits, history, searched, write_completed, writing

from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.files import DamagedFile, as_json, read_json, write_json
from jaxmnist.machine import machine
from jaxmnist.models.study import configuration
from jaxmnist.results.trained import TrainedModel
from jaxmnist.runs.records import File, Sharing, Times
from jaxmnist.runs.store import Store, begin_run, exists, read_search
from jaxmnist.runs.trial import Key, Metrics, agree

SEARCH = searched()


def trial(**changes):
    epochs = Metrics(0.5, 0.5, 0.25, 0.75), Metrics(math.nan, 0.6, math.inf, 0.5)
    record = a_trial(7, configuration(32, 1, 0), "completed", epochs, seconds=1.5)
    return replace(record, **changes)


def test_trial_json_has_the_agreed_keys(tmp_path):
    run = writing(tmp_path, SEARCH)
    write_completed(run, trial())
    content = json.loads((tmp_path / "trials" / "0007" / "trial.json").read_text())
    agreed = "index hyperparameters status history score seconds parameters layers attempts error"
    assert set(agreed.split()) <= set(content)
    known = {"filters": 32, "conv_layers": 1, "dense_layers": 0, "dropout": 0.0}
    assert content["hyperparameters"] == known
    assert content["parameters"] == sum(layer["parameters"] for layer in content["layers"]) == 10
    assert content["history"]["loss"] == [0.5, None]
    assert content["score"] == 0.5
    again = run.read_trial(Key(7))
    assert math.isnan(again.history[1].val_loss)
    assert again.hyperparameters == configuration(32, 1, 0)
    assert run.read_trial(Key(8)) is None


WRITES = {
    "a file": lambda run: run.write_bytes(File.WEIGHTS, b"", Key(7)),
    "a trial": lambda run: run.write_trial(trial(index=8)),
    "a deletion": lambda run: run.delete(File.TRIAL, Key(7)),
    "search.json": lambda run: run.write_search(),
    "the stacking": lambda run: run.write_stacking({}),
    "a damaged file": lambda run: run.set_aside(run.file(File.TRIAL, Key(7))),
    "mending": lambda run: run.mended(lambda: run.read(Times)),
    "an evaluation": lambda run: run.record_look("evaluation", "a", "b"),
}


@pytest.mark.parametrize("what", WRITES)
def test_a_run_opened_for_reading_stays_as_it_is(what, tmp_path):
    run = writing(tmp_path / "run", SEARCH)
    run.write_search()
    run.write_trial(trial())
    run.write_bytes(File.TIMES, b"damaged")
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    for reading in (Store.open(run.path), run.for_reading()):
        with pytest.raises(UsageError, match="was opened only for reading"):
            WRITES[what](reading)
    after = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before


def test_a_trial_in_the_wrong_place(tmp_path):
    run = writing(tmp_path, SEARCH)
    run.write_trial(trial())
    write_json(run.trial_folder(Key(3)) / "trial.json", as_json(trial()))
    with pytest.raises(DamagedFile, match="is the record of trial 7"):
        run.read_trial(Key(3))
    write_json(run.trial_folder(Key(7)) / "trial.json", {**as_json(trial()), "status": "won"})
    with pytest.raises(DamagedFile, match="not the record of a trial"):
        run.read_trial(Key(7))


def test_model_file(tmp_path, finished):
    model = finished.best_model
    path = tmp_path / "model.safetensors"
    path.write_bytes(model.to_bytes())
    again = TrainedModel.load(path)
    images = np.zeros((3, 28, 28), np.uint8)
    assert np.array_equal(again.predict_proba(images), model.predict_proba(images))
    with pytest.raises(DamagedFile, match="SHA-256"):
        TrainedModel.load(path, "0" * 64)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DamagedFile):
        TrainedModel.load(path)


def test_begin_resume_and_refusal(tmp_path):
    path = tmp_path / "run"
    for _ in range(2):
        with begin_run(path, SEARCH, overwrite=False) as run:
            assert run.write_search() == []
    with begin_run(path, replace(SEARCH, versions={"jax": "2"}), overwrite=False) as run:
        assert "jax was 1, is now 2" in run.write_search()[0]
        sessions = [session.versions["jax"] for session in read_search(path).sessions]
        assert sessions == ["1", "2"]
        run.write_trial(trial())
    for change, said in (
        ({"seed": 1}, "seed was 0, not 1"),
        ({"space": {"depth": "1:3"}}, "depth was '1:2', not '1:3'"),
        ({"space": {"depth": "1:2", "width": "8"}}, "width was None, not '8'"),
    ):
        other = replace(SEARCH, identity={**SEARCH.identity, **change})
        with (
            pytest.raises(UsageError, match=f"holds another search: {said}"),
            begin_run(path, other, overwrite=False),
        ):
            pass
    with begin_run(path, other, overwrite=True) as run:
        assert run.trial_keys() == []
        assert not exists(path)


def test_a_deletion_that_was_cut_short(tmp_path):
    """Killed while `--overwrite` deletes: what is left is not taken for the new run's."""
    (tmp_path / "best").mkdir()
    with (
        pytest.raises(UsageError, match=r"has best but no search\.json; overwrite"),
        begin_run(tmp_path, SEARCH, overwrite=False),
    ):
        pass
    with begin_run(tmp_path, SEARCH, overwrite=True):
        assert not (tmp_path / "best").exists()


def test_a_first_write_that_was_cut_short(tmp_path):
    (tmp_path / ".search.json.tmp").write_text("{")
    with begin_run(tmp_path, SEARCH, overwrite=False) as run:
        run.write_search()


@pytest.mark.parametrize(
    "files",
    [
        {"thesis.tex": "years of work"},
        {"search.json": '{"program": "other"}', "trials/1": "years"},
        {"search.json": "[1, 2]", "trials/1": "years"},
        {"search.json": "no JSON", "trials/1": "years", "thesis.tex": "years of work"},
    ],
)
def test_a_folder_of_another_program_is_left_alone(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for use in (
        lambda: begin_run(tmp_path, SEARCH, overwrite=True).__enter__(),
        lambda: Store.open(tmp_path),
    ):
        with pytest.raises(UsageError, match=r"not a run of jaxmnist|run of another program"):
            use()
    found = {
        str(p.relative_to(tmp_path)): p.read_text() for p in tmp_path.rglob("*") if p.is_file()
    }
    assert found == files


def test_a_run_of_a_later_version(tmp_path):
    write_json(tmp_path / "search.json", {"program": "jaxmnist", "format": 99})
    with pytest.raises(UsageError, match="format 99"):
        Store.open(tmp_path)


def test_strange_names_and_folders(tmp_path):
    with pytest.raises(UsageError, match="File name too long"):
        Store.open("a" * 300)
    for name in ("7", "0008", "0009-copy", "x"):
        (tmp_path / "trials" / name).mkdir(parents=True)
    assert Store(tmp_path, SEARCH).trial_keys() == [Key(8)]


def test_an_unnamed_processor_is_given_by_its_architecture(monkeypatch):
    def nothing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", nothing)
    for said, expected in (("", "arm64"), ("a chip", "a chip")):
        monkeypatch.setattr("platform.processor", lambda said=said: said)
        monkeypatch.setattr("platform.machine", lambda: "arm64")
        assert machine()["processor"] == expected


def test_bits_agree_with_the_accuracies_of_as_many_epochs():
    epochs, right = history(0.5, 0.75), bits(0.5, 0.75)
    assert agree(epochs, right, 100)
    assert not agree(epochs, right[:1], 100)
    assert not agree(epochs, right[::-1], 100)
    assert not agree(epochs, (right[0], right[1] + b"\0"), 100)


def test_lock_names_its_holder(tmp_path):
    search = pickle.dumps(SEARCH)
    program = (
        "import pickle, sys; from jaxmnist.runs.store import begin_run\n"
        f"with begin_run({str(tmp_path)!r}, pickle.loads({search}), overwrite=False):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(UsageError, match=f"in use by process {holder.pid} on"),
        begin_run(tmp_path, SEARCH, overwrite=False),
    ):
        pass
    holder.kill()
    holder.communicate()
    with begin_run(tmp_path, SEARCH, overwrite=False):
        pass


def as_nobody(action):
    """Run `action` in a child process that may not do everything; returns what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        try:
            action()
            said = "nothing"
        except UsageError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*fork:RuntimeWarning")
def test_a_directory_that_can_not_be_written(tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    for parent in (tmp_path, *tmp_path.parents[:3]):
        if parent.stat().st_uid == os.getuid():
            parent.chmod(0o755)
    folder.chmod(0o555)

    def start():
        with begin_run(folder / "run", SEARCH, overwrite=False):
            pass

    assert "can't be written: Permission denied" in as_nobody(start)


def test_a_file_where_the_directory_should_be(tmp_path):
    (tmp_path / "run").write_text("")
    with (
        pytest.raises(UsageError, match="can't be used: Not a directory"),
        begin_run(tmp_path / "run", SEARCH, overwrite=False),
    ):
        pass


def test_weights_are_deleted(tmp_path, said):
    run = writing(tmp_path, SEARCH)
    for index in range(4):
        run.trial_folder(Key(index)).mkdir(parents=True)
        run.file(File.WEIGHTS, Key(index)).write_bytes(b"weights")
    run.trial_folder(Key(4)).mkdir()
    run.file(File.WEIGHTS, Key(4)).mkdir()  # a user's folder, with unknown content
    for index in (0, 2, 4):
        run.delete(File.WEIGHTS, Key(index))
    assert [run.file(File.WEIGHTS, Key(i)).exists() for i in range(5)] == [
        False,
        True,
        False,
        True,
        False,
    ]
    (moved,) = (tmp_path / "damaged").iterdir()
    assert said == [f"note: {run.file(File.WEIGHTS, Key(4))}: is not a file; moved to {moved}"]


def started(path):
    """A run with two trials' records, for writing."""
    with begin_run(path, SEARCH, overwrite=False) as run:
        run.write_search()
        for index in (0, 1):
            write_completed(run, replace(trial(), index=index))
    return writing(path)


@pytest.mark.parametrize("content", [None, "", "{", "\0"])
def test_search_json_is_made_again_where_the_trials_tell_whose_they_are(tmp_path, content, said):
    started(tmp_path)
    path = tmp_path / "search.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    other = replace(SEARCH, identity={**SEARCH.identity, "seed": 1})
    with (
        pytest.raises(UsageError, match=" overwrite starts over"),
        begin_run(tmp_path, other, overwrite=False),
    ):
        pass
    with begin_run(tmp_path, SEARCH, overwrite=False) as run:
        run.write_search()
    assert len(said) == 1
    assert read_search(tmp_path).identity == SEARCH.identity
    set_aside = [p.read_text() for p in tmp_path.glob("damaged/*")]
    assert set_aside == ([] if content is None else [content])


STACKING = Sharing("products", 8, {"width": 64})


def test_how_trials_share_programs_is_kept(tmp_path):
    run = started(tmp_path)
    assert run.search.stacking is None
    run.write_stacking(STACKING)
    assert run.search.stacking == STACKING
    with begin_run(tmp_path, SEARCH, overwrite=False) as again:
        again.write_search()
        assert again.search.stacking == read_search(tmp_path).stacking == STACKING
    (tmp_path / "search.json").unlink()
    with begin_run(tmp_path, SEARCH, overwrite=False) as again:
        again.write_search()
        assert again.search.stacking is None


@pytest.mark.parametrize("stacking", [8, "map", {}, {**vars(STACKING), "lanes": 1.5}])
def test_what_is_no_way_of_sharing_programs(tmp_path, stacking, said):
    path = started(tmp_path).file(File.SEARCH)
    write_json(path, {**read_json(path), "stacking": stacking})
    with pytest.raises(DamagedFile, match="lacks what this version of jaxmnist writes"):
        read_search(tmp_path)
    with begin_run(tmp_path, SEARCH, overwrite=False) as run:
        run.write_search()
    assert "lacks what this version of jaxmnist writes; moved to" in said[0]
    assert read_search(tmp_path).stacking is None


def test_a_record_of_another_search_is_not_counted(tmp_path):
    first = started(tmp_path / "a")
    identity = {**SEARCH.identity, "seed": 1}
    with begin_run(tmp_path / "b", replace(SEARCH, identity=identity), overwrite=False) as second:
        second.write_search()
        write_completed(second, replace(trial(), index=0))
        (tmp_path / "a" / "trials" / "0000" / "trial.json").replace(
            tmp_path / "b" / "trials" / "0000" / "trial.json"
        )
        with pytest.raises(DamagedFile, match="of another search's trial"):
            second.read_trial(Key(0))
    assert first.read_trial(Key(1)).index == 1


@pytest.mark.parametrize("name", ["trials", "trials/0001", "best", "damaged", "svm"])
def test_no_way_leads_out_of_a_run(tmp_path, name):
    """A folder that is a link is not entered, whatever it leads to."""
    run, outside = started(tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    (outside / "model.safetensors").write_text("precious")
    path = tmp_path / "run" / name
    if path.exists():
        path.rename(tmp_path / "moved")
    path.symlink_to(outside)
    actions = {
        "trials": lambda: run.delete(File.WEIGHTS, Key(1)),
        "trials/0001": lambda: run.delete(File.WEIGHTS, Key(1)),
        "best": lambda: run.file(File.MODEL),
        "damaged": lambda: run.set_aside(tmp_path / "run" / "search.json"),
        "svm": lambda: run.file(File.SVM, ("small",)),
    }
    with pytest.raises(UsageError, match="is a link; a run must have"):
        actions[name]()
    assert [p.name for p in outside.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("name", ["..", "", "/etc"])
def test_no_name_leads_out_of_a_run(tmp_path, name):
    with pytest.raises(UsageError, match="is outside the run directory"):
        Store(tmp_path, SEARCH).file(File.SVM, (name,))


def test_links_to_files_are_neither_read_nor_written_through(tmp_path):
    run, outside = started(tmp_path / "run"), tmp_path / "outside"
    record = tmp_path / "run" / "trials" / "0001" / "trial.json"
    record.rename(outside)
    record.symlink_to(outside)
    before = outside.read_bytes()
    with pytest.raises(DamagedFile, match="is a link"):
        run.read_trial(Key(1))
    (record.parent / ".trial.json.tmp").symlink_to(outside)
    (tmp_path / "ledger.jsonl").symlink_to(outside)
    run.write_trial(replace(trial(), index=1))
    assert not record.is_symlink()
    with pytest.raises(UsageError):
        run.record_look("winner", "abc", "images")
    assert outside.read_bytes() == before


def test_what_can_not_be_read_now_is_not_damaged(tmp_path, monkeypatch):
    """A disk that fails says nothing of the file: nothing is set aside, nothing made again."""
    run = started(tmp_path)
    monkeypatch.setattr(os, "open", fail_with(errno.EIO))
    with pytest.raises(EnvironmentFailure, match=r"trial\.json: can't be read: Input/output error"):
        run.mended(lambda: run.read_trial(Key(0)))
    monkeypatch.undo()
    assert run.read_trial(Key(0)).index == 0


def fail_with(number):
    def fail(path, *_, **__):
        raise OSError(number, os.strerror(number), path)

    return fail


def test_what_stands_where_a_folder_should_be_is_set_aside(tmp_path, said):
    run = started(tmp_path)
    for name in ("best", "svm"):
        (tmp_path / name).write_text("a file")
    run.set_aside_misplaced()
    assert len(said) == len(list((tmp_path / "damaged").iterdir())) == 2
    assert not (tmp_path / "best").exists()
