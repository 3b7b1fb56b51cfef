from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmnist.errors import EnvironmentFailure, SettingError, UsageError
from jaxmnist.files import (
    LACKS,
    NOT_STORED,
    OPTIONAL,
    DamagedFile,
    MissingFile,
    as_json,
    from_json,
    read_bytes,
    read_json,
    read_record,
    read_tensors,
    stored,
    write_bytes,
    write_json,
    write_together,
)
from jaxmnist.hyperparameters import Hyperparameters


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


def test_an_error_about_a_file_passes_through_processes(tmp_path):
    """A search in another process gives its error to the one that waits for it."""
    for error in (DamagedFile(tmp_path, "is {bad}"), MissingFile(tmp_path, "does not exist")):
        outer = SettingError("{problem}; {overwrite} starts over", problem=error)
        for each in (error, outer):
            again = pickle.loads(pickle.dumps(each))
            assert type(again) is type(each)
            assert str(again) == str(each)
        assert pickle.loads(pickle.dumps(error)).path == tmp_path


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


class Point(NamedTuple):
    """A member of a list of lists."""

    x: int
    y: float


@dataclass(frozen=True)
class Circle:
    """A record with a default, told from `Square` by its kind."""

    DERIVED: ClassVar[tuple[str, ...]] = ("kind",)
    radius: float
    name: str = "circle"
    kind: ClassVar[str] = "circle"

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError("a negative radius")


@dataclass(frozen=True)
class Square:
    DERIVED: ClassVar[tuple[str, ...]] = ("kind", "area")
    side: int
    kind: ClassVar[str] = "square"

    @property
    def area(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class Drawing:
    """All that a record may have."""

    number: int
    shown: bool
    word: Literal["a", "b"]
    note: str | None
    corner: tuple[int, float]
    points: tuple[Point, ...]
    rows: tuple[tuple[int, ...], ...]
    sums: dict[str, float]
    free: dict[str, Any]
    given: Hyperparameters
    one: Circle
    shapes: tuple[Circle | Square, ...]
    named: Mapping[str, Circle]
    nothing: Square | None
    sides: np.ndarray = field(metadata=stored(np.ndarray.tolist, np.asarray), compare=False)
    extra: int | None = field(default=None, metadata=OPTIONAL)
    inner: tuple[bytes, ...] = field(default=(), metadata=NOT_STORED)


DRAWING = Drawing(
    *(3, True, "b", None, (1, 2.0), (Point(1, 2.5), Point(0, 0.0)), ((1, 2), ()), {"a": 1.5}),
    *({"any": [1, None, {}]}, Hyperparameters(rate=0.1, sizes=(1, 2)), Circle(1.5)),
    *((Square(2), Circle(0.5, "c")), {"x": Circle(2.0)}, None, np.array([1, 2])),
)
AS_JSON = {
    **{"number": 3, "shown": True, "word": "b", "note": None, "corner": [1, 2.0]},
    **{"points": [[1, 2.5], [0, 0.0]], "rows": [[1, 2], []], "sums": {"a": 1.5}},
    **{"free": {"any": [1, None, {}]}, "given": {"rate": 0.1, "sizes": [1, 2]}},
    "one": {"radius": 1.5, "name": "circle", "kind": "circle"},
    "shapes": [
        {"side": 2, "kind": "square", "area": 4},
        {"radius": 0.5, "name": "c", "kind": "circle"},
    ],
    "named": {"x": {"radius": 2.0, "name": "circle", "kind": "circle"}},
    **{"nothing": None, "sides": [1, 2]},
}


def test_a_record_is_the_json_written_by_hand(tmp_path):
    assert as_json(DRAWING) == AS_JSON
    assert from_json(Drawing, json.loads(json.dumps(AS_JSON))) == DRAWING
    path = tmp_path / "drawing.json"
    write_json(path, as_json(DRAWING))
    assert read_json(path) == AS_JSON
    assert read_record(path, Drawing) == DRAWING
    for extra in (0, 7):
        write_json(path, as_json(replace(DRAWING, extra=extra, inner=(b"x",))))
        assert read_json(path) == {**AS_JSON, "extra": extra}
        assert read_record(path, Drawing) == replace(DRAWING, extra=extra)
    # Another version may have written more; a whole number may stand for a float.
    assert from_json(Drawing, {**AS_JSON, "new": [None]}) == DRAWING
    assert from_json(Circle, {**AS_JSON["one"], "radius": 2}) == Circle(2.0)
    assert from_json(dict[str, Circle], AS_JSON["named"]) == {"x": Circle(2.0)}
    write_json(path, {**AS_JSON, "number": "3"})
    with pytest.raises(DamagedFile, match=f"drawing.json: {LACKS}"):
        read_record(path, Drawing)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("extra", None),
        ("word", "c"),
        ("corner", [1]),
        ("corner", [1, 2.0, 3]),
        ("corner", {"0": 1}),
        ("points", [[1]]),
        ("points", {"x": [1, 2.5]}),
        ("given", None),
        ("given", [["rate", 0.1]]),
        ("sums", {"a": True}),
        ("one", {"radius": 1.5, "kind": "circle"}),  # a default is for Python, not for files
        ("one", {"radius": -1, "name": "", "kind": "circle"}),
        ("one", {"radius": 1.5, "name": "", "kind": "square"}),
        ("shapes", [{"side": 2, "kind": "square", "area": 5}]),
        ("shapes", [{"side": 2, "kind": "square"}]),
        ("shapes", [{"side": 2, "kind": "triangle", "area": 4}]),
        ("shapes", [None]),
        ("named", [{"radius": 2.0, "name": "circle", "kind": "circle"}]),
        ("nothing", {}),
        ("nothing", False),
        ("free", {"a": {"b": [float("nan")]}}),
        ("free", {"a": 2**63}),
        ("sums", {"a": 2**63}),
    ],
)
def test_what_is_no_record(name, wrong):
    with pytest.raises(ValueError):  # noqa: PT011, the file is named where it is read
        from_json(Drawing, {**AS_JSON, name: wrong})


