"""The flatten features of a trained network, as a scikit-learn transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from jaxmnist.results.trained import TrainedModel


class FlattenFeatures(TransformerMixin, BaseEstimator):
    """Turns images into the flatten features of a trained network.

    Args:
      model: the trained network; `fit` learns nothing.

    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.svm import SVC
    >>> pipeline = make_pipeline(FlattenFeatures(model), SVC()).fit(images, [7, 2, 1, 0, 4])
    >>> pipeline.predict(images).shape
    (5,)
    """

    def __init__(self, model: TrainedModel) -> None:
        self.model = model

    def fit(self, images: np.ndarray, labels: Any = None) -> FlattenFeatures:
        """Do nothing and return self."""
        return self

    def transform(self, images: np.ndarray) -> np.ndarray:
        """Images [N, H, W, C] → features float32[N, D]."""
        return self.model.features(images)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The names 'flatten0', 'flatten1', …: object[D]."""
        return np.array([f"flatten{i}" for i in range(self.model.feature_count)], dtype=object)
