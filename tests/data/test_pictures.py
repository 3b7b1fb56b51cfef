"""Images for prediction: real files, compared with the MNIST digits that they were made from."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import DIGITS
from PIL import Image

import jaxmnist
from jaxmnist.data.array_files import read_idx
from jaxmnist.data.preparation import Picture, Preparation, read_file
from jaxmnist.errors import UsageError

MNIST = Preparation((28, 28, 1), placing=DIGITS)
CIFAR = Preparation((32, 32, 3))


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """The first 40 digits of MNIST's test part, uint8[40, 28, 28]."""
    folder = Path(jaxmnist.__path__[0]) / "data" / "mnist"
    return read_idx(folder / "t10k-images-idx3-ubyte.gz")[:40]


def one(path: Path, preparation: Preparation = MNIST) -> Picture:
    (picture,) = read_file(path, preparation)
    assert picture.name == str(path)
    assert picture.image.shape == preparation.image_shape
    assert picture.image.dtype == np.uint8
    return picture


def refusal(path: Path, preparation: Preparation = MNIST) -> str:
    with pytest.raises(UsageError) as caught:
        read_file(path, preparation)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert len(line.splitlines()) == 1
    return line.removeprefix(f"{path}: ")


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1])


def centre_of_mass(image: np.ndarray) -> tuple[float, float]:
    """Row and column, by the definition: Σ position × mass / Σ mass."""
    total = row = column = 0.0
    for (y, x), mass in np.ndenumerate(image):
        total, row, column = total + mass, row + y * float(mass), column + x * float(mass)
    return row / total, column / total


def on_paper(
    digit: np.ndarray, *, paper: int = 235, ink: int = 20, noise: float = 8, seed: int = 0
) -> np.ndarray:
    """A digit ten times as large, dark, somewhere on a bright sheet uint8[500, 700]."""
    rng = np.random.default_rng(seed)
    large = Image.fromarray(digit).resize((280, 280), Image.Resampling.BICUBIC)
    sheet = np.full((500, 700), float(paper))
    top, left = rng.integers(0, 220), rng.integers(0, 420)
    sheet[top : top + 280, left : left + 280] -= np.asarray(large) * ((paper - ink) / 255)
    return (sheet + rng.normal(0, noise, sheet.shape)).clip(0, 255).astype(np.uint8)


