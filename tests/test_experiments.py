"""The scripts of experiments/, on a small scale."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from jaxmnist import random_search
from jaxmnist.files import array_bytes
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION, configuration
from jaxmnist.settings import RECIPES, TrainingSettings

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
import gpu_kernels  # noqa: E402
import measure  # noqa: E402
import recipe  # noqa: E402
import searches  # noqa: E402
import steps  # noqa: E402


def script(name: str, *arguments: object) -> str:
    """What a script prints."""
    line = [sys.executable, str(EXPERIMENTS / name), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_recipes_are_trained_once_and_judged(tmp_path):
    given = ["--sets", "few", "--networks", "drawn-2", "--recipes", "study", "average"]
    given += ["--seeds", "1", "--results", tmp_path / "found.jsonl", "--weights", tmp_path]
    assert TrainingSettings(**recipe.RECIPES["smoothing-decay"]) == RECIPES["fast"]
    first = script("recipe.py", *given, "--epochs", 1)
    assert first.count("Metrics(") == 2
    again = script("recipe.py", *given, "--epochs", 1)
    assert again.splitlines() == first.splitlines()[2:]
    judged = script("recipe.py", *given, "--judge", "validation")

    def accuracies(table: str) -> dict[str, str]:
        rows = [line.split(" | ") for line in table.splitlines()[2:]]
        return {row[2]: row[4] for row in rows}

    assert accuracies(judged) == accuracies(again)
    assert len(accuracies(judged)) == 2
    given.remove("average")
    with_svm = script("recipe.py", *given, "--judge", "validation", "--svm")
    row = with_svm.splitlines()[-1].split(" | ")
    assert row[4] == accuracies(again)["study"]
    assert 0.9 < float(row[-1].strip(" |")) < 1


@pytest.mark.slow
def test_falls_and_finalists_of_a_search_are_told(options, tmp_path):
    unsteady = {**options, "recipe": "study", "learning_rate": 0.05, "epochs": 6}
    run = random_search(**unsteady, finalists=4, reruns=2, svm=False, directory=str(tmp_path))
    tables = recipe.told([str(run.store.path)], False).split("\n\n")
    of_search, of_finalists = (table.splitlines() for table in tables)
    scores = np.array([trial.metric("val_accuracy") for trial in run.trials])  # [trials, epochs]
    falls = np.clip(scores[:, :-1] - scores[:, 1:], 0, None).max(1)
    assert falls.any()
    found = [cell.strip() for cell in of_search[2].split("|")[2:-1]]
    assert found[0].startswith(f"{scores[:, -1].mean():.4f} ± ")
    assert found[1] == str((falls > 0).sum())
    assert found[2] == f"{falls.max():.4f}"
    assert found[4].split()[0] == str((falls > 0).sum())
    again = np.array([trial.score for trial in run.reruns if trial.rerun > 0])
    keys = [(trial.index, trial.rerun) for trial in run.reruns]
    assert sorted(keys) == [(index, rerun) for index in range(4) for rerun in (1, 2)]
    seeds = np.empty((4, 3))
    seeds[:, 0] = scores[:, -1]
    for key, score in zip(keys, again, strict=True):
        seeds[key] = score
    means = seeds[:, 1:].mean(1)
    found = [cell.strip() for cell in of_finalists[2].split("|")[2:-1]]
    assert found[0] == "4"
    assert found[1] == f"{seeds.var(1, ddof=1).mean() ** 0.5:.4f}"
    assert found[2] == f"{means.std(ddof=1):.4f}"
    assert found[3] == f"{np.corrcoef(rankdata(seeds[:, 0]), rankdata(means))[0, 1]:.2f}"
    winner = run.ranking.ranked[0].trial.index
    assert found[4] == f"{scores[winner, -1]:.4f}, {means[winner]:.4f}"
    assert found[5] == f"{means.max():.4f}"


@pytest.mark.slow
def test_an_exported_network_is_served(finished, mnist, tmp_path):
    path = tmp_path / "digits.stablehlo"
    finished.best_model.export(path)
    images = mnist.x_test[:3]
    expected = finished.best_model.predict_proba(images)
    line = [sys.executable, str(EXPERIMENTS / "serve_exported.py"), str(path), "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()

            def post(body: bytes) -> list[dict[str, float]]:
                with urllib.request.urlopen(address, body, timeout=120) as answer:
                    return json.load(answer)

            for body in (array_bytes(images), images.tobytes()):
                found = post(body)
                assert [list(row) for row in found] == [list("0123456789")] * 3
                np.testing.assert_allclose(
                    [list(row.values()) for row in found], expected, atol=1e-5
                )
            with pytest.raises(urllib.error.HTTPError, match="400"):
                post(b"12345")
        finally:
            server.kill()


def test_training_flops_against_a_formula_by_hand():
    first, second, dense, logits = (
        24 * 24 * 25 * 112,
        12 * 12 * 9 * 112 * 112,
        6 * 6 * 112 * 224,
        224 * 10,
    )
    reference = 2 * (2 * first + 3 * (second + dense + logits))
    assert reference == 109_425_792
    assert steps.training_flops(configuration(112, 2, 1, 224)) == reference
    without_dense = 2 * (2 * 24 * 24 * 25 * 32 + 3 * 12 * 12 * 32 * 10)
    assert steps.training_flops(configuration(32, 1, 0)) == without_dense


def test_geometric_mean_and_spread():
    assert measure.geometric_mean([2, 8]) == pytest.approx(4)
    assert math.isnan(measure.geometric_mean([]))
    assert measure.spread([3, 1, 2]) == {"median": 2, "lowest": 1, "highest": 3}


def test_the_steady_rate_counts_while_all_trials_are_past_their_first_epoch():
    # From second 5 to second 9 the first trial does 2 epochs of 100 images, the other one 1.
    assert steps.steady_rate([[0, 3, 5, 7, 9, 11], [1, 5, 9]], 100) == pytest.approx(75)
    # Consecutive trials don't disturb each other: 100 images in 2 s, and in 4 s.
    assert steps.steady_rate([[0, 1, 3], [3, 4, 8]], 100) == pytest.approx(75)


def row(configuration: str, peer: str, arrangement: str, rate: float) -> dict:
    """A row of the comparison with 10 FLOPs an image."""
    return {
        "configuration": configuration,
        "peer": peer,
        "arrangement": arrangement,
        "images_per_second": measure.spread([rate]),
        "import_seconds": 1,
        "compile_seconds": 2,
        "flops_per_image": 10,
        "versions": {"jax": "1.2"},
    }


def test_ratios_count_the_better_arrangement_and_show_who_is_faster():
    rows = [
        row("a", "jaxmnist", "one process", 400),
        row("a", "X", "one process", 100),
        row("a", "X", "one a core", 200),
        row("b", "jaxmnist", "one process", 900),
        row("b", "X", "one process", 900),
        row("b", "X", "one a core", 450),
        row("b", "Y", "one process", 1800),
    ]
    steps.add_ratios(rows, peak_gflops=1e-5)
    assert [r["ratio"] for r in rows] == [1, 4, 2, 1, 1, 2, 0.5]
    assert rows[0]["fraction_of_peak"] == pytest.approx(0.4)
    x, y, fastest = steps.summarise(rows)
    assert (x["peer"], x["default"], x["better"]) == ("X", pytest.approx(2), pytest.approx(2**0.5))
    assert (y["configurations"], y["default"], y["better"]) == (["b"], 0.5, 0.5)
    assert fastest["better"] == pytest.approx(1)
    text = "\n".join(steps.lines(rows))
    assert "Faster than jaxmnist: b: Y, one process, by 2.00" in text
    assert text.count("Faster than jaxmnist") == 1
    assert "X: jax 1.2" in text


def test_a_peer_that_is_missing_is_named_with_its_mend(capsys):
    peers = {
        "here": measure.Peer("here.py", needs=("json",)),
        "X": measure.Peer("x.py", needs=("json", "no_such_module"), mend="pip install x"),
    }
    names, left_out = measure.present(peers, peers, sys.executable)
    assert names == ["here"]
    line = f"X is left out: no_such_module not installed in {sys.executable}; pip install x"
    assert left_out == [line]
    assert line in capsys.readouterr().err
    assert "doesn't run" in measure.missing(peers["here"], "/no/such/python")


def test_a_peer_that_fails_is_left_out_of_later_rounds(capsys):
    measured = []

    def one(name: str) -> dict:
        measured.append(name)
        if name == "bad":
            command = [sys.executable, "-c", "raise SystemExit('no memory')"]
            measure.run_together([command])
        return {"figure": 1.0}

    results, failed = measure.alternate([("a",), ("bad",), ("b",)], 2, one, "figure")
    assert measured == ["a", "bad", "b", "b", "a"]
    assert list(results) == [("a",), ("b",)]
    assert failed == ["bad is left out: ended with status 1: no memory"]


def test_processes_are_pinned_and_cold(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/somewhere")
    program = (
        "import json, os\n"
        "environment = os.environ\n"
        "print(json.dumps([sorted(os.sched_getaffinity(0)), environment['OMP_NUM_THREADS'],"
        " 'JAX_COMPILATION_CACHE_DIR' in environment, environment['XDG_CACHE_HOME']]))"
    )
    cores = measure.processors()
    outputs, _ = measure.run_together([[sys.executable, "-c", program]] * len(cores), pinned=True)
    found = [json.loads(output) for output in outputs]
    assert [each[:3] for each in found] == [[[core], "1", False] for core in cores]
    assert not Path(found[0][3]).exists()


def test_shares_have_about_the_same_work():
    small, large = configuration(32, 1, 0), configuration(128, 3, 0)
    medium = configuration(64, 1, 0)
    assert searches.shares([small, large, medium], 2) == [[large], [medium, small]]
    assert searches.shares([small], 2) == [[small]]


def test_both_sides_of_a_search_train_on_exactly_as_many_images():
    assert searches.train_limit(12_000, 0.1) == 13_333
    search = searches.define(10, 2, 12_000)
    assert len(search.dataset.y_train) == 12_000
    assert len(search.dataset.y_validation) == 1_333
    assert search.configurations[0] == next(Space(DEFINITION).draws(0))
    assert len(set(search.configurations)) == 10


@pytest.mark.slow
def test_the_step_benchmark(tmp_path):
    path = tmp_path / "step.json"
    options = ["--configurations", "32-1-0", "--rounds", 1, "--images", 256, "--json", path]
    output = script("benchmark.py", "step", "--peers", "jaxmnist", "plain Flax loop", *options)
    content = json.loads(path.read_text())
    rows = content["rows"]
    assert [(r["peer"], r["arrangement"]) for r in rows] == [
        ("jaxmnist", "one process"),
        ("plain Flax loop", "one process"),
        ("plain Flax loop", "one a core"),
    ]
    for r in rows:
        rate = r["images_per_second"]
        assert 0 < rate["lowest"] <= rate["median"] <= rate["highest"]
        assert r["loss"] < math.log(10)
    assert all(peak > 0 for peak in content["peak_gflops"])
    assert content["left_out"] == []
    assert f"{content['machine']['cores']} cores" in output
    assert "| 32-1-0 | jaxmnist, one process | " in output


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("keras_tuner") is not None, reason="KerasTuner is installed"
)
def test_the_search_benchmark_without_keras_tuner(tmp_path):
    path = tmp_path / "search.json"
    options = ["--trials", 1, "--epochs", 1, "--images", 200, "--rounds", 1, "--json", path]
    output = script("benchmark.py", "search", *options)
    content = json.loads(path.read_text())
    assert [r["peer"] for r in content["rows"]] == ["jaxmnist"]
    assert content["rows"][0]["seconds"]["median"] > content["rows"][0]["import_seconds"] > 0
    assert len(content["rows"][0]["scores"]) == 1
    assert [line.partition(" is left out")[0] for line in content["left_out"]] == [
        "KerasTuner on TensorFlow",
        "KerasTuner on JAX",
    ]
    assert "pip install '.[bench]'" in output


@pytest.mark.slow
def test_the_accelerator_script(tmp_path):
    path = tmp_path / "accelerator.json"
    space = ["--filters", "4:8:4", "--conv-layers", 1, "--dense-layers", 0, "--trials", 2]
    small = ["--epochs", 1, "--train-limit", 300, "--lanes", 2, "--sample", 1, "--side", 64]
    precisions = ["--precisions", "highest", "bfloat16", "--precision-trials", 1]
    output = script("accelerator.py", *space, *small, *precisions, "--json", path)
    content = json.loads(path.read_text())
    assert content["cold"]["completed"] == content["warm"]["completed"] == 2
    assert content["cold"]["stacking"]["lanes"] == 2
    assert content["cold"]["training_images"] == 270
    expected = sum(
        steps.training_flops(Hyperparameters(h)) for h in content["cold"]["configurations"]
    )
    assert content["cold"]["teraflops"] == pytest.approx(expected * 270 / 1e12)
    (flax,) = [peer for peer in content["peers"] if peer["peer"] == "plain Flax loop"]
    assert flax["seconds_for_all"] == pytest.approx(2 * flax["seconds"][0])
    assert set(content["precisions"]) == {"highest"}
    assert "precision bfloat16 is left out" in output
    assert "--precision bfloat16 is for GPUs and TPUs" in output


MODULE = """\
HloModule jit_run, is_scheduled=true

