"""Files and folders as people have them, each read into the arrays that were written."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import write_idx
from scipy.io import savemat

from jaxmnist.data.array_files import by_shape
from jaxmnist.data.arrays import check
from jaxmnist.data.dataset import dataset_in_memory, load_arrays, read_files, split
from jaxmnist.errors import UsageError
from jaxmnist.settings import DataSettings

COUNTS = {"train": 40, "val": 16, "test": 12}


@pytest.fixture
def parts() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8[N, 8, 9] and labels 0 to 3 of three parts."""
    rng = np.random.default_rng(1)
    return {
        part: (rng.integers(0, 256, (count, 8, 9), np.uint8), np.arange(count) % 4)
        for part, count in COUNTS.items()
    }


def refused(path: Path, *reasons: object) -> str:
    with pytest.raises(UsageError) as caught:
        read_files(path)
    message = str(caught.value)
    assert message.isprintable()
    for reason in reasons:
        assert str(reason) in message
    return message


def same(found, parts, names=("train", "val", "test")) -> None:
    """`found` has exactly these parts, a test part set aside if there is none."""
    fields = {"train": "train", "val": "validation", "test": "test"}
    for part, field in fields.items():
        images, labels = getattr(found, f"x_{field}"), getattr(found, f"y_{field}")
        if part in names:
            assert np.array_equal(images[..., 0], parts[part][0])
            assert np.array_equal(labels, parts[part][1])
        elif part == "val":
            assert images is labels is None


def idx(path: Path, array: np.ndarray, kind: int, dtype: str) -> None:
    """An IDX file of any type, from the format's description."""
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(head + array.astype(dtype).tobytes()))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_{}", "y_{}"),
        ("{}_images", "{}_labels"),
        ("X_{}", "y_{}"),
        ("{}X", "{}Y"),
        ("{}_x", "{}_y"),
    ],
)
def test_names_of_arrays(parts, tmp_path, images, labels):
    """Keras', MedMNIST's and others', in one file and in a file each."""
    arrays = {images.format(part): x for part, (x, _) in parts.items()}
    arrays |= {labels.format(part): y[:, None] for part, (_, y) in parts.items()}
    np.savez(tmp_path / "data.npz", **arrays, weights=np.zeros(3))
    same(read_files(tmp_path / "data.npz"), parts)
    (tmp_path / "folder").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    same(read_files(tmp_path / "folder"), parts)
    shutil.move(tmp_path / "data.npz", tmp_path / "no ending")  # content decides
    same(read_files(tmp_path / "no ending"), parts)
    with gzip.open(tmp_path / "zipped", "wb") as file:
        file.write((tmp_path / "no ending").read_bytes())
    same(read_files(tmp_path / "zipped"), parts)


def test_a_validation_part_validates(parts, tmp_path):
    np.savez(tmp_path / "a.npz", **{f"{part}_images": x for part, (x, _) in parts.items()},
             **{f"{part}_labels": y for part, (_, y) in parts.items()})  # fmt: skip
    data = split("a", read_files(tmp_path / "a.npz"), validation_split=0.1, seed=0, train_limit=8)
    assert np.array_equal(data.x_validation[..., 0], parts["val"][0])
    assert np.bincount(data.y_train).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("order", ["xyxy", "xxyy", "yxyx"])
def test_arrays_without_names(parts, tmp_path, order):
    images, labels = ([parts[part][i] for part in ("train", "test")] for i in (0, 1))
    left = {"x": iter(images), "y": iter(labels)}
    np.savez(tmp_path / "a.npz", *[next(left[kind]) for kind in order])
    same(read_files(tmp_path / "a.npz"), parts, ("train", "test"))
    np.savez(tmp_path / "b.npz", *images)
    refused(tmp_path / "b.npz", "can't tell images from labels")
    np.savez(tmp_path / "c.npz", images[0], labels[0])
    found = read_files(tmp_path / "c.npz")
    assert len(found.x_test) == 8  # two of ten images of each class
    assert len(found.x_train) == 32
    same(check("six", by_shape("six", [a for pair in parts.values() for a in pair])), parts)


def test_data_in_memory(parts):
    settings = DataSettings(dataset="mine", validation_split=0.25)
    (x, y), (xv, yv), (xt, yt) = parts.values()
    plain = dataset_in_memory((x, y, xt, yt), settings, 0)
    assert dataset_in_memory(((x, y), (xt, yt)), settings, 0).fingerprint == plain.fingerprint
    named = dataset_in_memory((x, np.array(list("dabc"))[y], xt, np.array(list("dabc"))[yt]),
                              settings, 0)  # fmt: skip
    assert named.class_names == ("a", "b", "c", "d")
    assert named.labels == (0, 1, 2, 3)
    six = dataset_in_memory((x, y, xv, yv, xt, yt), settings, 0)
    assert np.array_equal(six.x_validation[..., 0], xv)
    two = dataset_in_memory((x, y), settings, 0)
    assert (len(two.y_train) + len(two.y_validation), len(two.y_test)) == (32, 8)
    loaded = load_arrays()
    few = loaded._replace(x_train=loaded.x_train[:99], y_train=loaded.y_train[:99])
    assert dataset_in_memory(few, settings, 0).classes == 10
    for wrong in ((x, y, xt), [x], x, (x, y, xt, yt[:-1]), (x, y, xv, yv + 9, xt, yt)):
        with pytest.raises(UsageError):
            dataset_in_memory(wrong, settings, 0)


