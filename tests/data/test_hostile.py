"""Files of a stranger who means harm: one line each, in bounded memory, and the process goes on."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import PACKAGED
from processes import process
from scipy.io import loadmat, savemat

from jaxmnist.data.archives import read_array, read_npz
from jaxmnist.data.contents import open_file
from jaxmnist.data.formats import read_files
from jaxmnist.data.idx import read_idx
from jaxmnist.data.matlab import MATLAB, _Variables, read_matlab
from jaxmnist.data.pictures import read_file
from jaxmnist.data.preparation import MNIST, Preparation
from jaxmnist.data.tables import read_rows
from jaxmnist.errors import UsageError

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 3
FLAT = X.reshape(40, 64)


@contextlib.contextmanager
def takes_at_most(size: float) -> Iterator[None]:
    """That no more memory than `size` bytes was taken at any moment."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size


def refused(read, path: Path, says: str = "") -> str:
    with pytest.raises(UsageError) as caught:
        read(path)
    line = str(caught.value)
    assert line.isprintable()
    assert str(path) in line
    assert says in line
    return line


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# --- MATLAB files, written by hand from the format's description ----------------------------------

START = MATLAB.ljust(124) + struct.pack("<H", 0x100) + b"IM"
DOUBLE, CELL, STRUCTURE = 6, 1, 2


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<2I", kind, len(content)) + content + bytes(-len(content) % 8)


def head(kind: int, shape: tuple[int, ...], name: bytes = b"") -> bytes:
    axes = struct.pack(f"<{len(shape)}i", *shape)
    return element(6, struct.pack("<2I", kind, 0)) + element(5, axes) + element(1, name)


def numbers(array: np.ndarray, name: bytes = b"") -> bytes:
    content = element(9, array.astype("<f8").tobytes("F"))
    return element(14, head(DOUBLE, array.shape, name) + content)


def structure(fields: dict[bytes, bytes], name: bytes = b"") -> bytes:
    names = b"".join(field.ljust(8, b"\0") for field in fields)
    inner = element(5, struct.pack("<i", 8)) + element(1, names) + b"".join(fields.values())
    return element(14, head(STRUCTURE, (1, 1), name) + inner)


def nested(levels: int, name: bytes = b"") -> bytes:
    """A cell in a cell in a cell; the outermost has two."""
    size = len(numbers(np.ones((1, 1))))
    heads = []
    for level in range(levels):
        begin = head(CELL, (1, 1)) if level < levels - 1 else head(CELL, (1, 2), name)
        size += len(begin) + (0 if level < levels - 1 else len(numbers(np.ones((1, 1)))))
        heads.append(struct.pack("<2I", 14, size) + begin)
        size += 8
    return b"".join(reversed(heads)) + numbers(np.ones((1, 1))) * 2


def packed(variable: bytes) -> bytes:
    content = zlib.compress(variable)
    return struct.pack("<2I", 15, len(content)) + content


@pytest.mark.parametrize("levels", [20_000, 9])
def test_cells_in_cells_end_in_a_line(tmp_path, levels):
    """In a process: SciPy's reader ends it with a segmentation fault at the larger number."""
    labels = numbers(Y[:2, None] + 1.0, b"y")
    deep = nested(levels, b"x") + labels, packed(nested(levels, b"x")) + packed(labels)
    emnist = structure({b"train": structure({b"images": nested(levels), b"labels": labels})},
                       b"dataset")  # fmt: skip
    paths = [
        written(tmp_path / f"{k}.mat", START + content)
        for k, content in enumerate([*deep, emnist, packed(emnist)])
    ]
    ended = process("search", "--data-dir", paths[0])
    assert ended.returncode == 2
    assert ended.stderr.endswith("0.mat: can't be read: its data are nested over 8 levels deep\n")
    assert ended.stderr.count("\n") == 1
    for path in paths:
        refused(read_files, path, "nested over 8 levels deep")
    for name in (b"other", b"z"):  # data of another name are nobody's business
        beside = packed(nested(levels, name)) + numbers(FLAT, b"x") + numbers(Y[:, None], b"y")
        assert np.array_equal(read_matlab(written(paths[0], START + beside)).train[0], FLAT)


