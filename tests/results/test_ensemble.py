"""The ensemble of the best trials: by hand in NumPy, its kept look, and what refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import jax.export
import numpy as np
import pytest
from conftest import writing
from processes import command, flags, looks_of

from jaxmnist import Run, UsageError, random_search
from jaxmnist import __main__ as commands
from jaxmnist.commands.parser import run_command
from jaxmnist.files import as_json, read_json, write_json
from jaxmnist.report.page import make_page
from jaxmnist.results import comparisons
from jaxmnist.results.evaluation import evaluate_ensemble
from jaxmnist.runs.records import File
from jaxmnist.search.beginning import check_counts, describe_kept
from jaxmnist.settings import SearchSettings


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run, for changing."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture(scope="module")
def dataset(finished):
    return finished.load_dataset()


@pytest.fixture(scope="module")
def tested(finished, dataset, tmp_path_factory):
    """A copy of the finished run with an ensemble of three; tests that change it copy it again."""
    path = tmp_path_factory.mktemp("tested") / "small"
    shutil.copytree(finished.store.path, path)
    evaluate_ensemble(Run(writing(path)), dataset, 3)
    return path


def by_hand(run: Run, images: np.ndarray, count: int) -> np.ndarray:
    """The mean over the first trials of softmax(logits), in float64."""
    found = []
    for model in run.get_best_models(count):
        logits = model._run("logits", images).astype(np.float64)
        exponentials = np.exp(logits)
        found.append(exponentials / exponentials.sum(1, keepdims=True))
    return np.mean(found, axis=0)


def test_the_mean_probability_by_hand(tested, dataset):
    run = Run(tested)
    ensemble, images = run.ensemble, dataset.x_test
    expected = by_hand(run, images, 3)
    found = ensemble.predict_proba(images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ensemble.predict(images), expected.argmax(1))
    assert ensemble.labels == ensemble.members[0].labels == tuple(range(10))
    for member in ensemble.members:
        assert np.abs(member.predict_proba(images) - found).max() > 1e-3


def test_its_report_and_its_look(tested, finished, dataset):
    run = Run(tested)
    content = read_json(tested / "best" / "ensemble" / "ensemble.json")
    first = sorted(entry.trial.index for entry in run.ranking.ranked[:3])
    assert [member["trial"] for member in content["members"]] == first
    hashes = sorted(run.trials[index].weights_sha256 for index in first)
    identity = hashlib.sha256(json.dumps(hashes, separators=(",", ":")).encode()).hexdigest()
    last = run.store.read_looks(run.store.test_sha256).found[-1]
    assert (last.purpose, last.model_sha256) == ("ensemble", identity)
    assert looks_of(run) == [*looks_of(finished), "ensemble"]
    right = by_hand(run, dataset.x_test, 3).argmax(1) == dataset.y_test
    assert content["accuracy"] == right.mean()
    right = by_hand(run, dataset.x_validation, 3).argmax(1) == dataset.y_validation
    assert content["validation_accuracy"] == right.mean()
    assert content["looks"][-1] == as_json(last)
    text = run.results_summary()
    assert f"Ensemble of the first 3 trials ({', '.join(map(str, first))})" in text
    assert f"test accuracy {content['accuracy']:.4f}" in text
    assert "costs 3 times the computing" in text
    page = make_page(run, images=False)
    assert comparisons.describe_ensemble(run.kept_ensemble()) in page


def test_it_is_looked_at_once(tested, dataset, tmp_path, said):
    shutil.copytree(tested, tmp_path / "small")
    run = Run(writing(tmp_path / "small"))
    folder = run.store.file(File.ENSEMBLE).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    content = evaluate_ensemble(run, dataset, 3)
    # Nor where the ranking changes, as long as the same trials are the first.
    run.ranking.ranked[:3] = run.ranking.ranked[2::-1]
    assert evaluate_ensemble(run, dataset, 3) == content
    assert looks_of(run) == ["winner", "svm", "ensemble"]
    assert not said
    for number, name in enumerate(before):
        (folder / name).write_bytes(b"damaged")
        again = evaluate_ensemble(run, dataset, 3)
        assert "to be made again" in said[number]
        assert looks_of(run) == ["winner", "svm", "ensemble"]  # nothing new was seen
        assert replace(again, looks=()) == replace(content, looks=())
    # Other members are another model.
    assert len(evaluate_ensemble(run, dataset, 2).members) == 2
    assert looks_of(run) == ["winner", "svm", "ensemble", "ensemble"]
    assert len(run.ensemble.members) == 2


def test_an_ensemble_of_other_trials_is_not_used(tested, tmp_path):
    shutil.copytree(tested, tmp_path / "small")
    path = tmp_path / "small" / "best" / "ensemble" / "ensemble.json"
    content, run = read_json(path), Run(tested)
    others = [
        *content["members"][:2],
        {"trial": run.ranking.ranked[3].trial.index, "model_sha256": "0"},
    ]
    identity = comparisons.members_identity([member["model_sha256"] for member in others])
    write_json(path, {**content, "members": others, "model_sha256": identity})
    run = Run(tmp_path / "small")
    assert "Ensemble" not in run.results_summary()
    with pytest.raises(UsageError, match=r"no ensemble of its first trials: .*--ensemble K"):
        _ = run.ensemble
    assert (
        comparisons.members_identity(["b", "a"])
        == comparisons.members_identity(["a", "b"])
        != comparisons.members_identity(["a"])
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ensemble": 1}, r"ensemble must be a whole number of at least 2, not 1"),
        ({"ensemble": True}, r"ensemble must be a whole number of at least 2, not True"),
        ({"ensemble": "3"}, r"ensemble must be a whole number of at least 2, not '3'"),
        ({"ensemble": 11}, r"ensemble 11 needs as many trials, and max_trials is 10"),
        ({"ensemble": 5, "keep": 3}, r"ensemble 5 needs the weights .*keep is 3: leave it out"),
        ({"ensemble": 5, "keep": "x"}, r"keep must be a whole number"),
        ({"ensemble": 5, "max_trials": "x"}, r"max_trials must be a whole number"),
    ],
)
def test_settings_that_contradict(options, says):
    with pytest.raises(UsageError, match=says) as caught:
        SearchSettings(**options)
    assert "\n" not in str(caught.value)


def test_the_weights_that_it_needs_are_kept():
    assert SearchSettings().output.keep == SearchSettings(ensemble=2).output.keep == 3
    settings = SearchSettings(ensemble=5)
    assert (settings.output.keep, SearchSettings(ensemble=5, keep=7).output.keep) == (5, 7)
    assert SearchSettings(**settings.to_json()) == settings
    assert settings.identity() == SearchSettings().identity()
    assert describe_kept(settings) == "weights of the best 5 trials are kept"
    assert describe_kept(settings.replace(ensemble=3)) is None
    assert describe_kept(SearchSettings()) is None
    check_counts(5, settings.selection)
    for given in (settings, SearchSettings(finalists=5)):
        with pytest.raises(UsageError, match="5 is more than the 4 configurations that can be"):
            check_counts(4, given.selection)
    with pytest.raises(UsageError, match=r"^ensemble 5 needs the weights .* and keep is 3"):
        random_search(ensemble=5, keep=3)


def test_weights_that_are_no_longer_kept(tested, tmp_path):
    shutil.copytree(tested, tmp_path / "small")
    path = tmp_path / "small" / "search.json"
    content = read_json(path)
    write_json(path, {**content, "settings": {**content["settings"], "keep": 1}})
    with pytest.raises(UsageError, match=r"weights of 1 trials were kept, .*--ensemble 3"):
        _ = Run(tmp_path / "small").ensemble


def test_the_commands(copy, options, dataset, capsys):
    """The search's command again, with an ensemble: no trial is trained; then what uses it."""
    done = command(
        "search", *flags(options), "--ensemble", 3, "--verbose", "--directory", copy.parent
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "Ensemble of the first 3 trials" in done.stdout
    assert "at 5 % for all 3 together by Holm's method" in done.stdout
    for line in ("ensemble − network", "SVM − network", "SVM − ensemble"):
        assert done.stdout.count(line) == 1
    run = Run(copy)
    assert looks_of(run) == ["winner", "svm", "ensemble"]
    assert "Test set evaluated 3 times: " in done.stdout
    np.save(copy.parent / "digits.npy", dataset.x_test[:20])
    line = ["predict", str(copy), str(copy.parent / "digits.npy"), "--ensemble", "--json"]
    assert run_command(commands.main, line) == 0
    found = [list(row["probabilities"].values()) for row in json.loads(capsys.readouterr().out)]
    expected = by_hand(run, dataset.x_test[:20], 3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    path = copy.parent / "mean.stablehlo"
    assert run_command(commands.main, ["export", str(copy), str(path), "--ensemble"]) == 0
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    values = np.asarray(exported.call(dataset.x_test[:20]))
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
    described = read_json(copy.parent / "mean.stablehlo.json")
    assert described["output"] == "the mean of the members' probabilities"
    assert described["test_accuracy"] == run.kept_ensemble().accuracy
    assert [each["trial"] for each in described["members"]] == list(run.ensemble.trials)
    line = ["export", str(copy), str(copy.parent / "mean.safetensors"), "--ensemble"]
    assert run_command(commands.main, line) == 2
    assert capsys.readouterr().err.endswith(
        "an ensemble is not one network's weights: export it to .stablehlo or .onnx, or its"
        " members one by one\n"
    )


@pytest.mark.parametrize("name", ["predict", "export"])
def test_a_run_without_an_ensemble_gets_one_line(finished, tmp_path, name, capsys):
    np.save(tmp_path / "digits.npy", np.zeros((1, 28, 28), np.uint8))
    file = str(tmp_path / ("digits.npy" if name == "predict" else "a.stablehlo"))
    line = [name, str(finished.store.path), file, "--ensemble"]
    assert run_command(commands.main, line) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "has no ensemble of its first trials: repeat its search with --ensemble K" in error


def test_too_few_trials_have_completed(finished):
    with pytest.raises(UsageError, match=r"^ensemble 5 needs as many completed trials: 4 are"):
        comparisons.first_members(finished.ranking.ranked, 5)
