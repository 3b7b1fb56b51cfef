"""Digits of MNIST drawn into pictures of many kinds come back as the digits that they were.

A picture counts as right if its image correlates more with its own digit than with those of the
other classes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS, INVERTED
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_image

from jaxmnist import Preparation, UsageError
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.preparation import Picture, Placing, read_file

SIDE = 240  # pixels of the pictures
Y, X = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
INDICES = (0, 1, 2, 3, 4, 8, 11, 18, 61)  # a digit of each class but 8, and one 8
LIKE_MNIST = Preparation((28, 28, 1), placing=DIGITS)


def coverage(digit: np.ndarray, size: int = 168, top: int = 40, left: int = 50) -> np.ndarray:
    """How much of each pixel of a sheet is ink: float64[SIDE, SIDE] from 0 to 1."""
    large = Image.fromarray(digit).resize((size, size), Image.Resampling.BICUBIC)
    sheet = np.zeros((SIDE, SIDE))
    sheet[top : top + size, left : left + size] = np.asarray(large) / 255
    return sheet


def grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(levels).clip(0, 255).astype(np.uint8))


def paper(digit: np.ndarray, light: np.ndarray | float, noise: float = 3) -> Image.Image:
    """Ink that leaves 15 % of the light, on paper lit so."""
    grain = np.random.default_rng(0).normal(0, noise, (SIDE, SIDE))
    return grey(light * (1 - 0.85 * coverage(digit)) + grain)


def strokes(digit: np.ndarray, level: int) -> Image.Image:
    """Strokes of one level on nothing."""
    pixels = np.full((SIDE, SIDE, 4), level, np.uint8)
    pixels[..., 3] = np.round(coverage(digit) * 255)
    return Image.fromarray(pixels)


def framed(digit: np.ndarray, *lines: tuple[int, int]) -> Image.Image:
    """A sheet with rectangles: distances from the edge and widths."""
    sheet = paper(digit, 250, noise=1)
    for distance, width in lines:
        far = SIDE - 1 - distance
        ImageDraw.Draw(sheet).rectangle((distance, distance, far, far), outline=10, width=width)
    return sheet


def round_corners(digit: np.ndarray) -> Image.Image:
    sheet, shape = paper(digit, 250, noise=0).convert("RGBA"), Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, SIDE - 1, SIDE - 1), 40, fill=255)
    sheet.putalpha(shape)
    return sheet


def on_desk(digit: np.ndarray, angle: float) -> Image.Image:
    desk = grey(70 + np.random.default_rng(1).normal(0, 5, (380, 380)))
    sheet = paper(digit, 250, noise=1).rotate(angle, expand=True)
    desk.paste(sheet, (50, 60), Image.new("L", (SIDE, SIDE), 255).rotate(angle, expand=True))
    return desk


def coloured(digit: np.ndarray, ink: tuple[int, ...], ground: tuple[int, ...]) -> Image.Image:
    share = coverage(digit)[..., None]
    return Image.fromarray((share * ink + (1 - share) * ground).astype(np.uint8))


def glare(digit: np.ndarray) -> Image.Image:
    """A whiteboard with a lamp in it."""
    board = np.asarray(paper(digit, 190 + 25 * X), np.float64)
    return grey(board + 45 * np.exp(-((X - 0.1) ** 2 + (Y - 0.1) ** 2) / 0.005))


def jpeg(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def twelve_bits(digit: np.ndarray) -> Image.Image:
    return Image.fromarray(np.round(coverage(digit) * 4095).astype(np.uint16))


def tight(digit: np.ndarray) -> Image.Image:
    sheet = coverage(digit)
    rows, columns = (np.flatnonzero((sheet > 0.5).any(axis)) for axis in (1, 0))
    return grey(255 * (1 - sheet[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))


KINDS: dict[str, tuple[Callable[[np.ndarray], Image.Image], str]] = {
    "dim": (lambda d: paper(d, 95), "dark ink"),
    "lit from the left": (lambda d: paper(d, 240 - 150 * X), "dark ink"),
    "lit from the top": (lambda d: paper(d, 245 - 190 * Y), "dark ink"),
    "dark at the bottom": (lambda d: paper(d, 230 - 120 / (1 + np.exp(-15 * (Y - 0.7)))), "dark"),
    "sharp shadow": (
        lambda d: paper(d, np.where(Y + 0.3 * X > 0.85, 120.0, 230.0)).filter(
            ImageFilter.GaussianBlur(1)
        ),
        "dark ink",
    ),
    "vignette": (lambda d: paper(d, 235 * np.cos(np.hypot(X - 0.5, Y - 0.5)) ** 4), "dark ink"),
    "pencil": (lambda d: grey(225 - 45 * coverage(d) + GRAIN), "faint"),
    "white on clear": (lambda d: strokes(d, 255), "transparency replaced by black"),
    "grey on clear": (lambda d: strokes(d, 110), "transparency replaced by white"),
    "pale on clear": (lambda d: strokes(d, 190), "transparency replaced by black"),
    "black on clear": (lambda d: strokes(d, 0), "transparency replaced by white"),
    "round corners": (round_corners, "transparency replaced by the colour of the rest"),
    "thin frame": (lambda d: framed(d, (0, 3)), "a frame left out"),
    "thick frame": (lambda d: framed(d, (0, 20)), "only the sheet in it used"),
    "line inside": (lambda d: framed(d, (18, 3)), "a frame left out"),
    "double frame": (lambda d: framed(d, (0, 3), (10, 2)), "a frame left out"),
    "crooked frame": (
        lambda d: framed(d, (0, 4)).rotate(2, Image.Resampling.BICUBIC, fillcolor=10),
        "left out",
    ),
    "on a desk": (lambda d: on_desk(d, 0), "only the sheet in it used"),
    "askew on a desk": (lambda d: on_desk(d, 4), "only the sheet in it used"),
    "whiteboard": (glare, "dark ink"),
    "blackboard": (lambda d: grey(40 + 15 * X + 170 * coverage(d) + GRAIN / 2), "scaled"),
    "jpeg": (lambda d: jpeg(paper(d, 235), 20), "dark ink"),
    "red on green": (lambda d: coloured(d, (200, 60, 40), (40, 128, 40)), "only its red used"),
    "blue on yellow": (lambda d: coloured(d, (40, 60, 200), (250, 240, 120)), "grey"),
    "12 bits": (twelve_bits, "read as 12 bits a pixel: its levels reach 4095"),
    "tight": (tight, "dark ink"),
}
GRAIN = np.random.default_rng(2).normal(0, 8, (SIDE, SIDE))


@pytest.fixture(scope="module")
def digits(mnist: Arrays) -> np.ndarray:
    return mnist.x_test[list(INDICES), ..., 0]


def read(picture: Image.Image, folder: Path, preparation: Preparation = LIKE_MNIST) -> Picture:
    picture.save(folder / "picture.png")
    (found,) = read_file(folder / "picture.png", preparation)
    return found


def alike(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_digit_comes_back(kind: str, digits: np.ndarray, tmp_path: Path) -> None:
    make, step = KINDS[kind]
    found = []
    for digit in digits:
        picture = read(make(digit), tmp_path)
        assert any(step in each for each in picture.steps), picture.steps
        found.append(picture.image)
    likeness = np.array([[alike(a, b) for b in digits] for a in found])
    assert (likeness.argmax(1) == np.arange(len(digits))).all()
    assert likeness.diagonal().min() > 0.6
    assert likeness.diagonal().mean() > 0.85


def test_two_digits_are_said_and_one_is_not(mnist: Arrays, tmp_path: Path) -> None:
    digits = mnist.x_test[:60, ..., 0]
    said = 0
    for first, second in zip(digits[::6], digits[1::6], strict=True):
        pair = np.hstack([first, second]).repeat(5, 0).repeat(5, 1)
        picture = read(grey(240 - pair * 0.9), tmp_path)
        assert any(line.startswith("2 separate shapes") for line in picture.warnings)
        alone = read(grey(240 - first.repeat(5, 0).repeat(5, 1) * 0.9), tmp_path)
        said += bool(alone.warnings)
    assert said <= 1  # a 5 whose bar stands apart
    three = np.hstack(digits[:3]).repeat(4, 0).repeat(4, 1)
    assert "3 separate shapes" in read(grey(240 - three * 0.9), tmp_path).warnings[0]


def test_only_blank_pictures_are_blank(tmp_path: Path) -> None:
    grain = np.random.default_rng(3).normal(0, 3, (SIDE, SIDE))
    empty_frame = np.full((SIDE, SIDE), 250.0)
    empty_frame[:4] = empty_frame[-4:] = empty_frame[:, :4] = empty_frame[:, -4:] = 0
    for blank in (
        grey(240 - 150 * X + grain),
        grey(230 + grain),
        grey(empty_frame),
        Image.new("RGBA", (50, 50), (255, 0, 0, 0)),
        Image.new("RGB", (50, 50), (9, 200, 30)),
    ):
        with pytest.raises(UsageError, match="blank: nothing but perhaps a frame stands out"):
            read(blank, tmp_path)


def test_noise_is_not_called_blank(tmp_path: Path) -> None:
    noise = np.random.default_rng(4).integers(0, 256, (100, 100)).astype(np.uint8)
    with pytest.raises(UsageError, match="no shape was found in it"):
        read(Image.fromarray(noise), tmp_path)


def test_doubts_are_said(digits: np.ndarray, tmp_path: Path) -> None:
    assert "picture's edge" in read(tight(digits[0]), tmp_path).warnings[0]
    empty = Image.new("L", (SIDE, SIDE), 250)
    ImageDraw.Draw(empty).rectangle((0, 0, SIDE - 1, SIDE - 1), outline=0, width=30)
    assert "may be an empty sheet" in read(empty, tmp_path).warnings[0]
    photograph = Image.fromarray(load_sample_image("flower.jpg")).reduce(2)
    assert any("hardly stands out" in line for line in read(photograph, tmp_path).warnings)
    colours = Preparation((32, 32, 3), colour=True, brightness=(0.1, 0.9))
    scan = read(paper(digits[0], 252, noise=0), tmp_path, colours)
    assert scan.steps == ("converted from grey to RGB", "scaled as a whole to 32×32")
    assert scan.warnings[0] == "it has no colours, and the training images have"
    assert "mean brightness" in scan.warnings[1]


def test_images_are_placed_as_the_training_images(digits: np.ndarray, tmp_path: Path) -> None:
    picture = paper(digits[0], 240)
    usual = read(picture, tmp_path).image[..., 0]
    dark = read(picture, tmp_path, Preparation((28, 28, 1), placing=INVERTED))
    assert (dark.image[..., 0] == 255 - usual).all()
    assert not any("inverted" in step for step in dark.steps)
    rgb = read(picture, tmp_path, Preparation((28, 28, 3), placing=DIGITS)).image
    assert (rgb == usual[..., None]).all()
    levels = Preparation((28, 28, 1), 16.0, Placing(0.25, 0.75, 20 / 28, "mass"))
    found = read(picture, tmp_path, levels).image[..., 0]
    assert np.allclose(found, 4 + 8 * usual.astype(float) / 255, atol=1e-3)
    filling = Preparation((40, 30, 1), placing=Placing(0, 1, 1, "box"))
    image = read(picture, tmp_path, filling).image[..., 0]
    rows, columns = (np.flatnonzero(image.any(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (29, 30)
    assert abs(rows[0] + rows[-1] - 39) <= 1
    assert abs(columns[0] + columns[-1] - 29) <= 1
    # A picture that is an image of the training images' kind already stays as it is.
    kept = read(
        Image.fromarray(255 - digits[0]), tmp_path, Preparation((28, 28, 1), placing=INVERTED)
    )
    assert kept.steps == ()
    assert (kept.image[..., 0] == 255 - digits[0]).all()
