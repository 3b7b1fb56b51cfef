"""Arbitrary flags, settings, runs and files: each works, or one line says what is wrong.

hypothesis draws the examples, always the same ones; `EXAMPLES=300` draws more of them.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import os
import shutil
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DIGITS
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

from jaxmnist import JaxmnistError, Run, SearchSettings, SvmPipeline, TrainedModel, UsageError
from jaxmnist.commands.parser import run_command
from jaxmnist.commands.search import main as search
from jaxmnist.data.array_files import read_idx, read_npz
from jaxmnist.data.arrays import check_arrays
from jaxmnist.data.dataset import read_files
from jaxmnist.data.preparation import Preparation, read_file
from jaxmnist.files import DamagedFile, as_json, from_json, read_json, write_json
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION
from jaxmnist.report.facts import Facts
from jaxmnist.results.evaluation import describe_evaluation, kept_look
from jaxmnist.runs.ledger import read_lines
from jaxmnist.runs.trial import Trial
from jaxmnist.settings import SETTINGS

COUNT = int(os.environ.get("EXAMPLES", "50"))
EXAMPLES = settings(derandomize=True, deadline=None, database=None, max_examples=COUNT)

# Any JSON value.
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["completed", "failed", "\x1b[2J", "../..", "a\nb", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inputs")


def holds(action: Callable[[], Any], kind: type[BaseException] = UsageError) -> Any:
    """What `action` gives, or None after one clear line of `kind`; all else is a failure."""
    try:
        return action()
    except kind as error:
        assert str(error).isprintable()
        assert 10 < len(str(error)) < 2000
        return None


@contextlib.contextmanager
def takes_at_most(size: int) -> Iterator[None]:
    """That no more memory than `size` bytes was taken at any moment."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size


# --- Flags and settings ---------------------------------------------------------------------------

NAMES = list(SETTINGS)
HYPERPARAMETERS = ["filters", "conv_layers", "dense_layers", "units"]
VALUES = (
    JSON
    | st.integers(-3, 300)
    | st.floats(0, 1)
    | st.tuples(st.integers(-2, 40), st.integers(-2, 40), st.integers(-2, 9)).map(list)
    | st.from_regex(r"-?\d{1,3}(:-?\d{1,3}){0,3}", fullmatch=True)
    | st.sampled_from(["steady", "best", "auto", "cuml", "/", "..", "a/b", "", "~", "NaN", "1e400"])
)


@EXAMPLES
@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_settings_in_python_and_json(given_settings):
    found = holds(lambda: SearchSettings(**given_settings))
    if found is not None:
        stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert SearchSettings(**stored).to_json() == found.to_json()
        assert found.run_directory.isprintable()


@EXAMPLES
@given(st.sampled_from([*NAMES, *HYPERPARAMETERS]), VALUES.map(str), st.booleans())
def test_every_flag(place, name, text, joined):
    """A folder that isn't there ends what would work."""
    flag = "--" + name.replace("_", "-")
    given_flags = [f"{flag}={text}"] if joined else [flag, text]
    assume(not (name == "cache" and text.startswith("/")))  # a folder is made there
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(place),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        status = run_command(search, [*given_flags, "--data-dir", "/nonexistent/x.npz"])
    assert status == 2
    assert out.getvalue() == ""
    line = errors.getvalue()
    assert line.startswith("jaxmnist: ")
    assert line.count("\n") == 1
    assert line.removesuffix("\n").isprintable()


@EXAMPLES
@given(st.sampled_from(HYPERPARAMETERS), VALUES)
def test_ranges(name, value):
    def drawn():
        ranges = SearchSettings(ranges={name: value}).ranges
        return list(itertools.islice(Space(DEFINITION, ranges).draws(0), 3))

    for h in holds(drawn) or []:
        whole = [number for name, number in h.items() if name != "dropout"]
        assert all(isinstance(number, int) for number in whole)
        assert 0 <= h["dropout"] < 1


# --- Data files -----------------------------------------------------------------------------------

SIDES = st.integers(0, 5) | st.sampled_from([28, 255, 2**16, 2**31, 2**32 - 1])


