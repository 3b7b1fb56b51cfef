"""Choosing images for a part: a test part by content, a stratified limit, a validation draw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxmnist.data.names import listed
from jaxmnist.errors import UsageError

TEST_FRACTION = 0.15  # of each class's different images, where the data have no test part
AT_ONCE = 1024  # images that are hashed together


def shares(counts: np.ndarray, size: int, least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return how many of `size` images each of K classes gives, in proportion: int64[K].

    Numbers are rounded by largest remainders; of equal remainders the larger class comes first.
    Where a class then lies outside its bounds, the classes farthest from their exact share make up
    for it.

    Args:
      counts: int64[K], the images of each class.
      size: the number of images wanted.
      least, most: int64[K], bounds of each class, with sum(least) <= size <= sum(most).
    """
    sizes, remainders = np.divmod(counts * size, counts.sum())
    for k in np.lexsort((-counts, -remainders))[: size - sizes.sum()]:
        sizes[k] += 1
    sizes = np.clip(sizes, least, most)
    over = sizes - counts * (size / counts.sum())
    while excess := int(sizes.sum()) - size:
        if excess > 0:
            k, step = int(np.where(sizes > least, over, -np.inf).argmax()), -1
        else:
            k, step = int(np.where(sizes < most, over, np.inf).argmin()), 1
        sizes[k] += step
        over[k] += step
    return sizes


def limited(classes: np.ndarray, counts: np.ndarray, limit: int) -> np.ndarray:
    """Choose the first images of each class, in proportion, `limit` in all: bool[N].

    Each class has at least two images, so that one can validate, or at least one if that would
    be more than `limit`, which is at least K.
    """
    if limit >= len(classes):
        return np.ones(len(classes), bool)
    least = np.minimum(counts, 2)
    if least.sum() > limit:
        least = np.minimum(counts, 1)
    sizes = shares(counts, limit, least, counts)
    order = np.argsort(classes, kind="stable")
    place = np.empty(len(classes), np.int64)  # of each image among those of its class
    place[order] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen: np.ndarray = place < sizes[classes]
    return chosen


def validation_sizes(
    counts: np.ndarray, names: Sequence[str], fraction: float, train_limit: int | None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return how many images of each class validate, int64[K], and notes.

    In all, round(fraction × N), or more if each class with two or more images needs one.

    Args:
      counts: int64[K], the training images of each class.
      names: of the classes.
      fraction: of the images.
      train_limit: how many images were asked for, for errors; None for all.

    Raises:
      UsageError: no class has two images, or one would not be trained on.
    """
    images, several = int(counts.sum()), int((counts > 1).sum())
    limit = "" if train_limit is None else f" of --train-limit {train_limit}"
    if several == 0:
        raise UsageError(f"no class has two training images{limit}, of which one could validate")
    asked = round(fraction * images)
    if asked > images - len(counts):
        lost = int(counts.argmin())
        raise UsageError(
            f"--validation-split {fraction}{limit} leaves no training image of label"
            f" {names[lost]}, which has {counts[lost]} of {images} images"
        )
    notes = []
    if asked < several:
        notes.append(
            f"note: {several} images validate, one of each class that has two; --validation-split"
            f" {fraction} alone would give {asked} of {images}"
        )
    single = [names[int(k)] for k in np.flatnonzero(counts == 1)]
    if single:
        what = f"label {single[0]} has" if len(single) == 1 else f"labels {listed(single)} have"
        notes.append(
            f"note: {what} a single training image{limit}, which is trained on; no validation image"
            " shows it"
        )
    sizes = shares(counts, max(asked, several), np.minimum(counts - 1, 1), counts - 1)
    return sizes, tuple(notes)


def draw(classes: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Draw `sizes[k]` of the images of each class k: bool[N]."""
    generator = np.random.default_rng([seed, 3])
    drawn = np.zeros(len(classes), bool)
    for k, wanted in enumerate(sizes):
        members = np.flatnonzero(classes == k)
        drawn[generator.permutation(members)[:wanted]] = True
    return drawn


def held_out(images: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
    """Choose the images of a test part by their content: bool[N].

    Each class gives `TEST_FRACTION` of its different images, those with the smallest hashes: at
    least one if it has two, never all. Equal images go the same way, with the smallest of their
    labels. Neither the order of the images nor a seed matters, nor the scale of the pixels.

    Args:
      images: uint8 or float32[N, H, W, C] from 0 to `scale`.
      labels: int64[N].
      scale: the largest value of a pixel.
    """
    digests = b"".join(
        hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        for first in range(0, len(images), AT_ONCE)
        for image in eight_bits(images[first : first + AT_ONCE], scale)
    )
    found, places = np.unique(np.frombuffer(digests, ">u8"), return_inverse=True)
    owners = np.full(len(found), np.iinfo(np.int64).max)
    np.minimum.at(owners, places, labels)
    chosen = np.zeros(len(found), bool)
    for label in np.unique(owners):
        members = np.flatnonzero(owners == label)  # by ascending hash
        size = min(max(1, round(TEST_FRACTION * len(members))), len(members) - 1)
        chosen[members[:size]] = True
    result: np.ndarray = chosen[places]
    return result


def part_fingerprint(images: np.ndarray, labels: np.ndarray, scale: float) -> str:
    """Return the SHA-256 of images and labels, whatever the scale of the pixels.

    Args:
      images: uint8 or float32[N, H, W, C] from 0 to `scale`.
      labels: int64[N].
      scale: the largest value of a pixel.
    """
    digest = hashlib.sha256(repr(images.shape).encode())
    for first in range(0, len(images), AT_ONCE):
        digest.update(eight_bits(images[first : first + AT_ONCE], scale).tobytes())
    digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()


def eight_bits(images: np.ndarray, scale: float) -> np.ndarray:
    """Return images as uint8, so that equal pictures on different scales are equal."""
    if images.dtype == np.uint8 and scale == 255:
        return images
    return np.rint(images.astype(np.float64) * (255 / scale)).clip(0, 255).astype(np.uint8)
