from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxmnist.data.dataset import split
from jaxmnist.data.formats import read_files
from jaxmnist.data.tables import read_rows
from jaxmnist.errors import UsageError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 64))
LABELS = np.arange(60) % 3
HEADER = ["label", *(f"pixel{i}" for i in range(64))]


def rows(pixels=PIXELS, labels=LABELS, header=HEADER, separator=",") -> str:
    """A CSV file, written by joining text."""
    lines = [] if header is None else [separator.join(header)]
    for label, row in zip(labels, pixels, strict=True):
        lines.append(separator.join([str(label), *map(str, row)]))
    return "\n".join(lines) + "\n"


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        rows(),
        rows(header=None),
        rows(separator=";"),
        rows(separator="\t"),
        "\ufeff" + rows().replace("\n", "\r\n") + "\n\n",
        rows(header=[f'"{name}"' for name in HEADER]),
        rows(labels=[f"{k}.0" for k in LABELS]),
        "\n".join(",".join([*line.split(",")[1:], line.split(",")[0]])
                  for line in rows().splitlines()),
        "\n".join(f"{i or ''},{line}" for i, line in enumerate(rows().splitlines())),
    ],
)  # fmt: skip
def test_every_form_gives_the_same(tmp_path, text):
    """Kaggle's, without header, other separators, BOM, quotes, label last, pandas' index."""
    pixels, labels, _, _ = read_rows(written(tmp_path / "a.csv", text))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, PIXELS.reshape(60, 8, 8, 1))
    assert np.array_equal(labels.astype(float), LABELS)
    (tmp_path / "b").write_bytes(gzip.compress(text.encode()))
    assert np.array_equal(read_rows(tmp_path / "b").pixels, pixels)


def test_fractions_names_and_colours(tmp_path):
    values = RNG.random((20, 192)).round(6)
    text = rows(values, ["cat", "dog"] * 10, header=None)
    found = read_files(written(tmp_path / "a.csv", text))
    assert found.x_train.shape[1:] == (8, 8, 3)
    assert found.names == {0: "cat", 1: "dog"}
    assert "images of 8×8, red, green and blue of each pixel side by side" in found.notes[1]
    kept = np.concatenate([found.x_train, found.x_test]).reshape(20, -1)
    assert {row.tobytes() for row in kept} == {r.tobytes() for r in values.astype(np.float32)}


def test_a_folder_as_kaggle_has_it(tmp_path):
    written(tmp_path / "train.csv", rows())
    written(tmp_path / "sample_submission.csv", "ImageId,Label\n1,0\n")
    unlabelled = "\n".join(line.partition(",")[2] for line in rows().splitlines())
    written(tmp_path / "test.csv", unlabelled)
    found = read_files(tmp_path)
    train, test = f"note: {tmp_path}/train.csv", f"note: {tmp_path}/test.csv"
    assert found.notes[:2] == (
        f"{train}: the labels are in the column 'label'",
        f"{test} has no labels, so that it is no test part",
    )
    assert len(found.x_test) == 9  # 15 % of 20 in each of three classes
    written(tmp_path / "test.csv", rows(PIXELS[:6], LABELS[:6]))
    found = read_files(tmp_path)
    assert found.notes == (
        f"{train}: the labels are in the column 'label'",
        f"{test}: the labels are in the column 'label'",
    )
    assert np.array_equal(found.x_test.reshape(6, -1), PIXELS[:6])
    assert split("a", found, validation_split=0.2, seed=0).image_shape == (8, 8, 1)
    written(tmp_path / "other_train.csv", rows())
    with pytest.raises(UsageError, match="several tables of the train part, other_train"):
        read_files(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lines: [*lines[:40], "1,2,3", *lines[40:]], "line 41 has 3 columns, .* line 65"),
        (lambda lines: [*lines[:30], lines[30].replace(",", ",x", 1)], "line 31: 'x.*' is no num"),
        (lambda lines: [*lines[:9], "," + lines[9].partition(",")[2]], "line 10: '' is no label"),
        (lambda lines: lines[:1], "has no rows"),
        (lambda lines: ["a,b,c", "1,2,3"], "3 columns, which are not a label and the pixels"),
        (lambda lines: [line.partition(",")[2] for line in lines], "has no column of labels"),
        (lambda lines: [*lines[:5], lines[5].replace(",", ",-", 1)], "negative pixels"),
        (lambda lines: [*lines[:5], "0" + ",nan" * 64], "not finite"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, says):
    path = written(tmp_path / "a.csv", "\n".join(change(rows().splitlines())))
    with pytest.raises(UsageError, match=says) as caught:
        read_files(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_memory_is_that_of_the_pixels(tmp_path, monkeypatch):
    path = written(tmp_path / "a.csv", rows(np.tile(PIXELS, (100, 1)), np.tile(LABELS, 100)))
    read_rows(path)
    monkeypatch.setattr("jaxmnist.data.tables.ROWS", 100)
    tracemalloc.start()
    pixels = read_rows(path).pixels
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(pixels) == 6000
    assert peak < 2 * pixels.nbytes + 6000 * 200 + 10**6
    monkeypatch.setattr("jaxmnist.reading.LARGEST_FILE", 10**4)
    with pytest.raises(UsageError, match="more pixels than can be loaded"):
        read_rows(path)
    monkeypatch.setattr("jaxmnist.data.tables.LONGEST_LINE", 50)
    with pytest.raises(UsageError, match="line 1: is too long"):
        read_rows(path)
