"""Several runs on one page, by the real command."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from pages import COMPARED, check
from processes import Ended, command
from scipy.stats import binomtest

from jaxmnist import Run, random_search
from jaxmnist.files import as_json, read_json, write_json
from jaxmnist.report import comparison, page
from jaxmnist.report.comparison import differing, families, make_comparison, names_of
from jaxmnist.results import comparisons
from jaxmnist.results.importance import Importance
from jaxmnist.runs.ledger import Look, record
from jaxmnist.runs.records import Compared, Comparisons, ModelReport


def report(*arguments: object, folder: Path) -> Ended:
    return command("report", *arguments, cwd=folder)


def one_line(done: Ended) -> str:
    """The line of a mistake."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


def sections(text: str) -> dict[str, str]:
    page = check(text, COMPARED)
    return {name: " ".join(part.split()) for name, part in page.text.items()}


def test_two_runs(finished, eight, tmp_path):
    before = {
        run: (run.store.path.parent / "ledger.jsonl").read_bytes() for run in (finished, eight)
    }
    done = report(finished.store.path, eight.store.path, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "comparison.html\n"
    text = sections((tmp_path / "comparison.html").read_text("utf-8"))
    for run in (finished, eight):
        assert f"{accuracy_of(run):.4f}" in text["results"]
        assert f"{run.ranking.corrected.score:.4f}" in text["results"]
        assert (run.store.path.parent / "ledger.jsonl").read_bytes() == before[run]
    assert "max_trials48" in text["settings"]  # the row of a table
    assert "epochs3" in text["settings"]  # among what is the same
    again = report(eight.store.path, finished.store.path, folder=tmp_path)
    assert again.returncode == 0  # a page of jaxmnist is replaced


def test_the_test_is_mcnemars(finished, eight, mnist):
    (family,) = families({"a": finished, "b": eight})
    assert (family.runs, family.images) == (("a", "b"), 200)
    truth = mnist.y_test[:200]
    right = [run.best_model.predict(mnist.x_test[:200]) == truth for run in (finished, eight)]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    (pair,) = family.pairs
    assert [pair.only_first, pair.only_second] == only
    expected = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    assert pair.p_value == pytest.approx(expected)


def copy_of(run: Run, folder: Path) -> Path:
    folder.mkdir()
    return Path(shutil.copytree(run.store.path, folder / "small"))


def changed(path: Path, **changes: object) -> Path:
    """A run whose search.json has other content, with a SHA-256 that fits."""
    write_json(path / "search.json", {**read_json(path / "search.json"), **changes})
    return path


def test_other_test_images_are_not_compared(finished, tmp_path):
    data = {**as_json(finished.store.search.data), "test_sha256": "0" * 64}
    other = changed(copy_of(finished, tmp_path / "a"), data=data)
    text = sections(make_comparison([finished, Run(other)], tmp_path))
    assert "on 2 different sets of test images" in text["test"]
    assert "McNemar" not in text["test"]


def test_without_the_data_all_else_is_there(finished, eight, tmp_path):
    """Their place is in the settings of search.json, which are not part of its identity."""
    gone = {**finished.store.search.settings, "data_dir": str(tmp_path / "small")}
    runs = [
        Run(changed(copy_of(run, tmp_path / name), settings=gone))
        for name, run in (("a", finished), ("b", eight))
    ]
    text = sections(make_comparison(runs, tmp_path))
    assert "can't be compared image by image" in text["test"]
    assert "its data are not at" in text["test"]
    assert f"{accuracy_of(finished):.4f}" in text["results"]


def accuracy_of(run: Run) -> float:
    return run.result("best/test.json", ModelReport).accuracy


@pytest.fixture
def two_folders(finished, options, tmp_path) -> tuple[Path, Path]:
    """A run in each of two folders, with ledgers of their own, by searches of their own."""
    shutil.copytree(finished.store.path.parent, tmp_path / "a" / "runs")
    folder = tmp_path / "b" / "runs"
    random_search(**{**options, "max_trials": 1, "epochs": 1, "seed": 1}, directory=str(folder))
    return tmp_path / "a" / "runs" / "small", folder / "small"


def compared(*runs: Path, folder: Path) -> str:
    """What the page of these runs says about their test set."""
    done = report(*runs, folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return sections((folder / "comparison.html").read_text("utf-8"))["test"]


def identifiers(*files: Path) -> set[str]:
    """Those of evaluations, from the text of ledgers and results."""
    return {
        name for file in files for name in re.findall(r'"identifier": "(\w+)"', file.read_text())
    }


def test_evaluations_are_those_of_all_runs(two_folders, tmp_path):
    """Of two folders, of a copy that its new folder's ledger lacks, and of runs not compared."""
    a, b = two_folders
    ledgers = [run.parent / "ledger.jsonl" for run in (a, b)]
    assert len(identifiers(*ledgers)) == 4
    of_both = "winner and SVM of a/runs/small; winner and SVM of b/runs/small"
    assert f"Test set evaluated 4 times: {of_both}." in compared(a, b, folder=tmp_path)
    copied = shutil.copytree(b, a.parent / "copied")
    before = ledgers[0].read_bytes()
    text = compared(copied, a, folder=tmp_path)
    assert "evaluated 4 times: winner and SVM of copied; winner and SVM of small." in text
    assert ledgers[0].read_bytes() == before
    # A copy has the evaluations of its original, which count once.
    for runs in ((a, copied, b), (copied, b, a)):
        text = compared(*runs, folder=tmp_path)
        assert "Test set evaluated 4 times:" in text
        assert "winner and SVM of b/runs/small" in text
        assert "copied;" not in text
    # What the other folder's runs did counts as well, and each damaged line once.
    images = Run(b).store.test_sha256
    record(ledgers[1], Look("winner", "runs/other", "identity", "model", images))
    shutil.copytree(b, b.parent / "again")
    lines = ledgers[1].read_bytes().splitlines(keepends=True)
    ledgers[1].write_bytes(b"".join([*lines, b'{"number": 4, "damaged\n']))
    text = compared(b.parent / "again", b, a, folder=tmp_path)
    assert "Test set evaluated 6 times:" in text
    assert "winner of runs/other; 1 unknown (a line of the ledger is damaged" in text


def test_an_untested_runs_folder_counts_too(two_folders, tmp_path):
    a, b = two_folders
    shutil.rmtree(b / "best")
    text = compared(b, a, folder=tmp_path)
    assert "winner and SVM of b/runs/small; winner and SVM of a/runs/small." in text
    changed(b, data={**as_json(Run(b).store.search.data), "test_sha256": "0" * 64})
    text = compared(b, a, folder=tmp_path)
    assert "Test set evaluated 2 times: winner and SVM of a/runs/small." in text


def test_no_p_value_is_printed_as_0(finished, eight, tmp_path, monkeypatch):
    """On the page of several runs and on a run's own, whose numbers have been rounded to 0."""
    pairs = comparisons.compare_models({"a": np.ones(2400, bool), "b": np.zeros(2400, bool)})
    assert pairs[0].p_value == 0
    monkeypatch.setattr(comparison, "compare_models", lambda right: pairs)
    text = sections(make_comparison([finished, eight], tmp_path))["test"]
    assert "below 1e-300more than chance explains" in text
    models = {name: Compared(accuracy, "") for name, accuracy in (("a", 1.0), ("b", 0.0))}
    _, line = comparisons.describe_comparisons(Comparisons(models, pairs))
    assert "; p below 1e-300, more than chance explains." in line
    never = Importance("filters", 400, 0.5, 0.4, 0.6, chance=0.1, p_value=0.0, matters=True)
    monkeypatch.setattr(page, "_importances", lambda *_: [never])
    assert "below 1e-300" in page.make_page(finished, images=False)


def test_an_unfinished_run_and_one_of_another_version(finished, eight, tmp_path):
    """Newer settings and versions don't matter; what they are is shown."""
    begun = copy_of(finished, tmp_path / "a")
    for part in ("best", "svm", "trials"):
        shutil.rmtree(begun / part)
    session = {"versions": {"jaxmnist": "9.9.9", "jax": "9"}, "device": {"kind": "none <b>"}}
    session["environment"] = {}
    changed(
        begun,
        settings={**finished.store.search.settings, "a_newer_setting": 1},
        sessions=[session],
    )
    text = sections(make_comparison([eight, Run(begun)], tmp_path))
    assert "9.9.9" in text["settings"]
    assert "none <b>" in text["settings"]
    text = sections(make_comparison([Run(begun), Run(begun)], tmp_path))  # nothing to draw
    assert "No run has a winner yet" in text["curves"]


def test_damage_is_noted(eight, finished, tmp_path):
    path = copy_of(eight, tmp_path / "a")
    (path / "best" / "test.json").write_bytes(b"\xff")
    (path / "trials" / "0002" / "trial.json").write_bytes(b"\xff")
    text = sections(make_comparison([Run(path), finished], tmp_path))
    assert "a trial is left out" in text["head"]
    assert "test.json" in text["head"]


def test_mistakes_get_one_line(finished, eight, tmp_path):
    """Of the command, which writes nothing then."""
    strange = changed(copy_of(finished, tmp_path / "a"), format=3)
    run = finished.store.path
    said = one_line(report(run, strange, folder=tmp_path))
    assert f"{strange}/search.json: has format 3; this version reads 2" in said
    said = one_line(report(run, f"{run}/../small", folder=tmp_path))
    assert "is given twice" in said
    said = one_line(report(run, tmp_path / "nothing", folder=tmp_path))
    assert "is not a run of jaxmnist" in said
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own page")
    said = one_line(report(run, eight.store.path, "--output", mine, folder=tmp_path))
    assert "mine.html: exists and is not a page of jaxmnist" in said
    assert mine.read_text() == "<p>my own page"
    assert not (tmp_path / "comparison.html").exists()


def test_one_run_elsewhere(finished, tmp_path):
    """`--output` of one run leaves its own report.html alone."""
    before = (finished.store.path / "report.html").stat().st_mtime_ns
    done = report(finished.store.path, "--output", "page.html", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "page.html\n", "")
    check((tmp_path / "page.html").read_text("utf-8"))
    assert (finished.store.path / "report.html").stat().st_mtime_ns == before


def test_short_names_tell_runs_apart():
    assert names_of([Path("/x/runs/a"), Path("/x/runs/b")]) == ["a", "b"]
    assert names_of([Path("/x/runs/a"), Path("/y/runs/a"), Path("/z/a")]) == [
        "x/runs/a",
        "y/runs/a",
        "/z/a",
    ]


def test_what_differs(finished, eight):
    different, same = differing([finished, eight])
    assert different["max_trials"] == ["4", "8"]
    assert "directory" not in different
    assert same["filters"] == finished.store.search.identity["space"]["filters"]
    assert np.array_equal(list(same), list(dict.fromkeys(same)))
