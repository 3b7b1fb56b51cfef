from __future__ import annotations

import gzip
import hashlib
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from conftest import PACKAGED, write_idx

from jaxmnist.data.array_files import IDX_NAMES, read_idx, read_idx_folder
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.dataset import MNIST_SHA256, dataset_in_memory, load_arrays, read_files, split
from jaxmnist.errors import UsageError
from jaxmnist.settings import DataSettings


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (40, 8, 9), np.uint8),
        "y_train": np.arange(40, dtype=np.uint8) % 4,
        "x_test": rng.integers(0, 256, (12, 8, 9), np.uint8),
        "y_test": np.arange(12, dtype=np.uint8) % 4,
    }


@pytest.fixture
def folder(arrays, tmp_path):
    for key, name in IDX_NAMES.items():
        write_idx(tmp_path / (name + ".gz" * key.startswith("x")), arrays[key])
    return tmp_path


def refused(call, *reasons):
    with pytest.raises(UsageError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for reason in reasons:
        assert str(reason) in message
    return message


def test_packaged_mnist():
    mnist = load_arrays()
    assert mnist.x_train.shape == (60000, 28, 28, 1)
    assert mnist.x_test.shape == (10000, 28, 28, 1)
    assert mnist.x_train.dtype == np.uint8
    # The counts of the test set in the study's classification report, with its typo corrected.
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.y_test).tolist() == counts


def test_a_damaged_packaged_file_is_noticed(tmp_path):
    for name in IDX_NAMES.values():
        (tmp_path / f"{name}.gz").write_bytes((PACKAGED / f"{name}.gz").read_bytes())
    labels = bytearray(gzip.decompress((tmp_path / "train-labels-idx1-ubyte.gz").read_bytes()))
    labels[100] ^= 1
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(labels)))
    refused(lambda: read_idx_folder(tmp_path, MNIST_SHA256), "train-labels", "SHA-256")


def test_idx_folder(folder, arrays):
    loaded = load_arrays(None, str(folder))
    for key, array in arrays.items():
        assert np.array_equal(getattr(loaded, key), array[..., None] if array.ndim > 1 else array)


def test_npz(tmp_path, arrays):
    arrays["x_train"] = np.repeat(arrays["x_train"][..., None], 3, 3)
    arrays["x_test"] = np.repeat(arrays["x_test"][..., None], 3, 3).astype(float)
    arrays["y_train"] = arrays["y_train"].astype(np.int16) * 100 - 7
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    loaded = load_arrays(None, str(tmp_path / "a.npz"))
    assert loaded.x_test.dtype == np.uint8
    assert loaded.x_train.shape == (40, 8, 9, 3)
    assert sorted(set(loaded.y_train)) == [-7, 93, 193, 293]


def test_missing_things(folder, tmp_path):
    refused(lambda: load_arrays(None, str(tmp_path / "nothing")), "data_dir", "nothing")
    (folder / "t10k-labels-idx1-ubyte").unlink()
    refused(lambda: load_arrays(None, str(folder)), "t10k-labels-idx1-ubyte")


@pytest.mark.parametrize("name", ["train-labels-idx1-ubyte", "train-images-idx3-ubyte.gz"])
def test_no_truncation_and_no_bit_flip_of_a_header_passes(folder, name):
    whole = (folder / name).read_bytes()
    for length in range(len(whole)):
        if length < 200 or length % 97 == 0:
            (folder / name).write_bytes(whole[:length])
            refused(lambda: load_arrays(None, str(folder)), name)
    header = 8 if name.endswith("ubyte") else 0
    for bit in range(8 * header):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(flipped)
        refused(lambda: load_arrays(None, str(folder)), name)


def test_a_flipped_bit_in_gzip_is_noticed(folder):
    path = folder / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    same = read_idx(path)
    for position in np.random.default_rng(0).integers(10, len(whole), 40):
        flipped = bytearray(whole)
        flipped[position] ^= 16
        path.write_bytes(flipped)
        try:
            assert np.array_equal(read_idx(path), same)
        except UsageError as error:
            assert path.name in str(error)