@pytest.mark.parametrize(
    "variable",
    [
        element(14, head(CELL, (2**31 - 1, 2**31 - 1), b"x")),
        element(14, head(CELL, (100_000, 1), b"x") + bytes(64)),
        element(14, head(DOUBLE, (2**31 - 1,) * 4, b"x") + element(9, bytes(64))),
        element(14, head(DOUBLE, (-40, -8), b"x") + element(9, bytes(2560))),
        element(14, head(DOUBLE, (40, 64), b"x") + struct.pack("<2I", 9, 2**32 - 1)),
        element(14, head(DOUBLE, (40, 64), b"x") + element(77, bytes(20480))),
        element(14, head(DOUBLE, (40, 64), b"x") + element(9, bytes(2560))),
        element(14, head(4, (40, 64), b"x") + element(16, b"\xff" * 9)),
        element(14, head(DOUBLE, (2,) * 40, b"x") + element(9, bytes(64))),
        element(14, element(6, b"") + element(5, b"") + element(1, b"x")),
        # A structure of many members without fields: SciPy makes an object for each.
        element(14, head(STRUCTURE, (2**31 - 1, 1), b"dataset") + element(5, b"\1\0\0\0")),
        element(14, head(STRUCTURE, (1, 1), b"dataset") + element(5, b"\0\0\0\0") * 2),
        element(14, head(STRUCTURE, (1, 1), b"dataset") + element(5, b"\1\0\0\0")
                + element(1, b"a" * 10**6)),
        element(13, b""),
        numbers(FLAT, b"x")[:-90],
    ],
)  # fmt: skip
def test_what_a_matlab_file_states_is_checked(tmp_path, variable):
    rest = numbers(Y[:, None], b"y")
    for content in (rest + variable, packed(rest) + packed(variable)):
        with takes_at_most(3e6):
            refused(read_files, written(tmp_path / "a.mat", START + content))


def test_numbers_of_every_kind_are_what_scipy_reads(tmp_path):
    path = tmp_path / "a.mat"
    names = np.array(["cat", "zebra", "ox"])[Y]
    cells = names.astype(object)[:, None]
    for packing in (False, True):
        for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?", ">f8"):
            savemat(path, {"x": FLAT.astype(dtype), "y": Y[:, None]}, do_compression=packing)
            read, expected = read_matlab(path).train, loadmat(path, simplify_cells=True)
            assert np.array_equal(read[0], expected["x"])
            assert read[0].dtype == expected["x"].dtype
            assert np.array_equal(read[1], Y)
        savemat(path, {"x": X.astype(float) / 7, "y": names}, do_compression=packing)
        read, expected = read_matlab(path).train, loadmat(path, simplify_cells=True)
        assert np.array_equal(read[0], X / 7)
        assert np.array_equal(read[1], expected["y"])
        savemat(path, {"x": X, "y": cells}, do_compression=packing)
        assert read_matlab(path).train[1].tolist() == names.tolist()
        assert read_files(path).names == {0: "cat", 1: "ox", 2: "zebra"}
        savemat(path, {"x": X * 1j, "y": Y[:, None]}, do_compression=packing)
        refused(read_files, path, "x is no array of real numbers or of text")
    zipped = written(tmp_path / "b.mat.gz", gzip.compress(path.read_bytes()))
    refused(read_files, zipped, "x is no array of real numbers or of text")