def test_deep_json_is_no_record():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="recursion"):
        from_json(Drawing, {**AS_JSON, "free": {"a": deep}})


def fits(value: Any, shape: Any) -> bool:
    """Return whether a value from JSON has a shape.

    A shape is a type (float: any finite number; int: not a bool), None for anything,
    `{key: shape}` for an object that has at least these keys, `{str: shape}` for an object with
    any keys, `[shape]` for a list, `(shape, shape)` for a list of exactly these members, or a set
    of permitted strings.
    """
    if shape is None:
        return True
    if isinstance(value, int) and shape in (int, float):
        return not isinstance(value, bool) and abs(value) < 2**63
    if shape is float:
        return isinstance(value, float) and math.isfinite(value)
    if isinstance(shape, type):
        return isinstance(value, shape)
    if isinstance(shape, set):
        return isinstance(value, str) and value in shape
    if isinstance(shape, tuple):
        same = isinstance(value, list) and len(value) == len(shape)
        return same and all(map(fits, value, shape))
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(member, shape[0]) for member in value)
    if not isinstance(value, dict):
        return False
    if str in shape:
        return all(fits(member, shape[str]) for member in value.values())
    return all(key in value and fits(value[key], part) for key, part in shape.items())


# Where a value lies in `AS_JSON`, with the shape that `fits` refused other values by.
PLACES = {
    ("number",): int,
    ("shown",): bool,
    ("word",): {"a", "b"},
    ("corner",): (int, float),
    ("corner", 1): float,
    ("points",): [(int, float)],
    ("points", 0, 0): int,
    ("rows",): [[int]],
    ("rows", 0, 1): int,
    ("sums",): {str: float},
    ("sums", "a"): float,
    ("free",): dict,
    ("given",): dict,
    ("one",): {"radius": float, "name": str},
    ("one", "radius"): float,
    ("one", "name"): str,
    ("named",): {str: {"radius": float, "name": str}},
    ("named", "x", "radius"): float,
}
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63), 10**400])
    | st.floats()
    | st.text(max_size=2),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=2), inside),
    max_leaves=4,
)
REMOVED = object()


@settings(max_examples=500, deadline=None)
@given(place=st.sampled_from(list(PLACES)), value=VALUES | st.just(REMOVED))
def test_what_a_shape_refused_is_refused(place, value):
    """A key that is missing, or a value of another type, anywhere in a record."""
    content = json.loads(json.dumps(AS_JSON))
    *above, last = place
    inside = content
    for step in above:
        inside = inside[step]
    if value is REMOVED:
        refused = last in AS_JSON or last in ("radius", "name")
        del inside[last]
    else:
        refused = not fits(value, PLACES[place])
        inside[last] = value
    if refused:
        with pytest.raises(ValueError):  # noqa: PT011
            from_json(Drawing, content)
