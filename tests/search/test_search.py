from __future__ import annotations

import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import writing
from processes import command, facts, flags, looks_of

import jaxmnist
from jaxmnist import EnvironmentFailure, Run, UsageError, random_search
from jaxmnist.commands.search import as_typed
from jaxmnist.data.dataset import MNIST_SHA256, load_arrays
from jaxmnist.files import read_json, write_json
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION
from jaxmnist.report.sentences import verdict
from jaxmnist.runs.records import File, ModelReport
from jaxmnist.search import search as search_module


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run, for changing."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    return tmp_path


def test_quiet_in_python_prints_nothing(options, tmp_path, capfd):
    random_search(**{**options, "max_trials": 1}, directory=str(tmp_path))
    assert capfd.readouterr().out == ""


def test_a_precision_that_the_platform_lacks_deletes_nothing(options, copy):
    before = sorted(path.name for path in (copy / "small").rglob("*"))
    wrong = {**options, "directory": str(copy), "precision": "bfloat16", "overwrite": True}
    with pytest.raises(UsageError, match="precision bfloat16 is for GPUs"):
        random_search(**wrong)
    assert sorted(path.name for path in (copy / "small").rglob("*")) == before


def test_an_earlier_winner_is_not_evaluated(options, copy):
    """An extension was cut short between the last trial and the new winner's files."""
    path = copy / "small" / "best" / "config.json"
    content = read_json(path)
    write_json(path, {**content, "model_sha256": "0" * 64})
    looks = looks_of(Run(copy / "small"))
    for name in ("evaluate", "svm"):
        result = command(name, copy / "small")
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert "best/ holds an earlier winner" in result.stderr
    assert looks_of(Run(copy / "small")) == looks


def test_the_run_directory(finished):
    path = finished.store.path
    assert path.name == "small"
    for name in ("model.safetensors", "config.json", "summary.txt", "test_probabilities.npy"):
        assert (path / "best" / name).is_file()
    assert {"identity", "settings", "versions", "device"} <= set(read_json(path / "search.json"))
    test = read_json(path / "best" / "test.json")
    low, high = test["confidence_interval"]
    assert low < test["accuracy"] < high
    assert [look["purpose"] for look in test["looks"]] == ["winner"]
    assert np.sum(test["confusion_matrix"]) == 200
    svm = read_json(path / "svm" / "small" / "svm.json")
    assert {"accuracy", "classification_report", "backend", "seconds"} <= set(svm)
    assert looks_of(finished) == ["winner", "svm"]
    assert sorted(p.name for p in path.parent.iterdir()) == ["ledger.jsonl", "ledger.lock", "small"]
    assert not list(path.rglob("*.tmp"))


def test_trials_are_the_draws(finished, options):
    space = Space(DEFINITION, finished.settings.ranges)
    draws = list(space.draws(0))[:4]
    assert [trial.hyperparameters for trial in finished.trials] == draws
    assert all(trial.status == "completed" for trial in finished.trials)
    assert all(len(trial.history) == options["epochs"] for trial in finished.trials)
    assert finished.best_trial.score == max(
        (entry.score for entry in finished.ranking.ranked if entry.steady),
        default=finished.best_trial.score,
    )


def test_only_the_best_weights_are_kept(finished):
    kept = {entry.trial.index for entry in finished.ranking.ranked[:3]}
    for trial in finished.trials:
        assert finished.store.file(File.WEIGHTS, trial.key).exists() == (trial.index in kept)
    models = finished.get_best_models(3)
    assert [m.hyperparameters for m in models] == finished.get_best_hyperparameters(3)
    with pytest.raises(UsageError, match="keep=4"):
        finished.get_best_models(4)


def test_the_test_report_is_that_of_the_kept_model(finished, mnist):
    test = finished.result("best/test.json", ModelReport)
    right = finished.best_model.predict(mnist.x_test[:200]) == mnist.y_test[:200]
    assert test.accuracy == right.mean()
    probabilities = finished.best_model.predict_proba(mnist.x_test[:200]).astype(float)
    true_ones = probabilities[np.arange(200), mnist.y_test[:200]]
    assert test.loss == pytest.approx(-np.log(true_ones).mean(), rel=1e-6)
    assert sum(images for images, _, _ in test.reliability) == 200