def test_files_of_matlab_itself_are_what_scipy_reads():
    """Of versions 5 to 7.4, of either order of bytes, where SciPy brings its tests."""
    folder = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data"
    compared = set()
    for path in sorted(folder.glob("test*.mat")):
        if not path.read_bytes().startswith(MATLAB):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = loadmat(path, simplify_cells=True)
        with open_file(path) as file:
            variables = _Variables(path, file)
            assert variables.found.keys() == {name for name in expected if name[:2] != "__"}
            for name in variables.found:
                if isinstance(expected[name], np.ndarray) and expected[name].dtype.kind in "uifU":
                    assert np.array_equal(variables.read(name), expected[name])
                    compared.add(path.name)
    if folder.exists():
        assert len(compared) > 10
        assert "teststringarray_7.4_GLNX86.mat" in compared
        assert "test3dmatrix_6.1_SOL2.mat" in compared  # big-endian


def test_damaged_matlab_files(tmp_path):
    """Bits flipped and bytes cut off, in packed variables before they were packed."""
    emnist = {"dataset": {"train": {"images": FLAT, "labels": Y[:, None]}, "mapping": np.eye(3)}}
    path = tmp_path / "a.mat"
    for content in (emnist, {"x": X, "y": np.array(["cat", "dog"] * 20, object)[:, None]}):
        savemat(path, content)
        whole = path.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            damaged[RNG.integers(128, min(len(whole), 700))] ^= 1 << int(RNG.integers(8))
            damaged = damaged[: RNG.integers(128, len(whole))] if RNG.random() < 0.2 else damaged
            for body in (damaged[128:], packed(bytes(damaged[128:]))):
                path.write_bytes(whole[:128] + body)
                with takes_at_most(3e6), contextlib.suppress(UsageError):
                    read_files(path)


