"""The end of a search: four lines, and the commands to type next."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
from conftest import writing

from jaxmnist import Run, random_search
from jaxmnist import __main__ as commands
from jaxmnist.commands.parser import run_command
from jaxmnist.files import read_json, write_json
from jaxmnist.report.console import MOST_ROWS, Console, Display
from jaxmnist.report.sentences import verdict
from jaxmnist.results import evaluation, svm
from jaxmnist.runs.records import EnsembleReport, File, ModelReport, SvmReport
from jaxmnist.runs.trial import Key

DATA = ("data_dir", "validation_split", "tensorboard")
NORMALISED = """
import flax.linen as nn

class Normalised(nn.Module):
    momentum: float

    @nn.compact
    def __call__(self, x, train):
        for _ in range(3):
            small = nn.initializers.normal(0.01)
            x = nn.Conv(8, (3, 3), strides=(2, 2), use_bias=False, kernel_init=small)(x)
            x = nn.relu(nn.BatchNorm(momentum=self.momentum, use_running_average=not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))

def build_model(hp):
    return Normalised(hp.Float("momentum", 0.5, 0.999, step=0.499))
"""

# Noise, nine tenths of one class: every model answers the same, or no better.
NOISE = np.random.default_rng(0).integers(0, 256, (400, 8, 8), np.uint8)
MOSTLY = np.array((["usual"] * 9 + ["rare"]) * 40)


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run in a folder whose name needs quoting, with the ledger."""
    folder = tmp_path / "my runs"
    shutil.copytree(finished.store.path.parent, folder)
    return Run(folder / "small")


def test_the_numbers_are_those_of_the_files(finished):
    first, second, third, *_ = verdict(finished)
    files = finished.store.path
    test = json.loads((files / "best" / "test.json").read_text())
    config = json.loads((files / "best" / "config.json").read_text())
    svm = json.loads((files / "svm" / "small" / "svm.json").read_text())
    low, high = test["confidence_interval"]
    winner = finished.best_trial
    assert first == (
        f"Test accuracy: {test['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}) on 200"
        f" images; trial {winner.index} of 4 won: "
        + str(finished.space.shown(winner.hyperparameters))
    )
    low, high = config["corrected_interval"]
    others = len(config["indistinguishable"])
    assert second == (
        f"Validation accuracy: {config['score']:.4f}; without the luck of being chosen among 4"
        f" trials about {config['corrected_score']:.4f} (95 % interval {low:.4f} to {high:.4f});"
        f" the validation images don't tell {others} other trial{'s' * (others > 1)} from it"
    )
    low, high = svm["confidence_interval"]
    difference = svm["accuracy"] - test["accuracy"]
    said = "above" if difference > 0 else "below"
    assert third.startswith(
        f"SVM on its features: test accuracy {svm['accuracy']:.4f} (95 % interval {low:.4f} to"
        f" {high:.4f}), {abs(difference):.4f} {said} the network's: "
    )
    (pair,) = read_json(files / "best" / "comparisons.json")["comparisons"]
    verdicts = {True: "more than chance explains.", False: "within chance."}
    assert third.count(verdicts[pair["significant"]]) == 1
    runs = finished.store.name
    assert third.endswith(f" Test set evaluated 2 times: winner and SVM of {runs}.")


def test_the_link_leads_to_the_page_and_the_commands_can_be_typed(copy, mnist, capsys):
    *_, link, predict, report = "\n".join(verdict(copy)).splitlines()
    address = urlparse(link.removeprefix("Page: "))
    assert (address.scheme, " " in address.path) == ("file", False)
    assert url2pathname(address.path) == str(copy.store.file(File.PAGE))
    np.save(copy.store.path.parent / "picture.npy", mnist.x_test[:1])
    for line, says in ((predict, "with probability"), (report, "report.html")):
        program, *words = shlex.split(re.split(r" {2,}", line.strip())[0])
        assert program == "jaxmnist"
        picture = str(copy.store.path.parent / "picture.npy")
        words = [picture if word == "picture.png" else word for word in words]
        assert run_command(commands.main, words) == 0
        assert says in capsys.readouterr().out


