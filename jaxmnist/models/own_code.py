"""A function `build_model` from a person's own Python file, and errors raised in such code."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import jax

from jaxmnist.errors import (
    JaxmnistError,
    Named,
    NetworkError,
    local_path,
    may_interrupt,
    one_line,
    whole_traceback,
    wrong,
)

FUNCTION = "build_model"  # unless another one is named


def load_function(given: str) -> Callable[[Any], Any]:
    """The function of `FILE` or `FILE:FUNCTION`.

    The file is run as a module of its name, which its classes and annotations can be found by; its
    folder is on Python's path, for what it imports.

    Raises `UsageError` if there is no such file or function, or if the file can't be run.
    """
    name, _, function = given.rpartition(":") if ":" in given else (given, "", FUNCTION)
    path = Path(local_path(name, Named("model"))).absolute()
    if not path.is_file():
        raise wrong("model", f"{name}: there is no such file")
    if not function.isidentifier():
        raise wrong("model", f"{given}: {function!r} is not the name of a function")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or path.suffix != ".py":
        raise wrong("model", f"{name}: must be a Python file, with a name that ends in .py")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) != str(path):
        raise wrong("model", f"{name}: a module {path.stem!r} is imported already; rename the file")
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as problem:
        if _is_ctrl_c(problem):
            raise
        sys.modules.pop(path.stem, None)
        line = problem.lineno if isinstance(problem, SyntaxError) else None
        said = f"line {line}: {one_line(problem, named=True)}" if line else located(problem)
        raise wrong("model", f"{name}: {said}") from problem
    found = getattr(module, function, None)
    if not callable(found):
        raise wrong("model", f"{name}: has no function {function}")
    checked: Callable[[Any], Any] = found
    return checked


@contextmanager
def in_own_code() -> Iterator[None]:
    """Runs a person's own code: an exception in it becomes a `NetworkError` with its line.

    Exhausted memory, and what else happens while a program runs, stays as it is.
    """
    try:
        yield
    except NetworkError as problem:
        place = _place(problem)
        if problem.traceback or not place:
            raise
        whole = whole_traceback(problem)
        raise NetworkError(f"{place}{problem}", whole) from (problem.__cause__ or problem)
    except (JaxmnistError, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except BaseException as problem:
        if _is_ctrl_c(problem):
            raise
        known = _remedy(problem)
        line = f"{located(problem)}; {known}" if known else located(problem)
        raise NetworkError(line, whole_traceback(problem)) from problem


@contextmanager
def only_exceptions() -> Iterator[None]:
    """Runs a person's own code where its exceptions are looked at: others become `NetworkError`s.

    Such as SystemExit, which nothing would hold up on its way.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as problem:
        if _is_ctrl_c(problem):
            raise
        raise NetworkError(located(problem), whole_traceback(problem)) from problem


def _is_ctrl_c(problem: BaseException) -> bool:
    """Whether a person may have stopped the program; their code may raise the same itself."""
    return isinstance(problem, KeyboardInterrupt) and may_interrupt()


def located(problem: BaseException) -> str:
    """An exception as one line that begins with the place in a person's own code."""
    return _place(problem) + one_line(problem, named=True)


def _place(problem: BaseException) -> str:
    """The last line of a person's own code before an exception was raised; '' if there is none."""
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if not _is_installed(Path(frame.filename))]
    # The standard library makes some code from text, such as the constructors of dataclasses.
    own = [frame for frame in own if frame.filename != "<string>"] or own
    if not own:
        return ""
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}, in {own[-1].name}: "


def _remedy(problem: BaseException) -> str:
    """What to do about an exception of a known kind; nothing about others."""
    if isinstance(problem, NameError) and "unbound axis name" in one_line(problem):
        return (
            "each trial trains on one device, without named axes: leave axis_name out, in"
            " BatchNorm too"
        )
    return ""


def own_modules(function: Callable[..., Any]) -> list[ModuleType]:
    """The loaded modules that a person wrote: that of a function, and those in its folder.

    Empty if the function belongs to an installed package. An environment may lie in the person's
    folder, and this package's sources too: what is installed is not theirs.
    """
    module = sys.modules.get(getattr(function, "__module__", ""))
    if module is None or not (file := getattr(module, "__file__", None)):
        return []
    folder = Path(file).parent
    return [
        other
        for name, other in sys.modules.copy().items()  # another thread may import
        if name != "__main__"
        and (place := getattr(other, "__file__", None))
        and folder in Path(place).parents
        and not _is_installed(Path(place))
    ]


def _is_installed(file: Path) -> bool:
    """Whether a module's file belongs to Python, to an installed package, or to this one."""
    paths = sysconfig.get_paths()
    installed = [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = Path(__file__).parents[1]
    within = any(file.is_relative_to(each) for each in (*installed, ours))
    return within or bool({"site-packages", "dist-packages"} & {*file.parts})
