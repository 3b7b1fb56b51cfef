from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy.ndimage import map_coordinates

from jaxmnist.engine import training

KEY = jax.random.key(3, impl="threefry2x32")
augmented = jax.jit(training.augmented, static_argnums=3)


def pictures(images: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (images, 9, 7, channels), np.uint8)


def moved(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The image moved, by padding with its edges and cutting out."""
    height, width, _ = image.shape
    wide = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="edge")
    return wide[3 - down : 3 - down + height, 3 - right : 3 - right + width]


def test_an_image_is_shifted_by_whole_pixels_equally_often_each_way():
    images = pictures(4, channels=2)
    seen = np.zeros((5, 5), int)
    for step in range(300):
        key = jax.random.fold_in(KEY, step)
        found = np.asarray(augmented(images, jnp.arange(4), key, 2, None))
        assert found.dtype == np.uint8
        for image, result in zip(images, found, strict=True):
            places = [
                (down, right)
                for down in range(-2, 3)
                for right in range(-2, 3)
                if np.array_equal(moved(image, down, right), result)
            ]
            assert len(places) == 1
            seen[places[0][0] + 2, places[0][1] + 2] += 1
    # 1,200 draws of 25 equally likely ones: 48 each, give or take four standard deviations
    assert np.abs(seen - 48).max() < 4 * 48**0.5


def test_a_turned_image_is_scipys():
    """The angle is read off the images of the columns' numbers, whose gradient it turns."""
    rows, columns = np.mgrid[0:9, 0:7]
    ramps = np.stack([np.stack([rows, columns], -1)] * 50).astype(np.float32)
    images = pictures(50).astype(np.float32)
    block, angles = jnp.arange(50), []
    where = np.asarray(augmented(ramps, block, KEY, 0, jnp.float32(30)))
    turned = np.asarray(augmented(images, block, KEY, 0, jnp.float32(30)))
    for image, place, result in zip(images, where, turned, strict=True):
        # around the centre, where nothing comes in from outside
        down, right = place[5, 3] - place[3, 3], place[4, 4] - place[4, 2]
        angle = np.arctan2(-down[1], down[0])
        np.testing.assert_allclose(down / 2, [np.cos(angle), -np.sin(angle)], atol=1e-5)
        np.testing.assert_allclose(right / 2, [np.sin(angle), np.cos(angle)], atol=1e-5)
        angles.append(np.degrees(angle))
        y, x = rows - 4.0, columns - 3.0
        source = [
            np.cos(angle) * y + np.sin(angle) * x + 4,
            np.cos(angle) * x - np.sin(angle) * y + 3,
        ]
        expected = map_coordinates(image[..., 0], source, order=1, mode="nearest")
        np.testing.assert_allclose(result[..., 0], expected, atol=0.02)
    assert np.abs(angles).max() <= 30
    # uniform from −30 to 30: the mean of 50 has the standard deviation 60 / √12 / √50
    assert abs(np.mean(angles)) < 4 * 60 / 12**0.5 / 50**0.5
    assert 10 < np.std(angles) < 25


def test_what_an_image_gets_depends_on_the_step_and_the_image_alone():
    images = pictures(12)
    whole = augmented(images, jnp.arange(12), KEY, 2, jnp.float32(20))
    parts = [augmented(images, jnp.arange(i, i + 4), KEY, 2, jnp.float32(20)) for i in (0, 4, 8)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    other = augmented(images, jnp.arange(12), jax.random.fold_in(KEY, 1), 2, jnp.float32(20))
    assert not np.array_equal(whole, other)


def test_no_angle_and_no_shift_leave_an_image_as_it_is():
    images = pictures(5)
    found = augmented(images, jnp.arange(5), KEY, 0, jnp.float32(0))
    np.testing.assert_allclose(found, images, atol=1e-4)