def test_a_constant_answer_is_beside_every_accuracy_that_does_not_beat_it(tmp_path, capsys):
    """In the verdict, on both pages, in `evaluate` and the other descriptions."""
    given = {"filters": 4, "conv_layers": 1, "dense_layers": "0:1", "units": 8, "epochs": 1}
    data = (NOISE[:200], MOSTLY[:200], NOISE[200:], MOSTLY[200:])
    given |= {"data": data, "max_trials": 2, "ensemble": 2, "quiet": True, "tensorboard": False}
    run = random_search(**given, project_name="noise", directory=str(tmp_path))
    path = run.store.path
    test, of_svm, ensemble = (
        run.result(file, kind)
        for file, kind in (
            ("best/test.json", ModelReport),
            ("svm/arrays/svm.json", SvmReport),
            ("best/ensemble/ensemble.json", EnsembleReport),
        )
    )

    def beside(content):
        short = "is below" if content.accuracy < 0.9 else "is not clearly above"
        return (
            f"{content.accuracy:.4f} {short} 0.9000, the accuracy of always answering usual, the"
            " largest class."
        )

    lines = verdict(run)
    assert lines[1] == beside(test)
    assert beside(of_svm) in lines[3]
    assert beside(ensemble) in lines[3]
    assert beside(test) in evaluation.describe_evaluation(run, test)
    assert beside(of_svm) in svm.describe_svm(run, of_svm)
    assert beside(ensemble) in run.results_summary()
    page = (path / "report.html").read_text()
    for content in (test, of_svm, ensemble):
        assert beside(content) in page
    shutil.copytree(path, tmp_path / "copy")
    command = ["report", str(path), str(tmp_path / "copy"), "--output", str(tmp_path / "both.html")]
    assert run_command(commands.main, command) == 0
    assert f"noise: {beside(test)}" in (tmp_path / "both.html").read_text()


@pytest.mark.slow
def test_test_labels_that_are_numbered_otherwise_are_told(options, mnist, tmp_path):
    given = {**options, "filters": 16, "conv_layers": 1, "dense_layers": 0, "epochs": 8}
    given |= {"max_trials": 1, "svm": False, "report": True, "directory": str(tmp_path)}
    x, y = mnist.x_train[:800], mnist.y_train[:800]
    data = (x, y, mnist.x_test[:200], (mnist.y_test[:200] + 1) % 10)
    del given["data_dir"], given["units"]
    run = random_search(**given, data=data)
    (said,) = [line for line in verdict(run) if "Renaming" in line]
    assert said in (run.store.path / "report.html").read_text()


def test_without_a_page_or_another_model(options, tmp_path):
    given = {**options, "max_trials": 1, "epochs": 1, "svm": False}
    run = random_search(**given, directory=str(tmp_path), project_name="a\u00e9")
    said = verdict(run, ".venv/bin/python -m jaxmnist")
    # One epoch of few images may not beat a constant answer, which a line would say.
    first, second, third, fourth, *_ = [line for line in said if "always answering" not in line]
    assert " images; trial 0 won: " in first
    assert re.fullmatch(
        r"Validation accuracy: 0\.\d{4} \(95 % interval 0\.\d{4} to 0\.\d{4}\)", second
    )
    assert third == f"Test set evaluated once: winner of {run.store.name}."
    assert fourth == f"Results: {run.store.path}"
    assert "  .venv/bin/python -m jaxmnist report " in "\n".join(
        verdict(run, ".venv/bin/python -m jaxmnist")
    )


