"""Searches whose finalists are trained again, and whose winner is refitted."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from conftest import writing
from processes import command, facts, flags, looks_of
from rich.console import Console as RichConsole

from jaxmnist import EnvironmentFailure, Run, UsageError, random_search
from jaxmnist.data.dataset import dataset_in_memory, joined
from jaxmnist.engine.events import TrialFinished
from jaxmnist.engine.local import Engine
from jaxmnist.files import as_json
from jaxmnist.models.network import STUDY
from jaxmnist.report.console import Display
from jaxmnist.results.table import finalists_table
from jaxmnist.runs.records import File, ModelReport, SvmReport
from jaxmnist.runs.store import Store
from jaxmnist.runs.trial import REFIT, Key
from jaxmnist.settings import DataSettings, SearchSettings

ASKED = {"finalists": 2, "reruns": 2, "refit": True, "svm_search": 1}


@pytest.fixture(scope="module")
def again(options, finished, tmp_path_factory):
    """The finished run gone on with: two finalists, two reruns of each, a refit."""
    folder = tmp_path_factory.mktemp("again")
    shutil.copytree(finished.store.path, folder / "small")
    return random_search(**{**options, **ASKED, "report": True}, directory=str(folder))


@pytest.fixture
def copy(again, tmp_path):
    """The same run, for changing."""
    shutil.copytree(again.store.path, tmp_path / "small")
    return tmp_path


def weights(run):
    """Everything of the reruns and the refit but the seconds, and the bytes of best/."""
    found = [
        (trial.key, trial.status, str(trial.history), trial.validation, trial.weights_sha256)
        for trial in run.reruns
    ]
    return [*found, run.store.file(File.MODEL).read_bytes()]


def test_trials_stay_as_they_are(again, finished):
    assert facts(again) == facts(finished)
    assert [entry.trial.index for entry in again.ranking.ranked] == [
        entry.trial.index for entry in finished.ranking.ranked
    ]


def test_what_is_trained_again_and_kept(again):
    first, second = (entry.trial.index for entry in again.ranking.ranked[:2])
    chosen = again.best_trial.index
    expected = [Key(index, number) for index in (first, second) for number in (1, 2)]
    assert again.store.reruns() == sorted([*expected, Key(chosen, REFIT)])
    folder = again.store.path / "trials" / f"{chosen:04d}"
    assert json.loads((folder / "reruns" / "2" / "trial.json").read_text())["rerun"] == 2
    assert {path.name for path in (folder / "refit").iterdir()} == {
        "trial.json",
        "validation.npy",
        "model.safetensors",
    }
    kept = [key for key in again.store.reruns() if again.store.file(File.WEIGHTS, key).exists()]
    assert kept == sorted([Key(first, 1), Key(second, 1), Key(chosen, REFIT)])
    assert not list(again.store.path.rglob("checkpoint*"))
    scores = [trial.score for trial in again.reruns if trial.rerun != REFIT]
    originals = [again.ranking.ranked[0].score, again.ranking.ranked[1].score]
    assert len({*scores, *originals}) > 2


def test_the_winner_is_refitted(again, finished):
    data = again.load_dataset()
    chosen = again.ranking.finals[0]
    assert chosen.mean == max(each.mean for each in again.ranking.finals)
    config = again.winner()
    assert (config.refit, config.rerun, config.trial) == (True, 1, chosen.trial.index)
    assert config.score == again.best_trial.score == chosen.reruns[0].score
    assert config.corrected_score == chosen.corrected <= chosen.mean
    assert [each.trial for each in config.finalists] == [
        each.trial.index for each in again.ranking.finals
    ]
    assert again.ranking.final.key == Key(chosen.trial.index, REFIT)
    assert again.ranking.final.score is None
    test = again.result("best/test.json", ModelReport)
    assert test.refit_images == len(data.y_train) + len(data.y_validation) == 400
    assert "validation_accuracy" not in as_json(test)
    right = again.best_model.predict(data.x_test) == np.asarray(data.labels)[data.y_test]
    assert test.accuracy == right.mean()
    # Trained from the start on arrays put together, as the same training alone.
    engine = Engine(STUDY, joined(data), again.settings.training, again.settings.space.seed)
    key = again.ranking.final.key
    with engine.run([(key, again.ranking.final.hyperparameters)]) as events:
        last = next(event for event in events if isinstance(event, TrialFinished))
    pair = last.parameters, again.best_model.parameters
    assert jax.tree.all(jax.tree.map(np.array_equal, *pair))
    models = again.get_best_models(2)
    assert [model.hyperparameters for model in models] == again.get_best_hyperparameters(2)
    assert models[0] is again.best_model
    assert looks_of(again) == [*looks_of(finished), "winner", "svm"]


def test_the_svm_is_tuned_before_the_refit(again):
    """Its search is that of the network before the refit; it is fitted on all images."""
    from jaxmnist.results import svm as svm_module

    data, before = again.load_dataset(), again.load_model(again.best_trial)
    labels = np.asarray(data.labels)
    expected = svm_module.tune_svm(
        lambda images: before.batches("features", images),
        before.feature_count,
        (data.x_train, labels[data.y_train]),
        (data.x_validation, labels[data.y_validation]),
        how=svm_module.Fitting("sklearn", draws=1),
        seed=again.settings.space.seed,
    )
    expected = expected.tried
    svm = again.result("svm/small/svm.json", SvmReport)
    assert svm.seconds["search"] > 0
    assert len(svm.search) == len(expected) == 2
    for found, tried in zip(svm.search, expected, strict=True):
        assert found == pytest.approx(tried, rel=1e-4)
    assert f"C = {expected[0]['C']:.3g}" in svm.description
    assert svm.model_sha256 == again.ranking.final.weights_sha256


def test_page_and_summary(again):
    page = again.store.file(File.PAGE).read_text("utf-8")
    section = page.partition('<section id="finalists">')[2].partition("</section>")[0]
    for each in again.ranking.finals:
        assert re.search(rf">{each.mean:.4f}</td><td[^>]*>{each.deviation:.4f}</td>", section)
    assert "refitted on 400 images; no validation images are left, so no gap is shown" in page
    summary = again.results_summary()
    assert f"Trial {again.ranking.finals[0].trial.index} is chosen" in summary
    assert f"Trial {again.ranking.finals[0].trial.index} is chosen" in page


def test_a_terminal_shows_the_finalists_below_the_ranking(again):
    file = io.StringIO()
    display = Display(RichConsole(force_terminal=True, width=100, file=file, color_system=None))
    display.results(again)
    shown = file.getvalue()
    order = [shown.index(str(finalists_table(again.ranking.finals))), shown.index("largest fall")]
    assert order == sorted(order, reverse=True)
    assert f"Trial {again.ranking.finals[0].trial.index} is chosen" in " ".join(shown.split())


def test_a_default_run_has_no_section(finished):
    assert "Finalists" not in finished.store.file(File.PAGE).read_text("utf-8")
    assert finished.ranking.finals == ()


def test_a_broken_off_rerun_goes_on_bit_for_bit(again, finished, options, tmp_path, monkeypatch):
    """The process ends at a checkpoint in a rerun, then at one of the refit."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    asked = {**options, **ASKED, "directory": str(tmp_path), "jobs": 1, "checkpoint_every": 0}
    write, seen, gone = Store.write_checkpoint, [], []

    def write_and_go(self, key, *content):
        write(self, key, *content)
        seen.append(key)
        if seen.count(key) == 2 and (key.refit or len(seen) == 2):
            gone.append(key)  # nothing is written any more, as if the process were killed

    def fail(self):
        if gone:
            raise EnvironmentFailure("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write_checkpoint", write_and_go)
        patch.setattr(Store, "check_there", fail)
        for refit in (False, True):
            with pytest.raises(EnvironmentFailure, match="disk is gone"):
                random_search(**asked)
            key = gone.pop()
            assert key.refit == refit
            assert Store.open(tmp_path / "small").file(File.CHECKPOINT, key).exists()
    assert weights(random_search(**asked)) == weights(again)