def test_rows_channels_first_and_transposed():
    rng = np.random.default_rng(0)
    for shape in ((30, 8, 7, 1), (30, 8, 7, 3)):
        x, y = rng.integers(0, 256, shape, np.uint8), np.arange(30) % 2
        usual = dataset_in_memory((x, y, x, y), DataSettings(dataset="a"), 0)
        first = np.moveaxis(x, -1, 1)
        turned = dataset_in_memory((first, y, first, y), DataSettings(dataset="a"), 0)
        assert turned.fingerprint == usual.fingerprint
        assert "channels first" in turned.notes[0]
        settings = DataSettings(dataset="a", transpose=True)
        flipped = dataset_in_memory((x, y, x, y), settings, 0)
        assert np.array_equal(flipped.x_test, x.swapaxes(1, 2))
    x = rng.random((30, 64)) * 16  # as scikit-learn's load_digits
    rows = dataset_in_memory((x, y), DataSettings(dataset="a"), 0)
    assert rows.image_shape == (8, 8, 1)
    assert rows.scale == pytest.approx(x.max(), rel=0.2)
    assert "images of 8×8" in rows.notes[0]
    kept = {image.tobytes() for image in x.reshape(-1, 8, 8, 1).astype(np.float32)}
    assert {image.tobytes() for image in rows.x_test} < kept