def test_a_network_of_python_s_own_can_not_be_typed(copy):
    path = copy.store.path / "search.json"
    content = read_json(path)
    write_json(path, {**content, "identity": {**content["identity"], "network": "mine"}})
    said = "\n".join(verdict(replace_identity(copy)))
    assert "predict" not in said
    assert "jaxmnist report " in said


def replace_identity(run: Run) -> Run:
    """The run as it is, but that its search.json names another network."""
    found = Run(run.store.path.parent / "small", run.network, checked=True)
    found.__dict__["ranking"] = run.ranking
    return found


@pytest.mark.slow
def test_finalists_and_a_refit(options, tmp_path):
    given = {**options, "max_trials": 2, "epochs": 1, "svm": False, "directory": str(tmp_path)}
    again = random_search(**given, finalists=2, reruns=1)
    first, second, *_ = verdict(again)
    assert f"rerun 1 of trial {again.best_trial.index} of 2 won: " in first
    assert second.startswith("Mean validation accuracy of its reruns: 0.")
    assert "chosen among 2 finalists about " in second
    refitted = random_search(**given, refit=True)
    first, second, *_ = verdict(refitted)
    assert f"the refit of trial {refitted.best_trial.index} of 2 won: " in first
    assert second.startswith("Validation accuracy (before the refit): 0.")


def test_an_ensemble_is_named_too(copy, options):
    given = {**options, "report": True, "directory": str(copy.store.path.parent)}
    run = random_search(**given, ensemble=3)
    third = verdict(run)[2]
    assert third.count("Ensemble of the first 3 trials: test accuracy ") == 1
    assert third.count("SVM on its features: test accuracy ") == 1
    assert "Test set evaluated 3 times: " in third


@pytest.mark.parametrize("kind", [Console, Display])
def test_a_long_ranking_is_cut_off(kind, copy, capsys):
    """All of it is shown if that is wanted; what failed is counted."""
    run = Run(writing(copy.store.path))
    for index in range(4, 20):
        record = replace(run.trials[3], index=index, status="failed", error="no reason", history=())
        run.store.trial_folder(Key(index)).mkdir()
        run.store.write_trial(replace(record, validation=(), validation_sha256=None))
    run = Run(copy.store.path)
    kind().results(run)
    said = capsys.readouterr().out
    assert f"… and {20 - MOST_ROWS} more trials, {20 - MOST_ROWS} of them failed (--verb" in said
    assert said.count("no reason") == MOST_ROWS - 4
    assert "Selection among" not in said
    kind(verbose=True).results(run)
    said = capsys.readouterr().out
    assert said.count("no reason") == 16
    assert "… and" not in said
    assert "Selection among 4 trials" in " ".join(said.split())


@pytest.mark.slow
def test_statistics_that_have_not_settled_are_told(options, tmp_path):
    """80 steps: a momentum of 0.999 leaves 92 % of the initial values, one of 0.5 nothing."""
    (tmp_path / "own.py").write_text(NORMALISED)
    own = {name: value for name, value in options.items() if name in DATA}
    own |= {"epochs": 8, "batch_size": 32, "max_trials": 1, "svm": False, "quiet": True}
    own |= {"model": str(tmp_path / "own.py"), "directory": str(tmp_path), "report": False}
    said = {}
    for momentum in (0.5, 0.999):
        run = random_search(**own, momentum=momentum, project_name=f"{momentum}")
        last = run.best_trial.history[-1]
        assert last.accuracy > 0.8
        said[momentum] = [line for line in verdict(run) if "BatchNorm" in line]
        assert (last.val_accuracy < 0.4) == (momentum == 0.999)
    assert said[0.5] == []
    assert said[0.999] == [
        f"The winner's training accuracy is {last.accuracy:.4f}, more than twice its validation"
        " accuracy. Either it has learnt its training images by heart, or it has BatchNorm whose"
        " statistics for validation have not settled: then train longer, or give BatchNorm a"
        " smaller momentum, such as 0.9."
    ]