@st.composite
def idx_files(draw: st.DrawFn) -> bytes:
    """IDX files, right ones and those whose header says something else than what follows."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=60))
    shape = draw(st.lists(SIDES, max_size=4) | st.lists(SIDES, max_size=255))
    head = struct.pack(
        ">HBB", draw(st.sampled_from([0] * 6 + [1])), draw(st.sampled_from([8] * 6 + [13])),
        draw(st.sampled_from([len(shape)] * 6 + [3])),
    )  # fmt: skip
    size = min(int(np.prod([float(side) for side in shape])), 700)
    content = head + b"".join(struct.pack(">I", side) for side in shape) + bytes(size)
    end = draw(st.sampled_from([None] * 6 + [draw(st.integers(0, len(content)))]))
    return content[:end] + draw(st.sampled_from([b""] * 6 + [b"\0"]))


@EXAMPLES
@given(idx_files(), st.booleans(), st.integers(0, 40))
def test_idx(place, content, zipped, flipped):
    path = place / ("file.gz" if zipped else "file")
    whole = gzip.compress(content, 1, mtime=0) if zipped else content
    if zipped and flipped < len(whole) and content[:1] != b"\0":
        whole = whole[:flipped] + bytes([whole[flipped] ^ 16]) + whole[flipped + 1 :]
    path.write_bytes(whole)
    with takes_at_most(4 * 2**20):
        found = holds(lambda: read_idx(path))
    if found is not None:
        assert found.dtype in (np.uint8, np.dtype(">f4"))
        assert found.nbytes == len(content) - 4 - 4 * found.ndim


def npy(draw: st.DrawFn) -> bytes:
    """An `.npy` file whose header is a free invention."""
    array = np.zeros(draw(st.lists(st.integers(0, 3), max_size=4)), draw(st.sampled_from(DTYPES)))
    shape = draw(st.sampled_from([array.shape] * 3 + [(2**40,), (2**62, 4), (-1, 3), (0, 2**50)]))
    head = {"descr": array.dtype.str, "fortran_order": draw(st.booleans()), "shape": shape}
    text = draw(st.sampled_from([repr(head)] * 6 + ["__import__('os')", "{" * 3000, "\0", "()"]))
    version = draw(st.sampled_from([b"\1\0"] * 4 + [b"\2\0", b"\3\0", b"\7\7"]))
    long = version != b"\1\0"
    line = (text + "\n").encode()
    size = struct.pack("<I" if long else "<H", len(line))
    end = draw(st.sampled_from([None] * 5 + [-1]))
    return (b"\x93NUMPY" + version + size + line + array.tobytes())[:end]


DTYPES = ["|u1", "<i8", ">f4", "<f8", "|b1", "<c8", "|O", "<U3", "|V2", "<M8[s]", "<f2"]
KEYS = ["x_train", "y_train", "x_test", "y_test"]


@st.composite
def npz_files(draw: st.DrawFn) -> bytes:
    """Archives that may or may not hold what they should."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # about duplicate names
        for key in draw(st.lists(st.sampled_from([*KEYS, "images", "../x", "a\x1b"]), max_size=6)):
            how = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
            archive.writestr(f"{key}.npy", npy(draw), how)
    content = bytearray(buffer.getvalue())
    for position in draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[position] ^= draw(st.sampled_from([1, 64, 255]))
    return bytes(content)


@EXAMPLES
@given(npz_files())
def test_npz(place, content):
    path = place / "file.npz"
    path.write_bytes(content)
    with takes_at_most(16 * 2**20):
        holds(lambda: read_files(path))
        holds(lambda: read_file(path, Preparation((2, 3, 1), placing=DIGITS)))


def test_what_a_decoder_complains_of_stays_short(place):
    """zipfile repeats the name that stands in the file, which may be all of it."""
    path = place / "file.npz"
    np.savez(path, images=np.zeros(5000, np.uint8))
    content = bytearray(path.read_bytes())
    content[26:28] = struct.pack("<H", 4000)  # the length of the member's name
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_file(path, Preparation((2, 3, 1), placing=DIGITS))
    assert len(str(refused.value)) < 1000


ARRAYS = st.tuples(
    st.lists(st.integers(0, 3), max_size=5),
    st.sampled_from(["u1", "i8", "u8", "f4", "f8", "b1", "c8", "U1", "O", "M8[s]"]),
    st.sampled_from([0, 1, -1, 255, 256, 0.5, 2**60]),
)


def array(shape: list[int], dtype: str, value: float) -> np.ndarray:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return np.full(shape, value).astype(dtype if dtype != "M8[s]" else "i8").astype(dtype)


@EXAMPLES
@given(st.lists(ARRAYS, min_size=4, max_size=4))
def test_arrays(given_arrays):
    parts = [array(*each) for each in given_arrays]
    found = holds(lambda: check_arrays("here", *parts))
    if found is not None:
        assert found.x_train.dtype == found.x_test.dtype in (np.uint8, np.float32)
        assert np.isfinite(found.x_train).all()
        assert found.x_train.min() >= 0
        assert found.x_train.ndim == 4


