"""report.html: its content, also of unfinished and damaged runs."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import a_trial, history, searched, write_completed, writing
from pages import check
from processes import command, looks_of

from jaxmnist import Run
from jaxmnist.files import as_json, read_json, write_json
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION, configuration
from jaxmnist.report import facts, sentences
from jaxmnist.report.drawing import accuracy_axis, canvas, inline_svg
from jaxmnist.report.facts import Facts, in_python_only, python_session, settings_rows
from jaxmnist.report.page import features_in_two, make_page, write_page
from jaxmnist.results.confusion import Evaluation
from jaxmnist.results.evaluation import about_probabilities
from jaxmnist.results.importance import most_gain
from jaxmnist.results.ranking import describe_corrected
from jaxmnist.results.table import accuracy, duration
from jaxmnist.runs import ledger
from jaxmnist.runs.records import ModelReport
from jaxmnist.runs.trial import METRICS, Key, Metrics
from jaxmnist.settings import SearchSettings


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """The finished run, for changing."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    return tmp_path / "small"


def changed_search(path: Path, **changes: object) -> None:
    """Change what search.json says, with a SHA-256 that fits."""
    before = writing(path)
    records = [before.read_trial(key) for key in before.trial_keys()]
    write_json(path / "search.json", {**read_json(path / "search.json"), **changes})
    after = writing(path)
    for record in records:  # rewritten, to belong to the changed search
        after.write_trial(record)


def test_the_page_of_a_finished_run(finished):
    text = (finished.store.path / "report.html").read_text("utf-8")
    page = check(text)
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    names = {attributes["id"] for attributes in page.all("figure")}
    assert {f"figure-curves-{m.replace('_', '-')}" for m in METRICS} <= names
    assert {"figure-quality-filters", "figure-quality-dense-layers", "figure-parallel"} <= names
    assert "figure-quality-units" not in names  # it has one value only
    assert {"figure-reliability", "figure-features"} <= names
    # Four trials are too few for these.
    assert not {"figure-importance", "figure-histogram", "figure-budget"} & names
    for section in ("scores", "budget"):
        assert "A figure is drawn from 8 completed trials on" in page.text[section]
    assert {"figure-against-parameters", "figure-against-seconds"} <= names
    winner = finished.best_trial
    assert finished.ranking.why() in page.text["winner"]
    assert describe_corrected(finished.ranking.corrected) in page.text["winner"]
    assert f"corrected {finished.ranking.corrected.score:.4f}" in page.text["head"]
    assert f"{winner.parameters:,}" in page.text["winner"]
    for trial in finished.trials:
        assert f"{trial.score:.4f}" in page.text["trials"]
    test = finished.result("best/test.json", ModelReport)
    assert f"Test accuracy {test.accuracy:.4f} on 200 images" in page.text["test"]
    assert f"{test.classification_report['macro avg']['recall']:.3f}" in page.text["test"]
    assert "4 completed trials the importance of hyperparameters can't be estimated" in " ".join(
        page.text["importance"].split()
    )
    assert finished.best_model.summary() in page.text["network"]
    assert about_probabilities(finished, test) in page.text["trust"]
    assert "test accuracy" in page.text["trust"]  # the gap to the validation accuracy
    low, high = Evaluation.of(test).recall_intervals()[0]
    assert f"{low:.3f}–{high:.3f}" in page.text["test"]
    assert sentences.about_more(finished)[0] in page.text["budget"]
    assert "Twice as many trials, 4 more, find a better one" in page.text["budget"]
    for what in ("seed", "jax", "training", "winner", "processor"):
        assert what in page.text["record"]
    assert "--max-trials 4" in page.text["repeat"]
    assert len(text) < 1_000_000


def test_the_counts_in_the_figures(eight):
    page = check((eight.store.path / "report.html").read_text("utf-8"))
    for name in ("filters", "conv_layers"):
        values = [trial.hyperparameters[name] for trial in eight.trials]
        for value in set(values):
            assert f"{value}  ({values.count(value)})" in page.text["quality"]
    svg = next(a for a in page.all("svg") if "Trials by validation accuracy" in a["aria-label"])
    counts = [int(count) for count in re.findall(r"to [\d.]+: (\d+)", svg["aria-label"])]
    assert sum(counts) == 8


