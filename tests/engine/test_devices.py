"""Starting JAX: missing platforms, debug settings, the size of XLA's thread pool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from conftest import slow_after, writing
from processes import command, facts, flags, process

import jaxmnist
from jaxmnist import Run
from jaxmnist.engine.devices import debugging_settings, pool_size
from jaxmnist.files import from_json, read_json, write_json
from jaxmnist.runs.records import Search


@pytest.mark.slow
def test_a_platform_that_is_not_there(finished, options, tmp_path):
    shutil.copytree(finished.store.path, tmp_path / "small")
    run = tmp_path / "small"
    searched = [*flags(options), "--directory", tmp_path / "new"]
    picture = Path(__file__).parents[2] / "experiments" / "screenshots" / "page-light.png"
    for platform, module, arguments in (
        ("cuda", "search", searched),
        ("tpu", "search", searched),
        ("nonsense", "search", searched),
        ("cuda", "predict", [run, picture]),
        ("tpu", "evaluate", [run]),
        ("nonsense", "svm", [run, "--svm-backend", "sklearn", "--svm-search", 1]),
    ):
        done = process(module, *arguments, env={**os.environ, "JAX_PLATFORMS": platform})
        assert done.returncode == 1, (module, done.stderr)
        assert done.stderr.count("\n") == 1
        assert f"no device to compute on with JAX_PLATFORMS={platform}: " in done.stderr
        assert "JAX_PLATFORMS=cpu" in done.stderr
    assert not (tmp_path / "new").exists()


REFUSED = [
    ("JAX_DISABLE_JIT", "1"),
    ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
    ("JAX_NUMPY_RANK_PROMOTION", "raise"),
    ("JAX_TRANSFER_GUARD", "disallow"),
]


@pytest.mark.parametrize("setting", slow_after(1, REFUSED))
def test_settings_with_which_nothing_trains(setting, options, tmp_path):
    variable, value = setting
    environment = {**os.environ, variable: value}
    done = process("search", *flags(options), "--directory", tmp_path / "new", env=environment)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"nothing can be trained with JAX's {variable.lower()}=" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_setting_that_does_no_harm(options, tmp_path):
    given = {**options, "max_trials": 1, "svm": False}
    environment = {**os.environ, "JAX_DEBUG_NANS": "1"}
    done = process("search", *flags(given), "--directory", tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_setting_that_jax_itself_refuses(options, tmp_path):
    environment = {**os.environ, "JAX_DEFAULT_DEVICE": "nonsense"}
    done = process("search", *flags(options), "--directory", tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "JAX can't be imported: " in done.stderr


@pytest.fixture
def checkout(tmp_path) -> dict[str, str]:
    """The environment of a checkout that isn't installed, beside packages that are."""
    packages, checkout = tmp_path / "packages", tmp_path / "checkout"
    packages.mkdir()
    for path in Path(os.__file__).parent, *map(Path, sys.path):
        if path.name == "site-packages":
            for entry in path.iterdir():
                if "jaxmnist" not in entry.name and not (packages / entry.name).exists():
                    (packages / entry.name).symlink_to(entry)
    shutil.copytree(Path(jaxmnist.__file__).parent, checkout / "jaxmnist")
    return {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{packages}"}


@pytest.mark.slow
def test_a_checkout_that_is_not_installed(checkout, options, tmp_path):
    given = {**options, "max_trials": 1, "svm": False}
    line = [sys.executable, "-S", "-m", "jaxmnist.search"]
    found = subprocess.run([*line, "--version"], capture_output=True, text=True, env=checkout)
    assert found.stdout == f"jaxmnist {jaxmnist.__version__}\n", found.stderr
    line += [*flags(given), "--directory", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, env=checkout, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "packages" / "jax").unlink()
    done = subprocess.run(line, capture_output=True, text=True, env=checkout, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No module named 'jax'" in done.stderr


def test_the_size_of_the_pool(monkeypatch):
    for name in ("PJRT_NPROC", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    assert pool_size() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("NPROC", "7")
    assert pool_size() == 7
    monkeypatch.setenv("PJRT_NPROC", "3")
    assert pool_size() == 3
    monkeypatch.setenv("PJRT_NPROC", "three")  # XLA ignores what isn't a number
    assert pool_size() == 7


@pytest.mark.slow
def test_a_run_that_goes_on_on_fewer_cores(options, tmp_path):
    """Trials, winner, test and SVM are those of an undisturbed run, to the bit."""
    given = {**options, "filters": "24:48:8", "conv_layers": "2", "units": "32:96:32"}
    base = {
        name: value for name, value in os.environ.items() if name not in ("PJRT_NPROC", "NPROC")
    }

    def search(folder: str, trials: int, prefix: tuple[str, ...] = (), threads: str = "2") -> Run:
        line = [*prefix, sys.executable, "-m", "jaxmnist.search", "--max-trials", str(trials)]
        line += [*flags({**given, "quiet": True}), "--directory", str(tmp_path / folder)]
        environment = {**base, **({"PJRT_NPROC": threads} if threads else {})}
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return Run(tmp_path / folder / "small")

    del given["max_trials"]
    whole = search("whole", 3)
    assert whole.store.search.threads == 2
    search("parts", 1)
    parts = search("parts", 3, prefix=("taskset", "-c", "0"), threads="")
    assert parts.store.search.threads == 2
    assert facts(parts) == facts(whole)
    for name in ("best/test_probabilities.npy", "svm/small/pipeline.safetensors"):
        wanted = (whole.store.path / name).read_bytes()
        assert (parts.store.path / name).read_bytes() == wanted
    # Another number of threads gives another run, so this test is able to fail.
    assert facts(search("one", 3, threads="1")) != facts(whole)


FORKED = """
import json, multiprocessing, os, signal, sys, warnings
import jax, numpy
given = json.loads(sys.argv[1])
matrix = numpy.ones((500, 500))
def search(what, before=lambda: None):
    signal.alarm(60)  # ends a process that hangs
    before()
    import jaxmnist  # the parent has not, at first
    from jaxmnist.engine import devices
    devices.ANSWER = 3.0
    try:
        run = jaxmnist.random_search(**given, directory=f"runs-{what}")
        print(what, "completed", len(run.trials), flush=True)
    except jaxmnist.UsageError as problem:
        print(what, problem, flush=True)
def fork(*arguments):
    if not (child := os.fork()):
        search(*arguments)
        os._exit(0)
    os.waitpid(child, 0)
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fork("before JAX starts")
    jax.devices()
    fork("after")
    given_threads = ["with threads of another library", lambda: matrix @ matrix]
    process = multiprocessing.get_context("fork").Process(target=search, args=given_threads)
    process.start()
    process.join()
    search("here")
    fork("after a search", lambda: matrix @ matrix)
    process = multiprocessing.get_context("spawn").Process(target=search, args=["spawned"])
    process.start()
    process.join()
"""


@pytest.mark.slow
def test_processes_that_are_forked(options, tmp_path):
    """A search in a child without JAX's threads would hang; others are none of that kind."""
    (tmp_path / "forked.py").write_text(FORKED)
    line = [sys.executable, "forked.py", json.dumps({**options, "max_trials": 1, "svm": False})]
    done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path)
    assert done.stderr == ""
    refused = "this process was forked after JAX had started, so JAX would hang here: use"
    wanted = {
        "before JAX starts": "completed 1",
        "after": refused,
        "with threads of another library": refused,
        "here": "completed 1",
        "after a search": refused,
        "spawned": "completed 1",
    }
    ends = done.stdout.splitlines()
    for (what, end), line in zip(wanted.items(), ends, strict=True):
        assert line.startswith(f"{what} {end}")


def test_only_settings_that_differ_are_named():
    assert debugging_settings() == ""
    try:
        jax.config.update("jax_debug_nans", True)
        jax.config.update("jax_numpy_rank_promotion", "raise")
        assert debugging_settings() == "jax_debug_nans=True, jax_numpy_rank_promotion=raise"
    finally:
        jax.config.update("jax_debug_nans", False)
        jax.config.update("jax_numpy_rank_promotion", "allow")


def notes(done) -> list[str]:
    """What a search says of results that may differ."""
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "may differ" in line]


OF_RESULTS = [
    ("XLA_FLAGS", "--xla_cpu_enable_fast_math=true", "XLA_FLAGS was not set, is now {}"),
    ("JAX_ENABLE_X64", "1", "jax_enable_x64 was False, is now True"),
]


@pytest.mark.parametrize("setting", slow_after(0, OF_RESULTS))
def test_a_setting_on_which_results_depend(setting, finished, options, tmp_path):
    """It is told when a run goes on with another one, then no more; and when it is gone again."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    variable, value, says = setting
    line = [*flags({**options, "quiet": False}), "--directory", tmp_path]
    (note,) = notes(process("search", *line, env={**os.environ, variable: value}))
    assert note.startswith(f"note: {says.format(value)}")
    assert notes(process("search", *line, env={**os.environ, variable: value})) == []
    (note,) = notes(command("search", *line))
    assert note.startswith(f"note: {says.split(' was ')[0]} was ")
    sessions = read_json(tmp_path / "small" / "search.json")["sessions"]
    assert len(sessions) == 3
    assert sessions[0] == sessions[2] != sessions[1]


# The device of a session, that of the next one, and what is said of it.
CPU = {"kind": "cpu", "devices": 1, "processor": "A", "instructions": "avx avx2 fma"}
GPU = {**CPU, "kind": "gpu NVIDIA H100"}
DEVICES = {
    "the same": (CPU, CPU, []),
    "a processor": (
        CPU,
        {**CPU, "processor": "B", "instructions": "avx"},
        ["the processor was A, is now B"],
    ),
    "its instructions": (
        CPU,
        {**CPU, "instructions": "amx_tile avx avx2"},
        ["the processor now has amx_tile and lacks fma"],
    ),
    "fewer": (CPU, {**CPU, "instructions": "avx avx2"}, ["the processor now lacks fma"]),
    "of a host": (GPU, {**GPU, "processor": "B", "instructions": "avx"}, []),
    "from a GPU": (
        GPU,
        {**CPU, "processor": "B"},
        ["the device was gpu NVIDIA H100, is now cpu"],
    ),
    "GPUs": (GPU, {**GPU, "devices": 4}, ["the number of devices was 1, is now 4"]),
    "unknown before": ({"kind": "cpu"}, CPU, []),
}


@pytest.mark.parametrize("name", DEVICES)
def test_another_device(finished, tmp_path, name):
    """What it has no effect on isn't told, and each session that differs is recorded."""
    shutil.copytree(finished.store.path, tmp_path / "small")
    before, now, told = DEVICES[name]
    path = tmp_path / "small" / "search.json"
    search = read_json(path)
    session = {**search["sessions"][0], "device": before}
    write_json(path, {**search, "device": before, "sessions": [session]})
    store = writing(tmp_path / "small")
    store.search = replace(store.search, device=now)
    lines = store.write_search()
    assert lines == [f"{line}: new results may differ" for line in told]
    recorded = [each["device"] for each in read_json(path)["sessions"]]
    assert recorded == ([before] if before == now else [before, now])


def test_lanes_that_change_results(options, tmp_path):
    """On a CPU a trial is alone unless lanes are asked for, whatever an earlier session did."""
    given = {**options, "quiet": False, "max_trials": 2, "epochs": 1, "svm": False}
    said = []
    for lanes in (None, 2, 2, None):
        more = {} if lanes is None else {"lanes": lanes}
        said += [notes(command("search", *flags({**given, **more}), "--directory", tmp_path))]
    more, fewer = "--lanes was not set, is now 2", "--lanes was 2, is now not set"
    assert said == [
        [f"note: {line}: new results may differ"] if line else [] for line in ("", more, "", fewer)
    ]


@pytest.mark.parametrize(
    ("before", "recorded", "now", "on", "told"),
    [
        (None, 32, None, "gpu", 0),
        (None, 32, 32, "gpu", 0),
        (32, 32, None, "gpu", 0),
        (None, 32, 8, "gpu", 1),
        (8, 8, 32, "gpu", 1),
        (None, 32, None, "cpu", 0),
        (32, 32, 32, "cpu", 0),
        (32, 32, None, "cpu", 1),
    ],
)
def test_lanes_on_an_accelerator(finished, tmp_path, before, recorded, now, on, told):
    """They stay as the run has recorded them, unless another number is asked for.

    On a CPU, to which the run has gone on, each trial is alone unless a number is asked for.
    """
    shutil.copytree(finished.store.path, tmp_path / "small")
    path = tmp_path / "small" / "search.json"
    search = read_json(path)

    def asked(lanes: int | None, kind: str) -> dict:
        settings = {**search["settings"], "lanes": lanes}
        return {**search, "device": {"kind": kind}, "settings": settings}

    stacking = {"way": "grouped", "lanes": recorded, "padding": {}}
    write_json(path, {**asked(before, "gpu"), "stacking": stacking})
    lines = writing(tmp_path / "small", from_json(Search, asked(now, on))).write_search()
    assert sum(line.startswith("--lanes was ") for line in lines) == told


def test_a_difference_is_told_where_jax_runs_already(finished, tmp_path):
    shutil.copytree(finished.store.path, tmp_path / "small")
    path = tmp_path / "small" / "search.json"
    before = read_json(path)
    assert before["threads"] == pool_size()
    write_json(path, {**before, "threads": before["threads"] + 5})
    (line,) = writing(tmp_path / "small", from_json(Search, before)).write_search()
    assert f"has {before['threads']} threads, but had {before['threads'] + 5} when this" in line
    assert read_json(path)["threads"] == before["threads"] + 5  # the run's original number
