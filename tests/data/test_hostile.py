"""Files of a stranger who means harm: one line each, in bounded memory, and the process goes on."""

from __future__ import annotations

import gzip
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pytest
import scipy.io
from conftest import DIGITS, PACKAGED
from processes import process
from scipy.io import loadmat, savemat

from jaxmnist.data.array_files import (
    MATLAB,
    _convert,
    _unpack,
    npz_names,
    read_array,
    read_idx,
    read_matlab,
    read_npz,
    read_npz_member,
)
from jaxmnist.data.contents import open_file
from jaxmnist.data.dataset import read_files
from jaxmnist.data.preparation import Preparation, read_file
from jaxmnist.data.tables import read_rows
from jaxmnist.errors import UsageError

RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 3
FLAT = X.reshape(40, 64)


@contextmanager
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


def nested(levels: int) -> bytes:
    """A cell in a cell in a cell."""
    cell = head(CELL, (1, 1), b"x")
    sizes = range(len(cell) * levels + 8 * levels, 0, -8 - len(cell))
    return b"".join(struct.pack("<2I", 14, size - 8) + cell for size in sizes)


def packed(variable: bytes, order: str = "<") -> bytes:
    content = zlib.compress(variable)
    return struct.pack(f"{order}2I", 15, len(content)) + content