# --- Packed files ---------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def zip_of(*members: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in zip(("x_train", "y_train"), members, strict=False):
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def bombs() -> dict[str, tuple]:
    """Files of some kilobytes that unpack to 10 MB, by name: what reads them, and their bytes."""
    zeros = np.zeros((10**6 // 6, 8, 8), np.uint8)
    labels = np.zeros(len(zeros), np.uint8)
    shared = bytearray(zip_of(npy(zeros), npy(labels)))
    place = shared.rindex(b"PK\1\2", 0, shared.rindex(b"PK\1\2"))
    shared[place + 20 : place + 24] = struct.pack("<I", 2**31)  # the packed size, much larger
    return {
        "a.npy.gz": (read_array, gzip.compress(npy(zeros))),
        "b.npy.gz": (read_array, gzip.compress(npy(zeros)[:200]) + gzip.compress(bytes(10**7))),
        "a-idx3-ubyte.gz": (read_idx, gzip.compress(idx(zeros))),
        "a.npz": (read_npz, zip_of(npy(zeros), npy(labels))),
        "lie.npz": (read_npz, bytes(shared)),
        "a.npz.gz": (read_npz, gzip.compress(zip_of(npy(zeros), npy(labels), method=0))),
        "zip.gz": (read_npz, gzip.compress(b"PK\3\4" + bytes(10**7))),
        "a.mat": (read_matlab, START + packed(numbers(zeros[:10**4] * 1.0, b"x"))
                  + packed(numbers(labels[:10**4, None], b"y"))),
        "a.mat.gz": (read_matlab, gzip.compress(START + numbers(zeros[:10**4] * 1.0, b"x"))),
        "a.csv.gz": (read_rows, gzip.compress((b"0" + b",0" * 64 + b"\n") * 10**5)),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_a_small_file_takes_no_large_memory(tmp_path, monkeypatch, name):
    """With a limit of 1 MB in place of 64, and 100 times in place of 500: the test is quick."""
    monkeypatch.setattr("jaxmnist.reading.UNPACKED", 10**6)
    monkeypatch.setattr("jaxmnist.reading.TIMES", 100)
    read, content = bombs()[name]
    path = written(tmp_path / name, content)
    with takes_at_most(4e6):
        line = refused(read, path, "times its size, as images hardly do; if you trust it, ")
    mend = "save it without compression" if name == "a.mat" else "unpack it and name what comes out"
    assert mend in line


def test_the_limits_leave_images_and_labels_alone(tmp_path, monkeypatch):
    """Also where they are larger than 64 MiB, here half a MB."""
    monkeypatch.setattr("jaxmnist.reading.UNPACKED", 5 * 10**5)
    digits = read_idx(PACKAGED / "t10k-images-idx3-ubyte.gz")
    canvas = np.zeros((60, 256, 256), np.uint8)
    canvas[:, 100:128, 100:128] = digits[:60]
    for array in (
        digits[:3000],
        (digits[:500] > 127).astype(np.float64),
        np.eye(62)[RNG.integers(0, 62, 5000)],
        canvas,
    ):
        path = written(tmp_path / "a.npy.gz", gzip.compress(npy(array)))
        assert array.nbytes > 5 * 10**5
        assert np.array_equal(read_array(path), array)
        np.savez_compressed(tmp_path / "a.npz", x=array)
        assert np.array_equal(read_array(tmp_path / "a.npz"), array)


def test_memory_is_that_of_the_array(tmp_path):
    array = RNG.integers(0, 256, (10_000, 28, 28), np.uint8)
    half = len(npy(array)) // 2
    members = gzip.compress(npy(array)[:half], 1) + gzip.compress(npy(array)[half:], 1)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    for path in (
        written(tmp_path / "a.npy.gz", gzip.compress(npy(array), 1)),
        written(tmp_path / "members.npy.gz", members + bytes(1000)),  # padded by zeros
        written(tmp_path / "a.npy", npy(array)),
        tmp_path / "a.npz",
    ):
        with takes_at_most(1.2 * array.nbytes + 3 * 10**6):
            found = read_array(path)
        assert np.array_equal(found, array)
    for cut in (members[:-9], members[: len(members) // 3], members + b"more"):
        refused(read_array, written(tmp_path / "a.npy.gz", cut), "can't be read")


# --- Zip archives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_methods_that_zipfile_unpacks_without_bound(tmp_path, method):
    """A member of few bytes, as its header says, of which a piece unpacks to 10 MB."""
    content = bytearray(zip_of(npy(X) + bytes(10**7), npy(Y), method=method))
    place = content.rindex(b"PK\1\2", 0, content.rindex(b"PK\1\2"))
    content[place + 24 : place + 28] = struct.pack("<I", len(npy(X)))
    with takes_at_most(4e6):
        refused(read_npz, written(tmp_path / "a.npz", bytes(content)), "as NumPy doesn't do it")


def test_a_list_of_members_without_end(tmp_path):
    count = 400_000
    listed = b"".join(b"PK\1\2" + bytes(42) for _ in range(count))
    end = struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, len(listed), 4, 0)
    path = written(tmp_path / "a.npz", b"PK\3\4" + listed + b"PK\5\6" + end)
    preparation = Preparation((8, 8, 1), placing=MNIST)
    with takes_at_most(4e6):
        refused(read_files, path, "it lists too many files")
        refused(lambda path: read_file(path, preparation), path, "it lists too many files")


def test_names_of_members_lead_nowhere(tmp_path):
    (tmp_path / "inner").mkdir()
    np.save(tmp_path / "x_train.npy", X)
    with zipfile.ZipFile(tmp_path / "inner" / "a.npz", "w") as archive:
        archive.writestr("../x_train.npy", npy(X))
        archive.writestr("/y_train.npy", npy(Y))
    refused(read_files, tmp_path / "inner" / "a.npz", "it has ../x_train, /y_train")
    assert sorted(os.listdir(tmp_path)) == ["inner", "x_train.npy"]


# --- Headers of .npy files ------------------------------------------------------------------------


def with_header(text: str, content: bytes = bytes(2560), version: int = 1) -> bytes:
    line = text.encode("latin-1") + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(line))
    return b"\x93NUMPY" + bytes([version, 0]) + length + line + content


def header(descr: str = "'|u1'", shape: str = "(40, 8, 8)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


BAD_HEADERS = {
    "long": header() + " " * 20_000,
    "parentheses": "(" * 9000,
    "signs": "-" * 9000 + "1",
    "digits": header(shape=f"({'9' * 5000}, 8)"),
    "large": header(shape=f"({'9' * 4000}, 8)"),
    "product": header(shape=f"({2**62}, {2**62}, 8)"),
    "empty": header(shape=f"(0, {2**62}, {2**62})"),
    "negative": header(shape="(-40, -8, 8)"),
    "true": header(shape="(True, 40, 8, 8)"),
    "axes": header(shape="(" + "1, " * 70 + ")"),
    "code": "__import__('os').abort()",
    "no dict": "[]",
    "unhashable": "{[]: 1}",
    "terminal": "{'\x1b[2J': 1}",
    "zeros": "\0" * 50,
    "escape": header(descr=r"'\d'"),
    "records": header(descr="[('a', '|u1'), ('b', '<f4')]"),
    "objects": header(descr="'|O'"),
    "objects in records": header(descr="[('a', '|O')]"),
    "subarrays": header(descr="('|u1', (8, 8))"),
    "huge subarrays": header(descr="('|u1', (100000, 100000, 100000))"),
    "no bytes": header(descr="'|S0'"),
    "no text": header(descr="'<U0'"),
    "nothing": header(descr="'|V0'"),
    "times": header(descr="'<M8[s]'"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_get_a_line_without_numpys_advice(tmp_path, name):
    """As images, as labels, in an archive, and for prediction."""
    content = with_header(BAD_HEADERS[name])
    (tmp_path / "x_train.npy").write_bytes(content)
    np.save(tmp_path / "y_train.npy", Y)
    preparation = Preparation((8, 8, 1), placing=MNIST)
    lines = [
        refused(lambda _: read_files(tmp_path), tmp_path / "x_train.npy"),
        refused(lambda path: read_array(path, text=True), tmp_path / "x_train.npy"),
        refused(lambda path: read_file(path, preparation), tmp_path / "x_train.npy"),
        refused(read_files, written(tmp_path / "a.npz", zip_of(content, npy(Y)))),
    ]
    for line in lines:
        assert "its header" in line or "plain numbers" in line
        for word in ("pickle", "max_header", "sandbox", "descr", "malformed", "invalid"):
            assert word not in line


def test_a_header_of_python_2_and_one_that_states_gigabytes(tmp_path):
    path = written(tmp_path / "a.npy", with_header(header(shape="(40L, 8L, 8L)"), X.tobytes()))
    assert np.array_equal(read_array(path), X)  # and NumPy's warning isn't shown
    long = b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{" * 10**7
    path.write_bytes(long)
    with takes_at_most(10**6):
        refused(read_array, path, "its header isn't that of a NumPy array")


# --- Tables, pipes and devices --------------------------------------------------------------------


def test_blank_lines(tmp_path):
    """Few are left out, such as those that Windows' line ends make; a file of them ends soon."""
    row = "1" + ",7" * 64
    path = written(tmp_path / "a.csv", (row + "\r\r\n").encode() * 3000)
    assert len(read_rows(path)[0]) == 3000
    for blank in (b"\n", b" " * 1000 + b"\n", b"\r"):
        count = 5 * 10**6 // len(blank)
        for before in (b"", row.encode() + b"\n"):
            path.write_bytes(before + blank * count + b"x")
            refused(read_rows, path, "before it are too many blank lines")


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would block, a device would never end: in a process that can be ended."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "x_train.npy")
    os.mkfifo(tmp_path / "folder" / "y_train.npy")
    script = (
        "import sys, pathlib\nfrom jaxmnist.data.formats import read_files\n"
        "for name in sys.argv[1:]:\n"
        "    try: read_files(pathlib.Path(name))\n"
        "    except ValueError as error: print(error)\n"
    )
    names = ["pipe.csv", "device.npz", "folder"]
    found = subprocess.run(
        [sys.executable, "-c", script, *(tmp_path / name for name in names)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert found.stdout.count("is no regular file") == len(names)
    assert found.stdout.count("\n") == len(names)
