"""Whatever a person's own file raises is one line that names its place; Ctrl-C stays Ctrl-C."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import slow_after
from processes import Ended, command, flags, process

from jaxmnist.errors import NetworkError, one_line, signals, signals_call, whole_traceback
from jaxmnist.models.own_code import in_own_code

# `rest` is how many calls, of PLACE alone, go well before all raise.
FILE = """\
import signal
import flax.linen as nn
rest = {rest}
class Quiet(Exception):
    def __str__(self):
        raise KeyboardInterrupt
    __repr__ = __str__
def reached(place):
    global rest
    rest -= place == "{place}"
    if rest < 0:
        {raises}
reached("file")
class Net(nn.Module):
    width: int
    @nn.compact
    def __call__(self, x):
        reached("module")
        return nn.Dense(10)(nn.Dense(self.width)(x.reshape(len(x), -1)))
def build_model(hp):
    reached("function")
    return Net(hp.Int("width", 2, 3))
"""
RAISED = ["Quiet", "KeyboardInterrupt", "GeneratorExit", "SystemExit"]
PLACES = ["file", "function", "module"]


@pytest.fixture
def search(options, tmp_path):
    """Searches with a network whose file raises; a line of code, its place, and calls before."""

    def run(raises: str, place: str, rest: int = 0, run=command) -> Ended:
        (tmp_path / "net_that_raises.py").write_text(
            FILE.format(raises=raises, place=place, rest=rest)
        )
        studys = ("filters", "conv_layers", "dense_layers", "units")
        given = {name: value for name, value in options.items() if name not in studys}
        given |= {"max_trials": 2, "epochs": 1, "svm": False}
        return run("search", *flags(given), "--model", "net_that_raises.py", cwd=tmp_path)

    return run


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("raised", slow_after(1, RAISED))
def test_what_is_no_ordinary_exception(search, tmp_path, raised, place):
    done = search(f"raise {raised}", place)
    assert done.returncode == 2
    assert done.stderr.startswith("jaxmnist: ")
    assert done.stderr.endswith(f"net_that_raises.py, line 12, in reached: {raised}\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("rest", slow_after(1, [20, *range(1, 32, 3)]))
def test_what_is_raised_later(search, tmp_path, rest):
    """Wherever the module is called again: in a trial's thread, or when all are done."""
    done = search("raise GeneratorExit", "module", rest)
    assert done.returncode in (1, 2)
    assert done.stderr.endswith("net_that_raises.py, line 12, in reached: GeneratorExit\n")
    assert done.stderr.count("\n") == 1
    for path in tmp_path.glob("runs/*/trials/*/error.txt"):
        assert path.read_text().endswith("GeneratorExit\n")


@pytest.mark.parametrize("place", slow_after(1, PLACES))
def test_a_command_that_is_stopped_in_a_file(search, place):
    """By a signal: Ctrl-C is a signal, and an exception that code raises is not."""
    done = search("signal.raise_signal(signal.SIGINT)", place, run=process)
    assert done.returncode == 130
    assert done.stderr == "jaxmnist: stopped by SIGINT; the same command goes on from here\n"


def interrupted() -> None:
    with in_own_code():
        raise KeyboardInterrupt


def test_ctrl_c_in_a_session_of_python():
    """It ends what the person runs; in a trial's thread, or in a command, nothing can raise it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), in_own_code():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), signals_call(lambda: None):
        interrupted()
    with ThreadPoolExecutor(1) as thread, pytest.raises(NetworkError):
        thread.submit(interrupted).result()
    for context in (signals(), signals_call(lambda: None)):
        with pytest.raises(NetworkError), signals(), context:
            interrupted()


def test_an_exception_that_cannot_be_printed():
    class Quiet(Exception):
        def __str__(self) -> str:
            raise SystemExit

        __repr__ = __str__

    try:
        raise Quiet
    except Quiet as problem:
        assert one_line(problem) == one_line(problem, named=True) == "Quiet"
        assert f"{Path(__file__).name}" in whole_traceback(problem)
