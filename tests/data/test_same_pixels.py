"""A file becomes the same image in training and in prediction, whatever kind of file it is."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmnist.data.arrays import Arrays, Source
from jaxmnist.data.dataset import Dataset, read_files, split
from jaxmnist.data.pictures import read_rasters
from jaxmnist.data.preparation import Preparation, files_of, preparation_for, read_file
from jaxmnist.errors import UsageError
from jaxmnist.files import as_json, from_json

ORIENTATION = 0x0112
COUNT = 24
Write = Callable[[np.ndarray, Path, int], None]


def plain(convert: Callable[[np.ndarray], np.ndarray], end: str = "png", **save) -> Write:
    """Write a digit as the array that `convert` makes of it."""
    return lambda digit, path, _: Image.fromarray(convert(digit)).save(
        path.with_suffix(f".{end}"), **save
    )


def lying(end: str, orientation: int = 6) -> Write:
    """Write a digit on its side, with the EXIF orientation that turns it upright."""

    def write(digit: np.ndarray, path: Path, _: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        turned = {3: digit[::-1, ::-1], 6: np.rot90(digit), 8: np.rot90(digit, -1)}[orientation]
        picture = Image.fromarray(np.ascontiguousarray(turned))
        picture.save(path.with_suffix(f".{end}"), exif=exif)

    return write


def clear(ink: int, mode: str = "RGBA") -> Write:
    """Write a digit as strokes of one level on nothing."""

    def write(digit: np.ndarray, path: Path, _: int) -> None:
        layers = (Image.fromarray(np.full_like(digit, ink)), Image.fromarray(digit))
        Image.merge("LA", layers).convert(mode).save(path.with_suffix(".png"))

    return write


def pages(digit: np.ndarray, path: Path, k: int) -> None:
    """Write a TIFF file of three pages, and a smaller preview."""
    film = [Image.fromarray(np.roll(digit, shift, 1)) for shift in range(3)]
    film.insert(1 + k % 2, film[0].resize((14, 14)))
    film[0].save(path.with_suffix(".tif"), save_all=True, append_images=film[1:])


def animation(digit: np.ndarray, path: Path, _: int) -> None:
    film = [Image.fromarray(np.roll(digit, shift, 1)) for shift in range(3)]
    film[0].save(path.with_suffix(".gif"), save_all=True, append_images=film[1:])


def mixed(one: Write, other: Write) -> Write:
    """Write every third digit in another way."""
    return lambda digit, path, k: (other if k % 3 == 1 else one)(digit, path, k)


def sixteen(digit: np.ndarray) -> np.ndarray:
    """Levels 300 to 600 of 16 bits."""
    return (300 + digit.astype(float) / 255 * 300).astype(np.uint16)


KINDS: dict[str, Write] = {
    "grey": plain(lambda d: d),
    "RGB": plain(lambda d: np.dstack([d, d // 2, d])),
    "grey as RGB": plain(lambda d: np.dstack([d] * 3)),
    "JPEG": plain(lambda d: np.dstack([d, d, d // 3]), "jpg"),
    "PPM": plain(lambda d: d, "pgm"),
    "WebP": plain(lambda d: np.dstack([d, d, d // 3]), "webp"),
    "one bit": plain(lambda d: d > 127),
    "palette": lambda d, path, _: Image.fromarray(d).convert("P").save(path.with_suffix(".gif")),
    "CMYK": lambda d, path, _: Image.fromarray(d).convert("CMYK").save(path.with_suffix(".jpg")),
    "levels 0 and 1": plain(lambda d: (d > 127).astype(np.uint8)),
    "levels up to 16": plain(lambda d: d // 16),
    "inverted in part": mixed(plain(lambda d: d), plain(lambda d: 255 - d)),
    "8 bits as 16": plain(lambda d: d.astype(np.uint16) * 257),
    "12 bits": plain(lambda d: d.astype(np.uint16) * 16),
    "a black level": plain(sixteen, "tif"),
    "a black level, PNG": plain(sixteen),
    "all of 16 bits": plain(lambda d: d.astype(np.uint16) * 256 + 17),
    "floats up to 1": plain(lambda d: (d / 255).astype(np.float32), "tif"),
    "floats up to 1000": plain(lambda d: (d / 0.255).astype(np.float32), "tif"),
    "floats below 0": plain(lambda d: (d / 0.255 - 500).astype(np.float32), "tif"),
    "32 bits": plain(lambda d: d.astype(np.int32) * 1000, "tif"),
    "8 and 12 bits": mixed(plain(lambda d: d), plain(lambda d: d.astype(np.uint16) * 16)),
    "8 bits and floats": mixed(plain(lambda d: d), plain(lambda d: np.float32(d / 255), "tif")),
    "clear, pale": clear(255),
    "clear, dark": clear(0),
    "black keyed out": lambda d, path, _: Image.fromarray(d).save(
        path.with_suffix(".png"), transparency=0
    ),
    "clear, LA": clear(255, "LA"),
    "clear, some dark": mixed(clear(255), clear(60)),
    "clear in part": mixed(plain(lambda d: d), clear(255)),
    **{f"lying {end}": lying(end) for end in ("png", "jpg", "tif", "webp")},
    "upside down": lying("png", 3),
    "lying the other way": mixed(lying("png", 8), lying("png", 3)),
    "pages": pages,
    "animation": animation,
}


def written(write: Write, folder: Path, mnist: Arrays) -> Path:
    for k in range(COUNT):
        path = folder / "ab"[k % 2] / f"{k:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(mnist.x_train[k, :, :, 0], path, k)
    return folder


def all_images(data: Dataset) -> np.ndarray:
    parts = data.x_train, data.x_validation, data.x_test
    return np.concatenate([images.astype(np.float32) for images in parts])


def predicted(folder: Path, preparation: Preparation) -> np.ndarray:
    found: Iterator = (
        picture.image for file in files_of(folder) for picture in read_file(file, preparation)
    )
    return np.stack([image.astype(np.float32) for image in found])


def load(folder: Path, transpose: bool = False) -> Dataset:
    arrays = read_files(folder, transpose=transpose)
    return split("a", arrays, validation_split=0.2, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_pictures(kind, tmp_path, mnist):
    folder = written(KINDS[kind], tmp_path / "data", mnist)
    data = load(folder, kind in ("RGB", "a black level", "lying png", "pages", "12 bits"))
    trained, read = all_images(data), predicted(folder, data.preparation)
    assert len(read) == COUNT * (3 if kind == "pages" else 1)
    assert sorted(image.tobytes() for image in trained) == sorted(i.tobytes() for i in read)
    again = replace(
        from_json(Preparation, as_json(data.preparation)),
        image_shape=data.image_shape,
        scale=data.scale,
    )
    assert again == data.preparation


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grey", lambda d: d),
        ("grey as RGB", lambda d: d),
        ("PPM", lambda d: d),
        ("palette", lambda d: d),
        ("one bit", lambda d: (d > 127) * 255.0),
        ("animation", lambda d: d),
        ("pages", lambda d: np.concatenate([np.roll(d, shift, 2) for shift in range(3)])),
        ("black keyed out", lambda d: d),
        ("lying png", lambda d: d),
        ("lying tif", lambda d: d),
        ("upside down", lambda d: d),
        ("8 bits as 16", lambda d: d),
        ("12 bits", lambda d: d * 16.0),
        ("a black level", lambda d: sixteen(d) - 300.0),
        ("all of 16 bits", lambda d: d * 256.0),
        ("floats up to 1", lambda d: np.float32(d / 255)),
        ("floats below 0", lambda d: np.float32(d / 0.255 - 500) + np.float32(500)),
        ("32 bits", lambda d: d * 1000.0),
        ("8 and 12 bits", lambda d: d),  # of 12 bits to 8: × 16 × 255 / 4095, within a level
        ("clear, pale", lambda d: d),
        ("clear, dark", lambda d: 255 - d),
        ("levels up to 16", lambda d: d // 16),
    ],
)
def test_what_pictures_become(kind, expected, tmp_path, mnist):
    """Pixels as they were written, in float64."""
    data = load(written(KINDS[kind], tmp_path / "data", mnist))
    digits = mnist.x_train[:COUNT].astype(np.float64)
    wanted = expected(digits)
    trained = all_images(data)
    for image in wanted:
        nearest = np.abs(trained - image).max((1, 2, 3)).min()
        assert nearest <= (1 if kind == "8 and 12 bits" else 1e-3 * np.max(wanted))
    levels = {"grey": 256, "12 bits": 256, "a black level": 250, "floats up to 1": 256}
    if kind in levels:
        assert len(np.unique(trained)) > 0.8 * levels[kind]


def test_pictures_of_another_kind_than_the_training_pictures(tmp_path, mnist):
    """They are brought to the scale of the training pictures."""
    data = load(written(KINDS["12 bits"], tmp_path / "data", mnist))
    digit = mnist.x_train[30, :, :, 0]
    Image.fromarray(digit).save(tmp_path / "eight.png")
    (picture,) = read_file(tmp_path / "eight.png", data.preparation)
    assert picture.image[..., 0] == pytest.approx(digit * np.float32(data.scale / 255), abs=1)
    grey = load(written(KINDS["grey"], tmp_path / "grey", mnist))
    Image.fromarray(digit.astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    (picture,) = read_file(tmp_path / "twelve.png", grey.preparation)
    assert np.abs(picture.image[..., 0].astype(int) - digit).max() <= 1
    assert picture.steps == ("read as 12 bits a pixel: its levels reach 4080",)


@pytest.mark.parametrize(
    ("trained", "write", "expected", "says"),
    [
        ("levels 0 and 1", plain(lambda d: d), lambda d: d / 255, "white is 1, as in the training"),
        ("12 bits", plain(lambda d: d.astype(np.uint16) * 257), None, "its pixels reach 65535"),
        ("8 and 12 bits", plain(lambda d: d.astype(np.uint16) * 256), None, "have 12 bits: use"),
        ("a black level", clear(255), lambda d: d * (300 / 255), "white is 300, as in the"),
        ("8 and 12 bits", plain(lambda d: d.astype(np.uint16) * 16), lambda d: d, ""),
    ],
)  # fmt: skip
def test_the_scale_of_pictures(trained, write, expected, says, tmp_path, mnist):
    """A picture on another scale than the training pictures is brought to theirs, or refused."""
    data = load(written(KINDS[trained], tmp_path / "data", mnist))
    digit = mnist.x_train[30, :, :, 0]
    write(digit, tmp_path / "one", 0)
    (path,) = tmp_path.glob("one.*")
    if expected is None:
        with pytest.raises(UsageError, match=says):
            read_file(path, data.preparation)
        return
    (picture,) = read_file(path, data.preparation)
    assert picture.image[..., 0] == pytest.approx(expected(digit.astype(float)), abs=1.01)
    assert says in ", ".join(picture.steps)


def test_a_larger_picture_of_dark_training_pictures(tmp_path, mnist):
    """Its levels are on their scale, whatever happens to its size."""
    data = load(written(KINDS["levels 0 and 1"], tmp_path / "data", mnist))
    large = (mnist.x_train[30, :, :, 0] > 127).repeat(3, 0).repeat(3, 1)
    Image.fromarray(large.astype(np.uint8)).save(tmp_path / "large.png")
    for word in ("auto", "resize"):
        model = preparation_for(Taker(data), word)
        (picture,) = read_file(tmp_path / "large.png", model)
        assert picture.image.max() == pytest.approx(1, abs=0.05)


class Taker:
    """What takes images like these data, as a trained model does."""

    def __init__(self, data: Dataset) -> None:
        self.image_shape, self.scale, self.preparation = (
            data.image_shape,
            data.scale,
            data.preparation,
        )


@pytest.mark.parametrize("word", ["auto", "resize"])
def test_what_is_transposed_does_not_depend_on_the_preparation(word, tmp_path, mnist):
    """Pictures, after training on pictures; arrays are upright."""
    data = load(written(KINDS["grey"], tmp_path / "data", mnist), True)
    preparation = preparation_for(Taker(data), word)
    digit = mnist.x_train[30, :, :, 0]
    np.save(tmp_path / "array.npy", digit.T)
    Image.fromarray(digit).save(tmp_path / "picture.png")
    (array,) = read_file(tmp_path / "array.npy", preparation)
    (picture,) = read_file(tmp_path / "picture.png", preparation)
    assert np.array_equal(array.image[..., 0], digit.T)
    likeness = np.corrcoef(picture.image.ravel(), digit.T.ravel())[0, 1]
    assert abs(likeness) > 0.7
    assert "give arrays and tables upright" in str(preparation.describe_transposition())


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": -1},
        {"bits": 65},
        {"bits": 1.5},
        {"label": "second"},
        {"background": [0, 0]},
        {"background": [0, 0, 256]},
        {"pictures": 1},
        {"black": "0"},
    ],
)
def test_a_damaged_source_is_refused(wrong):
    source = Source(True, False, "last", 12, 0.0, (1, 2, 3))
    assert from_json(Source, as_json(source)) == source
    with pytest.raises(ValueError):  # noqa: PT011
        from_json(Source, {**as_json(source), **wrong})


def tiff(*pages: np.ndarray, **tags: int) -> bytes:
    """A TIFF file, written from the format's description; tags by number, of the last page."""
    content = b"II*\0" + struct.pack("<I", 8)
    for k, pixels in enumerate(pages):
        height, width = pixels.shape[:2]
        samples = pixels.shape[2] if pixels.ndim == 3 else 1
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        found = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: 1, 277: samples}
        found |= {278: height, 279: pixels.nbytes, 339: kind}
        found |= {int(tag[1:]): value for tag, value in tags.items()} if k == len(pages) - 1 else {}
        found[273] = len(content) + 2 + 12 * (len(found) + 1) + 4
        end = found[273] + pixels.nbytes if k < len(pages) - 1 else 0
        content += struct.pack("<H", len(found))
        for tag, value in sorted(found.items()):
            content += struct.pack("<HHII", tag, 4, 1, value)
        content += struct.pack("<I", end) + pixels.tobytes()
    return content


