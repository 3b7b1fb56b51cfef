from __future__ import annotations

import json
import os

import pytest

from jaxmnist.errors import EnvironmentFailure, UsageError
from jaxmnist.files import (
    DamagedFile,
    MissingFile,
    fits,
    read_bytes,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_together,
)


def test_json_reads_back_and_knows_damage(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, None], "ü": "ß"})
    assert read_json(path) == {"a": [1, 2.5, None], "ü": "ß"}
    assert "sha256" in json.loads(path.read_text())
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    whole = path.read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1
        path.write_bytes(flipped)
        # White space between tokens may change without changing the file's content.
        try:
            assert read_json(path) == {"a": [1, 2.5, None], "ü": "ß"}
        except DamagedFile as error:
            assert "a.json" in str(error)
    for other in (b"", b"[]", b"3", b"null", b"\xff", b"[" * 100_000):
        path.write_bytes(other)
        with pytest.raises(DamagedFile):
            read_json(path)


def test_something_else_in_a_files_place(tmp_path):
    """A pipe is not waited for, a link not followed, a folder no file, a terabyte not read."""
    path = tmp_path / "a.json"
    makers = {
        "is a link": lambda: path.symlink_to(tmp_path / "outside"),
        "is not a file": path.mkdir,
        "is a link or not a file|is not a file": lambda: os.mkfifo(path),
        "more than a file of a run has": lambda: (path.touch(), os.truncate(path, 2**40)),
    }
    write_json(tmp_path / "outside", {})
    for says, make in makers.items():
        make()
        with pytest.raises(DamagedFile, match=says):
            read_json(path)
        with pytest.raises(DamagedFile, match=says):
            read_tensors(path, "jaxmnist")
        (path.rmdir if path.is_dir() and not path.is_symlink() else path.unlink)()
    with pytest.raises(MissingFile, match="does not exist"):
        read_bytes(path)
    (tmp_path / "file").touch()
    with pytest.raises(MissingFile):
        read_bytes(tmp_path / "file" / "a.json")


def test_a_folder_above_is_not_made(tmp_path):
    write_bytes(tmp_path / "one" / "file", b"content")
    with pytest.raises(EnvironmentFailure, match="can't be written: No such file or directory"):
        write_bytes(tmp_path / "gone" / "one" / "file", b"content")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]


@pytest.mark.parametrize(
    ("value", "shape", "holds"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (2**63, int, False),
        (1, float, True),
        (1e300, float, True),
        (float("nan"), float, False),
        (float("inf"), float, False),
        (10**400, float, False),
        ("1", float, False),
        ({"a": 1, "b": 2}, {"a": int}, True),
        ({"b": 2}, {"a": int}, False),
        ([], {"a": int}, False),
        ({"x": 1, "y": None}, {str: int}, False),
        ([1, 2], [int], True),
        ([1, "2"], [int], False),
        ([1], (int, int), False),
        ("no", {"yes", "maybe"}, False),
        ([], {"yes"}, False),
        (None, None, True),
    ],
)
def test_fits(value, shape, holds):
    assert fits(value, shape) == holds


def test_files_are_written_together_or_not_at_all(tmp_path):
    old, folder = tmp_path / "old", tmp_path / "folder"
    old.write_bytes(b"old")
    folder.mkdir()
    for wrong in (folder, tmp_path / "gone" / "file"):
        with pytest.raises((UsageError, EnvironmentFailure), match=str(wrong)):
            write_together({old: b"new", wrong: b"content"})
        assert old.read_bytes() == b"old"
        assert sorted(tmp_path.iterdir()) == [folder, old]
    write_together({old: b"new", tmp_path / "other": b"content"})
    assert old.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == [folder, old, tmp_path / "other"]
