"""A value that hardly any pixels have must not set the scale of all."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmnist.data.arrays import check_arrays, check_images, scale_of
from jaxmnist.data.dataset import split
from jaxmnist.errors import UsageError


def digits(seed: int = 0) -> np.ndarray:
    """300 images of 16×16 pixels from 0 to 255, three quarters of them black."""
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (300, 16, 16)) * (rng.random((300, 16, 16)) < 0.25)


def with_pixels(images: np.ndarray, value: float, count: int = 1, each: int = 1) -> np.ndarray:
    """The images with `each` pixels of a value in each of `count` images, from image 7 on."""
    rng = np.random.default_rng(1)
    images = images.astype(np.float64)
    for k in range(count):
        images[(7 + k) % len(images)].flat[rng.permutation(images[0].size)[:each]] = value
    return images


def with_scaled(images: np.ndarray, count: int) -> np.ndarray:
    """The first images of 8 bits with 16."""
    images = images.astype(np.float64)
    images[:count] *= 257
    return images


def broken_sensor(images: np.ndarray) -> np.ndarray:
    """The images with one place that is always bright."""
    images = images.copy()
    images[:, 3, 4] = 60000
    return images


HOT = {
    "one pixel": (with_pixels(digits(), 60000), 7, 60000, 255),
    "little above": (with_pixels(digits(), 3000), 7, 3000, 255),
    "ten images": (with_pixels(digits()[:10], 60000), 7, 60000, 255),
    "two images": (with_pixels(digits()[:2], 60000), 1, 60000, 254),
    "several images": (with_pixels(digits(), 60000, 12, 3), 7, 60000, 255),
    "fractions": (with_pixels(digits() / 255, 255), 7, 255, 1),
    "0 to 16": (with_pixels(digits() // 15, 255), 7, 255, 17),
    "0 and 1": (with_pixels(digits() > 0, 100), 7, 100, 1),
    "masks of 8 bits": (with_pixels(digits() > 0, 255), 7, 255, 1),
    "other images": (with_scaled(digits(), 2), 1, 65278, 255),
    "sensor": (broken_sensor(digits()), 0, 60000, 255),
}


@pytest.mark.parametrize("name", HOT)
def test_a_hot_pixel_is_refused_with_its_image_and_the_remedy(name):
    images, place, largest, others = HOT[name]
    labels = np.arange(len(images)) % 2
    with pytest.raises(UsageError) as caught:
        check_arrays("here", images, labels, digits()[: len(images)], labels)
    said = str(caught.value)
    where = "the pixel in row 3 and column 4" if name == "sensor" else f"training image {place} "
    assert said.startswith(f"here: {where}")
    assert str(largest) in said
    assert f"are at most {others} and would become black" in said
    assert said.endswith(f"or clip pixels to {others}")
    assert "\n" not in said
    # The remedy is one.
    assert scale_of("here", check_images("here", images.clip(0, others))) in (others, 1, 255)


def test_spots_in_some_images_of_8_bits_are_only_said():
    """They may be what a class is."""
    images = with_pixels(digits() // 24, 250, 20, 3).astype(np.uint8)[..., None]
    assert scale_of("here", images) == 255
    labels = np.arange(300) % 2
    arrays = check_arrays("here", images, labels, images[:20], labels[:20])
    data = split("here", arrays, validation_split=0.1, seed=0)
    assert any("has a pixel of 250, as 20 images have; all other" in note for note in data.notes)


def stars(blurred: bool) -> np.ndarray:
    """200 images of noise with stars of all magnitudes, each of one pixel or of a disc."""
    rng = np.random.default_rng(0)
    images = rng.poisson(100, (200, 40, 40)).astype(np.float64)
    y, x = np.mgrid[:40, :40]
    for image in images:
        row, column = rng.integers(0, 40, 2)
        brightness = min(60000, 300 * (1 + rng.pareto(1)))
        if blurred:
            image += brightness * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 3)
        else:
            image[row, column] += brightness + 10000
    return images


def magnitudes() -> np.ndarray:
    """1000 images of noise with a star each, of which seven are near the brightest."""
    images = np.random.default_rng(0).poisson(20, (1000, 12, 12)).astype(np.float64)
    images[:, 6, 6] = 60000 / np.arange(1, 1001)
    return np.array([np.roll(image, k, (0, 1)) for k, image in enumerate(images)])


def night(bright: int, value: int = 255) -> np.ndarray:
    """1000 nearly black pictures of 8 bits; some have a bright square."""
    images = np.random.default_rng(0).integers(0, 20, (1000, 20, 20))
    images[:bright, 3:9, 3:9] = value
    return images


def lines(shown: int) -> np.ndarray:
    """200 images, black but for a line of three pixels in the first ones."""
    images = np.zeros((200, 20, 20), np.uint8)
    images[:shown, 5, 5:8] = 255
    return images


COLD = {
    "8 bits": (digits(), 255),
    "tiny": (digits()[:3], 255),
    "12 bits": (digits() * 16, 4080),
    "16 bits": (digits() * 257, 65535),
    "0 to 16": (digits() // 15, 17),
    "0 and 1": (digits() > 0, 1),
    "fractions": (digits() / 255, 1),
    "lines": (lines(200), 255),
    "few lines": (lines(2), 255),
    "a line": (lines(1), 255),
    "black": (night(0), 19),
    "night": (night(40), 255),
    "few lights": (night(4), 255),
    "blurred stars": (stars(blurred=True), None),
    "magnitudes": (magnitudes(), 60000),
    "stars": (stars(blurred=False), None),
    "values of all sizes": (np.random.default_rng(0).exponential(1, (300, 9, 9)) ** 3, None),
}


@pytest.mark.parametrize("name", COLD)
def test_what_is_usual_stays_as_it_is(name):
    images, scale = COLD[name]
    images = check_images("here", images)
    assert scale_of("here", images) == (float(images.max()) if scale is None else scale)


def test_a_hot_pixel_of_another_part_is_found_too():
    labels = np.arange(300) % 2
    with pytest.raises(
        UsageError, match="x_test: its pixels reach 60000 in 1 of 300 images, first in 7,"
    ):
        check_arrays("here", digits(), labels, with_pixels(digits(), 60000), labels)