@EXAMPLES
@given(
    st.binary(max_size=40), st.sampled_from(["png", "jpeg", "gif", "bmp", "webp", "tiff", "npy"])
)
def test_pictures(place, noise, form):
    """The start of each format, then anything."""
    starts = {
        "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "gif": b"GIF89a",
        "bmp": b"BM" + bytes(8) + b"\x36\0\0\0\x28\0\0\0",
        "tiff": b"II*\0\x08\0\0\0",
        "webp": b"RIFF\x40\0\0\0WEBPVP8 ",
        "npy": b"\x93NUMPY\1\0",
    }
    path = place / "picture"
    path.write_bytes(starts[form] + noise)
    with takes_at_most(16 * 2**20):
        holds(lambda: read_file(path, Preparation((28, 28, 1), placing=DIGITS)))


FIELDS = st.sampled_from(["0", "255", "7", "-1", "0.5", "", "a", '"', "nan", "1e999", "é", "1_0"])


@EXAMPLES
@given(
    st.lists(st.lists(FIELDS, min_size=36, max_size=38), max_size=6),
    st.sampled_from([",", ";", "\t", ",,"]),
    st.binary(max_size=9),
)
def test_tables(place, rows, separator, noise):
    path = place / "table.csv"
    text = "\n".join(separator.join(row) for row in rows)
    path.write_bytes(text.encode() + noise)
    with takes_at_most(16 * 2**20):
        found = holds(lambda: read_files(path))
    if found is not None:
        assert found.x_train.shape[1:] == (6, 6, 1)


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    """Archives of a few kilobytes that claim, or hold, far more than may be used."""
    monkeypatch.setattr("jaxmnist.files.LARGEST_FILE", 10**6)
    zeros = np.zeros(10**7, np.uint8)
    np.savez_compressed(tmp_path / "bomb.npz", **dict.fromkeys(KEYS, zeros), images=zeros)
    head = struct.pack(">HBB3I", 0, 8, 3, 10**4, 10, 10)
    (tmp_path / "small.gz").write_bytes(gzip.compress(head + bytes(10**8)))
    (tmp_path / "large.gz").write_bytes(
        gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 28, 28) + bytes(10**8))
    )
    (tmp_path / "plain").write_bytes(struct.pack(">HBB1I", 0, 8, 1, 10**6) + bytes(10))
    with takes_at_most(5 * 10**6):
        for read, name, says in (
            (read_npz, "bomb.npz", "more than can be loaded"),
            (
                lambda path: read_file(path, Preparation((10, 10, 1), placing=DIGITS)),
                "bomb.npz",
                "more than can be loaded",
            ),
            (read_idx, "small.gz", "it has more"),
            (read_idx, "large.gz", "its header states"),
            (read_idx, "plain", "it has only 10"),
        ):
            with pytest.raises(UsageError, match=says):
                read(tmp_path / name)


# --- Runs, models and SVMs ------------------------------------------------------------------------


def changed(draw: st.DrawFn, content: Any) -> Any:
    """JSON with one value, somewhere in it, replaced or taken away."""
    if isinstance(content, dict) and content and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(content)))
        rest = {name: value for name, value in content.items() if name != key}
        return rest if draw(st.integers(0, 3)) == 0 else rest | {key: changed(draw, content[key])}
    if isinstance(content, list) and content and draw(st.integers(0, 4)):
        i = draw(st.integers(0, len(content) - 1))
        return [*content[:i], changed(draw, content[i]), *content[i + 1 :]]
    return draw(JSON.filter(writable))


def writable(value: Any) -> bool:
    """Whether JSON proper can say it: no infinities."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.fixture(scope="module")
def run(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("changed") / "small"
    shutil.copytree(finished.store.path, path)
    return path


FILES = ["search.json", "trials/0001/trial.json", "best/config.json", "best/test.json"]


@EXAMPLES
@given(st.data(), st.sampled_from([*FILES, "svm/small/svm.json"]))
def test_a_run_that_says_something_else(run, data, name):
    """With a SHA-256 that is right: nothing but the content tells."""
    path = run / name
    whole = path.read_bytes()
    content = json.loads(whole)
    content.pop("sha256")
    content = changed(data.draw, content)
    try:
        if isinstance(content, dict):
            write_json(path, content)
        else:
            path.write_text(json.dumps(content))
        images = np.zeros((2, 28, 28), np.uint8)
        holds(lambda: printable(Run(run).results_summary() + Run(run).ranking.why()), JaxmnistError)
        holds(lambda: Facts(Run(run)), JaxmnistError)
        holds(lambda: Run(run).get_best_models(1)[0].predict(images), JaxmnistError)
        holds(lambda: Run(run).best_model.predict(images), JaxmnistError)
        holds(lambda: printable(winner_report(run)), JaxmnistError)
        holds(lambda: printable(svm_report(run)), JaxmnistError)
    finally:
        path.write_bytes(whole)


def printable(text: str) -> None:
    """No string of a run's files commands the terminal."""
    assert all(line.isprintable() for line in text.split("\n"))