%fused_pool (p: f32[2,4,4,8]) -> f32[2,8,4,4] {
  %p = f32[2,4,4,8]{3,2,1,0} parameter(0)
  %t = f32[2,8,4,4]{3,2,1,0} transpose(%p), dimensions={0,3,1,2}
  ROOT %m = f32[2,8,4,4]{3,2,1,0} maximum(%t, %t)
}

%fused_dot (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %d = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%inner_body (c: (s32[], f32[8])) -> (s32[], f32[8]) {
  %c = (s32[], f32[8]{0}) parameter(0)
  %w = (f32[8]{0}, u8[0]{0}) custom-call(%c), custom_call_target="__cublas$gemm"
  ROOT %r = (s32[], f32[8]{0}) tuple(%c, %w)
}

%body (a: (s32[], f32[2,4,4,8])) -> (s32[], f32[2,4,4,8]) {
  %a = (s32[], f32[2,4,4,8]{3,2,1,0}) parameter(0)
  %s = s32[] copy(%a)
  %c.1 = bf16[2,4,4,8]{1,2,3,0} copy(%a)
  %v = (f32[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%c.1), custom_call_target="__cudnn$convForward"
  %o = f32[2,4,4,8]{3,2,1,0} convolution(%a, %a), dim_labels=b01f_01io->b01f
  %f = f32[2,8,4,4]{3,2,1,0} fusion(%o), kind=kLoop, calls=%fused_pool
  %g = f32[8,8]{1,0} fusion(%f), kind=kCustom, calls=%fused_dot
  %l = (s32[], f32[8]{0}) while(%g), condition=%more, body=%inner_body
  ROOT %e = (s32[], f32[2,4,4,8]{3,2,1,0}) tuple(%s, %v)
}

%more (a: (s32[], f32[2,4,4,8])) -> pred[] {
  %a = (s32[], f32[2,4,4,8]{3,2,1,0}) parameter(0)
  ROOT %k = pred[] compare(%a, %a), direction=LT
}

ENTRY %main (x: (s32[], f32[2,4,4,8])) -> (s32[], f32[2,4,4,8]) {
  %x = (s32[], f32[2,4,4,8]{3,2,1,0}) parameter(0)
  %b = f32[64]{0} copy(%x)
  ROOT %w = (s32[], f32[2,4,4,8]{3,2,1,0}) while(%x), condition=%more, body=%body
}
"""


def test_kernels_of_a_step_are_read_from_a_modules_text():
    found = gpu_kernels.kernels_of(MODULE)
    # A copy of 256 values of two bytes, a transpose of 256 of four; the scalar's doesn't count.
    expected = gpu_kernels.Kernels(
        loop="unknown",
        forward=1,
        by_kernel=0,
        by_inputs=0,
        other_convolutions=1,
        products=2,
        fusions=1,
        layouts=2,
        layout_bytes=256 * 2 + 256 * 4,
        rest=0,
    )
    assert found == expected
    known = MODULE.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"8"}}'
    )
    assert gpu_kernels.kernels_of(known).loop == "known"
    assert gpu_kernels.kernels_of(MODULE.replace(" while(", " custom(")).loop == "none"
    assert len(found.cells()) == len(gpu_kernels.Kernels.HEADINGS)
