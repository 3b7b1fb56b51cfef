"""`jaxmnist predict` and `read_pictures` on files, folders, tables and archives."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmnist import Preparation, Run, TrainedModel, UsageError, random_search, read_pictures
from jaxmnist.commands.export import main as export
from jaxmnist.commands.parser import run_command
from jaxmnist.commands.predict import main
from jaxmnist.data.arrays import Arrays
from jaxmnist.data.preparation import preparation_of
from jaxmnist.files import as_json, read_json, write_json

LIKE = (
    "Pictures are prepared like the training images: bright ink on a dark ground, scaled into"
    " 20×20, centred by centre of mass."
)


@pytest.fixture
def images(mnist: Arrays) -> np.ndarray:
    return mnist.x_test[:4]


@pytest.fixture
def folder(images: np.ndarray, tmp_path: Path) -> Path:
    """Two folders of pictures in one, with what systems leave there, and a note."""
    for k, image in enumerate(images):
        path = tmp_path / "drawn" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    (tmp_path / "drawn" / "Thumbs.db").write_bytes(b"\0")
    (tmp_path / "drawn" / ".hidden").mkdir()
    (tmp_path / "drawn" / ".hidden" / "x.png").write_bytes(b"\0")
    return tmp_path / "drawn"


def test_the_run_says_how_pictures_are_prepared(finished: Run, mnist: Arrays) -> None:
    dataset = finished.load_dataset()
    expected = preparation_of(dataset.x_train, 255)
    path = finished.store.path
    assert finished.best_model.preparation == expected
    assert read_json(path / "search.json")["data"]["preparation"] == as_json(expected)
    assert read_json(path / "best" / "config.json")["preparation"] == as_json(expected)


def test_folders(finished: Run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(finished.store.path)
    names = ["a/0.png", "a/2.png", "b/1.png", "b/3.png"]
    assert run_command(main, [run, str(folder)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == LIKE
    assert [line.partition(": ")[0] for line in lines] == [f"{folder}/{name}" for name in names]
    assert all(line.endswith("; used as it is") for line in lines)
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty").mkdir()
    given = [run, str(folder / "b"), str(folder), str(folder / "empty")]
    assert run_command(main, given) == 2
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1 + 2 + 4
    assert said.err.splitlines() == [
        f"jaxmnist: {folder}/notes.txt: is not a readable image: PNG, JPEG, BMP, GIF, WebP, TIFF,"
        " PPM, IDX, .npy, .npz or .csv is needed",
        f"jaxmnist: {folder}/empty: has no files",
    ]


def test_tables_for_machines(
    finished: Run, folder: Path, images: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = str(finished.store.path), finished.best_model
    np.save(folder / "a" / "inverted.npy", 255 - images[0])
    stack = np.concatenate([images[[0, 2]], 255 - images[:1], images[[1, 3]]])
    probabilities = model.predict_proba(stack)
    assert run_command(main, [run, str(folder), "--csv"]) == 0
    said = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(said.out)))
    assert [*rows[0]] == ["image", "label", "probability"]
    assert [int(row["label"]) for row in rows] == model.predict(stack).tolist()
    found = [float(row["probability"]) for row in rows]
    assert found == pytest.approx(probabilities.max(1).tolist(), rel=1e-4)
    assert said.err.splitlines()[0] == LIKE
    assert said.err.splitlines()[1].endswith("bright and dark look exchanged")
    assert run_command(main, [run, str(folder), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["image"] for each in content] == [row["image"] for row in rows]
    assert [each["label"] for each in content] == model.predict(stack).tolist()
    assert [[*each["probabilities"]] for each in content] == [[*map(str, model.labels)]] * 5
    assert content[2]["steps"] == []
    assert "exchanged" in content[2]["warnings"][0]


def test_what_prepares_can_be_said(
    finished: Run, images: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = str(finished.store.path), tmp_path / "drawn.png"
    Image.fromarray(255 - images[0, ..., 0]).resize((90, 90)).save(path)
    for word, says in (
        ("auto", "like the training images: bright ink on a dark"),
        ("resize", "as --prepare says: as they are, resized to 28×28."),
    ):
        assert run_command(main, [run, str(path), "--prepare", word]) == 0
        first, line = capsys.readouterr().out.splitlines()
        assert first.startswith(f"Pictures are prepared {says}")
        assert ("exchanged" in line) == (word == "resize")
    assert run_command(main, [run, str(path), "--prepare", "none"]) == 2
    assert "--prepare must be auto or resize, not 'none'" in capsys.readouterr().err


def test_own_data(finished: Run, mnist: Arrays, tmp_path: Path) -> None:
    """The test part of an archive, and pixels in CSV as Kaggle has them."""
    model, images = finished.best_model, mnist.x_test[:3]
    for name, key in (("own.npz", "x_test"), ("med.npz", "test_images")):
        parts = {"x_train": mnist.x_train[:2], "y_test": mnist.y_test[:3], key: images[..., 0]}
        np.savez(tmp_path / name, **parts)
        assert (read_pictures(tmp_path / name, model) == images).all()
    np.savez(tmp_path / "first.npz", x_test=np.moveaxis(images, -1, 1))
    assert (read_pictures(tmp_path / "first.npz", model) == images).all()
    head = [f"pixel{k}" for k in range(784)]
    rows = images.reshape(3, 784).tolist()
    labelled = [[7, *row] for row in rows]
    for k, (header, body) in enumerate(
        (
            (["label", *head], labelled),
            ([*head, "label"], [[*row, 7] for row in rows]),
            (head, rows),
            (None, rows),
            (None, labelled),
        )
    ):
        path = tmp_path / f"{k}.{'csv' if k % 2 else 'txt'}"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *body] if header else body)
        assert (read_pictures(path, model) == images).all()
    ones = ",".join(["1"] * 784)
    for text, says in (
        ("1,2,3\n", "its rows have 3 columns, which are not a label and the pixels"),
        (",".join(["1"] * 64) + "\n", r"is an array \(1, 8, 8, 1\); this network takes images"),
        (",".join(head) + "\n", "has no rows"),
        (ones + "\n1,2\n", "line 2 has 2 columns, and the first line 784"),
        (ones + "\n" + ",".join(["x"] * 784), "line 2: 'x' is no number"),
        (",".join(["-1"] * 784), "negative pixels"),
        ("\n", "has no rows"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(UsageError, match=says):
            read_pictures(tmp_path / "bad.csv", model)


def test_reading_in_python(
    finished: Run, folder: Path, images: np.ndarray, said: list[str]
) -> None:
    model = finished.best_model
    assert (read_pictures(folder, model) == images[[0, 2, 1, 3]]).all()
    paths = [folder / "b" / "1.png", str(folder / "a")]
    assert (read_pictures(paths, model) == images[[1, 0, 2]]).all()
    as_is = Preparation((14, 14, 1))
    assert read_pictures(folder, as_is).shape == (4, 14, 14, 1)
    assert said == []
    np.save(folder / "inverted.npy", 255 - images[0])
    read_pictures(folder / "inverted.npy", model)
    assert "exchanged" in said[0]
    with pytest.raises(UsageError, match="paths names no file"):
        read_pictures([], model)
    for word in ("thumbs", ""):
        with pytest.raises(UsageError, match=r"^prepare must be auto or resize"):
            read_pictures(folder, model, word)


def test_classes_have_their_names(
    finished: Run, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.store.path, tmp_path / "named")
    search = read_json(tmp_path / "named" / "search.json")
    names = [f"class {label}" for label in finished.best_model.labels]
    search["data"]["class_names"] = names
    write_json(tmp_path / "named" / "search.json", search)
    given = [str(tmp_path / "named"), str(folder / "a" / "0.png")]
    assert run_command(main, [*given, "--json"]) == 0
    (content,) = json.loads(capsys.readouterr().out)
    assert [*content["probabilities"]] == names
    assert content["label"] in names
    assert run_command(main, given) == 0
    assert f"0.png: {content['label']} with probability" in capsys.readouterr().out


def test_a_heic_photo_names_what_to_install(finished: Run, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(UsageError, match=r"HEIC photo: python -m pip install pillow-heif, or"):
        read_pictures(tmp_path / "photo.jpg", finished.best_model)


def test_a_model_that_knows_no_preparation(
    finished: Run, folder: Path, images: np.ndarray, tmp_path: Path
) -> None:
    model = dataclasses.replace(finished.best_model, preparation=None)
    (tmp_path / "model.safetensors").write_bytes(model.to_bytes())
    loaded = TrainedModel.load(tmp_path / "model.safetensors")
    assert loaded.preparation is None
    with pytest.raises(UsageError, match="doesn't say what its training images look like"):
        read_pictures(folder, loaded)
    assert (read_pictures(folder, loaded, "resize") == images[[0, 2, 1, 3]]).all()


def test_a_search_of_transposed_images(
    options: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    """Prediction transposes the same kind of files; it and an export say so; so do class counts."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (120, 12, 9), np.uint8), np.arange(120) % 12
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    given = {**options, "data_dir": str(tmp_path / "data.npz"), "transpose": True, "quiet": False}
    given |= {"max_trials": 1, "epochs": 1, "filters": 4, "conv_layers": 1}
    run = random_search(**given, svm=False, directory=str(tmp_path / "runs"))
    left = np.bincount(run.load_dataset().y_train)
    counts = ", ".join(f"{k} ({left[k]})" for k in range(10))
    assert f"12 classes (training images): {counts} and 2 more" in said
    capsys.readouterr()
    path = str(run.store.path)
    line = "The training images were transposed: arrays and tables are transposed too; give"
    assert run_command(main, [path, str(tmp_path / "data.npz"), "--csv"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(line)
    rows = list(csv.DictReader(io.StringIO(printed.out)))
    expected = run.best_model.predict(images.swapaxes(1, 2))
    assert [int(row["label"]) for row in rows] == expected.tolist()
    assert run_command(main, [path, str(tmp_path / "data.npz")]) == 0
    assert capsys.readouterr().out.startswith(line)
    assert run_command(export, [path, str(tmp_path / "model.safetensors")]) == 0
    assert "transpose images before you give them to" in capsys.readouterr().out
    assert json.loads((tmp_path / "model.safetensors.json").read_text())["transposed"] is True