def test_mistakes_are_those_of_the_kept_predictions(finished, mnist):
    page = check((finished.store.path / "report.html").read_text("utf-8"))
    probabilities = finished.best_model.predict_proba(mnist.x_test[:200])
    truth, found = mnist.y_test[:200], probabilities.argmax(1)
    wrong = np.flatnonzero(truth != found)
    surest = wrong[probabilities.max(1)[wrong].argmax()]
    first = page.all("img")[0]["alt"]
    assert f"Test image {surest}: a {truth[surest]} classified as a {found[surest]}" in first
    assert len(page.all("img")) == min(24, len(wrong))


def test_made_again_it_is_the_same_and_looks_at_nothing(copy):
    before = (copy / "report.html").read_bytes()
    (copy / "report.html").unlink()
    done = command("report", copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{copy / 'report.html'}\n"
    after = (copy / "report.html").read_text("utf-8")
    # Only the path of the run has changed.
    at_home = Path(str(Run(copy).settings.output.directory)) / "small"
    assert after.replace(str(copy), str(at_home)) == before.decode()
    assert looks_of(Run(copy)) == ["winner", "svm"]


def test_no_run_gets_one_line(tmp_path):
    done = command("report", tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not a run" in done.stderr


def test_a_half_finished_run(copy):
    """Two trials done, one running in its second epoch, one not begun."""
    for part in ("best", "svm"):
        shutil.rmtree(copy / part)
    shutil.rmtree(copy / "trials" / "0003")
    run = writing(copy)
    trial = run.read_trial(Key(2))
    run.write_trial(replace(trial, status="running", history=trial.history[:1]))
    page = check(make_page(Run(copy), images=False, reload=True))
    assert "2 of 4 trials are done" in page.text["head"]
    assert "So far: Trial" in page.text["winner"]
    assert "comes when the search has finished" in page.text["features"]
    assert "running" in page.text["trials"]
    assert any(a.get("http-equiv") == "refresh" for a in page.all("meta"))
    curves = next(a for a in page.all("svg") if "Validation accuracy by" in a["aria-label"])
    assert "of 3 trials" in curves["aria-label"]


def test_a_run_that_has_not_begun_or_only_failed(copy):
    for part in ("best", "svm", "trials"):
        shutil.rmtree(copy / part)
    page = check(make_page(Run(copy)))
    assert "No trial has begun yet" in page.text["head"]
    run = writing(copy)
    lost = (Metrics(*[float("nan")] * 4),)
    for index in range(4):
        draw, error = configuration(4, 1, 0), "the loss <b>ran</b> away"
        run.write_trial(a_trial(index, draw, "failed", lost, error=error))
    page = check(make_page(Run(copy)))
    assert "Every trial failed" in page.text["head"]
    assert "the loss <b>ran</b> away" in page.text["trials"]
    assert "no winner" in page.text["winner"]


DAMAGE = {
    "trials/0001/trial.json": ("head", "a trial is left out"),
    "trials/0001/validation.npy": ("head", "a trial is left out"),
    "best/test.json": ("head", "the results on the test set can't be read"),
    "best/test_probabilities.npy": ("test", "test_probabilities.npy"),
    "best/model.safetensors": ("features", "model.safetensors"),
    "best/times.json": ("record", "time of each stage"),
    "svm/small/svm.json": ("test", "svm.json"),
    "../ledger.jsonl": ("record", "is not a ledger of jaxmnist"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_leaves_a_hole_and_a_note(copy, name, finished):
    (copy / name).write_bytes(b"\xff\x00 no such thing")
    section, says = DAMAGE[name]
    page = check(
        make_page(Run(copy), finished.load_dataset(), images=name == "best/model.safetensors")
    )
    assert says in page.text[section]


def test_what_the_test_file_would_have_said_is_no_later_part(copy):
    (copy / "best" / "test.json").write_bytes(b"\xff")
    page = check(make_page(Run(copy)))
    for section in ("test", "mistakes", "features"):
        assert "test.json" in page.text[section]
        assert "comes when the search has finished" not in page.text[section]


def test_the_network_is_that_of_the_present_winner(copy):
    """Not of the one before, whose files are still in best/."""
    before, after = (entry.trial for entry in Run(copy).ranking.ranked[:2])
    assert before.parameters != after.parameters
    shutil.rmtree(copy / "trials" / f"{before.index:04d}")
    page = check(make_page(Run(copy), images=False))
    assert f"Total params: {after.parameters} " in page.text["network"]


def test_trials_beyond_the_budget_are_not_counted(copy):
    search = read_json(copy / "search.json")
    run = writing(copy)
    run.write_trial(replace(run.read_trial(Key(3)), status="failed", error="MemoryError"))
    run.write_trial(replace(run.read_trial(Key(2)), status="running"))
    changed_search(copy, settings={**search["settings"], "max_trials": 3})
    page = check(make_page(Run(copy), images=False))
    assert "2 of 3 trials are done" in page.text["head"]


def test_other_data_are_told_of(copy):
    identity = {**read_json(copy / "search.json")["identity"], "data": "0" * 64}
    changed_search(copy, identity=identity)
    page = check(make_page(Run(copy)))
    assert "not those of" in page.text["features"]
    assert "not those of" in page.text["mistakes"]


def test_hostile_words_stay_words(copy):
    evil = '"><script>alert(1)</script><img src=http://x onerror=alert(1)>$\\frac{1}{0}$'
    search = read_json(copy / "search.json")
    changed_search(
        copy,
        data={**search["data"], "name": evil},
        sessions=[{"versions": {evil: evil}, "device": {"kind": evil}, "environment": {}}],
        settings={**search["settings"], "project_name": "<b>$"},
    )
    run = writing(copy)
    run.write_trial(replace(run.read_trial(Key(3)), status="failed", error=evil))
    words_of = ("<script>alert(2)</script>", "\ud800\x1b[2J", evil, evil)
    look = ledger.Look(*words_of, run.test_sha256)
    ledger.record(copy.parent / "ledger.jsonl", look)
    page = check(make_page(Run(copy), images=False))
    for section in ("head", "trials", "record"):
        assert "<script>" in page.text[section]


def test_search_json_that_says_too_little(copy):
    search = read_json(copy / "search.json")
    data = {name: search["data"][name] for name in ("validation", "in_memory")}
    write_json(copy / "search.json", {**search, "data": data})
    done = command("report", copy)
    assert done.returncode == 2
    assert "search.json: lacks what this version of jaxmnist writes" in done.stderr


def test_the_page_is_there_whole_or_not_at_all(copy, monkeypatch):
    import os

    before = (copy / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left"):
        write_page(Run(copy), images=False)
    assert (copy / "report.html").read_bytes() == before


def test_how_to_repeat_it(finished):
    line = facts.search_command(finished.settings)
    for part in ("--filters 4:8:4", "--units 8", "--epochs 3", "--learning-rate 0.01"):
        assert part in line
    assert "--directory" not in line
    from jaxmnist.api import settings_of
    from jaxmnist.commands.parser import Parser, add_ranges, add_settings

    parser, space = Parser("search", ""), Space(DEFINITION)
    add_settings(parser)
    add_ranges(parser, space.describe().ranges(), {})
    again = settings_of(vars(parser.parse_args(line.split()[3:])), space)
    assert again.ranges == {**finished.settings.ranges, "units": "8"}
    assert python_session(finished.settings).startswith("jaxmnist.random_search(")


def test_settings_that_were_given_come_first(finished):
    listed, others = settings_rows(finished.store.search)
    for row in (("max_trials", 4), ("epochs", 3), ("filters", "4:8:4"), ("units", "8")):
        assert row in listed
    for row in (("seed", 0), ("optimizer", "adamw"), ("network", "study")):
        assert row in others
    names = [name for name, _ in [*listed, *others]]
    assert len(set(names)) == len(names)
    given = {**finished.store.search.settings, **finished.store.search.identity["space"]}
    assert set(names) - {"network"} == set(given) - {"ranges"}
    text = (finished.store.path / "report.html").read_text("utf-8")
    folded = text[text.index("<details>") : text.index("</details>")]
    assert ">optimizer<" in folded
    assert ">max_trials<" not in folded


def test_a_recipe_is_repeated_by_its_name():
    settings = SearchSettings(recipe="study", optimizer="sgd")
    line = python_session(settings)
    assert line == "jaxmnist.random_search(recipe='study', optimizer='sgd')"
    assert (
        facts.search_command(settings) == "python -m jaxmnist.search --recipe study --optimizer sgd"
    )
    assert eval(line, {"jaxmnist": SimpleNamespace(random_search=SearchSettings)}) == settings


def test_how_to_repeat_what_was_given_in_python():
    study = searched(settings={"model": None})
    identity = {**study.identity, "network": "own"}
    own = replace(study, identity=identity, data=replace(study.data, in_memory=True))
    assert in_python_only(study) == []
    assert in_python_only(replace(own, settings={"model": "net.py"})) == ["data"]
    assert in_python_only(own) == ["build_model", "data"]
    settings = SearchSettings(max_trials=3, dataset="arrays")
    line = python_session(settings, ["build_model", "data"])
    assert line == "jaxmnist.random_search(build_model, data=data, max_trials=3)"
    named = python_session(settings.replace(dataset="mine"), ["data"])
    assert eval(named, {"jaxmnist": SimpleNamespace(random_search=dict), "data": 1}) == {
        "data": 1,
        "dataset": "mine",
        "max_trials": 3,
    }


def test_words():
    assert duration(8.2) == "8.2 s"
    assert duration(185) == "3 min 05 s"
    assert duration(7800) == "2 h 10 min"
    assert accuracy(None) == accuracy(float("nan")) == "–"


@pytest.mark.parametrize(
    ("values", "images"),
    [([0.981, 0.990], 6000), ([0.1, 0.99], 6000), ([1.0, 1.0], 20), ([0.0, 1.0], 2), ([0.5], 100)],
)
def test_the_stretched_axis(values, images):
    """Every value is inside, ticks are true, and a tenth of the errors is always the same step."""
    with canvas(4, 3) as drawn:
        accuracy_axis(drawn.axes, values, images)
        low, high = drawn.axes.get_ylim()
        assert low < min(values)
        assert max(values) < high
        for tick, label in zip(drawn.axes.get_yticks(), drawn.axes.get_yticklabels(), strict=True):
            assert float(label.get_text()) == pytest.approx(tick, abs=1e-6)
        svg = inline_svg(drawn, "name", "says <this>")
    assert 'aria-label="says &lt;this&gt;"' in svg


def test_a_large_search_stays_readable(copy):
    """Forty values of a hyperparameter and sixty trials: columns are grouped, the page is small."""
    search = read_json(copy / "search.json")
    changed_search(
        copy,
        space=as_json(Space(DEFINITION, {"filters": "1:40:1"}).describe()),
        settings={**search["settings"], "max_trials": 60},
    )
    run = writing(copy)
    like = run.read_trial(Key(0))
    generator = np.random.default_rng(0)
    for index in range(60):
        values = generator.integers(90, 100, (3, 4)) / 100  # of 100 validation images
        epochs = tuple(Metrics(*row) for row in values.tolist())
        draw = like.hyperparameters.replace(filters=int(generator.integers(1, 41)))
        write_completed(run, replace(like, index=index, hyperparameters=draw, history=epochs))
    text = make_page(Run(copy), images=False)
    page = check(text)
    assert "1–5" in page.text["quality"]
    assert {"figure-importance", "figure-budget"} <= {a["id"] for a in page.all("figure")}
    assert "60 trials do not show that any hyperparameter matters" in page.text["importance"]
    assert len(text) < 2_000_000
    assert Facts(Run(copy)).budget == 60


def records(path: Path, scores: list[float], failed: int = 0) -> Run:
    """The run with trials of these scores, and failed ones after them."""
    shutil.rmtree(path / "trials")
    search = read_json(path / "search.json")
    count = len(scores) + failed
    changed_search(
        path,
        settings={**search["settings"], "max_trials": count},
        space=as_json(Space(DEFINITION, {"filters": "1:40:1"}).describe()),
    )
    run = writing(path)
    for index in range(count):
        draw = configuration(index + 1, 1, 0)
        if index < len(scores):
            epochs = history(0.1, 0.2, scores[index])
            write_completed(run, a_trial(index, draw, "completed", epochs, seconds=1.0))
            continue
        epochs, error = history(0.5, 0.5, 0.5), "MemoryError: no"
        run.write_trial(a_trial(index, draw, "failed", epochs, seconds=1.0, error=error))
    return Run(path)


def text_of(run: Run) -> dict[str, str]:
    page = check(make_page(run, images=False))
    return {section: " ".join(text.split()) for section, text in page.text.items()}


def test_perfect_scores_do_not_ask_for_more_trials(copy):
    text = text_of(records(copy, [1.0] * 5))
    assert "has a validation accuracy of 1: more can't raise it." in text["budget"]


def test_failed_trials_count_as_tried(copy):
    run = records(copy, [0.9, 0.92, 0.94, 0.9, 0.91, 0.93], failed=4)
    text = text_of(run)
    assert "10 more, find a better one with probability 0.50 at most" in text["budget"]
    bound = most_gain(run.ranking.standings, 10, 10)
    assert f"with standard error 0.0237, rises by no more than {bound:.4f}." in text["budget"]


def test_the_rest_of_a_space_is_less_than_twice_the_budget(copy):
    run = records(copy, [0.9, 0.92, 0.94, 0.9, 0.91, 0.93])
    run.space = replace(run.space, size=8)
    said = " ".join(sentences.about_more(run))
    assert "The 2 trials that the space has left find a better one with probability 0.25" in said
    run.space = replace(run.space, size=6)
    assert "has tried its whole space" in sentences.about_more(run)[0]
    run = records(copy, [0.9, 0.92])
    assert "How much better it would be, these trials can't say" in sentences.about_more(run)[0]


def test_equal_scores_of_many_trials_show_nothing(copy):
    text = text_of(records(copy, [0.9] * 30))
    assert "All trials have the same score" in text["importance"]


def test_who_is_interrupted_does_not_run(copy):
    run = writing(copy)
    run.write_trial(replace(run.read_trial(Key(2)), status="running", history=()))
    assert "interrupted" in text_of(Run(copy))["trials"]
    assert "running" in check(make_page(Run(copy), images=False, reload=True)).text["trials"]


def test_features_of_sorted_data_are_of_all_classes(finished):
    data = finished.load_dataset()
    order = np.argsort(data.y_validation, kind="stable")
    ordered = replace(
        data, x_validation=data.x_validation[order], y_validation=data.y_validation[order]
    )
    points, classes, _ = features_in_two(finished, ordered)
    assert len(points) == len(data.y_validation)
    few, _, _ = features_in_two(
        finished,
        replace(
            ordered,
            x_validation=np.repeat(ordered.x_validation, 20, 0),
            y_validation=np.repeat(ordered.y_validation, 20),
        ),
    )
    assert len(few) == 1000
    assert set(classes) == set(data.y_validation)


def test_the_nodes_of_a_cluster(copy):
    run = writing(copy)
    assert "Nodes" not in text_of(Run(copy))["record"]
    for index, node, seconds in ((0, "a", 30.0), (1, "b", 10.0), (2, "a", 20.0), (3, "b", 20.0)):
        trial = replace(run.read_trial(Key(index)), node=node, device="cpu", seconds=seconds)
        run.write_trial(trial)
    said = text_of(Run(copy))
    assert "together the nodes were busy for 1 min 20 s" in said["record"]
    assert "acpu250.0 s62 % bcpu230.0 s38 %" in said["record"]
