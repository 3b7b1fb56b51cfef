"""Everything that was tested on the same images, against SciPy and Holm's rule by hand."""

from __future__ import annotations

import shutil
import sys
from itertools import combinations
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import writing
from processes import looks_of
from scipy.stats import binomtest
from sklearn.svm import SVC

from jaxmnist import Run
from jaxmnist.files import as_json, read_json, write_json
from jaxmnist.report.page import make_page
from jaxmnist.results import comparisons
from jaxmnist.results.svm import fit_on_run
from jaxmnist.runs.records import File, ModelReport, SvmReport


@pytest.mark.parametrize("seed", range(3))
def test_pairs_by_scipy_and_holm_by_hand(seed):
    generator = np.random.default_rng(seed)
    hard = generator.random(400) < 0.2
    shares = {"network": 0.2, "ensemble": 0.45, "SVM": 0.5, "SVM by cuml": 0.2}
    right = {name: ~hard | (generator.random(400) < p) for name, p in shares.items()}
    found = comparisons.compare_models(right)
    assert [(each.first, each.second) for each in found] == list(combinations(shares, 2))
    for each in found:
        first, second = right[each.first], right[each.second]
        assert each.only_first == (first & ~second).sum()
        assert each.only_second == (second & ~first).sum()
        different = each.only_first + each.only_second
        p_value = binomtest(each.only_first, different).pvalue
        assert each.p_value == pytest.approx(p_value, rel=1e-9)
    told = 0
    for place, each in enumerate(sorted(found, key=lambda each: each.p_value)):
        assert each.significant == (told == place and each.p_value <= 0.05 / (6 - place))
        told += each.significant
    assert 0 < told < 6


def test_one_model_is_compared_with_nothing():
    assert comparisons.compare_models({"network": np.ones(3, bool)}) == ()
    assert comparisons.describe_comparisons(None) == []


def test_a_runs_comparisons(finished, tmp_path, said, monkeypatch):
    path = tmp_path / "small"
    shutil.copytree(finished.store.path, path)
    run, dataset = Run(writing(path)), finished.load_dataset()
    (pair,) = run.kept_comparisons().comparisons
    svm = run.result("svm/small/svm.json", SvmReport)
    classes = [np.load(path / "best" / "test_probabilities.npy").argmax(1)]
    classes.append(np.load(path / "svm" / "small" / "test_predictions.npy"))
    first, second = (each == dataset.y_test for each in classes)
    only = int((first & ~second).sum()), int((second & ~first).sum())
    assert (pair.only_first, pair.only_second) == only
    assert pair.p_value == pytest.approx(binomtest(only[0], sum(only)).pvalue, rel=1e-9)
    accuracies = [run.result("best/test.json", ModelReport).accuracy, svm.accuracy]
    models = run.kept_comparisons().models
    assert [models[name].accuracy for name in ("network", "SVM")] == accuracies
    lines = comparisons.describe_comparisons(run.kept_comparisons())
    assert lines[0] == "On the same test images (McNemar's exact test):"
    assert f"{accuracies[1]:.4f} − {accuracies[0]:.4f}" in lines[1]
    assert lines[1] in make_page(run, images=False).replace("&#39;", "'")
    # Another backend's result (scikit-learn in cuML's place) lies beside the first, which stays.
    monkeypatch.setitem(sys.modules, "cuml", ModuleType("cuml"))
    monkeypatch.setitem(sys.modules, "cuml.svm", SimpleNamespace(SVC=SVC))
    before = run.store.file(File.SVM, ("small",)).read_bytes()
    for _ in range(2):
        other = fit_on_run(run, dataset, wanted="cuml", draws=0)
    assert (other.backend, other.folder) == ("cuml", "small/cuml")
    assert looks_of(run) == ["winner", "svm", "svm"]
    assert read_json(path / "svm" / "small" / "cuml" / "svm.json") == as_json(other)
    assert run.store.file(File.SVM, ("small",)).read_bytes() == before
    assert fit_on_run(run, dataset, wanted="auto", draws=0) == svm
    assert fit_on_run(run, dataset, wanted="sklearn", draws=0) == svm
    # What is there is of fewer models, until they are compared again.
    assert run.kept_comparisons() is None
    content = comparisons.write_comparisons(
        run.store, run.ranking.ranked, run.ranking.tested_sha256, dataset.y_test
    )
    assert list(content.models) == ["network", "SVM", "SVM by cuml"]
    assert run.kept_comparisons() == content
    # Damage: the file is set aside and made again, lost predictions are left out.
    run.store.file(File.COMPARISONS).write_bytes(b"{}")
    assert run.kept_comparisons() is None
    assert (
        comparisons.write_comparisons(
            run.store, run.ranking.ranked, run.ranking.tested_sha256, dataset.y_test
        )
        == content
    )
    assert len(said) == 1
    run.store.file(File.PREDICTIONS, ("small", "cuml")).write_bytes(b"")
    content = comparisons.write_comparisons(
        run.store, run.ranking.ranked, run.ranking.tested_sha256, dataset.y_test
    )
    assert list(content.models) == ["network", "SVM"]
    assert run.kept_comparisons() == content
    pairs = [{**as_json(content.comparisons[0]), "first": "nobody"}]
    write_json(run.store.file(File.COMPARISONS), {**as_json(content), "comparisons": pairs})
    assert run.kept_comparisons() is None


def test_an_earlier_winners_results_are_left_out(finished, tmp_path):
    path = tmp_path / "small"
    shutil.copytree(finished.store.path, path)
    run = Run(writing(path))
    run.ranking.ranked[:2] = run.ranking.ranked[1::-1]
    assert comparisons.tested_models(run.store, run.ranking.ranked, run.ranking.tested_sha256) == {}
    assert run.kept_comparisons() is None
    assert (
        comparisons.write_comparisons(
            run.store, run.ranking.ranked, run.ranking.tested_sha256, finished.load_dataset().y_test
        )
        is None
    )