def test_the_same_call_again_changes_nothing_and_looks_at_nothing(copy, options):
    before = facts(Run(copy / "small"))
    run = random_search(**options, directory=str(copy))
    assert facts(run) == before
    assert looks_of(run) == ["winner", "svm"]


def test_a_budget_smaller_than_what_is_finished(copy, options):
    with pytest.raises(UsageError, match=r"^max_trials 2 is less than the 4"):
        random_search(**{**options, "max_trials": 2}, select="best", directory=str(copy))
    assert Run(copy / "small").settings.selection.select == "steady"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "seed was 0, not 1"),
        ({"epochs": 2}, "epochs was 3, not 2"),
        ({"filters": 8}, "filters was '4:8:4', not '8'"),
        ({"train_limit": 300}, "train_limit was None, not 300"),
        ({"learning_rate": 0.02}, "learning_rate was 0.01, not 0.02"),
    ],
)
def test_another_search_is_refused(copy, options, change, says):
    with pytest.raises(UsageError, match="holds another search") as caught:
        random_search(**{**options, **change}, directory=str(copy))
    assert says in str(caught.value)
    assert "overwrite deletes it" in str(caught.value)


def test_other_data_are_refused(copy, options, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(options["data_dir"], folder)
    os.replace(folder / "t10k-labels-idx1-ubyte.gz", folder / "x")
    shutil.copy(Path(options["data_dir"]) / "t10k-labels-idx1-ubyte.gz", folder)
    import gzip

    labels = bytearray(gzip.decompress((folder / "x").read_bytes()))
    labels[-1] = (labels[-1] + 1) % 10
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(labels)))
    given = {**options, "data_dir": str(folder), "dataset": "small"}
    with pytest.raises(UsageError, match="data was"):
        random_search(**given, directory=str(copy))


def test_overwrite_starts_anew(copy, options):
    given = {**options, "seed": 5, "max_trials": 1, "svm": False, "overwrite": True}
    run = random_search(**given, directory=str(copy))
    assert len(run.trials) == 1
    assert looks_of(run) == ["winner", "svm", "winner"]  # the earlier run's still count


def test_a_bad_file_costs_the_others_nothing(copy, mnist):
    from PIL import Image

    for index, name in ((0, "first.png"), (1, "last.png")):
        Image.fromarray(mnist.x_test[index, ..., 0]).save(copy / name)
    (copy / "notes.txt").write_text("no picture")
    names = [copy / name for name in ("first.png", "notes.txt", "missing.png", "last.png")]
    done = command("predict", copy / "small", *names)
    assert done.returncode == 2
    said, *answers = done.stdout.splitlines()
    assert said.startswith("Pictures are prepared like the training images: bright ink")
    answered = [line.partition(": ")[0] for line in answers]
    assert answered == [str(copy / "first.png"), str(copy / "last.png")]
    complaints = done.stderr.splitlines()
    assert len(complaints) == 2
    assert "notes.txt: is not a readable image" in complaints[0]
    assert "missing.png: can't be read" in complaints[1]
    only = command("predict", copy / "small", copy / "notes.txt")
    assert (only.returncode, only.stdout) == (2, "")


