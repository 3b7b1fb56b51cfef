from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jaxmnist import Run, UsageError, random_search
from jaxmnist.space import SearchSpace
from jaxmnist.store import read_json


def command(module: str, *arguments: object, cwd: Path | None = None, **options):
    """Run a command as a user does, in a process of its own."""
    line = [sys.executable, "-m", f"jaxmnist.{module}", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=240, **options)


def flags(options: dict) -> list[str]:
    """A search's options as command-line flags."""
    parts = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        parts += [flag] if value is True else [flag, str(value)]
    return parts


def facts(run: Run) -> list:
    """What must be equal of two runs: everything of the trials but the seconds."""
    return [(t.index, t.hyperparameters, t.status, t.history, t.weights_sha256) for t in run.trials]


@pytest.fixture
def copy(finished, tmp_path):
    """The finished run, for changing."""
    shutil.copytree(finished.directory.path, tmp_path / "small")
    return tmp_path


def test_the_run_directory(finished):
    path = finished.directory.path
    assert path.name == "small"
    for name in ("model.safetensors", "config.json", "summary.txt", "test_probabilities.npy"):
        assert (path / "best" / name).is_file()
    assert {"identity", "settings", "versions", "device"} <= set(read_json(path / "search.json"))
    test = read_json(path / "best" / "test.json")
    low, high = test["confidence_interval"]
    assert low < test["accuracy"] < high
    assert test["evaluations"] == 1
    assert np.sum(test["confusion_matrix"]) == 200
    svm = read_json(path / "svm" / "small" / "svm.json")
    assert {"accuracy", "classification_report", "backend", "seconds"} <= set(svm)
    assert [look["purpose"] for look in finished.directory.read_looks()] == ["winner", "svm"]
    assert not list(path.rglob("*.tmp"))


def test_trials_are_the_draws(finished, options):
    space = SearchSpace(
        **{k: getattr(finished.settings, k) for k in ("filters", "conv_layers")}
        | {k: getattr(finished.settings, k) for k in ("dense_layers", "units")}
    )
    draws = list(space.draws(0))[:4]
    assert [trial.hyperparameters for trial in finished.trials] == draws
    assert all(trial.status == "completed" for trial in finished.trials)
    assert all(len(trial.history["val_loss"]) == options["epochs"] for trial in finished.trials)
    assert finished.best_trial.score == max(
        (entry.score for entry in finished.ranked if entry.steady),
        default=finished.best_trial.score,
    )


def test_only_the_best_weights_are_kept(finished):
    kept = {entry.trial.index for entry in finished.ranked[:3]}
    for trial in finished.trials:
        assert finished.directory.weights_path(trial.index).exists() == (trial.index in kept)
    models = finished.get_best_models(3)
    assert [m.hyperparameters for m in models] == finished.get_best_hyperparameters(3)
    with pytest.raises(UsageError, match="--keep 4"):
        finished.get_best_models(4)


def test_the_test_report_is_that_of_the_kept_model(finished, mnist):
    test = finished.result("best/test.json")
    right = finished.best_model.predict(mnist.x_test[:200]) == mnist.y_test[:200]
    assert test["accuracy"] == right.mean()


def test_the_same_call_again_changes_nothing_and_looks_at_nothing(copy, options):
    before = facts(Run(copy / "small"))
    run = random_search(**options, directory=str(copy))
    assert facts(run) == before
    assert len(run.directory.read_looks()) == 2


def test_jobs_and_interruption_change_nothing(finished, options, tmp_path):
    """One at a time, in two goes: the very histories and weights of all at once."""
    random_search(**{**options, "max_trials": 2, "svm": False}, jobs=1, directory=str(tmp_path))
    run = random_search(**options, jobs=1, directory=str(tmp_path))
    assert facts(run) == facts(finished)
    with pytest.raises(UsageError, match=r"--max-trials 2 is less than the 4"):
        random_search(**{**options, "max_trials": 2}, directory=str(tmp_path))


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
    with pytest.raises(UsageError, match="is another search") as caught:
        random_search(**{**options, **change}, directory=str(copy))
    assert says in str(caught.value)
    assert "--overwrite" in str(caught.value)


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
    assert [look["purpose"] for look in run.directory.read_looks()] == ["winner"]


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
    assert run.result("best/test.json")["accuracy"] == finished.result("best/test.json")["accuracy"]


def test_another_rule_may_choose_another_winner(copy, finished, options):
    run = random_search(**options, select="best", keep=1, directory=str(copy))
    assert run.best_trial.score == max(trial.score for trial in finished.trials)


