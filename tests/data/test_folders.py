from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmnist.data import pictures
from jaxmnist.data.dataset import read_files, split
from jaxmnist.data.preparation import files_of
from jaxmnist.errors import EnvironmentFailure, UsageError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 8, 9), np.uint8)
NAMES = ("1", "2", "10")


def fill(folder: Path, images=GREY, names=NAMES, end="png") -> Path:
    """Pictures in a folder for each class, one after another."""
    for i, image in enumerate(images):
        place = folder / names[i % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{i:03}.{end}")
    return folder


def by_class(images=GREY, classes=3) -> np.ndarray:
    """The images in the order in which class folders are read, with a channel axis."""
    stack = np.concatenate([images[k::classes] for k in range(classes)])
    return stack if stack.ndim == 4 else stack[..., None]


def test_parts(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path / "test", GREY[:6])
    fill(tmp_path / "valid", GREY[6:12])
    found = read_files(tmp_path)
    assert found.notes == ()
    # '10' stands after '2' as a number, but folders are read by name.
    order = [GREY[0::3], GREY[2::3], GREY[1::3]]
    assert np.array_equal(found.x_train[..., 0], np.concatenate(order))
    assert found.y_train.tolist() == [1] * 8 + [10] * 8 + [2] * 8
    data = split("a", found, validation_split=0.1, seed=0)
    assert data.class_names == NAMES
    assert data.labels == (1, 2, 10)
    assert len(data.y_validation) == len(data.y_test) == 6
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(UsageError, match="has a folder test, but no folder train with classes in"):
        read_files(tmp_path)


def test_more_pictures_than_can_be_loaded(tmp_path, monkeypatch):
    """Pixels are counted while they are read; each picture has 72."""
    fill(tmp_path)
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 72 * 24)
    assert sum(map(len, read_files(tmp_path)[1:4:2])) == 24
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 72 * 24 - 1)
    with pytest.raises(UsageError, match=r"2/022\.png: the pictures up to this one are more than"):
        read_files(tmp_path)


def test_a_folder_named_like_a_part_that_holds_no_classes(tmp_path):
    fill(tmp_path / "a", names=("train", "car", "bus"))  # a train is a vehicle too
    assert set(read_files(tmp_path / "a").names.values()) == {"train", "car", "bus"}
    fill(tmp_path / "b" / "train")
    fill(tmp_path / "b", GREY[:3], ("test",))  # as some of Kaggle's
    found = read_files(tmp_path / "b")
    assert "b/test has no folders of classes, and is no test part" in found.notes[0]
    assert len(found.x_test) == 3


def test_class_folders_alone(tmp_path):
    fill(tmp_path / "inner", names=("b", "a", "c"))
    for folder in (tmp_path, tmp_path / "inner"):  # also one level above
        found = read_files(folder)
        assert len(found.x_test) == 3
        assert "has no test part: 3 of 24 images are set aside" in found.notes[0]
        assert dict(found.names) == {0: "a", 1: "b", 2: "c"}


def test_what_is_no_picture_is_left_out_and_said(tmp_path):
    fill(tmp_path, names=("a", "b", "c"))
    (tmp_path / "a" / "notes.txt").write_text("some words")
    (tmp_path / "a" / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"\0")
    whole = (tmp_path / "c" / "002.png").read_bytes()
    (tmp_path / "c" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "readme.md").write_text("x")
    found = read_files(tmp_path)
    assert len(found.x_train) + len(found.x_test) == 24
    first, second, third = (note.replace(str(tmp_path), "") for note in found.notes[:3])
    outside = "note: files or folders outside the classes are left out: 1; "
    assert first == f"{outside}/readme.md is not in a class folder"
    assert second == "note: class a: 1 of 9 files are left out; /a/notes.txt is no picture"
    assert third.startswith("note: class c: 1 of 9 files are left out; /c/cut.png can't be read: ")


