"""Results computed from the images: confident mistakes, and features in two dimensions."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jaxmnist.data.dataset import Dataset
from jaxmnist.results.run import Run
from jaxmnist.results.statistics import two_components

SHOWN = 24
MOST_DOTS = 1000  # validation images in the figure of the features
MOST_NUMBERS = 10**8  # feature values held in memory


@dataclass(frozen=True)
class Mistake:
    """A test image that the winner misclassified.

    picture: the image as a data URL.
    index: of the image in the test set.
    truth, taken_for: the name of the true class and of the predicted one.
    probability: the probability that the winner gave the predicted label.
    """

    picture: str
    index: int
    truth: str
    taken_for: str
    probability: float


def mistakes(run: Run, dataset: Dataset, count: int = SHOWN) -> list[Mistake]:
    """The winner's most confident mistakes, the most confident first.

    They come from the stored predictions: the test set is not evaluated again.
    """
    probabilities = np.load(run.directory.probabilities_path, allow_pickle=False)
    if probabilities.shape != (len(dataset.y_test), dataset.classes):
        raise ValueError("the stored predictions don't match these test images")
    predictions = probabilities.argmax(1)
    surest = probabilities.max(1)
    wrong = np.flatnonzero(predictions != dataset.y_test)
    order = wrong[np.argsort(-surest[wrong], kind="stable")][:count]
    return [
        Mistake(
            picture(dataset.x_test[i], dataset.scale),
            int(i),
            dataset.class_names[dataset.y_test[i]],
            dataset.class_names[predictions[i]],
            float(surest[i]),
        )
        for i in order
    ]


def picture(image: np.ndarray, scale: float) -> str:
    """An image [H, W, C] as a PNG in a data URL; only its first channel unless there are 3.

    Pixels of value 0 are black, of value `scale` white.
    """
    pixels = image if image.shape[2] == 3 else image[..., 0]
    pixels = np.rint(pixels / scale * 255).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def features_in_two(run: Run, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first two principal components of the features of validation images.

    Returns points float64[N, 2], classes int[N], and the fractions of the variance float64[2].
    """
    model = run.best_model
    dots = min(MOST_DOTS, len(dataset.y_validation), max(3, MOST_NUMBERS // model.feature_count))
    # Evenly spread images, as the data may be sorted by class.
    chosen = np.linspace(0, len(dataset.y_validation) - 1, dots).round().astype(int)
    points, shares = two_components(model.features(dataset.x_validation[chosen]))
    return points, dataset.y_validation[chosen], shares
