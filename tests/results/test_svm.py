from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jaxmnist import UsageError
from jaxmnist.files import DamagedFile
from jaxmnist.results import pipeline as pipeline_module
from jaxmnist.results import svm
from jaxmnist.results.pipeline import PROJECTION, RbfSvm, SvmPipeline, classifier, one_against_one


def blobs(classes: int, rows: int, width: int, seed: int = 0):
    """Overlapping clouds of points, one for each class."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows)
    x = rng.normal(size=(classes, width))[y] + rng.normal(size=(rows, width)) * 1.2
    return (x * rng.uniform(1, 30, width) + 5).astype(np.float32), y * 3 - 2


def in_blocks(x):
    """Features that are the rows themselves."""
    for first in range(0, len(x), 50):
        yield first, x[first : first + 50]


def fitted(classes=4, width=80, **options):
    x, y = blobs(classes, 600, width)
    how = svm.Fitting(**{"backend": "sklearn", **options})
    parts = (x[:400], y[:400]), (x[400:], y[400:])
    return svm.fit(in_blocks, width, *parts, how=how, seed=0), x, y


@pytest.mark.parametrize(("classes", "width"), [(2, 80), (4, 80), (5, 3), (60, 20)])
def test_predictions_equal_scikit_learns_pipeline(classes, width, monkeypatch):
    monkeypatch.setattr(
        pipeline_module, "MOST_DECISIONS", 60**2 * 100
    )  # several blocks for many classes
    fit, x, y = fitted(classes, width)
    components = min(64, width)
    pipeline = make_pipeline(StandardScaler(), PCA(components, random_state=0), SVC(C=5))
    pipeline.fit(x[:400], y[:400])
    assert fit.svm.project.pca_components.shape == (components, width)
    assert np.array_equal(fit.svm.predict(x), pipeline.predict(x))
    assert len(fit.svm.classifier.vectors) == len(pipeline[-1].support_)


def test_a_pair_at_a_time_is_the_same_machine():
    """How libraries that know two classes only are used, with scikit-learn in their place."""
    x, y = blobs(4, 300, 6)
    parameters = {"C": 5.0, "gamma": 0.01}
    whole = SVC(**parameters).fit(x, y)
    arrays = one_against_one(classifier("sklearn"), x, y, parameters)
    pairs = RbfSvm(**arrays, gamma=0.01, c=5.0)
    assert np.array_equal(pairs.predict(x), whole.predict(x))
    assert np.array_equal(np.sort(arrays["counts"]), np.sort(whole.n_support_))
    np.testing.assert_allclose(arrays["intercept"], whole.intercept_, atol=1e-3)
    together = one_against_one(classifier("sklearn"), x, y, parameters, jobs=2)
    assert all(np.array_equal(together[name], arrays[name]) for name in arrays)


def test_file_reads_back(tmp_path):
    fit, x, _ = fitted()
    path = tmp_path / "pipeline.safetensors"
    path.write_bytes(fit.svm.to_bytes())
    again = SvmPipeline.load(path)
    for part in ("project", "classifier"):
        ours, theirs = getattr(again, part), getattr(fit.svm, part)
        for item in dataclasses.fields(ours):
            assert np.array_equal(getattr(ours, item.name), getattr(theirs, item.name))
    assert np.array_equal(again.predict(x), fit.svm.predict(x))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *(
            (name, lambda x: x[:-1])
            for name in ("dual", "counts", "intercept", "pca_mean", "vectors")
        ),
        *((name, lambda x: x[None]) for name in ("labels", "vectors")),
    ],
)
def test_a_file_whose_arrays_do_not_fit_is_refused(tmp_path, name, change):
    fit, _, _ = fitted()
    part = "project" if name in PROJECTION else "classifier"
    whole = getattr(fit.svm, part)
    shorter = dataclasses.replace(whole, **{name: change(getattr(whole, name))})
    short = dataclasses.replace(fit.svm, **{part: shorter})
    path = tmp_path / "pipeline.safetensors"
    path.write_bytes(short.to_bytes())
    with pytest.raises(DamagedFile, match="not a file of jaxmnist's SVM"):
        SvmPipeline.load(path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "pipeline.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedFile):
        SvmPipeline.load(path)


def test_search_scores_on_validation_and_keeps_the_best():
    fit, x, y = fitted(draws=6)
    assert len(fit.search) == 7
    assert pipeline_module.C in [draw["C"] for draw in fit.search]
    scores = [draw["val_accuracy"] for draw in fit.search]
    assert scores == sorted(scores, reverse=True)
    best = fit.search[0]
    assert (fit.svm.classifier.c, fit.svm.classifier.gamma) == (best["C"], best["gamma"])
    # It was fitted on the training rows with that C: its validation accuracy is the score.
    assert (fit.svm.predict(x[400:]) == y[400:]).mean() == best["val_accuracy"]


def test_an_error_while_fitting_is_the_callers():
    with pytest.raises(ValueError, match="greater than one"):
        fitted(1)


def test_memory_stays_under_twice_the_features():
    rows, width = 3000, 4000
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 1)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)

    def batches(part):
        for first in range(0, len(part), 100):
            block = part[first : first + 100]
            noise = np.random.default_rng(first).normal(size=(len(block), width))
            yield first, (noise + block).astype(np.float32)

    tracemalloc.start()
    svm.fit(batches, width, (x, y), (x[:10], y[:10]), how=svm.Fitting("sklearn"), seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows * width * 4 < peak < 2 * rows * width * 4


def test_an_svm_that_cannot_fit_into_memory_is_refused_before_it_is_fitted():
    """345 classes: a coefficient in each of 344 machines for every image, four times."""
    svm.check_svm_memory(10, 60_000)
    with pytest.raises(UsageError, match=r"345 classes on 900000000 images .* without svm"):
        svm.check_svm_memory(345, 9 * 10**8)


def test_backends():
    assert pipeline_module.choose_backend("sklearn", "gpu") == "sklearn"
    assert pipeline_module.choose_backend("auto", "cpu") == "sklearn"
    with pytest.raises(UsageError, match=r"^svm_backend cuml is not installed: pip install"):
        pipeline_module.choose_backend("cuml", "gpu")