def test_a_header_that_claims_too_much(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28) + b"x")
    refused(lambda: read_idx(path), "states")


def test_mislabelled_idx(folder):
    images = (folder / "train-images-idx3-ubyte.gz").read_bytes()
    (folder / "train-labels-idx1-ubyte").write_bytes(gzip.decompress(images))
    refused(lambda: load_arrays(None, str(folder)), "labels must be (N,)")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"y_train": np.zeros(39, int)}, "40 train images but 39 labels"),
        ({"x_test": np.zeros((0, 8, 9), np.uint8), "y_test": np.zeros(0, int)}, "no test images"),
        ({"x_test": np.zeros((12, 9, 8), np.uint8)}, "training images are"),
        ({"x_train": np.full((40, 8, 9), 0.5)}, "use the same scale for both"),
        ({"x_train": np.full((40, 8, 9), np.nan)}, "not finite numbers"),
        ({"x_train": np.full((40, 8, 9), -1)}, "negative pixels"),
        ({"x_train": np.full((40, 8, 9), "a")}, "only plain numbers"),
        ({"x_train": np.zeros((40, 8), np.uint8)}, "images must be (N, H, W)"),
        ({"y_train": np.linspace(0, 1, 40)}, "labels must be whole numbers"),
        ({"y_train": np.zeros((40, 2), int)}, "labels must be (N,)"),
        ({"y_test": None}, "has no array y_test"),
        ({"y_train": np.array([object()] * 40)}, "only plain numbers"),
    ],
)
def test_npz_refuses(tmp_path, arrays, change, reason):
    given = {key: value for key, value in {**arrays, **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **given)
    refused(lambda: read_files(tmp_path / "a.npz"), "a.npz", reason)


def test_damaged_npz(tmp_path, arrays):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(whole)
        if rng.random() < 0.5:
            damaged = damaged[: rng.integers(len(whole))]
        else:
            damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read_files(path)
        except UsageError as error:
            assert "a.npz" in str(error)
            assert "\n" not in str(error)


def test_an_npz_that_claims_to_be_encrypted(tmp_path, arrays):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    path.write_bytes(whole)
    refused(lambda: read_files(path), "a.npz", "encrypted")


def test_an_npz_that_unpacks_to_too_much_is_not_unpacked(tmp_path, arrays, monkeypatch):
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 1000)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    refused(lambda: read_files(tmp_path / "a.npz"), "unpacks to")


def test_an_npz_can_hold_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x_train/", "")
    refused(lambda: read_files(tmp_path / "a.npz"), "has no array")


def parts(labels, **options):
    labels = np.asarray(labels)
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones((1, 6, 6, 1))
    arrays = Arrays(images.astype(np.uint8), labels, images[:2].astype(np.uint8), labels[:2])
    return split("some", arrays, **{"validation_split": 0.25, "seed": 0, **options})


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.33, 0.5, 0.77])
def test_split_is_exact_stratified_and_whole(fraction):
    labels = np.array([9] * 50 + [-3] * 31 + [100] * 19)
    data = parts(labels, validation_split=fraction)
    assert data.labels == (-3, 9, 100)
    assert len(data.y_validation) == round(fraction * 100)
    for k, count in enumerate((31, 50, 19)):
        assert abs((data.y_validation == k).sum() - fraction * count) < 1
    pixels = [*data.x_train[:, 0, 0, 0], *data.x_validation[:, 0, 0, 0]]
    assert sorted(pixels) == list(range(100))
    for x, y in ((data.x_train, data.y_train), (data.x_validation, data.y_validation)):
        assert np.array_equal(np.asarray(data.labels)[y], labels[x[:, 0, 0, 0]])


def test_classes_have_names():
    data = parts([9, -3, 9, -3, 9, -3, 9, -3])
    assert data.class_names == ("-3", "9")
    assert replace(data, class_names=("minus", "nine")).class_names == ("minus", "nine")


def test_split_depends_on_the_seed():
    labels = np.arange(100) % 3
    first, same, other = (parts(labels, seed=seed).fingerprint for seed in (0, 0, 1))
    assert first == same != other