def test_kinds_of_tiff(tmp_path, mnist):
    """White may be 0; levels may have signs or 32 bits; a page may be a mask."""
    digit = mnist.x_train[30, :, :, 0]
    path = tmp_path / "a.tif"
    deep = digit.astype(np.uint16) * 257
    for content, expected in (
        (tiff(digit), digit),
        (tiff(65535 - deep, t262=0), deep),
        (tiff(digit.astype(np.uint32) << 24), digit.astype(np.int64) << 24),
        (tiff(digit.astype(np.int32) - 300), digit.astype(np.int64) - 300),
        (tiff(digit.astype(np.float32) / 7), digit.astype(np.float32) / 7),
        (tiff(digit, digit // 2, t254=4), digit),
        (tiff(digit, digit // 2, t254=1), digit),
    ):
        path.write_bytes(content)
        (raster,) = read_rasters(path)
        assert np.array_equal(raster.pixels, expected)
    assert raster.steps == ("1 of 2 pages are left out: previews, or of another size",)
    path.write_bytes(tiff(digit, digit // 2))
    assert [r.pixels.max() for r in read_rasters(path)] == [digit.max(), digit.max() // 2]
    path.write_bytes(tiff(digit.astype(np.int8)))
    with pytest.raises(ValueError, match="signed levels of 8 bits"):
        read_rasters(path)
    path.write_bytes(tiff(np.dstack([digit, digit])))
    with pytest.raises((ValueError, OSError), match=r"two values a pixel|is not a pict"):
        read_rasters(path)


def test_pages_are_counted_before_they_are_read(tmp_path, monkeypatch):
    film = [Image.new("L", (40, 40), k) for k in range(20)]
    film[0].save(tmp_path / "a.tif", save_all=True, append_images=film[1:])
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 40 * 40 * 20 - 1)
    with pytest.raises(UsageError, match="its 20 pages are more than can be loaded"):
        read_rasters(tmp_path / "a.tif")


def tables(images: np.ndarray, path: Path, form: str) -> Path:
    """Write images [N, H, W] as arrays or a table."""
    labels = np.arange(len(images)) % 2
    rows = images.reshape(len(images), -1)
    if form == "csv":
        lines = [",".join(map(str, [label, *row])) for label, row in zip(labels, rows, strict=True)]
        path.write_text("\n".join(lines))
    else:
        kind = {"npz": images, "rows": rows, "first": images[:, None]}[form]
        with path.open("wb") as file:
            np.savez(file, x_train=kind, y_train=labels, x_test=kind, y_test=labels)
    return path


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("form", ["npz", "rows", "first", "csv"])
def test_arrays_and_tables(form, transpose, tmp_path, mnist):
    """They are transposed as in training; a picture is upright."""
    digits = mnist.x_train[:COUNT, :, :, 0]
    stored = digits.swapaxes(1, 2) if transpose else digits
    data = load(tables(stored, tmp_path / "data", form), transpose)
    assert (all_images(data)[:, :, :, 0].sum((1, 2)) > 0).all()
    upright = {image.tobytes() for image in digits}
    assert {image.tobytes() for image in np.concatenate([data.x_train, data.x_test])} <= upright
    for other in ("npz", "rows", "first", "csv"):
        read = predicted(tables(stored, tmp_path / "again", other), data.preparation)
        assert (read[..., 0] == digits).all(), other
    Image.fromarray(digits[0]).save(tmp_path / "picture.png")
    (picture,) = read_file(tmp_path / "picture.png", data.preparation)
    assert (picture.image[..., 0] == digits[0]).all()
    sentence = data.preparation.describe_transposition()
    assert (sentence is not None and "give pictures upright" in sentence) == transpose


def test_images_that_are_not_square_are_transposed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 12), np.uint8)
    data = load(tables(images, tmp_path / "data", "npz"), True)
    assert data.image_shape == (12, 8, 1)
    read = predicted(tables(images, tmp_path / "again", "npz"), data.preparation)
    assert (read[..., 0] == images.swapaxes(1, 2)).all()
    np.save(tmp_path / "one.npy", images[0])
    (picture,) = read_file(tmp_path / "one.npy", data.preparation)
    assert (picture.image[..., 0] == images[0].T).all()


def test_a_column_of_labels_that_training_found(tmp_path):
    """One row doesn't tell which column has the label; training knows."""
    rng = np.random.default_rng(0)
    rows = [[*rng.integers(0, 256, 64), k % 2] for k in range(60)]
    text = "\n".join(",".join(map(str, row)) for row in rows)
    (tmp_path / "last.csv").write_text(text)
    data = load(tmp_path / "last.csv")
    (tmp_path / "row.csv").write_text(",".join(map(str, rows[7])))
    (picture,) = read_file(tmp_path / "row.csv", data.preparation)
    assert picture.image.ravel().tolist() == rows[7][:64]
    unknown = Preparation(data.image_shape, source=Source())
    with pytest.raises(UsageError, match="cannot tell whether the first or the last column"):
        read_file(tmp_path / "row.csv", unknown)


def test_colors_of_16_bits(tmp_path):
    """Pillow keeps their upper 8 bits, of which a picture of 12 bits has 16 levels."""
    rng = np.random.default_rng(0)
    for largest in (4095, 65535):
        folder = tmp_path / str(largest)
        for k in range(8):
            path = folder / "ab"[k % 2] / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_16_rgb(rng.integers(0, largest + 1, (9, 9, 3))))
    dark = tmp_path / "65535" / "a" / "dark.png"
    dark.write_bytes(png_16_rgb(np.zeros((9, 9, 3), int)))  # one may be dark
    with pytest.raises(UsageError, match=r"colours of 16 bits are so dark that"):
        read_files(tmp_path / "4095")
    found = read_files(tmp_path / "65535")
    assert "9 pictures: colours of 16 bits are reduced to 8 bits" in found.notes[0]


@pytest.mark.parametrize(("largest", "reduced"), [(255, False), (4095, True), (65535, True)])
def test_ppm_of_more_than_8_bits_a_colour(tmp_path, largest, reduced):
    numbers = " ".join(str(largest * k // 27) for k in range(27))
    (tmp_path / "a.ppm").write_text(f"P3\n3 3\n{largest}\n{numbers}\n")
    (raster,) = read_rasters(tmp_path / "a.ppm")
    assert raster.is_reduced == reduced
    assert np.abs(raster.pixels.ravel() - np.arange(27) * 255 / 27).max() <= 1


def test_a_bmp_of_16_bits_a_pixel_is_no_picture_of_16_bits_a_colour(tmp_path):
    pixels = np.full((4, 4), 0b00001_000001_00001, "<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 4, 4, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    start = struct.pack("<2sIHHI", b"BM", 14 + 40 + 12 + len(pixels), 0, 0, 14 + 40 + 12)
    (tmp_path / "a.bmp").write_bytes(start + header + masks + pixels)
    (raster,) = read_rasters(tmp_path / "a.bmp")
    assert (raster.steps, raster.is_reduced) == ((), False)


def png_16_rgb(pixels: np.ndarray) -> bytes:
    """A PNG of 16 bits a color, written from the format's description."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(data)) + name + data
        content += struct.pack(">I", zlib.crc32(name + data))
    return content