def converted(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by SciPy in a process."""
    with open(path, "rb") as file, TemporaryFile() as plain, TemporaryFile() as arrays:
        _unpack(path, file, plain)
        _convert(plain, arrays)
        with zipfile.ZipFile(arrays) as archive:
            names = npz_names(archive)
            return {name: read_npz_member(path, archive, name, text=True) for name in names}


def same_as_scipy(path: Path) -> None:
    expected = loadmat(path, simplify_cells=True)
    found = converted(path)
    assert found.keys() == {name for name in expected if name[:2] != "__"}
    for name, array in found.items():
        assert np.array_equal(array, expected[name])
        assert array.dtype == expected[name].dtype or array.dtype.kind == "U"


@pytest.mark.parametrize("packing", [False, True])
def test_arrays_of_every_kind_are_what_scipy_reads_in_this_process(tmp_path, monkeypatch, packing):
    """In a working directory whose files have the names of modules, on `sys.path`."""
    for name in ("numpy", "resource", "scipy", "zipfile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", ".")
    names = np.array(["cat", "zebra", "ox"])[Y]
    dtypes = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">f8")
    arrays = {f"a{dtype[-2:]}": FLAT.astype(dtype) for dtype in dtypes}
    arrays |= {
        "file": X / 7,
        "zeros": np.zeros(2**20, np.uint8),
        "text": names,
        "cells": names.astype(object)[:, None],
    }
    savemat("a.mat", arrays, do_compression=packing)
    same_as_scipy(Path("a.mat"))
    for wrong, what in ((X * 1j, "complex128"), (np.array([X, "a"], object), "records")):
        savemat("a.mat", {"x": wrong, "y": Y[:, None]}, do_compression=packing)
        refused(read_files, Path("a.mat"), f"x: is an array of {what}; only plain numbers are read")


@pytest.mark.parametrize("name", ["3dmatrix_6.1_SOL2", "3dmatrix_7.4_GLNX86"])
def test_files_of_matlab_itself(tmp_path, name):
    """Of either order of bytes, where SciPy brings its tests."""
    path = Path(scipy.io.__file__).parent / "matlab" / "tests" / "data" / f"test{name}.mat"
    if not path.exists():
        assert not os.environ.get("CI"), "SciPy's wheels bring its tests"
        pytest.skip("SciPy has no tests here")
    same_as_scipy(path)
    if "SOL2" in name:  # big-endian, and not compressed
        whole = path.read_bytes()
        same_as_scipy(written(tmp_path / "a.mat", whole[:128] + packed(whole[128:], ">")))


def test_what_crashes_scipy_ends_in_a_line(tmp_path):
    path = written(tmp_path / "a.mat", START + nested(20_000))
    ended = process("search", "--data-dir", path, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.endswith("can't be read: SciPy's reader crashed on it\n")
    assert ended.stderr.count("\n") == 1
    refused(read_files, written(path, START + packed(nested(20_000))), "crashed on it")
    assert os.listdir(tmp_path) == ["a.mat"]


# What a file states, and what is said of it.
STATED = {
    "cells without end": (element(14, head(CELL, (2**31 - 1, 2**31 - 1), b"x")), "too big"),
    "many cells": (element(14, head(CELL, (2**28, 1), b"x") + bytes(64)), "too much memory"),
    "many bytes": (element(14, head(DOUBLE, (40, 64), b"x") + struct.pack("<2I", 9, 2**32 - 1)),
                   "too much memory"),
    "cut": (numbers(FLAT, b"x")[:-90], "is cut short"),
    "cut and packed": (packed(numbers(FLAT, b"x"))[:-9], "is cut short"),
    "nothing packed": (packed(b""), ""),
    "half a tag": (bytes(3), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", STATED)
def test_what_a_matlab_file_states_is_not_taken(tmp_path, name):
    variable, says = STATED[name]
    path = written(tmp_path / "a.mat", START + numbers(Y[:, None], b"y") + variable)
    with takes_at_most(5e6):
        refused(read_files, path, says)


def test_a_reader_that_is_busy_for_ever_is_ended(tmp_path, monkeypatch):
    """Within a second, in place of a minute: for each name of a field it looks at all others."""
    monkeypatch.setattr("jaxmnist.data.array_files.LEAST_SECONDS", 0)
    monkeypatch.setattr("jaxmnist.data.array_files.LEAST_MEMORY", 2**32)
    fields = element(5, b"\1\0\0\0") + element(1, b"a" * 10**6)
    variable = element(14, head(STRUCTURE, (1, 1), b"x") + fields)
    refused(read_files, written(tmp_path / "a.mat", START + variable), "took too long")


# --- Packed files ---------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def zip_of(*members: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in zip(("x_train", "y_train"), members, strict=False):
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


@cache
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
        "a.mat.gz": (read_matlab, gzip.compress(START + packed(numbers(zeros[:10**4], b"x")))),
        "a.csv.gz": (read_rows, gzip.compress((b"0" + b",0" * 64 + b"\n") * 10**5)),
    }  # fmt: skip


@pytest.mark.parametrize("name", bombs())
def test_a_small_file_takes_no_large_memory(tmp_path, monkeypatch, name):
    """With a limit of 1 MB in place of 64, and 100 times in place of 500: the test is quick."""
    monkeypatch.setattr("jaxmnist.files.UNPACKED", 10**6)
    monkeypatch.setattr("jaxmnist.files.TIMES", 100)
    read, content = bombs()[name]
    path = written(tmp_path / name, content)
    with takes_at_most(4e6):
        refused(read, path, "times its size, as images hardly do; if you trust it, ")
    if name == "zip.gz":
        with suppress(UsageError), open_file(path) as file:
            with pytest.raises(UsageError):
                file.seek(0, os.SEEK_END)
            assert file.tell() < 3e6


def test_the_limits_leave_images_and_labels_alone(tmp_path, monkeypatch):
    """Also where they are larger than 64 MiB, here half a MB."""
    monkeypatch.setattr("jaxmnist.files.UNPACKED", 5 * 10**5)
    canvas = np.zeros((60, 256, 256), np.uint8)
    canvas[:, 100:128, 100:128] = read_idx(PACKAGED / "t10k-images-idx3-ubyte.gz")[:60]
    for array in (np.eye(62)[RNG.integers(0, 62, 5000)], canvas):
        path = written(tmp_path / "a.npy.gz", gzip.compress(npy(array)))
        assert np.array_equal(read_array(path), array)


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
        refused(
            read_npz,
            written(tmp_path / "a.npz", bytes(content)),
            "uses a compression that NumPy doesn't write",
        )


def test_a_list_of_members_without_end(tmp_path):
    count = 400_000
    listed = b"".join(b"PK\1\2" + bytes(42) for _ in range(count))
    end = struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, len(listed), 4, 0)
    path = written(tmp_path / "a.npz", b"PK\3\4" + listed + b"PK\5\6" + end)
    preparation = Preparation((8, 8, 1), placing=DIGITS)
    with takes_at_most(4e6):
        refused(read_files, path, "it lists too many files")
        refused(lambda path: read_file(path, preparation), path, "it lists too many files")


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
    "empty": header(shape=f"(0, {2**70})"),
    "negative": header(shape="(-40, -8, 8)"),
    "true": header(shape="(True, 40, 8, 8)"),
    "axes": header(shape="(" + "1, " * 70 + ")"),
    "code": "__import__('os').abort()",
    "no dict": "[]",
    "unhashable": "{[]: 1}",
    "terminal": "{'\x1b[2J': 1}",
    "zeros": "\0" * 50,
    "escape": header(descr=r"'\d'"),
    "objects": header(descr="'|O'"),
    "huge subarrays": header(descr="('|u1', (100000, 100000, 100000))"),
    "no text": header(descr="'<U0'"),
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_bad_headers_get_a_line_without_numpys_advice(tmp_path, name):
    """As images, as labels, in an archive, and for prediction."""
    content = with_header(BAD_HEADERS[name])
    (tmp_path / "x_train.npy").write_bytes(content)
    np.save(tmp_path / "y_train.npy", Y)
    preparation = Preparation((8, 8, 1), placing=DIGITS)
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
        path.write_bytes(row.encode() + b"\n" + blank * count + b"x")
        refused(read_rows, path, "too many blank lines before it")


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe would block, a device would never end: in a process that can be ended."""
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "device.npz").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "x_train.npy")
    os.mkfifo(tmp_path / "folder" / "y_train.npy")
    script = (
        "import sys, pathlib\nfrom jaxmnist.data.dataset import read_files\n"
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
