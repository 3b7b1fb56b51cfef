"""What preparation follows from training images, for images whose making is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import numpy as np
import pytest
from conftest import DIGITS, INVERTED
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

from jaxmnist import Preparation, UsageError
from jaxmnist.data import preparation as module
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.preparation import Placing, preparation_for, preparation_of
from jaxmnist.files import as_json, from_json

ROUNDED = dataclasses.replace(DIGITS, size=0.7143)


def filling(digit: np.ndarray) -> np.ndarray:
    """A digit uint8[28, 28] scaled to fill its image, the middle of its box in the middle."""
    rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
    cut = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = (max(1, round(side * 28 / max(cut.shape))) for side in cut.shape)
    image = np.zeros((28, 28), np.uint8)
    top, left = (28 - height) // 2, (28 - width) // 2
    resized = Image.fromarray(cut).resize((width, height))
    image[top : top + height, left : left + width] = resized
    return image


@pytest.mark.parametrize(
    ("change", "scale", "placing"),
    [
        (lambda x: x, 255, ROUNDED),
        (lambda x: 255 - x, 255, dataclasses.replace(INVERTED, size=0.7143)),
        (lambda x: x.repeat(3, 3), 255, ROUNDED),
        (lambda x: (x > 127).astype(np.uint8), 1, ROUNDED),
        (lambda x: x.astype(np.float32) * 16, 4080, ROUNDED),
        (lambda x: (204 - x * 0.6).astype(np.uint8), 255, Placing(0.8, 0.2, 0.7143, "mass")),
        (
            lambda x: np.stack([filling(d[..., 0]) for d in x])[..., None],
            255,
            Placing(0, 1, 1, "box"),
        ),
        (lambda x: np.pad(x, ((0, 0), (0, 12), (12, 0), (0, 0))), 255, Placing(0, 1, 0.5, "mass")),
    ],
    ids=["mnist", "inverted", "rgb", "ones", "12 bits", "grey", "filling", "in a corner"],
)
def test_shapes_on_a_ground(
    change: Callable[[np.ndarray], np.ndarray], scale: float, placing: Placing, mnist: Arrays
) -> None:
    found = preparation_of(change(mnist.x_train[:500]), scale)
    assert found.placing is not None
    assert found.placing.centre == placing.centre
    numbers = (found.placing.ground, found.placing.ink, found.placing.size)
    assert numbers == pytest.approx((placing.ground, placing.ink, placing.size), abs=0.01)
    assert found.placing.dark == placing.dark
    assert (found.colour, found.scale) == (False, scale)


def test_noise_and_paper_are_still_a_ground(mnist: Arrays) -> None:
    rng = np.random.default_rng(0)
    paper = 235 - mnist.x_train[:500] * 0.8 + rng.normal(0, 8, (500, 28, 28, 1))
    placing = preparation_of(paper.clip(0, 255).astype(np.uint8), 255).placing
    assert placing is not None
    assert placing.dark
    assert placing.box((28, 28, 1)) == 20


def test_scikit_learns_digits_fill_their_images() -> None:
    found = preparation_of(load_digits().images[..., None].astype(np.float32), 16)
    assert found.placing == Placing(0, 1, 1, "box")
    assert found.describe() == (
        "bright ink on a dark ground, scaled into 8×8, centred by bounding box"
    )


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
def test_parts_of_photographs_are_only_resized(name: str) -> None:
    photo = load_sample_image(name)
    rng = np.random.default_rng(0)
    parts = np.stack(
        [photo[y : y + 32, x : x + 32] for y, x in rng.integers(0, 395, (200, 2)).tolist()]
    )
    found = preparation_of(parts, 255)
    assert (found.placing, found.colour) == (None, True)
    assert found.describe() == "as they are, resized to 32×32"
    assert preparation_of(parts[..., 1:2], 255).placing is None


def test_textures_are_only_resized() -> None:
    rng = np.random.default_rng(1)
    board = np.tile((np.indices((4, 4)).sum(0) % 2 * 255).astype(np.uint8), (8, 8))
    for texture in (
        rng.normal(128, 10, (200, 32, 32, 1)).clip(0, 255).astype(np.uint8),
        rng.integers(0, 256, (200, 32, 32, 1)).astype(np.uint8),
        np.stack([np.roll(board, i % 5) for i in range(200)])[..., None],
    ):
        assert preparation_of(texture, 255).placing is None


def test_a_sample_says_what_all_say(mnist: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by class, as datasets often are."""
    images = mnist.x_train[:6000][np.argsort(mnist.y_train[:6000], kind="stable")]
    some = preparation_of(images, 255)
    monkeypatch.setattr(module, "SAMPLE", len(images))
    every = preparation_of(images, 255)
    assert some.placing == every.placing
    assert some.brightness == pytest.approx(every.brightness, abs=0.03)


def test_images_unlike_the_training_images(mnist: Arrays) -> None:
    found = preparation_of(mnist.x_train, 255)
    said = [found.unusual(image) for image in mnist.x_test[:500]]
    assert said == [None] * 500
    inverted = found.unusual(255 - mnist.x_test[0])
    assert inverted is not None
    assert inverted.endswith("; bright and dark look exchanged")
    blank = found.unusual(np.zeros((28, 28, 1), np.uint8))
    assert blank is not None
    assert "mean brightness is 0.00" in blank
    assert "exchanged" not in blank


def test_json_and_back(mnist: Arrays) -> None:
    for found in (
        preparation_of(mnist.x_train[:100], 255),
        Preparation((32, 32, 3)),
        Preparation((8, 8, 1), 16.0, INVERTED, False, (0.1, 0.2)),
    ):
        again = from_json(Preparation, json.loads(json.dumps(as_json(found))))
        whole = dataclasses.replace(again, image_shape=found.image_shape, scale=found.scale)
        assert whole == found
    good = as_json(Preparation((8, 8, 1), 16.0, INVERTED, True, (0.1, 0.2)))
    for key, value in (
        ("placing", 3),
        ("placing", {}),
        ("placing", {**good["placing"], "centre": "left"}),
        ("placing", {**good["placing"], "size": 0}),
        ("placing", {**good["placing"], "ink": good["placing"]["ground"]}),
        ("placing", {**good["placing"], "ground": 1.5}),
        ("colour", 1),
        ("colour", None),
        ("brightness", [0.1]),
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            from_json(Preparation, {**good, key: value})


def test_levels_beyond_the_scale_can_be_stored() -> None:
    """Images whose ink is brighter than the scale: what is written is read again."""
    images = np.zeros((20, 8, 8, 1), np.float32)
    images[:, 3:5, 3:5] = 1.5
    found = preparation_of(images, 1)
    assert from_json(Preparation, as_json(found)).placing == found.placing
    assert (found.placing.ground, found.placing.ink) == (0, 1)


def test_words() -> None:
    class Model:
        image_shape, scale = (28, 28, 1), 255.0
        preparation: Preparation | None = Preparation((28, 28, 1), 255.0, INVERTED, False, (0, 1))

    model = Model()
    assert preparation_for(model) is model.preparation
    assert preparation_for(model, "resize").placing is None
    with pytest.raises(UsageError, match=r"^prepare must be auto or resize, not 'invert'"):
        preparation_for(model, "invert")
    model.preparation = None
    assert preparation_for(model, "resize") == Preparation((28, 28, 1))
    with pytest.raises(UsageError, match=r"give a Preparation, or prepare resize$"):
        preparation_for(model)
