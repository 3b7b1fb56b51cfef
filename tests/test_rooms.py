"""The package's layers ("rooms"): imports go one way; what each room may know."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxmnist"
# A module imports only from its own room and from rooms above it in this list.
ROOMS = (
    (
        "errors",
        "files",
        "hyperparameters",
        "machine",
        "settings",
    ),
    ("data",),
    ("runs",),
    ("models",),
    ("engine",),
    ("results",),
    ("search",),
    ("report",),
    ("api",),
    ("commands",),
)
# `filters` and `units` are common words: only their uses as hyperparameter names count. `dropout`
# is also the name of Flax's stream of random numbers, which `models/module.py` serves.
STUDY = re.compile(
    r"conv_layers|dense_layers|conv-layers|dense-layers"
    r"|[\"'](filters|units)[\"']|(?<!environment)\.(filters|units)\b|--(filters|units)\b"
    r"|\b(filters|units)=\d|kernel_size|kernel-size|[\"']dropout[\"']|--dropout"
)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its name below it: 'engine.local'."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a module imports, anywhere in it."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxmnist"):
            module = (node.module or "").removeprefix("jaxmnist").lstrip(".")
            for alias in node.names:
                below = f"{module}.{alias.name}".lstrip(".")
                yield below if below in known else module
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("jaxmnist."):
                    yield alias.name.removeprefix("jaxmnist.")


def room(name: str) -> int:
    """The place of a module's room in the order."""
    first = name.partition(".")[0]
    (found,) = (i for i, names in enumerate(ROOMS) if first in names)
    return found


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """What each module imports.

    The package itself, with the name "", exports what others use, and has the version; `__main__`
    files start commands.
    """
    return {
        name: {*imports(path)} - {""}
        for name, path in modules().items()
        if name and not name.endswith("__main__")
    }


def test_every_module_is_in_a_room(imported):
    known = {name for names in ROOMS for name in names}
    assert imported
    assert {name.partition(".")[0] for name in imported} == known


def test_imports_go_one_way(imported):
    """No module imports one that stands below it."""
    upward = [
        f"{name} imports {other}, which stands below it"
        for name, others in imported.items()
        for other in others
        if room(other) > room(name)
    ]
    assert upward == []


def test_there_is_no_circle(imported):
    left = set(imported)
    while left:
        free = {name for name in left if not (imported[name] & left) - {name}}
        assert free, f"a circle among {sorted(left)}"
        left -= free


def sources() -> list[Path]:
    """Every file of text of the package."""
    found = [p for end in ("py", "html", "css", "js") for p in PACKAGE.rglob(f"*.{end}")]
    assert found
    return found


def test_only_the_study_knows_its_hyperparameters():
    knowing = {
        str(path.relative_to(PACKAGE))
        for path in sources()
        if STUDY.search(path.read_text("utf-8"))
    }
    assert knowing == {"models/module.py", "models/study.py"}


def test_who_is_handed_all_settings():
    """Data, runs, networks and engines are handed their part, or values from it."""
    knowing = {
        path.relative_to(PACKAGE).parts[0]
        for path in sources()
        if "SearchSettings" in path.read_text("utf-8")
    }
    whole = {"api.py", "commands", "report", "results", "search"}
    assert knowing == {"__init__.py", "settings.py", *whole}


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("flax", {"models"}),
        ("jax2onnx", {"engine"}),
        ("argparse", {"commands"}),
        ("threading", {"engine", "errors.py", "machine.py", "results", "runs"}),
        ("tensorboardX", {"report"}),
        ("matplotlib", {"report"}),
        ("tensorflow_datasets", {"data"}),
    ],
)
def test_who_may_know_a_library(library, rooms):
    knowing = {
        path.relative_to(PACKAGE).parts[0]
        for path in sources()
        if re.search(rf"^\s*(import|from) {library}\b", path.read_text("utf-8"), re.MULTILINE)
    }
    assert knowing == rooms


def test_a_file_is_found_by_its_name():
    """Base names are unique, but for those of the commands and of Python itself."""
    names = [
        path.name
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "commands" and not path.name.startswith("__")
    ]
    assert len(set(names)) == len(names)
