from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxmnist.data.dataset import read_files, split
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
        f"{train}: labels are read from column 'label'",
        f"{test} has no labels, and is not used as the test part",
    )
    assert len(found.x_test) == 9  # 15 % of 20 in each of three classes
    written(tmp_path / "test.csv", rows(PIXELS[:6], LABELS[:6]))
    found = read_files(tmp_path)
    assert found.notes == (
        f"{train}: labels are read from column 'label'",
        f"{test}: labels are read from column 'label'",
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
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 10**4)
    with pytest.raises(UsageError, match="more pixels than can be loaded"):
        read_rows(path)
    monkeypatch.setattr("jaxmnist.data.tables.LONGEST_LINE", 50)
    with pytest.raises(UsageError, match="line 1: is too long"):
        read_rows(path)


def texture(count: int) -> np.ndarray:
    """Noise with a horizontal gradient: the first and the last pixel have many values."""
    return (RNG.normal(0, 40, (count, 8, 8)) + np.linspace(60, 200, 8)).clip(0, 255).astype(int)


def digits(count: int) -> np.ndarray:
    """Bright shapes on black: the first and the last pixel are nearly always 0."""
    images = np.zeros((count, 8, 8), int)
    images[:, 2:6, 2:6] = RNG.integers(0, 256, (count, 4, 4))
    images[RNG.random(count) < 0.02, 7, 7] = 9
    return images


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("images", [texture, digits])
@pytest.mark.parametrize(
    "labels",
    [
        lambda n: np.arange(n) % 10,
        lambda n: np.sort(np.arange(n) % 2),
        lambda n: np.arange(n) % 2 * 255,
        lambda n: (RNG.random(n) < 0.1).astype(int) + 1,
        lambda n: np.array(["cat", "dog"] * n)[:n],
    ],
)
@pytest.mark.parametrize("header", [None, [*map(str, range(65))], [f"c{k}" for k in range(65)]])
def test_the_values_tell_the_column_of_the_labels(tmp_path, last, images, labels, header):
    pixels, wanted = images(200).reshape(200, 64), labels(200)
    columns = (pixels, wanted[:, None]) if last else (wanted[:, None], pixels)
    lines = [",".join(map(str, row)) for row in np.hstack([c.astype(object) for c in columns])]
    text = "\n".join([*([",".join(header)] if header else []), *lines])
    found = read_rows(written(tmp_path / "a.csv", text))
    assert found.labels.tolist() == [str(label) for label in wanted]
    assert np.array_equal(found.pixels.reshape(200, 64), pixels)
    assert found.end == ("last" if last else "first")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("border", ["dead column", "black borders", "one class"])
def test_images_whose_ends_differ(tmp_path, last, border):
    """A sensor's dead column has other values than its neighbours, as labels have."""
    pixels, labels = texture(400), np.arange(400) % 10
    if border == "dead column":
        pixels[:, :, 0], pixels[:, :, -1] = 0, RNG.integers(0, 2, (400, 8))
    elif border == "black borders":
        pixels[:, :, 0] = pixels[:, :, -1] = 0
    else:
        pixels, labels = digits(400), (np.arange(400) % 20 == 0).astype(int)
    pixels = pixels.reshape(400, 64)
    columns = (pixels, labels[:, None]) if last else (labels[:, None], pixels)
    text = "\n".join(",".join(map(str, row)) for row in np.hstack(columns))
    written(tmp_path / "a.csv", text)
    try:
        assert read_rows(tmp_path / "a.csv").labels.tolist() == [str(k) for k in labels]
    except UsageError as error:
        assert "cannot tell" in str(error)
        assert border != "black borders"


def test_a_wrong_label_is_named_and_decides_nothing(tmp_path):
    for wrong in ("nan", "7.5"):
        labels = [*map(str, np.arange(199) % 3), wrong]
        text = rows(digits(200).reshape(200, 64), labels, header=None)
        with pytest.raises(UsageError, match=f"y_train: .*'{wrong}'"):
            read_files(written(tmp_path / "a.csv", text))


def test_a_test_file_may_have_its_labels_elsewhere(tmp_path):
    pixels, labels = digits(60).reshape(60, 64), LABELS[:, None]
    for name, columns in (("train", (labels, pixels)), ("test", (pixels, labels))):
        text = "\n".join(",".join(map(str, row)) for row in np.hstack(columns))
        written(tmp_path / f"{name}.csv", text)
    found = read_files(tmp_path)
    assert found.y_train.tolist() == found.y_test.tolist() == LABELS.tolist()
    # A few rows don't decide: their labels are where those of the training table are.
    written(tmp_path / "test.csv", rows(pixels[:5], LABELS[:5], header=None))
    assert read_files(tmp_path).y_test.tolist() == LABELS[:5].tolist()


