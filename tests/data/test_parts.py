"""Which images belong to which part, where the data don't say it."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmnist.data.arrays import Arrays, Found, check
from jaxmnist.data.dataset import split
from jaxmnist.data.parts import held_out, limited, shares
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
    assert "3 images validate, one of each class that has two; --validation-split" in few.notes[0]
    for limit, says in (
        (2, "--train-limit 2 is fewer images than a has classes, 3"),
        (3, "no class has two different training images of --train-limit 3"),
    ):
        with pytest.raises(UsageError, match=says):
            split("a", arrays([50, 20, 3]), validation_split=0.1, seed=0, train_limit=limit)
    with pytest.raises(UsageError, match="test images have the label 7, which no training image"):
        split("a", arrays([9, 9])._replace(y_test=np.array([0, 7])), validation_split=0.1, seed=0)