def test_the_command_goes_on_with_fewer_and_uses_the_first(again, options, copy):
    """It trains nothing, tests the rerun instead of the refit, and the other commands read it."""
    given = {**options, "directory": str(copy), "finalists": 2, "reruns": 1}
    del given["quiet"]
    # What is wrong with a rerun that isn't asked for stays, and nothing is said or trained.
    unwanted = Key(again.ranking.finals[0].trial.index, 2)
    Store.open(copy / "small").file(File.VALIDATION, unwanted).unlink()
    done = command("search", *flags({**given, "report": True}))
    assert done.returncode == 0, done.stderr
    assert str(unwanted) not in done.stdout
    further = [trial.key for trial in Run(copy / "small").reruns]
    assert further == [key for key in again.store.reruns() if key != unwanted]
    assert "2 of 2 are already finished" in done.stdout
    assert "compiling" not in done.stdout
    run = Run(copy / "small")
    assert run.ranking.final.rerun == 1
    scores = {
        index: run.store.read_trial(Key(index, 1)).score
        for index in range(4)
        if (copy / "small" / "trials" / f"{index:04d}" / "reruns").exists()
    }
    assert run.best_trial.score == max(scores.values())
    assert (
        run.store.file(File.MODEL).read_bytes()
        == run.store.file(File.WEIGHTS, run.best_trial.key).read_bytes()
    )
    assert run.result("best/test.json", ModelReport).validation_accuracy == run.best_trial.score
    assert "1 rerun is" in done.stdout
    assert run.best_model.export(copy / "out.safetensors").test_accuracy is not None


