"""Which images belong to which part, where the data don't say it."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest

from jaxmnist.data.arrays import Arrays, Found, check
from jaxmnist.data.dataset import split
from jaxmnist.data.split import (
    draw,
    group_sizes,
    held_out,
    limited,
    owners,
    shares,
    validation_part,
)
from jaxmnist.errors import UsageError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (300, 6, 6, 1), np.uint8)
LABELS = np.repeat([0, 1, 2, 3], [200, 90, 8, 2])


def test_the_test_part_depends_on_content_alone():
    first = held_out(IMAGES, LABELS, 255)
    assert np.bincount(LABELS[first]).tolist() == [30, 14, 1, 1]  # 15 % of each, at least one
    order = RNG.permutation(300)
    assert np.array_equal(held_out(IMAGES[order], LABELS[order], 255), first[order])
    ones = IMAGES.astype(np.float32) / 255
    assert np.array_equal(held_out(ones, LABELS, 1), first)
    # An image that is added moves at most one other image of its class.
    more = held_out(np.concatenate([IMAGES, 255 - IMAGES[:1]]), np.append(LABELS, 0), 255)
    assert (more[:300] != first).sum() <= 1


def test_equal_images_fall_on_one_side():
    twice = np.concatenate([IMAGES, IMAGES, IMAGES[:50]])
    other = np.concatenate([LABELS, LABELS, LABELS[:50] + 1])  # with another label too
    chosen = held_out(twice, other, 255)
    assert np.array_equal(chosen[:300], chosen[300:600])
    assert np.array_equal(chosen[:50], chosen[600:])
    assert 0 < chosen.sum() < len(chosen)


def test_a_class_of_equal_images_is_trained_on():
    images = IMAGES[:9].copy()
    images[6:] = images[6]
    chosen = held_out(images, np.array([0] * 6 + [1] * 3), 255)
    assert chosen.tolist().count(True) == 1
    assert not chosen[6:].any()
    with pytest.raises(UsageError, match="no class has two different images"):
        check("here", Found((images[6:] + 1, np.arange(3))))


def test_shares_are_exact_and_within_bounds():
    for _ in range(200):
        counts = RNG.integers(1, 40, RNG.integers(1, 9))
        least, most = np.minimum(counts - 1, 1), counts - 1
        if not most.sum():
            continue
        size = int(RNG.integers(least.sum(), most.sum() + 1))
        sizes = shares(counts, size, least, most)
        assert sizes.sum() == size
        assert (least <= sizes).all()
        assert (sizes <= most).all()
        exact = counts * size / counts.sum()
        if ((exact >= least + 1) & (exact <= most - 1)).all():
            assert (abs(sizes - exact) < 1).all()


def test_a_limit_is_stratified():
    classes = np.sort(LABELS)
    counts = np.bincount(classes)
    chosen = limited(classes, counts, 60)
    assert np.bincount(classes[chosen]).tolist() == [39, 17, 2, 2]  # two at least
    for k in range(4):  # the first of each class
        members = chosen[classes == k]
        assert members[: members.sum()].all()
    assert limited(classes, counts, 5).sum() == 5
    assert set(classes[limited(classes, counts, 5)]) == {0, 1, 2, 3}
    assert limited(classes, counts, 999).all()


def arrays(counts: list[int]) -> Arrays:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Arrays(IMAGES[: len(labels)], labels, IMAGES[-2:], np.array([0, 1]))


def test_rare_classes_validate():
    data = split("a", arrays([200, 40, 3, 2]), validation_split=0.1, seed=0)
    assert np.bincount(data.y_validation).sum() == round(24.5)
    assert np.bincount(data.y_validation)[2:].tolist() == [1, 1]
    assert np.bincount(data.y_train)[2:].tolist() == [2, 1]
    assert data.notes == ()


def test_what_the_split_says():
    one = split("a", arrays([50, 20, 1]), validation_split=0.1, seed=0)
    assert one.notes == (
        "note: label 2 has a single training image, which is trained on; no validation image shows"
        " it",
    )
    few = split("a", arrays([5, 5, 5]), validation_split=0.1, seed=0)
    assert np.bincount(few.y_validation).tolist() == [1, 1, 1]
    assert (
        "3 images validate, because each class that has two needs one; --validation-split"
        in few.notes[0]
    )
    for limit, says in (
        (2, "train_limit 2 is fewer images than a has classes, 3"),
        (3, "no class has two different training images of train_limit 3"),
    ):
        with pytest.raises(UsageError, match=says):
            split("a", arrays([50, 20, 3]), validation_split=0.1, seed=0, train_limit=limit)
    with pytest.raises(UsageError, match="test images have the label 7, which no training image"):
        split("a", arrays([9, 9])._replace(y_test=np.array([0, 7])), validation_split=0.1, seed=0)


def whole(chosen: np.ndarray, groups: np.ndarray) -> bool:
    """Whether each group is chosen as a whole or not at all."""
    parts = np.bincount(groups, chosen) / np.bincount(groups)
    return bool(np.isin(parts, (0, 1)).all())


def by_hand(held: list[np.ndarray]) -> set[int]:
    """All numbers of images that some but not all groups of each class have, of one group none."""
    totals = {0}
    for groups in held:
        some = [c for size in range(1, len(groups)) for c in combinations(groups.tolist(), size)]
        totals = {total + sum(chosen) for total in totals for chosen in some or [()]}
    return totals


def test_whole_groups_validate_as_near_as_possible_to_what_was_asked():
    rng = np.random.default_rng(0)
    for _ in range(400):
        held = [rng.choice([1, 1, 2, 3, 5, 10, 20], rng.integers(1, 7)) for _ in range(3)]
        size = int(rng.integers(0, sum(groups.sum() for groups in held)))
        sizes = group_sizes(held, size)
        assert abs(sizes.sum() - size) == min(abs(total - size) for total in by_hand(held))
        whose = np.repeat(np.arange(3), [len(groups) for groups in held])
        groups = rng.permutation(np.repeat(np.arange(len(whose)), np.concatenate(held)))
        drawn = draw(groups, whose, sizes, 0)
        assert whole(drawn, groups)
        assert np.array_equal(np.bincount(whose[groups[drawn]], minlength=3), sizes)


def test_classes_of_copies_give_their_shares():
    """Groups of ten: what one class lacks another one makes up for, and single images fill."""
    tens = [np.full(count, 10) for count in (33, 14, 38, 26)]
    shares_of_111 = np.array([33, 14, 38, 26])
    sizes = group_sizes(tens, 111)
    assert sizes.sum() == 110
    assert (abs(np.cumsum(sizes - shares_of_111)) <= 5).all()
    assert group_sizes([*tens, np.ones(100, int)], 121).tolist() == [*sizes.tolist(), 11]


def test_without_equal_images_the_draw_is_that_of_single_images():
    """As it is by hand: shares of the classes, the first of a permutation of each."""
    classes = RNG.permutation(LABELS)
    counts = np.bincount(classes)
    sizes = shares(counts, 45, np.minimum(counts - 1, 1), counts - 1)
    generator, expected = np.random.default_rng([7, 3]), []
    for k, size in enumerate(sizes):
        expected += generator.permutation(np.flatnonzero(classes == k))[:size].tolist()
    drawn, notes = validation_part(classes, np.arange(300), "abcd", 0.15, 7, None)
    assert np.flatnonzero(drawn).tolist() == sorted(expected)
    assert notes == ()


def test_no_class_loses_its_last_image_to_equal_images_with_other_labels():
    rng = np.random.default_rng(1)
    tried = 0
    for seed in range(600):
        classes = np.append(np.arange(4), rng.integers(0, 4, 10))
        groups = np.unique(rng.integers(0, rng.integers(2, 8), 14), return_inverse=True)[1]
        whose = owners(groups, classes)
        assert all(k in (-1, *classes[groups == g]) for g, k in enumerate(whose))
        # The same for the test part, whose images have these contents.
        images = np.zeros((14, 6, 6, 1), np.uint8) + groups[:, None, None, None].astype(np.uint8)
        for chosen in (draw_or_none(classes, groups, seed), held_out(images, classes, 255)):
            if chosen is not None:
                tried += 1
                assert whole(chosen, groups)
                assert set(classes[~chosen]) == {0, 1, 2, 3}
    assert tried > 900


def draw_or_none(classes: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray | None:
    """The validation images; None if no class has two different ones. Notes name who lacks one."""
    try:
        drawn, notes = validation_part(classes, groups, ["w0", "w1", "w2", "w3"], 0.4, seed, None)
    except UsageError:
        return None
    named = re.findall(r"w(\d)", " ".join(notes))
    assert {int(k) for k in named} == {0, 1, 2, 3} - set(classes[drawn].tolist())
    return drawn


def pictured(*parts: tuple[list[int], list[int]]) -> Arrays:
    """Arrays of images by their numbers in `IMAGES`, with labels: training, test, validation."""
    (x, y), (x_test, y_test), *more = [(IMAGES[x], np.array(y)) for x, y in parts]
    return Arrays(x, y, x_test, y_test, *(more[0] if more else ()))


def test_what_is_said_of_equal_images():
    many, others = [*range(10)] * 5 + [10, 11], [k % 2 for k in range(10)] * 5 + [0, 1]
    data = split("a", pictured((many, others), ([10, 50, 3], [0, 1, 1])), **SPLIT)
    validated = {image.tobytes() for image in data.x_validation}
    assert not validated & {image.tobytes() for image in data.x_train}
    assert len(data.y_validation) == 10  # round(10.4) of groups of five, and of 1
    assert data.notes == (
        "note: 40 of 52 training images are copies of others; equal images stay on one side of the"
        f" validation split: 10 validate, {len(validated)} of them different",
        "note: 2 of 3 test images are also among the training or validation images, which raises"
        " the test accuracy",
    )
    fives = split("a", pictured((many[:50], others[:50]), ([50, 51], [0, 1])), **SPLIT | FEWER)
    assert (
        "10 images validate, because equal ones stay together; --validation-split 0.25"
        in (fives.notes[1])
    )
    labels = [0, 1, 0, 1, 1, 1, 0]
    given = pictured(([0, 1, 2, 3, 0, 1, 3], labels), ([9, 8], [0, 1]), ([1, 2, 7], [1, 0, 0]))
    assert split("a", given, **SPLIT).notes == (
        "note: 2 of 3 validation images are also among the training images, which raises the"
        " validation accuracy",
        "note: 4 of 10 training and validation images have the same pixels as an image with another"
        " label",
    )
    one = split(
        "a", pictured(([1] * 9 + [*range(20, 40)], [1] * 9 + [0] * 20), ([9], [0])), **SPLIT
    )
    assert one.y_validation.tolist() == [0] * 6
    assert one.notes[1].startswith("note: no validation image shows label 1: its images are")


def test_images_of_few_levels_are_not_equal():
    """Most have levels up to 99 beside others up to 60000: as 8 bits they would all be black."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 100, (200, 6, 6, 1)).astype(np.float32)
    images[::5] *= 600
    data = split("a", check("a", Found((images, np.arange(200) % 4))), **SPLIT)
    assert data.notes == (data.notes[0],)
    assert "has no test part: 32 of 200 images" in data.notes[0]
    assert np.bincount(data.y_validation).tolist() == [9, 9, 8, 8]


SPLIT = {"validation_split": 0.2, "seed": 0}
FEWER = {"validation_split": 0.25}