def test_a_noisy_photograph_comes_back_as_its_digit(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "photo.jpg"
    found = []
    for i, digit in enumerate(digits):
        rgb = np.stack([on_paper(digit, seed=i)] * 3, -1)
        rgb[..., 2] = rgb[..., 2] * 0.9  # paper is a little yellow
        Image.fromarray(rgb).save(path, quality=80)
        picture = one(path)
        assert picture.steps == (
            "converted to grey",
            "inverted: dark ink on a bright ground",
            "scaled into 20×20",
            "centred by centre of mass",
        )
        image = picture.image[..., 0]
        rows, columns = np.nonzero(image.any(1))[0], np.nonzero(image.any(0))[0]
        assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
        assert np.abs(np.subtract(centre_of_mass(image), 14)).max() <= 0.51
        found.append(image)
    alike = np.array([[correlation(a, b) for b in digits] for a in found])
    assert (alike.argmax(axis=1) == np.arange(len(digits))).sum() >= 36  # some 1s are twins
    # A shift by a pixel costs up to 0.3 of the correlation; a rotation, a reflection or a missing
    # inversion costs all of it.
    assert alike.diagonal().min() > 0.65
    assert alike.diagonal().mean() > 0.93
    for wrong in (lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.T, lambda a: 255 - a):
        others = [correlation(wrong(a), b) for a, b in zip(found, digits, strict=True)]
        assert np.mean(others) < 0.5


def test_a_dark_picture_of_the_right_size_is_left_alone(tmp_path: Path, digits: np.ndarray) -> None:
    for i, digit in enumerate(digits):
        path = tmp_path / f"{i}.png"
        Image.fromarray(digit).save(path)
        picture = one(path)
        assert picture.steps == ()
        assert (picture.image[..., 0] == digit).all()


def test_an_inverted_export_comes_back_nearly_exactly(tmp_path: Path, digits: np.ndarray) -> None:
    exact = 0
    for digit in digits:
        Image.fromarray(255 - digit).save(tmp_path / "export.bmp")
        picture = one(tmp_path / "export.bmp")
        assert picture.steps[0] == "inverted: dark ink on a bright ground"
        exact += bool((picture.image[..., 0] == digit).all())
        assert correlation(picture.image, digit) > 0.75
    assert exact >= len(digits) // 3


def test_the_suffix_does_not_matter(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "digit.npy"
    Image.fromarray(digits[0]).save(path, format="PNG")
    assert (one(path).image[..., 0] == digits[0]).all()
    with path.with_suffix(".png").open("wb") as file:
        np.save(file, digits[0])
    assert (one(path.with_suffix(".png")).image[..., 0] == digits[0]).all()


@pytest.mark.parametrize("form", ["png", "webp", "bmp", "gif", "tiff"])
def test_the_other_formats(form: str, tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / f"digit.{form}"
    Image.fromarray(digits[1]).save(path, **({"lossless": True} if form == "webp" else {}))
    picture = one(path)
    assert picture.steps == ()  # a palette or RGB of greys is already grey
    assert (picture.image[..., 0] == digits[1]).all()


def test_placement_scale_and_aspect_ratio_by_hand(tmp_path: Path) -> None:
    bar = np.zeros((200, 300), np.uint8)
    bar[10:110, 240:260] = 255  # 100×20 becomes 20×4 around pixel (14, 14)
    Image.fromarray(bar).save(tmp_path / "bar.png")
    picture = one(tmp_path / "bar.png")
    expected = np.zeros((28, 28), np.uint8)
    expected[4:24, 12:16] = 255  # 13.5 rounded down: a tie goes to the even corner
    assert picture.steps == ("scaled into 20×20", "centred by centre of mass")
    assert (picture.image[..., 0] == expected).all()
    assert (
        one(tmp_path / "bar.png", Preparation((14, 42, 1), placing=DIGITS)).image.any((1, 2)).sum()
        == 10
    )


def test_mass_decides_and_the_image_keeps_all_of_the_digit(tmp_path: Path) -> None:
    # A thin arm with a heavy foot: centring its mass needs more room than there is.
    shape = np.zeros((400, 400), np.uint8)
    shape[100:300, 100:104] = 255
    shape[280:300, 100:300] = 255
    Image.fromarray(shape).save(tmp_path / "l.png")
    image = one(tmp_path / "l.png").image[..., 0]
    assert (image.any(1).nonzero()[0] == np.arange(20)).all()  # its mass alone would need row -3
    assert image.any(0).sum() == 20
    assert abs(centre_of_mass(image)[1] - 14) <= 0.5


def test_the_ground_at_the_border_decides_on_inversion(tmp_path: Path) -> None:
    path = tmp_path / "square.png"
    for border, ink, inverted in (
        (0, 255, 0),
        (100, 250, 0),
        (127, 0, 1),  # dark on dark grey
        (128, 0, 1),
        (255, 0, 1),
    ):
        square = np.full((100, 100), ink, np.uint8)  # most of the image is ink
        square[:5] = square[-5:] = square[:, :5] = square[:, -5:] = border
        Image.fromarray(square).save(path)
        picture = one(path)
        assert ("inverted: dark ink on a bright ground" in picture.steps) == inverted
        assert (picture.image[4:24, 4:24] > 100).all()
        assert picture.image.any((1, 2)).sum() == picture.image.any((0, 2)).sum() == 20


def test_specks_and_faint_ink(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "pencil.png"
    for i in (0, 2, 7):
        sheet = on_paper(digits[i], paper=230, ink=150, noise=3)
        clean = sheet.copy()
        sheet[5:8, 5:8] = 40  # dust in a corner
        Image.fromarray(sheet).save(path)
        with_dust = one(path)
        Image.fromarray(clean).save(path)
        picture = one(path)
        assert "faint: contrast stretched" in picture.steps
        assert picture.image.max() == 255
        assert correlation(picture.image, with_dust.image) > 0.95
        assert correlation(picture.image, digits[i]) > 0.65


def test_a_hairline_on_a_large_sheet(tmp_path: Path) -> None:
    sheet = np.zeros((4000, 4000), np.uint8)
    np.fill_diagonal(sheet[500:3500, 500:3500], 60)
    Image.fromarray(sheet).save(tmp_path / "hair.png")
    picture = one(tmp_path / "hair.png")
    assert "faint: contrast stretched" in picture.steps
    assert (np.diagonal(picture.image[4:24, 4:24, 0]) > 200).all()
    assert np.abs(np.subtract(centre_of_mass(picture.image[..., 0]), 14)).max() <= 0.5


def test_transparency_is_put_on_white(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "clear.png"
    alpha = digits[0]
    expected_start = ("transparency replaced by white", "inverted: dark ink on a bright ground")
    ink = Image.fromarray(np.zeros_like(alpha))
    grey_alpha = Image.merge("LA", (ink, Image.fromarray(alpha)))
    results = []
    for mode in ("LA", "RGBA"):
        grey_alpha.convert(mode).save(path)
        picture = one(path)
        assert picture.steps[:2] == expected_start
        assert correlation(picture.image, alpha) > 0.9
        results.append(picture.image)
    assert (results[0] == results[1]).all()

    Image.merge("LA", (Image.fromarray(alpha), Image.new("L", (28, 28), 255))).save(path)
    assert one(path).steps == ()  # an alpha channel that hides nothing
    assert (one(path).image[..., 0] == alpha).all()

    # A palette's transparent entry, a grey level and a 16-bit level that mean transparent.
    mask = (alpha > 127).astype(np.uint8)
    for kind in ("palette", "grey", "16 bits"):
        if kind == "palette":
            drawn = Image.fromarray(mask).convert("P")
            drawn.putpalette([9, 9, 9, 0, 0, 0])
            drawn.save(path, transparency=0)
        elif kind == "grey":
            Image.fromarray((1 - mask) * 9).save(path, transparency=9)
        else:
            Image.fromarray(((1 - mask) * 9).astype(np.uint16)).save(path)
            _insert_chunk(path, b"tRNS", struct.pack(">H", 9))
        picture = one(path)
        assert picture.steps[:2] == expected_start, kind
        assert correlation(picture.image, mask) > 0.9, kind


def _insert_chunk(path: Path, name: bytes, data: bytes) -> None:
    """Puts a chunk after the header of a PNG."""
    png = path.read_bytes()
    check = struct.pack(">I", zlib.crc32(name + data))
    path.write_bytes(png[:33] + struct.pack(">I", len(data)) + name + data + check + png[33:])


def test_sixteen_and_one_bits(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "bits.png"
    Image.fromarray(digits[3].astype(np.uint16) * 257).save(path)
    with Image.open(path) as saved:
        assert saved.mode.startswith("I")
    picture = one(path)
    assert picture.steps == ()
    assert (picture.image[..., 0] == digits[3]).all()
    levels = digits[3].astype(np.uint16) * 200 + 77
    Image.fromarray(levels).save(path)
    assert (one(path).image[..., 0] == np.round(levels / 257)).all()
    Image.fromarray(digits[3] > 127).save(path)
    picture = one(path)
    assert picture.steps == ()
    assert (picture.image[..., 0] == (digits[3] > 127) * 255).all()


def test_colour_is_made_grey_and_cmyk_read(tmp_path: Path, digits: np.ndarray) -> None:
    rgb = np.zeros((28, 28, 3), np.uint8)
    rgb[..., 1] = digits[4]
    Image.fromarray(rgb).save(tmp_path / "green.png")
    picture = one(tmp_path / "green.png")
    assert picture.steps == ("converted to grey",)
    assert np.abs(picture.image[..., 0] - digits[4] * 0.587).max() <= 1  # Rec. 601's weight
    sheet = Image.fromarray(on_paper(digits[4])).convert("CMYK")
    sheet.save(tmp_path / "print.jpg")
    assert correlation(one(tmp_path / "print.jpg").image, digits[4]) > 0.8


@pytest.mark.parametrize("form", ["jpg", "png"])
def test_exif_orientation(form: str, tmp_path: Path, digits: np.ndarray) -> None:
    # How a viewer turns the image for each orientation (EXIF 2.3); a camera stores the inverse.
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }
    sheet = on_paper(digits[0], noise=0)
    path = tmp_path / f"turned.{form}"
    for orientation, store in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(store(sheet))).save(path, exif=exif)
        picture = one(path)
        told = "rotated by the EXIF orientation" in picture.steps
        assert told == (orientation != 1)
        assert correlation(picture.image, digits[0]) > 0.85, orientation


def test_the_first_frame(tmp_path: Path, digits: np.ndarray) -> None:
    frames = [Image.fromarray(digit) for digit in digits[:3]]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    picture = one(tmp_path / "film.gif")
    assert picture.steps == ("only the first frame is used",)
    assert (picture.image[..., 0] == digits[0]).all()


def test_three_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    path = tmp_path / "colour.png"
    small = rng.integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(small).save(path)
    assert one(path, CIFAR).steps == ()
    assert (one(path, CIFAR).image == small).all()

    halves = np.zeros((320, 640, 3), np.uint8)
    halves[:, :320] = (250, 200, 150)  # bright border or not, nothing is inverted
    Image.fromarray(halves).save(path)
    picture = one(path, CIFAR)
    assert picture.steps == ("scaled as a whole to 32×32",)
    assert (picture.image[:, :14] == (250, 200, 150)).all()
    assert (picture.image[:, 18:] == 0).all()

    Image.fromarray(small[..., 0]).save(path)
    assert one(path, CIFAR).steps == ("converted from grey to RGB",)
    assert (one(path, CIFAR).image == small[..., :1]).all()

    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    clear.save(path)
    both = ("transparency replaced by white", "converted from grey to RGB")
    assert one(path, CIFAR).steps == both
    assert (one(path, CIFAR).image == 255).all()


def test_pictures_do_not_suit_other_numbers_of_channels(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8)).save(tmp_path / "four.png")
    assert "array" in refusal(tmp_path / "four.png", Preparation((8, 8, 4)))
    np.save(tmp_path / "four.npy", np.arange(256, dtype=np.uint8).reshape(8, 8, 4))
    assert one(tmp_path / "four.npy", Preparation((8, 8, 4))).image[7, 7, 3] == 255


def test_arrays_are_used_as_they_are(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "digits.npy"
    for single in (digits[0], digits[0][..., None], np.asfortranarray(digits[0])):
        np.save(path, single)
        assert (one(path).image[..., 0] == digits[0]).all()
    for dtype in (np.uint8, np.int64, ">i2", np.float32, np.float16):
        for stack in (digits, digits[..., None], np.asfortranarray(digits)):
            np.save(path, stack.astype(dtype))
            pictures = read_file(path, MNIST)
            assert [picture.name for picture in pictures] == [f"{path}[{i}]" for i in range(40)]
            assert all(picture.steps == () for picture in pictures)
            images = np.stack([picture.image for picture in pictures])
            assert images.dtype == np.uint8
            assert (images[..., 0] == digits).all()
    with path.open("wb") as file:
        np.lib.format.write_array(file, digits[:2], version=(2, 0))
    assert len(read_file(path, MNIST)) == 2


def test_archives_of_arrays(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "digits.npz"
    np.savez(path, whatever=digits[:3])
    assert len(read_file(path, MNIST)) == 3
    np.savez_compressed(path, images=digits[:2], labels=np.arange(2))
    assert (read_file(path, MNIST)[1].image[..., 0] == digits[1]).all()
    np.savez(path, x=digits, y=np.arange(2))
    assert "it has x, y" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    assert "it has none" in refusal(path)


def test_arrays_that_do_not_fit(tmp_path: Path, digits: np.ndarray) -> None:
    path = tmp_path / "wrong.npy"
    for wrong in (
        np.zeros((30, 30), np.uint8),
        np.zeros((2, 28, 27), np.uint8),
        np.zeros((2, 28, 28, 3), np.uint8),
        np.zeros((1, 2, 28, 28, 1), np.uint8),
        np.zeros((784,), np.uint8),
        np.zeros((), np.uint8),
    ):
        np.save(path, wrong)
        line = refusal(path)
        assert str(wrong.shape) in line
        assert "(28, 28, 1)" in line
    for wrong, says in (
        (digits / 255.0, "pixels reach 1, and those of the training images 255"),
        (digits * 257.0, "pixels reach 65535, and those of the training images 255"),
        (digits - 300.0, "negative pixels, down to -300"),
        (np.full((28, 28), np.nan), "not finite"),
    ):
        np.save(path, wrong)
        assert says in refusal(path)
    np.save(path, digits > 3)  # they may be dark images, so a step says it
    for picture in read_file(path, MNIST):
        assert "its largest pixel is 1, and that of the training images 255" in picture.steps[0]
    np.save(path, digits[:0])
    assert "no images" in refusal(path)
    np.save(path, digits[..., None].astype("c8"))
    assert "complex64" in refusal(path)
    for name in ("level", "α"):  # .npy 1.0 and 3.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's, that old versions can't read 3.0
            np.save(path, np.zeros((28, 28), [(name, "u1")]))
        assert "plain numbers" in refusal(path)


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    objects = np.full((28, 28), None, object)
    objects[0, 0] = Trap()
    np.save(tmp_path / "trap.npy", objects, allow_pickle=True)
    assert "object" in refusal(tmp_path / "trap.npy")
    np.savez(tmp_path / "trap.npz", images=objects)
    assert "object" in refusal(tmp_path / "trap.npz")
    objects.dump(tmp_path / "trap.pickle")
    assert "not a readable image" in refusal(tmp_path / "trap.pickle")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "shape", ["(999999999, 28, 28)", f"({2**62}, 28, 28)", "(-1, 28, 28)", "(2.5, 28, 28)", "(("]
)
def test_headers_that_lie(shape: str, tmp_path: Path) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path = tmp_path / "lie.npy"
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + b"\0" * 784)
    refusal(path)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.write(path, "images.npy")
    refusal(tmp_path / "lie.npz")


def _png_of_size(width: int, height: int) -> bytes:
    """The start of a grey PNG that claims a size, with next to no data."""
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for name, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + name + data
        chunks += struct.pack(">I", zlib.crc32(name + data))
    return chunks


def test_size_is_checked_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    # Just over our limit; over the size that Pillow warns about; over the size that it refuses.
    for side in (8001, 10_000, 60_000, 2**31 - 1):
        path.write_bytes(_png_of_size(side, side))
        assert refusal(path) == "is too large: over 64 megapixels"
    path.write_bytes(_png_of_size(500, 500))
    assert "can't be read" in refusal(path)  # its data end too soon


def test_blank_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    paper = (rng.normal(225, 6, (300, 300))).clip(0, 255).astype(np.uint8)
    stain = np.zeros((300, 300), np.uint8)
    stain[100:200, 100:200] = 15
    for blank in (
        stain,
        np.zeros((28, 28), np.uint8),
        np.full((28, 28), 255, np.uint8),
        np.full((1, 1), 90, np.uint8),
        np.full((1, 50), 250, np.uint8),
        paper,
    ):
        Image.fromarray(blank).save(tmp_path / "blank.png")
        assert refusal(tmp_path / "blank.png").startswith("blank: ")
    Image.fromarray(paper).save(tmp_path / "blank.jpg")
    assert refusal(tmp_path / "blank.jpg").startswith("blank: ")


def test_files_that_are_no_pictures(tmp_path: Path, digits: np.ndarray) -> None:
    assert refusal(tmp_path / "missing.png") == "can't be read: No such file or directory"
    assert "folder" in refusal(tmp_path)
    for name, content in {
        "empty.png": b"",
        "text.png": b"not a picture\n" * 9,
        "magic.npy": b"\x93NUMPY",
        "zip.npz": b"PK\3\4 and no more",
        "page.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }.items():
        (tmp_path / name).write_bytes(content)
        refusal(tmp_path / name)
    for form in ("png", "jpg"):
        path = tmp_path / f"cut.{form}"
        Image.fromarray(on_paper(digits[0])).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert "truncated" in refusal(path)


@pytest.mark.parametrize("form", ["png", "jpeg", "gif", "webp", "tiff", "npy", "npz"])
def test_damage_never_gets_past(form: str, tmp_path: Path, digits: np.ndarray) -> None:
    whole = io.BytesIO()
    if form == "npy":
        np.save(whole, digits[:2])
    elif form == "npz":
        np.savez_compressed(whole, images=digits[:2])
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        more = {} if form == "gif" else {"exif": exif}
        Image.fromarray(on_paper(digits[0])[::5, ::5]).save(whole, format=form, **more)
    intact = whole.getvalue()
    path = tmp_path / "damaged"
    path.write_bytes(intact)
    read_file(path, MNIST)
    rng = np.random.default_rng(7)
    refusals = []
    for round_ in range(200):
        damaged = bytearray(intact)
        if round_ % 2:
            del damaged[rng.integers(0, len(intact)) :]
        else:  # half of the flips where the headers are
            end = len(intact) if round_ % 4 else min(200, len(intact))
            for position in rng.integers(0, end, rng.integers(1, 5)):
                damaged[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            pictures = read_file(path, MNIST)
        except UsageError as error:
            refusals.append(str(error))
        else:
            assert pictures
            assert all(picture.image.shape == MNIST.image_shape for picture in pictures)
    assert len(refusals) > 50
    for line in refusals:
        assert line.startswith(f"{path}: ")
        assert len(line.splitlines()) == 1