def test_every_trial_failed(options, tmp_path):
    given = {**options, "learning_rate": 1e30}
    done = command("search", *flags(given), "--directory", tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "every trial failed" in done.stderr
    trial = json.loads((tmp_path / "small" / "trials" / "0000" / "trial.json").read_text())
    assert trial["status"] == "failed"
    assert trial["history"]["loss"][-1] is None


def test_the_space_is_the_end(options, tmp_path, capsys):
    given = {**options, "filters": 4, "max_trials": 50, "epochs": 1, "svm": False, "quiet": False}
    run = random_search(**given, directory=str(tmp_path))
    assert len(run.trials) == 4
    assert "4 of 4 configurations" in capsys.readouterr().out


BAD = [
    (["--dataset", "no_such_dataset"], "no_such_dataset"),
    (["--data-dir", "nowhere"], "nowhere: no such folder of IDX files or .npz"),
    (["--epochs", "0"], "--epochs"),
    (["--max-trials", "0"], "--max-trials"),
    (["--max-trials", "some"], "--max-trials must be a whole number of at least 1, not 'some'"),
    (["--learning-rate", "nan"], "--learning-rate"),
    (["--validation-split", "inf"], "--validation-split"),
    (["--validation-split", "0.00001"], "--validation-split"),
    (["--filters", "128:32"], "--filters"),
    (["--filters", "-4"], "--filters"),
    (["--conv-layers", "9"], "--conv-layers 9 would pool images of 28×28"),
    (["--select", "worst"], "--select"),
    (["--project-name", "a/b"], "--project-name"),
    (["--svm-backend", "cuml"], "--svm-backend cuml is not installed"),
    (["--no-such-flag"], "--no-such-flag"),
    (["--epoch", "3"], "--epoch"),
]


@pytest.mark.parametrize(("given", "names"), BAD, ids=lambda x: " ".join(x) if x is list else None)
def test_mistakes_get_one_line(given, names, tmp_path, capsys, monkeypatch):
    from jaxmnist.command import run_command
    from jaxmnist.search import main

    monkeypatch.chdir(tmp_path)
    assert run_command(main, given) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert names in output.err


def test_options_in_python_are_checked():
    with pytest.raises(UsageError, match="max_trails is no option of a search; max_trials is"):
        random_search(max_trails=3)


def test_commands_answer_quickly_and_import_nothing_heavy():
    heavy = "import sys; from jaxmnist.command import run_command; import jaxmnist.search as s\n"
    heavy += "try: s.main(['--help'])\nexcept SystemExit: pass\n"
    heavy += "print([m for m in ('jax', 'numpy', 'sklearn', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--max-trials" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_finished(number, options, tmp_path, finished):
    given = {**options, "epochs": 400}
    del given["quiet"]
    line = [sys.executable, "-m", "jaxmnist.search", *flags(given), "--directory", str(tmp_path)]
    search = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for text in search.stdout:
        if "epoch 2/" in text:
            break
    search.send_signal(number)
    _, errors = search.communicate(timeout=60)
    assert search.returncode == 128 + number
    assert errors.splitlines()[-1].endswith("the same command goes on from here")
    assert "Traceback" not in errors
    trial = read_json(tmp_path / "small" / "trials" / "0000" / "trial.json")
    assert trial["status"] == "running"


def test_the_whole_command(options, finished, tmp_path):
    given = {name: value for name, value in options.items() if name != "quiet"}
    done = command("search", *flags(given), "--svm-search", 2, "--directory", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for part in (
        "4 of 8 configurations on small: 300 training, 100 validation and 200 test images",
        "epoch 3/3: loss",
        "wins with validation accuracy",
        "Total params:",
        "Test accuracy:",
        "Confusion matrix",
        "macro avg",
        "SVM on the flatten features",
        "McNemar's exact test",
        "Tried C =",
    ):
        assert part in done.stdout
    assert facts(Run(tmp_path / "small")) == facts(finished)


def test_commands_on_a_run(copy, mnist, small):
    run = copy / "small"
    done = command("evaluation", run)
    assert done.returncode == 0, done.stderr
    assert "looks at the test set: 3" in done.stdout
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
    assert "The same SVM on untrained network:" in done.stdout
    content = read_json(run / "svm" / "task" / "svm.json")
    assert content["labels"] == [0, 1, 2]
    assert content["accuracy"] > 0.8
    looks = [look["purpose"] for look in Run(run).directory.read_looks()]
    assert looks[2:] == ["evaluation", "svm", "svm on raw pixels", "svm on the untrained network"]
    assert command("svm", run, "--svm-search", "2").returncode == 0


def test_commands_on_no_run(tmp_path):
    for module in ("evaluation", "svm", "predict"):
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
    assert "inverted: its border is bright, fitted into 20×20, centred by its mass" in done.stdout


def test_a_run_that_has_not_finished(copy):
    shutil.rmtree(copy / "small" / "best")
    done = command("predict", copy / "small", "a.png")
    assert done.returncode == 2
    assert "its search is not finished" in done.stderr


def test_data_that_have_changed_since(copy):
    search = copy / "small" / "search.json"
    content = read_json(search)
    content["identity"]["data"] = "0" * 64
    from jaxmnist.store import write_json

    write_json(search, content)
    done = command("evaluation", copy / "small")
    assert done.returncode == 2
    assert "not those of" in done.stderr


def test_results_summary_ranks_and_names_failures(copy, finished):
    run = Run(copy / "small")
    failed = replace(run.trials[0], status="failed", error="the loss became nan in epoch 1")
    run.directory.write_trial(failed)
    lines = Run(copy / "small").results_summary().splitlines()
    assert "the loss became nan" in lines[-1]
    assert len(lines) == 5
    assert finished.results_summary().splitlines()[1].split()[0] == str(finished.best_trial.index)


def test_time_is_told(finished):
    assert all(0 < trial.seconds < time.time() for trial in finished.trials)
