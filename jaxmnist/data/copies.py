"""Images with equal pixels: which they are, the class that draws them, and what is said of them."""

from __future__ import annotations

import hashlib

import numpy as np

AT_ONCE = 1024  # images that are hashed together
Hashed = tuple[np.ndarray, np.ndarray]  # digests uint64[N] of images and their classes int[N]


def digests(images: np.ndarray, scale: float | None = None) -> np.ndarray:
    """Return a hash of the pixels of each image, uint64[N].

    Args:
      images: uint8 or float32[N, H, W, C].
      scale: the largest value of a pixel, if pixels are to be hashed as 8 bits, whatever their
        scale; None for the pixels as they are.
    """
    joined = b"".join(
        hashlib.blake2b(image, digest_size=8).digest()
        for first in range(0, len(images), AT_ONCE)
        for image in np.ascontiguousarray(
            images[first : first + AT_ONCE]
            if scale is None
            else eight_bits(images[first : first + AT_ONCE], scale)
        )
    )
    return np.frombuffer(joined, ">u8")


def eight_bits(images: np.ndarray, scale: float) -> np.ndarray:
    """Return images as uint8, so that equal pictures on different scales are equal."""
    if images.dtype == np.uint8 and scale == 255:
        return images
    return np.rint(images.astype(np.float64) * (255 / scale)).clip(0, 255).astype(np.uint8)


def owners(groups: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the class from which each group of equal images is drawn: int64[G], or −1.

    Of several classes it is the one with the fewest different images, of those the first. A group
    that is drawn from no class (−1) stays where it is: it has an image of a class that has all of
    its images in other classes' groups and could lose them all. So no class loses its last image
    if each class keeps one of its groups.

    Args:
      groups: int64[N], the group of each image, 0 to G − 1.
      classes: int64[N], the class of each image, 0 to K − 1.
    """
    count = int(classes.max()) + 1
    group, of = np.divmod(np.unique(groups * count + classes), count)
    different = np.bincount(of, minlength=count)
    order = np.lexsort((of, different[of], group))
    found: np.ndarray = of[order][np.unique(group[order], return_index=True)[1]]
    for k in np.flatnonzero((different > 0) & (np.bincount(found, minlength=count) == 0)):
        mine = group[of == k]
        if (found[mine] >= 0).all():
            found[mine[0]] = -1
    return found


def notes_on(train: Hashed, validation: Hashed | None, test: Hashed) -> tuple[str, ...]:
    """Return a note on equal images with other labels, and on those that lie in two parts.

    Args:
      train: the training images, with those that are drawn from them for validation.
      validation: those that the data bring; None if they are drawn.
      test: the test images.
    """
    notes = []
    known = train
    if validation is not None:
        known = np.concatenate([train[0], validation[0]]), np.concatenate([train[1], validation[1]])
        notes += _in_both("validation", validation[0], "training", train[0])
    if others := _with_other_labels(*known):
        notes.append(
            f"{others:,} of {len(known[0]):,} training and validation images have the same pixels"
            " as an image with another label"
        )
    notes += _in_both("test", test[0], "training or validation", known[0])
    return tuple(f"note: {note}" for note in notes)


def _in_both(part: str, found: np.ndarray, of: str, known: np.ndarray) -> list[str]:
    """A note on the images of a part that are known from training."""
    both = int(np.isin(found, known).sum())
    if not both:
        return []
    return [
        f"{both:,} of {len(found):,} {part} images are also among the {of} images, which raises the"
        f" {part} accuracy"
    ]


def _with_other_labels(found: np.ndarray, classes: np.ndarray) -> int:
    """The number of images that have an equal image of another class."""
    groups = np.unique(found, return_inverse=True)[1]
    lowest = np.full(len(groups), np.iinfo(np.int64).max)
    highest = np.full(len(groups), -1)
    np.minimum.at(lowest, groups, classes)
    np.maximum.at(highest, groups, classes)
    return int((lowest < highest)[groups].sum())