@pytest.mark.parametrize(
    ("kind", "dtype"), [(8, ">u1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
def test_types_of_idx(parts, tmp_path, kind, dtype):
    for part, name in (("train", "train"), ("test", "t10k")):
        end = "-images-idx3-ubyte.gz" if kind < 12 else "-images.idx3-ubyte"  # both are common
        idx(tmp_path / f"{name}{end}", parts[part][0], kind, dtype)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", parts[part][1])
    found = read_files(tmp_path)
    same(found, parts, ("train", "test"))
    assert found.x_train.dtype == np.uint8


def test_emnists_and_qmnists_names(parts, tmp_path):
    for prefix, shift in (("emnist-letters", 1), ("emnist-digits", 0)):
        for part in ("train", "test"):
            name = f"{prefix}-{part}-images-idx3-ubyte.gz"
            write_idx(tmp_path / name, parts[part][0])
            write_idx(tmp_path / name.replace("images-idx3", "labels-idx1"), parts[part][1] + shift)
    refused(tmp_path, "holds 2 datasets, emnist-digits, emnist-letters", "data_dir")
    for name in ("emnist-digits", "emnist-digits-train-labels-idx1-ubyte.gz"):  # or one file of it
        same(read_files(tmp_path / name), parts, ("train", "test"))
    letters = split("a", read_files(tmp_path / "emnist-letters"), validation_split=0.2, seed=0)
    assert letters.labels == (1, 2, 3, 4)
    assert letters.class_names == ("1", "2", "3", "4")
    refused(tmp_path / "emnist", "holds 2 datasets")
    refused(tmp_path / "mnist", "no such folder or file")
    for part, name in (("train", "train"), ("test", "t10k")):  # and MNIST's own beside them
        write_idx(tmp_path / f"{name}-images-idx3-ubyte", 255 - parts[part][0])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte", parts[part][1])
    refused(tmp_path, "3 datasets, one without a name, emnist", "/train-images-idx3-ubyte")
    plain = read_files(tmp_path / "train-images-idx3-ubyte")
    same(plain._replace(x_train=255 - plain.x_train, x_test=255 - plain.x_test), parts,
         ("train", "test"))  # fmt: skip

    raw = tmp_path / "torch" / "QMNIST" / "raw"  # torchvision's folders
    raw.mkdir(parents=True)
    for part in ("train", "test"):
        write_idx(raw / f"qmnist-{part}-images-idx3-ubyte", parts[part][0])
        rows = np.zeros((len(parts[part][1]), 8))
        rows[:, 0], rows[:, 2] = parts[part][1], 2507
        idx(raw / f"qmnist-{part}-labels-idx2-int.gz", rows, 12, ">i4")
    same(read_files(tmp_path / "torch"), parts, ("train", "test"))
    shutil.copytree(raw, tmp_path / "torch" / "Other" / "raw")
    refused(tmp_path / "torch", "holds several datasets", "QMNIST/raw")


def test_images_without_labels(parts, tmp_path):
    np.save(tmp_path / "train_images.npy", parts["train"][0])
    refused(tmp_path, "has no file train_labels.npy, the labels of train_images.npy")
    np.savez(tmp_path / "a.npz", x_train=parts["train"][0], y_train=parts["train"][1],
             y_test=parts["test"][1])  # fmt: skip
    refused(tmp_path / "a.npz", "has no array with the images of y_test")


CONTENTS = {
    "page.gz": (b"<!DOCTYPE html><html>Not found</html>", "is a web page"),
    "data.pkl": (pickle.dumps({"x_train": 1}), "is a pickle, which can run code"),
    "data.mat": (b"MATLAB 5.0 MAT-file, Platform: GLNXA64" + bytes(100), "can't be read"),
    "data.h5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
    "data.parquet": (b"PAR1" + bytes(50), "Parquet"),
    "pointer.npz": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "empty.npz": (b"", "is empty"),
    "one.png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "single picture"),
    "some.bin": (bytes(range(100)), "is not in a supported format"),
    "text.txt": (b"hello\n", "1 columns"),
    "gzipped.npz": (gzip.compress(pickle.dumps([1])), "is a pickle"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_a_file_is_instead(tmp_path, name):
    content, says = CONTENTS[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, name, says)


def test_archives_and_single_arrays(parts, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train/cat/1.png", b"x")
    refused(tmp_path / "a.npz", "zip archive of 1 files, such as train/cat/1.png; unpack it")
    (tmp_path / "x.txt").write_text("x")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "x.txt", "x.txt")
    refused(tmp_path / "a.tar.gz", "tar archive: unpack it")
    np.save(tmp_path / "array.npy", parts["train"][0])
    refused(tmp_path / "array.npy", "is a single array; give the others the names")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.md").write_text("x")
    refused(tmp_path / "empty", "has no data that can be read", "it has readme.md")
    # A gzipped file that was unpacked and kept its name, and one that lost it.
    folder = tmp_path / "idx"
    folder.mkdir()
    for part, name in (("train", "train"), ("test", "t10k")):
        write_idx(folder / "plain", parts[part][0])
        shutil.move(folder / "plain", folder / f"{name}-images-idx3-ubyte.gz")
        write_idx(folder / "zipped.gz", parts[part][1])
        shutil.move(folder / "zipped.gz", folder / f"{name}-labels-idx1-ubyte")
    same(read_files(folder), parts, ("train", "test"))
    for index, name in enumerate(["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte"]):
        (folder / name).write_text("<html>busy</html>")
        refused(folder, name, "is a web page")
        write_idx(folder / name.removesuffix(".gz"), parts["test"][index])


def test_matlab(parts, tmp_path, monkeypatch):
    """EMNIST's structure, and plain variables."""
    path = tmp_path / "a.mat"
    rng = np.random.default_rng(0)
    flat = {
        part: (rng.integers(0, 256, (len(y), 64), np.uint8), y) for part, (_, y) in parts.items()
    }
    structure = {part: {"images": flat[part][0], "labels": flat[part][1][:, None] + 1.0}
                 for part in ("train", "test")}  # fmt: skip
    for packed in (True, False):
        savemat(path, {"dataset": structure | {"mapping": np.eye(4)}}, do_compression=packed)
        found = read_files(path)
        assert found.y_train.tolist() == [k + 1 for k in flat["train"][1]]
        assert np.array_equal(found.x_test.reshape(-1, 64), flat["test"][0])
    whole = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged[: rng.integers(1, len(whole) + 1)])
        with contextlib.suppress(UsageError):
            read_files(path)
    savemat(path, {"X": flat["train"][0], "y": flat["train"][1]})
    assert len(read_files(tmp_path).y_test) == 8
    savemat(path, {"weights": flat["train"][0]})
    refused(path, "has no array x_train; it has weights")
    savemat(path, {"x": np.zeros((10**6, 8)), "y": np.zeros(10**6)}, do_compression=True)
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 10**6)
    with takes_at_most(5 * 10**6):
        refused(path, "unpacks to more bytes than can be loaded")


@contextlib.contextmanager
def takes_at_most(size):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


def test_a_folder_of_several_datasets(parts, tmp_path):
    x, y = parts["train"]
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=x, y=y)
    refused(tmp_path, "holds several datasets, a.npz, b.npz: name a file")
    (tmp_path / "b.npz").unlink()
    assert len(read_files(tmp_path).y_test) == 8
    (tmp_path / "notes.csv").write_text("some,words\n")  # not a dataset beside another
    assert len(read_files(tmp_path).y_test) == 8
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(b"x")
    refused(tmp_path, "a.npz, folders of pictures")


def test_a_path_given_as_a_name(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("some.npz", "./mine", str(tmp_path), "mine"):
        with pytest.raises(UsageError, match="is a path, not a name: use data_dir"):
            load_arrays(name)
    with pytest.raises(UsageError, match="a dataset is named by dataset fashion_mnist"):
        load_arrays(None, "fashion_mnist")