def test_addresses_and_homes(copy, small, monkeypatch):
    """What looks like an address makes no folder of that name; `~` is expanded in Python too."""
    monkeypatch.chdir(copy)
    address = "s3://bucket/runs"
    for given in ({"directory": address}, {"data_dir": address}, {"cache": address}):
        for value in (address, Path(address)):
            with pytest.raises(UsageError, match=r"looks like a URL") as caught:
                random_search(**dict.fromkeys(given, value))
            assert next(iter(given)) in str(caught.value)
    with pytest.raises(UsageError, match="looks like a URL"):
        Run("gs://bucket/runs/mnist")
    for module, arguments in (("evaluate", []), ("svm", []), ("report", []), ("predict", ["a"])):
        done = command(module, address, *arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "looks like a URL" in done.stderr
    done = command("predict", copy / "small", address)
    assert done.returncode == 2
    assert "looks like a URL" in done.stderr
    assert sorted(path.name for path in copy.iterdir()) == ["small"]
    monkeypatch.setenv("HOME", str(copy))
    assert len(Run("~/small").trials) == 4
    settings = jaxmnist.SearchSettings(directory="~/runs", data_dir="~/x", cache="~/c")
    assert settings.run_directory == str(copy / "runs" / "x")
    assert (settings.data.data_dir, settings.running.cache) == (str(copy / "x"), str(copy / "c"))


def test_a_damaged_record_is_set_aside_and_its_trial_run_again(copy, finished, options):
    path = copy / "small" / "trials" / "0001" / "trial.json"
    path.write_text(path.read_text().replace("completed", "failed"))
    run = random_search(**options, directory=str(copy))
    assert facts(run)[1][3:] == facts(finished)[1][3:]
    assert run.trials[1].hyperparameters == finished.trials[1].hyperparameters
    assert len(list((copy / "small" / "damaged").iterdir())) == 1


def test_lost_weights_are_made_again(copy, finished, options):
    index = finished.best_trial.index
    (copy / "small" / "trials" / f"{index:04d}" / "model.safetensors").unlink()
    shutil.rmtree(copy / "small" / "best")
    run = random_search(**options, directory=str(copy))
    assert run.best_trial.weights_sha256 == finished.best_trial.weights_sha256
    assert (
        run.result("best/test.json", ModelReport).accuracy
        == finished.result("best/test.json", ModelReport).accuracy
    )


def test_another_rule_may_choose_another_winner(copy, finished, options):
    run = random_search(**options, select="best", keep=1, directory=str(copy))
    assert run.best_trial.score == max(trial.score for trial in finished.trials)


def test_killed_while_the_winner_changed(copy, options):
    """The new winner's weights are there, config.json is still of the one before: no damage."""
    run = Run(copy / "small")
    config = read_json(copy / "small" / "best" / "config.json")
    second = run.ranking.ranked[1].trial
    before = {**config, "trial": second.index, "model_sha256": second.weights_sha256}
    write_json(copy / "small" / "best" / "config.json", before)
    random_search(**options, directory=str(copy))
    assert read_json(copy / "small" / "best" / "config.json") == config
    assert not (copy / "small" / "damaged").exists()


def ticking(monkeypatch) -> None:
    """A search's clock goes on by a second whenever it is read: at the start, after each trial."""
    ticks = itertools.count()
    train = functools.partial(search_module.train, clock=lambda: next(ticks))
    monkeypatch.setattr(search_module, "train", train)


def test_a_search_is_ended_by_its_time_and_goes_on(options, finished, tmp_path, monkeypatch, said):
    given = {**options, "jobs": 1, "svm": False, "directory": str(tmp_path)}
    with monkeypatch.context() as patch:
        ticking(patch)
        run = random_search(**given, max_seconds=3)
    assert facts(run) == facts(finished)[:3]  # the first draws, in their order
    line = "the time of 3 s is over: 3 of 4 trials have ended; the same command goes on"
    assert [each for each in said if line in each]
    tested = [run.winner().model_sha256]
    assert tested == [run.best_trial.weights_sha256]
    said.clear()
    with monkeypatch.context() as patch:
        ticking(patch)  # the clock starts anew
        run = random_search(**given, max_seconds=3)
    assert facts(run) == facts(finished)
    assert not [each for each in said if "is over" in each]
    # If another model is tested now, that is another evaluation.
    tested.append(run.winner().model_sha256)
    assert looks_of(run) == ["winner"] * len(set(tested))


def test_a_time_in_which_no_trial_completes(options, tmp_path, monkeypatch):
    given = {**options, "jobs": 1, "learning_rate": 1e30, "directory": str(tmp_path)}
    ticking(monkeypatch)
    with pytest.raises(EnvironmentFailure, match=r"no trial has completed in the time of 0\.5 s"):
        random_search(**given, max_seconds=0.5)
    assert len(Run(tmp_path / "small").trials) == 1  # one starts however short the time


def test_every_trial_failed(options, tmp_path):
    given = {**options, "learning_rate": 1e30}
    done = command("search", *flags(given), "--directory", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "every trial failed" in done.stderr
    trial = json.loads((tmp_path / "small" / "trials" / "0000" / "trial.json").read_text())
    assert trial["status"] == "failed"
    assert trial["history"]["loss"][-1] is None
    assert not (tmp_path / "ledger.jsonl").exists()


def test_the_space_is_the_end(options, tmp_path, capsys):
    given = {**options, "filters": 4, "max_trials": 50, "svm": False, "quiet": False}
    run = random_search(**given, directory=str(tmp_path))
    assert len(run.trials) == 4
    said = capsys.readouterr().out
    assert "4 of 4 configurations" in said
    assert "the space has 4 configurations, fewer than 50: all are trained" in said


# The last value is drawn late: configurations with large numbers are looked at, not the first ones.
MANY_FILTERS = ["--filters", ",".join(map(str, (*range(8, 200, 8), 99999))), "--conv-layers", "1"]
MANY_FILTERS += ["--dense-layers", "0", "--max-trials", "25", "--seed", "1"]
BAD = [
    (["--dataset", "no_such_dataset"], "no_such_dataset"),
    (["--data-dir", "nowhere"], "nowhere: no such folder or file"),
    (["--epochs", "0"], "--epochs"),
    (["--max-trials", "0"], "--max-trials"),
    (["--max-seconds", "0"], "--max-seconds must be a number above 0, not 0"),
    (["--max-seconds", "inf"], "--max-seconds must be a number above 0, not inf"),
    (["--max-seconds", "soon"], "--max-seconds must be a number above 0, not 'soon'"),
    (["--max-trials", "some"], "--max-trials must be a whole number of at least 1, not 'some'"),
    (["--learning-rate", "nan"], "--learning-rate"),
    (["--validation-split", "inf"], "--validation-split"),
    (["--validation-split", "0.99999"], "--validation-split"),
    (["--filters", "128:32"], "--filters"),
    (["--filters", "-4"], "--filters"),
    (["--conv-layers", "9"], "--conv-layers 9 is too many for images of 28×28"),
    (["--select", "worst"], "--select"),
    (
        MANY_FILTERS,
        "filters=99999 conv_layers=1 dense_layers=0 dropout=0.0: training needs at least",
    ),
    (["--max-trials", "1000000"], "--max-trials must be a whole number from 1 to 100000"),
    (["--project-name", "a/b"], "--project-name"),
    (["--svm-backend", "cuml"], "--svm-backend cuml is not installed"),
    (["--no-such-flag"], "unknown option --no-such-flag (--help lists the flags)"),
    (["--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
    (["--max-trails=4"], "unknown option --max-trails; did you mean --max-trials?"),
    (["--no-smv"], "unknown option --no-smv; did you mean --no-svm?"),
    (["mnist"], "unexpected argument 'mnist'"),
]


@pytest.mark.parametrize(("given", "names"), BAD)
def test_mistakes_get_one_line(given, names, tmp_path, capsys, monkeypatch):
    from jaxmnist.commands.parser import run_command
    from jaxmnist.commands.search import main

    monkeypatch.chdir(tmp_path)
    assert run_command(main, given) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert names in output.err


def test_bad_data_get_one_line(small, tmp_path, capsys):
    """One class only, a mislabelled file, a directory that is a file: through the command."""
    from jaxmnist.commands.parser import run_command
    from jaxmnist.commands.search import main

    images = np.full((20, 28, 28), 255, np.uint8)
    ones = np.ones(20, int)
    np.savez(tmp_path / "one.npz", x_train=images, y_train=ones, x_test=images, y_test=ones)
    shutil.copytree(small, tmp_path / "swapped")
    swapped = tmp_path / "swapped"
    shutil.copy(swapped / "train-images-idx3-ubyte.gz", swapped / "train-labels-idx1-ubyte.gz")
    (tmp_path / "occupied").write_text("")
    for given, says in (
        (["--data-dir", tmp_path / "one.npz"], "two classes are needed"),
        (["--data-dir", swapped], "labels must be (N,)"),
        (["--data-dir", small, "--directory", tmp_path / "occupied"], "Not a directory"),
        (["--data-dir", small, "--directory", tmp_path, "--project-name", "swapped"], "not a run"),
    ):
        assert run_command(main, list(map(str, given))) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert says in errors


def test_a_mistake_found_as_training_begins_gets_one_line(options, tmp_path):
    """Modules are still being imported beside it then, and that must not fail as Python ends."""
    line = search_line(options, tmp_path, "--precision", "bfloat16")
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.returncode == 2
    says = "jaxmnist: --precision bfloat16 is for GPUs and TPUs, and this is a CPU\n"
    assert ended.stderr == says


def test_options_in_python_are_checked():
    with pytest.raises(UsageError, match="unknown option 'max_trails'; did you mean 'max_trials'"):
        random_search(max_trails=3)


def test_commands_answer_quickly_and_import_nothing_heavy():
    heavy = "import sys; import jaxmnist.commands.search as s\n"
    heavy += "try: s.main(['--help'])\nexcept SystemExit: pass\n"
    heavy += "print([m for m in ('jax', 'numpy', 'sklearn', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--max-trials" in done.stdout


def interrupt(line: list[str], number: int, at: str, training: bool = True) -> None:
    """Start a search, send it a signal once it prints `at`, and check how it ends.

    training: whether trials are running then.
    """
    search = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for text in search.stdout:
        if at in text:
            break
    search.send_signal(number)
    _, errors = search.communicate(timeout=120)
    assert search.returncode == 128 + number
    name = signal.Signals(number).name
    *before, last = errors.splitlines()
    assert last == f"jaxmnist: stopped by {name}; the same command goes on from here"
    # While trials run, the signal is acknowledged at once.
    assert len(before) == training
    for line in before:
        assert re.fullmatch(r"jaxmnist: stopping(: saving \d running trials?)? … \(.*\)", line)


def search_line(options: dict, directory: Path, *more: str) -> list[str]:
    """The command line of a search that is not quiet."""
    given = flags({name: value for name, value in options.items() if name != "quiet"})
    return [sys.executable, "-m", "jaxmnist.search", *given, "--directory", str(directory), *more]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_with_their_status(number, options, tmp_path):
    interrupt(search_line(options, tmp_path), number, "trial 0:")
    assert not (tmp_path / "small" / "best").exists()


@pytest.mark.slow
def test_a_signal_after_the_trials_says_what_goes_on(options, tmp_path):
    line = search_line(options, tmp_path, "--verbose")
    interrupt(line, signal.SIGTERM, "Test accuracy", training=False)


def test_an_interrupted_search_goes_on(options, tmp_path, finished):
    """Interrupted in its third trial, and gone on with: as if nothing had been."""
    line = search_line(options, tmp_path, "--jobs", "1", "--no-svm")
    interrupt(line, signal.SIGINT, "trial 2:")
    assert read_json(tmp_path / "small" / "trials" / "0001" / "trial.json")["status"] == "completed"
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0
    assert "2 trials are already finished" in done.stdout
    assert facts(Run(tmp_path / "small")) == facts(finished)


def test_a_killed_search_shows_its_running_trials_epochs(options, finished, tmp_path):
    program = f"""
import os, signal
from jaxmnist import random_search
def kill(event):
    if type(event).__name__ == "EpochFinished" and event.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
random_search(**{ {**options, "directory": str(tmp_path), "jobs": 1}!r}, listener=kill)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (trial,) = Run(tmp_path / "small").trials
    assert trial.status == "running"
    assert trial.history == finished.trials[0].history[:2]
    shown = command("report", tmp_path / "small")
    assert shown.returncode == 0
    text = (tmp_path / "small" / "report.html").read_text()
    assert f"{trial.history[1].val_accuracy:.4f}" in text


def test_the_ledger_is_written_before_the_look(copy, monkeypatch):
    from jaxmnist.results import evaluation
    from jaxmnist.results.trained import TrainedModel

    def fail(*_):
        raise MemoryError

    run = Run(writing(copy / "small"))
    dataset = run.load_dataset()
    monkeypatch.setattr(TrainedModel, "predict_proba", fail)
    with pytest.raises(MemoryError):
        evaluation.look(run, dataset, "evaluation")
    assert looks_of(run) == ["winner", "svm", "evaluation"]
    # What was cut short and is repeated shows nothing new, and counts once.
    monkeypatch.undo()
    evaluation.look(run, dataset, "evaluation")
    assert (copy / "ledger.jsonl").read_bytes().count(b'"purpose": "evaluation"') == 2
    assert looks_of(run) == ["winner", "svm", "evaluation"]


def test_an_svm_on_other_training_images_is_another_look(copy):
    """The test images are the same; the same SVM once more shows nothing new."""
    from jaxmnist.results.svm import fit_on_run

    run = Run(writing(copy / "small"))
    data = run.load_dataset()
    fewer = replace(data, x_train=data.x_train[:200], y_train=data.y_train[:200])
    assert fewer.test_sha256 == data.test_sha256
    for _ in range(2):
        content = fit_on_run(run, fewer, wanted="sklearn", draws=0)
        assert looks_of(run) == ["winner", "svm", "svm"]
        shutil.rmtree(run.store.file(File.SVM, (content.folder,)).parent)


def test_more_weights_can_be_kept_later(copy, options, finished):
    run = random_search(**options, keep=4, directory=str(copy))
    assert len(run.get_best_models(4)) == 4
    assert facts(run) == facts(finished)


def test_damaged_test_predictions_are_made_again(copy, options):
    path = copy / "small" / "best" / "test_probabilities.npy"
    content = path.read_bytes()
    path.write_bytes(b"")
    done = command("svm", copy / "small")
    assert (done.returncode, path.exists()) == (0, False)
    assert "test_probabilities.npy" in done.stdout
    run = random_search(**options, directory=str(copy))
    assert path.read_bytes() == content
    assert set(run.kept_comparisons().models) == {"network", "SVM"}
    assert looks_of(run) == ["winner", "svm"]  # the same models on the same images: nothing new


def test_the_whole_command(options, finished, tmp_path):
    given = {name: value for name, value in options.items() if name != "quiet"}
    line = [*flags(given), "--svm-search", 2, "--directory", tmp_path]
    done = command("search", *line, "--verbose")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for part in (
        "4 of 8 configurations on small: 300 training, 100 validation and 200 test images",
        "epoch 3/3: loss",
        "wins with validation accuracy",
        "Selection among 4 trials on the same 100 images",
        "Twice as many trials, 4 more, find a better one with probability 0.50 at most",
        "Total params:",
        "Test accuracy:",
        "Test loss",
        "Confusion matrix",
        "macro avg",
        "SVM on the flatten features",
        "McNemar's exact test",
        "These parameters are the best of 3",
    ):
        assert part in done.stdout
    run = Run(tmp_path / "small")
    assert facts(run) == facts(finished)
    said = "\n".join(verdict(run, as_typed(sys.argv, sys.orig_argv)))
    assert done.stdout.endswith(f"\n{said}\n")
    # The same command again says what is essential; quiet, the verdict alone.
    again = command("search", *line).stdout
    assert "wins with validation accuracy" in again
    assert "Confusion matrix" not in again
    quiet = command("search", *line, "--quiet").stdout
    assert quiet == f"{said}\n"


def test_commands_on_a_run(copy, mnist, small):
    run = copy / "small"
    # The same data in another place and form, of which the fingerprint is the same.
    arrays = load_arrays(None, str(small))
    np.savez(copy / "moved.npz", **{name: getattr(arrays, name) for name in MNIST_SHA256})
    done = command("evaluate", run, "--data-dir", copy / "moved.npz")
    assert done.returncode == 0, done.stderr
    says = f"Test set evaluated 3 times: evaluation of {copy.name}/small; winner and SVM of "
    assert says in done.stdout
    np.save(copy / "digits.npy", mnist.x_test[:3, ..., 0])
    done = command("predict", run, copy / "digits.npy")
    assert done.returncode == 0, done.stderr
    model = Run(run).best_model
    for i, (line, label) in enumerate(
        zip(done.stdout.splitlines(), model.predict(mnist.x_test[:3]), strict=True)
    ):
        assert f"digits.npy[{i}]: {label} with probability" in line
        assert line.endswith("used as it is")
    other = copy / "task.npz"
    flipped = 255 - mnist.x_train[400:700]
    np.savez(
        other,
        x_train=flipped,
        y_train=mnist.y_train[400:700] % 3,
        x_test=flipped[:90],
        y_test=mnist.y_train[400:490] % 3,
    )
    done = command("svm", run, "--data-dir", other)
    assert done.returncode == 0, done.stderr
    assert "The same SVM on raw pixels:" in done.stdout
    assert "The same SVM on the untrained network's features:" in done.stdout
    content = read_json(run / "svm" / "task" / "svm.json")
    assert content["labels"] == [0, 1, 2]
    assert content["accuracy"] > 0.8
    assert looks_of(Run(run)) == ["winner", "svm", "evaluation"]
    others = Run(run).store.read_looks(content["test_sha256"]).found
    purposes = ["svm", "svm on raw pixels", "svm on the untrained network"]
    assert [look.purpose for look in others] == purposes
    done = command("svm", run, "--svm-search", "2")
    assert "best of 3" in done.stdout
    # The tuned SVM is kept; asking again doesn't evaluate the test set.
    before = looks_of(Run(run))
    assert "best of 3" in command("svm", run).stdout
    assert looks_of(Run(run)) == before
    done = command("svm", run, "--train-limit", "100")
    assert done.returncode == 2
    assert "--train-limit needs --dataset or --data-dir" in done.stderr


def test_commands_on_no_run(tmp_path):
    for module in ("evaluate", "svm", "predict"):
        arguments = [tmp_path / "nothing"] + [tmp_path / "a.png"] * (module == "predict")
        done = command(module, *arguments)
        assert done.returncode == 2
        assert (
            done.stderr
            == f"jaxmnist: {tmp_path}/nothing: is not a run of jaxmnist: it has no search.json\n"
        )


def test_a_png_is_predicted(copy, mnist):
    from PIL import Image

    picture = np.kron(255 - mnist.x_test[0, ..., 0], np.ones((9, 9), np.uint8))
    Image.fromarray(picture).save(copy / "seven.png")
    done = command("predict", copy / "small", copy / "seven.png")
    assert done.returncode == 0, done.stderr
    steps = "inverted: dark ink on a bright ground, scaled into 20×20, centred by centre of mass"
    assert steps in done.stdout


def test_a_run_that_has_not_finished(copy):
    shutil.rmtree(copy / "small" / "best")
    done = command("predict", copy / "small", "a.png")
    assert done.returncode == 2
    assert "its search is not finished" in done.stderr


def test_data_that_have_moved(copy, small):
    path = copy / "small" / "search.json"
    search = read_json(path)
    write_json(path, {**search, "settings": {**search["settings"], "data_dir": "/nowhere/small"}})
    run = Run(copy / "small")
    with pytest.raises(UsageError, match=r"not at /nowhere/small any more; .* data_dir"):
        run.load_dataset()
    arrays = load_arrays(None, str(small))
    for dataset in (run.load_dataset(str(small)), run.load_dataset(data=arrays)):
        assert dataset.fingerprint == search["identity"]["data"]
        assert dataset.name == "small"
    changed = arrays._replace(x_test=arrays.x_test[::-1])
    with pytest.raises(UsageError, match="the data of small have changed"):
        run.load_dataset(data=changed)


def test_data_that_have_changed_since(copy):
    search = copy / "small" / "search.json"
    content = read_json(search)
    content["identity"]["data"] = "0" * 64
    from jaxmnist.files import write_json

    write_json(search, content)
    done = command("evaluate", copy / "small")
    assert done.returncode == 2
    assert "not those of" in done.stderr


def test_results_summary_ranks_and_names_failures(copy, finished):
    run = Run(writing(copy / "small"))
    failed = replace(run.trials[0], status="failed", error="the loss became nan in epoch 1")
    run.store.write_trial(failed)
    table, _, said = Run(copy / "small").results_summary().partition("\n\n")
    lines = table.splitlines()
    assert "the loss became nan" in lines[-1]
    assert len(lines) == 5
    assert "Selection among 3 trials" in said
    assert finished.results_summary().splitlines()[1].split()[0] == str(finished.best_trial.index)