def test_other_forms_of_text(tmp_path):
    labels = ["\u00e4", "\u00f6", "\u00fc"] * 20
    path = tmp_path / "a.csv"
    path.write_bytes(rows(labels=labels).encode("cp1252"))
    with pytest.raises(UsageError, match="is not text in UTF-8: save it as CSV UTF-8"):
        read_files(path)
    path.write_bytes(rows(labels=labels).encode("utf-16"))
    with pytest.raises(UsageError, match="is text in UTF-16: save it as UTF-8"):
        read_files(path)
    np.savez(tmp_path / "a.npz", x=PIXELS, y=np.array([label.encode("cp1252") for label in labels]))
    with pytest.raises(UsageError, match="labels are not text in UTF-8"):
        read_files(tmp_path / "a.npz")
    indexed = "\n".join(
        f"{i or ''}\t{line}" for i, line in enumerate(rows(separator="\t").splitlines())
    )
    assert len(read_rows(written(path, indexed)).pixels) == 60  # pandas' index, in tabs
    trailing = rows().replace("\n", ",\n")
    assert np.array_equal(read_rows(written(path, trailing)).pixels.reshape(60, 64), PIXELS)


def test_a_label_is_asked_for_where_values_do_not_tell(tmp_path):
    noise = RNG.integers(0, 10, (200, 65))
    text = "\n".join(",".join(map(str, row)) for row in noise)
    with pytest.raises(UsageError, match="cannot tell whether the first or the last column"):
        read_files(written(tmp_path / "a.csv", text))
    named = ",".join([*(f"p{k}" for k in range(64)), "what"])
    found = read_rows(written(tmp_path / "b.csv", f"{named}\n{text}"))
    assert found.labels.tolist() == [str(label) for label in noise[:, 64]]
    assert found.column == "column 'what'"


def mangled(fields) -> list[str]:
    """Names as pandas makes them different: 0, 0.1, 0.2."""
    seen: dict = {}
    names = []
    for field in fields:
        seen[field] = seen.get(field, -1) + 1
        names.append(f"{field}.{seen[field]}" if seen[field] else str(field))
    return names


@pytest.mark.parametrize(
    "header",
    [
        ["label", *map(str, range(64))],
        ["label", *map(str, range(1, 65))],
        mangled([3, *digits(1).ravel()]),
        ["label", *mangled(digits(1).ravel())],
        ["F", *mangled(digits(1).ravel())],
        ["digit", *map(str, range(64))],
        ["0", *map(str, range(64))],
        ["digit", *(f"{name}{k}" for k in range(21) for name in ("red", "green", "blue")), "red21"],
        [str(k) for k in range(65)],
        [str(k) for k in range(1, 66)],
    ],
)
def test_headers_of_numbers(tmp_path, header):
    found = read_files(written(tmp_path / "a.csv", rows(digits(60).reshape(60, 64), header=header)))
    assert len(found.x_train) + len(found.x_test) == 60
    assert found.x_train.dtype == np.uint8
    assert set(found.names.values()) == {"0", "1", "2"}
    every = read_rows(tmp_path / "a.csv")
    assert every.labels.tolist() == [str(k) for k in LABELS]
    assert every.pixels[:, 0, 0].max() <= 255


@pytest.mark.parametrize("header", [[*map(str, range(64)), "0"], [*map(str, range(1, 65)), "kind"]])
def test_headers_of_numbers_before_a_label(tmp_path, header):
    columns = np.hstack([digits(60).reshape(60, 64), LABELS[:, None]])
    text = "\n".join(",".join(map(str, row)) for row in [header, *columns])
    found = read_rows(written(tmp_path / "a.csv", text))
    assert found.labels.tolist() == [str(k) for k in LABELS]
    assert len(found.pixels) == 60


def test_rows_that_are_no_header(tmp_path):
    """A first row of data may have a name as its label, and few different numbers."""
    for first in (np.zeros(64, int), np.arange(64) % 5, np.arange(64)[::-1]):
        pixels = np.concatenate([first[None], PIXELS[:59]])
        text = rows(pixels, ["y", "z"] * 30, header=None)
        assert len(read_rows(written(tmp_path / "a.csv", text)).pixels) == 60


def test_labels_keep_their_spelling(tmp_path):
    labels = ["007", "7", "1e1", "10"] * 15
    found = read_files(written(tmp_path / "a.csv", rows(labels=labels)))
    assert sorted(found.names.values()) == ["007", "10", "1e1", "7"]
    written(tmp_path / "train.csv", rows(labels=["7", "8", "9"] * 20))
    written(tmp_path / "test.csv", rows(labels=["7.0", "8.0", "9.0"] * 20))
    (tmp_path / "a.csv").unlink()
    found = read_files(tmp_path)
    assert found.y_test.tolist() == [7, 8, 9] * 20
    with pytest.raises(UsageError, match=r"labels must be whole numbers or names, not '0\.5'"):
        read_files(written(tmp_path / "b.csv", rows(labels=["0.5", "1", "2"] * 20)))