@pytest.mark.parametrize("end", ["png", "jpg", "gif", "webp", "bmp", "tif"])
def test_damaged_pictures_are_read_or_left_out(tmp_path, end):
    fill(tmp_path, GREY[:12], names=("a", "b"), end=end)
    path = tmp_path / "a" / f"000.{end}"
    whole = path.read_bytes()
    for _ in range(12):
        damaged = bytearray(whole)
        damaged[RNG.integers(len(whole))] ^= 1 << int(RNG.integers(8))
        path.write_bytes(damaged[: RNG.integers(len(whole) // 2, len(whole) + 1)])
        try:
            found = read_files(tmp_path)
        except UsageError as error:
            # The size that its header states.
            assert "resize" in str(error) or "too large" in str(error)
        else:
            left_out = any("left out" in note and path.name in note for note in found.notes)
            assert len(found.x_train) + len(found.x_test) == 12 - left_out


def test_a_pipe_is_not_waited_for(tmp_path):
    fill(tmp_path)
    os.mkfifo(tmp_path / "2" / "pipe.png")
    (tmp_path / "2" / "link.png").symlink_to("nowhere")
    assert "class 2: 2 of 10 files are left out; the first: " in read_files(tmp_path).notes[0]


def test_sizes_must_be_equal(tmp_path):
    fill(tmp_path)
    Image.fromarray(GREY[0].T).save(tmp_path / "2" / "turned.png")
    with pytest.raises(UsageError, match=r"000.png is 8×9 pixels and .*turned.png 9×8: resize"):
        read_files(tmp_path)


def test_modes_of_pictures(tmp_path):
    """Grey, RGB without colours, palettes and 16 bits are grey; one coloured picture is RGB."""
    as_rgb = np.repeat(GREY[..., None], 3, 3)
    fill(tmp_path / "mixed", [as_rgb[0], *GREY[1:20], *as_rgb[20:]], ("a", "b", "c"))
    Image.fromarray(GREY[1]).convert("P").save(tmp_path / "mixed" / "b" / "001.png")
    Image.fromarray(GREY[2].astype(np.uint16) * 257).save(tmp_path / "mixed" / "c" / "002.png")
    found = read_files(tmp_path / "mixed")
    assert found.x_train.shape[3] == 1
    kept = {image.tobytes() for image in (*found.x_train, *found.x_test)}
    assert kept == {image.tobytes() for image in by_class()}
    coloured = as_rgb.copy()
    coloured[7, 0, 0] = [255, 0, 9]
    fill(tmp_path / "colour", [*GREY[:7], *coloured[7:]], ("a", "b", "c"))
    found = read_files(tmp_path / "colour")
    assert found.x_train.shape[1:] == (8, 9, 3)
    kept = {image.tobytes() for image in (*found.x_train, *found.x_test)}
    assert kept == {image.tobytes() for image in coloured}
    fill(tmp_path / "jpeg", as_rgb, ("a", "b", "c"), "jpg")
    assert read_files(tmp_path / "jpeg").x_train.shape[3] == 1


@pytest.mark.parametrize(("ink", "background"), [(255, "black"), (0, "white")])
def test_transparency_stands_out_from_the_strokes(tmp_path, ink, background):
    layers = [np.dstack([np.full((8, 9, 3), ink, np.uint8), image]) for image in GREY]
    fill(tmp_path, layers, ("a", "b", "c"))
    found = read_files(tmp_path)
    assert found.notes[0] == f"note: 24 pictures: transparency is replaced by {background}"
    expected = GREY if ink else 255 - GREY
    kept = {image.tobytes() for image in (*found.x_train, *found.x_test)}
    assert kept == {image.tobytes() for image in expected}


def test_folders_that_hold_no_classes(tmp_path):
    fill(tmp_path / "train" / "deeper", names=("a", "b"))
    with pytest.raises(UsageError, match="has no pictures but the folder a; data_dir must name"):
        read_files(tmp_path)
    shutil.rmtree(tmp_path / "train" / "deeper")
    (tmp_path / "train" / "a").mkdir()
    with pytest.raises(UsageError, match="has no pictures in folders of classes"):
        read_files(tmp_path)
    fill(tmp_path / "train", names=("a",))
    with pytest.raises(UsageError, match="label a; two classes are needed"):
        split("x", read_files(tmp_path), validation_split=0.1, seed=0)


@pytest.mark.parametrize("names", [("train", "test1"), ("train", "test")])
def test_parts_without_folders_of_classes(tmp_path, names):
    """As in 'Dogs vs. Cats', whose classes stand in the names of files."""
    fill(tmp_path, names=names)
    with pytest.raises(UsageError, match=r"contain no class folders: put .* such as train/cat/1"):
        read_files(tmp_path)
    fill(tmp_path / "classes", names=("train_1", "train_2"))  # two kinds of trains
    assert set(read_files(tmp_path / "classes").names.values()) == {"train_1", "train_2"}


def test_folders_beside_the_parts_are_said(tmp_path):
    fill(tmp_path / "train")
    fill(tmp_path, GREY[:3], ("test1",))
    note = "note: folders other than train, validation and test are left out: test1"
    assert note in read_files(tmp_path).notes


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_class_whose_pictures_are_all_unreadable(tmp_path, content):
    fill(tmp_path, names=("a", "b", "c"))
    for path in (tmp_path / "c").iterdir():
        path.write_bytes(path.read_bytes()[:40] if content is None else content)
    with pytest.raises(UsageError, match=r"/c: none of its 8 files is a readable .*c/002"):
        read_files(tmp_path)


def test_a_folder_that_is_meant_as_no_class(tmp_path):
    fill(tmp_path, names=("a", "b"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "1.json").write_text("{}")
    found = read_files(tmp_path)
    assert dict(found.names) == {0: "a", 1: "b"}
    start = "note: files or folders outside the classes are left out: 2; the first: "
    assert found.notes[0] == f"{start}{tmp_path}/empty has no pictures"


def test_a_folder_in_a_classs_folder_is_counted(tmp_path):
    fill(tmp_path, names=("a", "b"))
    fill(tmp_path / "a", GREY[:7], ("extra",))
    fill(tmp_path / "a" / "extra", GREY[:2], ("deeper",))
    note = "note: class a: 9 of 21 files are left out; the first: "
    line = f"{tmp_path}/a/extra is a subfolder of a class, with 9 files"
    assert read_files(tmp_path).notes[0] == note + line


def test_names_in_both_forms_of_unicode_are_one_class(tmp_path):
    fill(tmp_path / "train", names=("caf\u00e9", "tea"))
    fill(tmp_path / "test", GREY[:6], ("cafe\u0301", "tea"))
    data = split("a", read_files(tmp_path), validation_split=0.1, seed=0)
    assert data.class_names == ("caf\u00e9", "tea")
    assert np.bincount(data.y_test).tolist() == [3, 3]


@pytest.mark.parametrize(
    "name",
    [
        *("@eaDir", "System Volume Information", "$RECYCLE.BIN", "lost+found", "__MACOSX"),
        *("#recycle", "@Recycle", ".ipynb_checkpoints", "THUMBS.DB", "__pycache__"),
    ],
)
def test_what_systems_put_into_folders(tmp_path, name):
    fill(tmp_path, names=("a", "b"))
    fill(tmp_path, GREY[:3], (name,))
    (tmp_path / "a" / name).mkdir()
    Image.fromarray(GREY[0]).save(tmp_path / "a" / name / "thumb.png")
    found = read_files(tmp_path)
    assert set(found.names.values()) == {"a", "b"}
    assert len(found.x_train) + len(found.x_test) == 24
    assert not any("left out" in note for note in found.notes)
    assert len(files_of(tmp_path)) == 24


def test_links_that_lead_out_are_not_followed(tmp_path):
    """Neither those of files nor those of folders, in training and in prediction."""
    outside = fill(tmp_path / "outside", GREY[:6], ("c",)) / "c"
    np.savez(tmp_path / "secret.npz", x_train=GREY, y_train=np.arange(24) % 2)
    for k, (place, target) in enumerate(
        (
            ("a/link.png", outside / "000.png"),
            ("c", outside),
            ("a/link.png", Path("../../outside/c/000.png")),
            ("data.npz", tmp_path / "secret.npz"),
        )
    ):
        folder = fill(tmp_path / f"data{k}", names=("a", "b"))
        (folder / place).symlink_to(target)
        for read in (read_files, files_of):
            with pytest.raises(UsageError, match=f"{place}: is a symbolic link to a place outside"):
                read(folder)
    folder = fill(tmp_path / "inside", names=("a", "b"))
    (folder / "a" / "again.png").symlink_to(Path("000.png"))
    (folder / "c").symlink_to(Path("a"))
    (folder / "b" / "up").symlink_to(folder)  # a circle
    (folder / "b" / "nowhere.png").symlink_to("/nowhere/at/all")
    (tmp_path / "named").symlink_to(folder)  # a person's own link
    found = read_files(tmp_path / "named")
    assert len(found.x_train) + len(found.x_test) == 13 + 12 + 13
    assert len(files_of(tmp_path / "named")) == 13 + 13 + 13
    # What lies beside a file that a person named isn't followed, unless it is read too.
    for name in ("x_train", "y_train"):
        np.save(tmp_path / f"{name}.npy", GREY if name == "x_train" else np.arange(24) % 2)
    (tmp_path / "elsewhere").symlink_to("/usr")
    assert len(read_files(tmp_path / "x_train.npy").y_train) > 18
    with pytest.raises(UsageError, match="no such folder or file"):
        read_files(tmp_path / "typo")
    (tmp_path / "apart").mkdir()
    (tmp_path / "y_train.npy").rename(tmp_path / "apart" / "labels.npy")
    (tmp_path / "y_train.npy").symlink_to(tmp_path / "apart" / "labels.npy")
    read_files(tmp_path / "x_train.npy")  # it leads to a place inside
    (tmp_path / "apart" / "x_train.npy").symlink_to(tmp_path / "x_train.npy")
    (tmp_path / "apart" / "y_train.npy").symlink_to("labels.npy")
    with pytest.raises(UsageError, match=r"x_train.npy: is a symbolic link to a place outside"):
        read_files(tmp_path / "apart" / "y_train.npy")


def test_any_name_of_a_folder_is_a_class(tmp_path):
    fill(tmp_path, names=("nan", "-1", "0"))
    assert set(read_files(tmp_path).names.values()) == {"nan", "-1", "0"}


def test_a_photo_that_needs_another_package_is_left_out(tmp_path):
    fill(tmp_path, names=("a", "b"))
    (tmp_path / "a" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    assert "pillow-heif" in read_files(tmp_path).notes[0]


def test_tables_beside_the_pictures_of_classes(tmp_path):
    """As in the German traffic signs."""
    fill(tmp_path, names=("a", "b"))
    for name in "ab":
        (tmp_path / name / f"GT-{name}.csv").write_text("Filename;Width\n")
    found = read_files(tmp_path)
    assert "class a: 1 of 13 files are left out" in found.notes[0]


def test_what_is_left_out_of_many_classes_is_summed_up(tmp_path):
    names = [f"{k:02}" for k in range(12)]
    fill(tmp_path, names=names)
    for name in names:
        (tmp_path / name / "x.txt").write_text("x")
    notes = read_files(tmp_path).notes
    assert notes[:10] == tuple(
        f"note: class {name}: 1 of 3 files are left out; {tmp_path}/{name}/x.txt is no picture"
        for name in names[:10]
    )
    assert notes[10] == "note: files of 2 more classes are left out"


def test_hidden_files_in_subfolders_are_not_counted(tmp_path):
    fill(tmp_path, names=("a", "b"))
    fill(tmp_path / "a" / "extra", GREY[:3], (".git",))
    assert not any("left out" in note for note in read_files(tmp_path).notes)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ENOMEM, None])
def test_what_fails_around_a_picture_is_not_left_out(tmp_path, monkeypatch, number):
    """Too many open files, a disk's error, too little memory: another search would have more."""
    fill(tmp_path, names=("a", "b"))
    read = pictures.read_rasters

    def fail(path: Path):
        if path.name == "003.png":
            raise MemoryError if number is None else OSError(number, os.strerror(number))
        return read(path)

    monkeypatch.setattr(pictures, "read_rasters", fail)
    with pytest.raises(EnvironmentFailure, match=r"b/003.png: can.t be read: "):
        read_files(tmp_path)


def test_what_fails_around_a_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", x=GREY, y=np.arange(24) % 2)

    def fail(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("jaxmnist.data.array_files.read_npy", fail)
    with pytest.raises(EnvironmentFailure, match=r"can't be read: Too many open files; raise"):
        read_files(tmp_path / "a.npz")
