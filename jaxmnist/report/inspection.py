"""What is only seen by looking at images: confident mistakes, and features in two dimensions."""

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
MOST_DOTS = 1000  # validation images in the picture of the features
MOST_NUMBERS = 10**8  # numbers of their features that are held in memory


@dataclass(frozen=True)
class Mistake:
    """A test image that the winner took for something else.

    picture: as a data address for an HTML page.
    probability: that the winner gave the wrong label.
    """

    picture: str
    index: int
    truth: int
    taken_for: int
    probability: float


def mistakes(run: Run, dataset: Dataset, count: int = SHOWN) -> list[Mistake]:
    """The mistakes that the winner was surest of, the surest first.

    From the predictions that were kept: the test set is not evaluated again.
    """
    probabilities = np.load(run.directory.probabilities_path, allow_pickle=False)
    if probabilities.shape != (len(dataset.y_test), dataset.classes):
        raise ValueError("the kept predictions are not of these test images")
    predictions = probabilities.argmax(1)
    surest = probabilities.max(1)
    wrong = np.flatnonzero(predictions != dataset.y_test)
    order = wrong[np.argsort(-surest[wrong], kind="stable")][:count]
    return [
        Mistake(
            picture(dataset.x_test[i], dataset.scale),
            int(i),
            dataset.labels[dataset.y_test[i]],
            dataset.labels[predictions[i]],
            float(surest[i]),
        )
        for i in order
    ]


def picture(image: np.ndarray, scale: float) -> str:
    """An image [H, W, C] as a PNG in a data address; of other than 3 channels the first.

    Pixels of 0 are black, of `scale` white.
    """
    pixels = image if image.shape[2] == 3 else image[..., 0]
    pixels = np.rint(pixels / scale * 255).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def features_in_two(run: Run, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Validation images by their features' first two components: points, classes, shares."""
    model = run.best_model
    dots = min(MOST_DOTS, len(dataset.y_validation), max(3, MOST_NUMBERS // model.feature_count))
    # The data may lie in the order of their classes.
    chosen = np.linspace(0, len(dataset.y_validation) - 1, dots).round().astype(int)
    points, shares = two_components(model.features(dataset.x_validation[chosen]))
    return points, dataset.y_validation[chosen], shares