def test_train_limit_comes_before_the_split():
    data = parts(np.arange(100) % 3, train_limit=40)
    assert len(data.y_train) + len(data.y_validation) == 40
    assert max(data.x_train.max(), data.x_validation.max()) == 39


def test_one_class():
    refused(lambda: parts(np.zeros(50, int)), "some", "two classes")


def test_a_split_that_leaves_a_class_out():
    refused(
        lambda: parts(np.arange(50) % 2, validation_split=0.999),
        "validation_split 0.999 leaves no training image of label 0, which has 25 of 50 images",
    )
    refused(lambda: parts(np.arange(3)), "no class has two different training images")


def test_a_test_label_that_training_lacks():
    images = np.zeros((20, 6, 6, 1), np.uint8)
    arrays = Arrays(images, np.arange(20) % 2, images[:2], np.array([0, 7]))
    refused(lambda: split("some", arrays, validation_split=0.2, seed=0), "label 7")


def test_the_same_test_images_have_the_same_fingerprint(mnist):
    """Whatever is trained on, and whatever the scale of the pixels."""
    first = mnist._replace(
        x_train=mnist.x_train[:200],
        y_train=mnist.y_train[:200],
        x_test=mnist.x_test[:50],
        y_test=mnist.y_test[:50],
    )

    def found(validation_split=0.2, seed=0, train_limit=None, **changes):
        arrays = first._replace(**changes)
        made = split(
            "a", arrays, validation_split=validation_split, seed=seed, train_limit=train_limit
        )
        return made.test_sha256

    same = found()
    assert found(0.5, seed=1) == found(train_limit=50) == same
    fractions = {
        name: getattr(first, name).astype(np.float32) / 255 for name in ("x_train", "x_test")
    }
    assert found(**fractions) == same
    labels = first.y_test.copy()
    labels[3] = (labels[3] + 1) % 10
    images = first.x_test.copy()
    images[7, 3, 3] ^= 1
    others = {found(y_test=labels), found(x_test=images), found(x_test=mnist.x_test[50:100]), same}
    assert len(others) == 4


def test_names_in_the_test_part_have_one_fingerprint_whatever_other_classes_there_are():
    """One more class among the training images renumbers all names that come after it."""
    images = np.zeros((12, 5, 5), np.uint8) + np.arange(244, 256, dtype=np.uint8)[::-1, None, None]

    def found(train, test):
        arrays = (np.repeat(images, 2, axis=0)[: len(train)], np.array(train), images[:4])
        return dataset_in_memory((*arrays, np.array(test)), DataSettings(), 0).test_sha256

    def by_hand(test):
        content = repr((4, 5, 5, 1)).encode() + images[:4].tobytes()
        return hashlib.sha256(content + np.array(test, "<i8").tobytes()).hexdigest()

    pets = ["cat", "dog", "dog", "cat"]
    same = found(["cat", "dog"] * 4, pets)
    assert found(["cat", "dog", "ant", "cow"] * 4, pets) == same
    assert found(["cat", "dog", "ant", "cow"] * 4, ["ant", "dog", "dog", "ant"]) != same
    # Numbers stay numbers: also as text, and beside a class that makes names of them.
    for train in ([9, 10], [9, 10, 3], ["9", "10"], ["9", "10", "other"]):
        assert found(train * 4, [*map(type(train[0]), (9, 10, 10, 9))]) == by_hand([9, 10, 10, 9])
    large = 2**53 + 1
    assert found([0, large] * 4, [large, 0, 0, large]) == by_hand([large, 0, 0, large])


def test_a_dataset_that_names_its_numbers_has_the_fingerprint_of_the_numbers(mnist):
    """Fashion MNIST by its name has names, and its files have none."""
    arrays = mnist._replace(x_train=mnist.x_train[:200], y_train=mnist.y_train[:200])
    words = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker"]
    named = arrays._replace(names=dict(enumerate([*words, "Bag", "Ankle boot"])))
    first, second = (split("a", each, validation_split=0.2, seed=0) for each in (arrays, named))
    assert second.class_names[1] == "Trouser"
    assert first.test_sha256 == second.test_sha256