def test_an_unfinished_run_has_no_winner(again, copy):
    """Its reruns were asked for and are missing: what lies in best/ isn't their choice."""
    shutil.rmtree(
        copy / "small" / "trials" / f"{again.ranking.finals[1].trial.index:04d}" / "reruns"
    )
    run = Run(copy / "small")
    assert run.ranking.finals == ()
    assert run.ranking.final is None
    with pytest.raises(UsageError, match="search is not finished"):
        run.winner()


def test_a_rerun_that_will_be_tried_again_is_awaited(again, copy):
    last = again.ranking.finals[-1].reruns[-1]
    retries = again.settings.running.max_retries
    for failures, chosen in ((retries, False), (retries + 1, True)):
        failed = replace(last, status="failed", error="it broke", failures=failures)
        writing(copy / "small").write_trial(failed)
        assert bool(Run(copy / "small").ranking.finals) == chosen
    assert Run(copy / "small").ranking.finals[-1].failed == 1


def test_lost_weights_of_a_rerun_are_trained_again(again, options, copy, said):
    path = Run(copy / "small").store.file(File.WEIGHTS, again.best_trial.key)
    path.write_bytes(path.read_bytes()[:-1])
    run = random_search(**{**options, **ASKED}, directory=str(copy))
    assert weights(run) == weights(again)
    assert any("weights are missing: trained again" in line for line in said)


def test_a_refit_of_data_with_their_own_validation_images(again):
    data = again.load_dataset()
    x, y, own_x, own_y = data.x_train, data.y_train, data.x_test[:60], data.y_test[:60]
    arrays = (x, y, own_x, own_y, data.x_test[60:], data.y_test[60:])
    found = joined(dataset_in_memory(arrays, DataSettings(), 0))
    assert np.array_equal(found.x_train, np.array([*x, *own_x]))
    assert np.array_equal(found.y_train, np.array([*y, *own_y]))
    assert len(found.x_validation) == len(found.y_validation) == 0
    assert len(found.y_test) == 140


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"finalists": 5}, "finalists 5 is more than the 4 trials of max_trials"),
        ({"finalists": 1}, "finalists must be a whole number of at least 2, not 1"),
        ({"finalists": 2, "reruns": 0}, "reruns must be a whole number of at least 1, not 0"),
        ({"finalists": 2, "reruns": 1001}, "reruns must be a whole number from 1 to 1000"),
        ({"reruns": 2}, "reruns needs finalists"),
        ({"finalists": "two"}, "finalists must be a whole number of at least 2, not 'two'"),
        ({"refit": 1}, "refit must be true or false, not 1"),
    ],
)
def test_bad_input_is_a_line(given, says):
    with pytest.raises(UsageError) as caught:
        SearchSettings(max_trials=4, **given)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_finalists_than_a_small_space_has(options, tmp_path):
    one = {**options, "filters": 4, "dense_layers": 0}
    del one["units"]
    with pytest.raises(UsageError, match="finalists 3 is more than the 2 configurations"):
        random_search(**{**one, "finalists": 3}, directory=str(tmp_path))


def test_three_reruns_by_default_which_do_not_identify_the_run():
    asked, plain = SearchSettings(finalists=2, refit=True), SearchSettings()
    assert asked.selection.reruns == 3
    assert asked.identity() == plain.identity()