def winner_report(run: Path) -> str:
    found = Run(run)
    content = kept_look(found)
    return "\n".join(describe_evaluation(found, content)) if content else ""


def svm_report(run: Path) -> str:
    from jaxmnist.results import svm

    found = Run(run)

    class Data:
        image_shape, name = (28, 28, 1), "small"
        fingerprint = found.store.search.identity["data"]

    task = svm.Task.of(found, Data())
    content = svm._kept(task, (task.name,))
    return "\n".join(svm.describe_svm(found, content)) if content else ""


@pytest.mark.parametrize(
    "changes",
    [{"validation_accuracy": 2}, {"loss": -1}, {"calibration_error": 2}, {"reliability": []}],
)
def test_results_that_are_impossible(run, changes):
    path = run / "best" / "test.json"
    whole = path.read_bytes()
    try:
        write_json(path, read_json(path) | changes)
        with pytest.raises(DamagedFile, match="lacks what"):
            kept_look(Run(run))
    finally:
        path.write_bytes(whole)


def test_an_svm_without_its_hash(finished, tmp_path):
    source = finished.store.path / "svm" / "small" / "pipeline.safetensors"
    path = tmp_path / "svm.safetensors"
    path.write_bytes(source.read_bytes().replace(b"content_sha256", b"content_sha257"))
    with pytest.raises(DamagedFile):
        SvmPipeline.load(path)


@EXAMPLES
@given(st.data())
def test_a_trial_that_says_something_else(finished, data):
    content = as_json(finished.trials[0])
    content = changed(data.draw, content)
    try:
        trial = from_json(Trial, content)
    except ValueError:
        return
    assert trial.score is None or 0 <= trial.score <= 1
    json.dumps(as_json(trial), allow_nan=False)


@EXAMPLES
@given(st.data())
def test_a_model_that_says_something_else(finished, place, data):
    arrays = {"conv2d/kernel": np.zeros((5, 5, 1, 4), np.float32), "x": np.zeros(2, np.int8)}
    metadata = {
        "network": "study",
        "hyperparameters": finished.trials[0].hyperparameters.to_json(),
        "image_shape": [28, 28, 1],
        "labels": list(range(10)),
    }
    path = place / "model.safetensors"
    text = json.dumps(changed(data.draw, metadata))
    path.write_bytes(save_tensors(arrays, {"jaxmnist": text}))
    with pytest.raises(UsageError):  # damaged, or another network's
        TrainedModel.load(path)


@EXAMPLES
@given(st.data())
def test_an_svm_that_says_something_else(finished, place, data):
    """One array of another shape or type, one number another, or bits flipped in the file."""
    whole = SvmPipeline.load(finished.store.path / "svm" / "small" / "pipeline.safetensors")
    content = bytearray(whole.to_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, min(len(content), 3000) - 1))
        content[position] ^= data.draw(st.sampled_from([1, 2, 16, 128]))
    path = place / "svm.safetensors"
    path.write_bytes(content)
    found = holds(lambda: SvmPipeline.load(path))
    if found is not None:
        assert found.to_bytes() == whole.to_bytes()


@EXAMPLES
@given(st.lists(JSON.map(json.dumps) | st.text(max_size=30), max_size=5))
def test_a_ledger_of_anything(place, lines):
    path = place / "ledger.jsonl"
    content = "\n".join(lines).encode(errors="surrogatepass")
    path.write_bytes(content)
    found = holds(lambda: read_lines(path))
    if found is not None:
        looks, damaged = found
        assert len(looks) + damaged >= sum(bool(line.strip()) for line in content.splitlines())


def test_names_of_files_can_not_command_the_terminal(finished, tmp_path, capsys):
    """Escape sequences, line breaks and bytes that are no text, in names that are printed."""
    from jaxmnist.commands.predict import main

    path = tmp_path / "a\x1b[2J\nb\udcff.npy"
    np.save(path, np.zeros((28, 28), np.uint8))
    assert run_command(main, [str(finished.store.path), str(path)]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.removesuffix("\n").isprintable()
    assert r"a\x1b[2J\nb\udcff.npy: " in said
    for arguments in (
        [str(finished.store.path), f"{path}.missing"],
        [str(path), str(path)],
        [f"{tmp_path}/\x1b[31m", str(path)],
    ):
        assert run_command(main, arguments) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.removesuffix("\n").isprintable()
