from __future__ import annotations

import numpy as np
import pytest
from conftest import study_module
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from jaxmnist import FlattenFeatures, UsageError
from jaxmnist.models.interface import DataSpec


@pytest.fixture(scope="module")
def model(finished):
    return finished.best_model


def test_features_equal_the_networks(model, mnist):
    images = mnist.x_test[:600]
    module = study_module(model.hyperparameters, DataSpec((28, 28, 1), 10))
    logits, sown = module.apply(
        model.parameters, images / np.float32(255), mutable=["intermediates"]
    )
    features = sown["intermediates"]["features"][0]
    np.testing.assert_allclose(model.features(images), features, rtol=0, atol=1e-5)
    assert np.array_equal(model.predict(images), np.asarray(logits).argmax(1))
    probabilities = model.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)


def test_pipeline(model, mnist):
    steps = [
        ("cnn", FlattenFeatures(model)),
        ("scaler", StandardScaler()),
        ("pca", PCA(16, random_state=0)),
        ("svc", SVC()),
    ]
    pipeline = clone(Pipeline(steps)).fit(mnist.x_train[:500], mnist.y_train[:500])
    assert pipeline.score(mnist.x_test[:200], mnist.y_test[:200]) > 0.8
    names = pipeline[0].get_feature_names_out()
    assert len(names) == model.feature_count
    assert FlattenFeatures(model).fit_transform(mnist.x_test[:3]).shape == (3, len(names))


@pytest.mark.parametrize(
    "images",
    [np.zeros((2, 28, 27), np.uint8), np.zeros((2, 28, 28, 3)), np.zeros((28, 28), np.uint8)],
)
def test_other_images_are_refused(model, images):
    with pytest.raises(UsageError, match="images must be of shape"):
        model.features(images)


def test_no_images(model):
    assert model.features(np.zeros((0, 28, 28), np.uint8)).shape == (0, model.feature_count)
    assert model.predict(np.zeros((0, 28, 28), np.uint8)).shape == (0,)
