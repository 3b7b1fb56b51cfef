"""Choosing images for a part: equal images, a stratified limit, the validation and test parts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxmnist.data.contents import listed
from jaxmnist.errors import SettingError

# --- Images with equal pixels ---

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


# --- Choosing images for a part ---

TEST_FRACTION = 0.15  # of each class's different images, where the data have no test part


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


def validation_part(
    classes: np.ndarray,
    groups: np.ndarray,
    names: Sequence[str],
    fraction: float,
    seed: int,
    train_limit: int | None,
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Draw the images that validate, bool[N], and say in notes what is unusual about them.

    In all, round(fraction × N), or more if each class with two different images needs one: the
    nearest number that whole groups allow.

    Args:
      classes: int64[N], the class of each training image, 0 to K − 1.
      groups: int64[N], the group of equal images of each, 0 to G − 1.
      names: of the classes.
      fraction: of the images.
      seed: of the draw.
      train_limit: how many images were asked for, for errors; None for all.

    Raises:
      UsageError: no class has two different images, or one would not be trained on.
    """
    counts = np.bincount(classes, minlength=len(names))
    whose, held = owners(groups, classes), np.bincount(groups)
    images, limited = len(classes), "" if train_limit is None else " of {train_limit} {limit}"
    limit = "" if train_limit is None else f" of --train-limit {train_limit}"
    several = int((np.bincount(whose[whose >= 0], minlength=len(names)) > 1).sum())
    if several == 0:
        raise SettingError(
            f"no class has two different training images{limited}, of which one could validate",
            limit=train_limit,
        )
    asked = round(fraction * images)
    if asked > images - len(counts):
        lost = int(counts.argmin())
        raise SettingError(
            "{validation_split} {fraction}" + limited + " leaves no training image of label {name},"
            " which has {count} of {images} images",
            fraction=fraction,
            limit=train_limit,
            name=names[lost],
            count=counts[lost],
            images=images,
        )
    sizes = group_sizes([held[whose == k] for k in range(len(names))], max(asked, several))
    drawn = draw(groups, whose, sizes, seed)
    notes, total = [], int(drawn.sum())
    if copies := images - len(held):
        notes.append(
            f"note: {copies:,} of {images:,} training images are copies of others; equal images"
            f" stay on one side of the validation split: {total:,} validate,"
            f" {len(np.unique(groups[drawn])):,} of them different"
        )
    if asked < several or abs(total - asked) > 1:
        why = "each class that has two needs one" if asked < several else "equal ones stay together"
        notes.append(
            f"note: {total} images validate, because {why}; --validation-split {fraction} alone"
            f" would give {asked} of {images}"
        )
    single = [names[int(k)] for k in np.flatnonzero(counts == 1)]
    if single:
        what = f"label {single[0]} has" if len(single) == 1 else f"labels {listed(single)} have"
        notes.append(
            f"note: {what} a single training image{limit}, which is trained on; no validation image"
            " shows it"
        )
    absent = (counts > 1) & (np.bincount(classes[drawn], minlength=len(names)) == 0)
    if absent.any():
        shown = listed([names[int(k)] for k in np.flatnonzero(absent)])
        notes.append(
            f"note: no validation image shows {'label' if absent.sum() == 1 else 'labels'} {shown}:"
            " its images are copies of each other or of images with other labels"
        )
    return drawn, tuple(notes)


def group_sizes(held: Sequence[np.ndarray], size: int) -> np.ndarray:
    """Return how many images each of K classes gives in whole groups, int64[K].

    In all it is the number nearest to `size` that is possible where each class with two or more
    groups gives one and keeps one, and the others give none. Each class gives about its share
    (`shares`): classes that can't give every number are first, each making up for what those
    before it lack, and the other classes divide what is left.

    Args:
      held: for each class the images int64[G] of each of its groups.
      size: the number of images wanted.
    """
    counts = np.array([groups.sum() for groups in held])
    least = np.array([groups.min() if len(groups) > 1 else 0 for groups in held])
    most = np.where(least > 0, counts - least, 0)
    sizes = shares(counts, int(np.clip(size, least.sum(), most.sum())), least, most)
    free = np.array([_gives_every_number(groups) for groups in held])
    exact = sorted(np.flatnonzero(~free).tolist(), key=lambda k: (held[k] == 1).sum())
    low, high = int(least[free].sum()), int(most[free].sum())
    after = [((1 << high - low + 1) - 1) << low]  # the sums that these classes and later ones have
    for k in reversed(exact):
        after.append(_some_of(after[-1], held[k]))
    possible = _members(after.pop())
    left = int(possible[np.abs(possible - size).argmin()])
    ahead = 0
    for k in exact:
        later = after.pop()
        own = _members(_some_of(1, held[k]))
        own = own[np.isin(left - own, _members(later))]
        wanted = sizes[k] + ahead
        sizes[k] = own[np.abs(own - wanted).argmin()]
        ahead = wanted - sizes[k]
        left -= int(sizes[k])
    if counts[free].any():
        sizes[free] = shares(counts[free], left, least[free], most[free])
    return sizes


def _gives_every_number(groups: np.ndarray) -> bool:
    """Whether some of these groups have any number of images from the least to the most."""
    ordered = np.sort(groups)
    return len(groups) < 2 or bool((ordered <= 1 + np.cumsum(ordered) - ordered).all())


def _some_of(sums: int, groups: np.ndarray) -> int:
    """Return the sums, as bits, after adding some groups but not all; none of fewer than two."""
    some = every = 0
    kinds, counts = np.unique(groups, return_counts=True)
    for size, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        if every:
            some = _spread(some, size, count) | _spread(sums << size | every, size, count - 1)
            every <<= size * count
        else:
            some = _spread(sums << size, size, count - 2) if count > 1 else 0
            every = sums << size * count
    return some or sums


def _spread(sums: int, size: int, most: int) -> int:
    """Return the sums, as bits, after adding a size from no time to `most` times."""
    times = 1
    while most > 0:
        times = min(times, most)
        sums |= sums << size * times
        most -= times
        times *= 2
    return sums


def _members(sums: int) -> np.ndarray:
    """Return the places of the bits, ascending: int64."""
    content = np.frombuffer(sums.to_bytes(sums.bit_length() // 8 + 1, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(content, bitorder="little"))


def draw(groups: np.ndarray, whose: np.ndarray, sizes: np.ndarray, seed: int) -> np.ndarray:
    """Draw groups of equal images with `sizes[k]` images in all from each class k: bool[N].

    Args:
      groups: int64[N], the group of each image, 0 to G − 1.
      whose: int64[G], the class from which a group is drawn; see `owners`.
      sizes: int64[K], numbers that whole groups allow; see `group_sizes`.
      seed: of the draw.
    """
    generator = np.random.default_rng([seed, 3])
    held, of = np.bincount(groups), whose[groups]
    leads = np.zeros(len(groups), bool)  # whether an image is the first of its group
    leads[np.unique(groups, return_index=True)[1]] = True
    drawn = np.zeros(len(held), bool)
    for k, wanted in enumerate(sizes):
        order = generator.permutation(np.flatnonzero(of == k))
        order = groups[order[leads[order]]]
        drawn[order[_filled(held[order], int(wanted))]] = True
    result: np.ndarray = drawn[groups]
    return result


def _filled(held: np.ndarray, size: int) -> np.ndarray:
    """Choose groups that have `size` images in all: bool[G], the first ones as far as possible.

    Of the groups of one size always the first are chosen, and about as many as lie among the first
    groups of all sizes that have no more than `size` images.
    """
    kinds, counts = np.unique(held, return_counts=True)
    smaller = [1]  # the sums of groups of fewer images, as bits
    for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True):
        smaller.append(_spread(smaller[-1], kind, count))
    first = np.cumsum(held) <= size
    chosen = np.zeros(len(held), bool)
    for kind, reachable in zip(kinds[::-1], smaller[-2::-1], strict=True):
        places = np.flatnonzero(held == kind)
        numbers = np.arange(len(places) + 1)
        numbers = numbers[np.isin(size - numbers * kind, _members(reachable))]
        number = numbers[np.abs(numbers - first[places].sum()).argmin()]
        chosen[places[:number]] = True
        size -= int(number * kind)
    return chosen


def held_out(images: np.ndarray, labels: np.ndarray, scale: float) -> np.ndarray:
    """Choose the images of a test part by their content: bool[N].

    Each class gives `TEST_FRACTION` of its different images, those with the smallest hashes: at
    least one if it has two, never all. Equal images go the same way; see `owners` for those
    with different labels. Neither the order of the images nor a seed matters, nor the scale of the
    pixels.

    Args:
      images: uint8 or float32[N, H, W, C] from 0 to `scale`.
      labels: int64[N].
      scale: the largest value of a pixel.
    """
    found, firsts, groups = np.unique(digests(images), return_index=True, return_inverse=True)
    # Different images may be equal as 8 bits, such as those of a few levels among 60000.
    order = np.lexsort((found, digests(images, scale)[firsts]))
    groups = np.argsort(order)[groups]
    whose = owners(groups, np.unique(labels, return_inverse=True)[1])
    chosen = np.zeros(len(whose), bool)
    for k in range(whose.max() + 1):
        members = np.flatnonzero(whose == k)  # by ascending hash
        size = min(max(1, round(TEST_FRACTION * len(members))), len(members) - 1)
        chosen[members[: max(0, size)]] = True
    result: np.ndarray = chosen[groups]
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
