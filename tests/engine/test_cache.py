"""Compiled programs that are cached between runs, tested in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from processes import flags

from jaxmnist.engine import devices
from jaxmnist.engine.devices import cache_folder
from jaxmnist.errors import UsageError

COMPILE = """
import sys
from jaxmnist.engine.devices import cache_folder, keep_programs
if "late" in sys.argv:
    import jax
keep_programs(cache_folder(sys.argv[1] or None))
import jax, jax.numpy as jnp

jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
loaded = []
jax.monitoring.register_event_listener(lambda event, **_: loaded.append(event))
print(jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8))))
print(loaded.count("/jax/compilation_cache/cache_hits"), jax.config.jax_compilation_cache_dir)
"""


def compile_once(given: str, *options: str, **environment: str) -> tuple[int, str]:
    """Programs that were loaded rather than compiled, and the folder that JAX kept them in."""
    names = (devices.VARIABLE, "JAX_COMPILATION_CACHE_DIR", devices.LOG_LEVEL)
    inherited = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, given, *options],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    loaded, folder = done.stdout.splitlines()[-1].split(maxsplit=1)
    return int(loaded), folder


def test_a_second_process_loads_what_the_first_compiled(tmp_path):
    assert compile_once(str(tmp_path))[0] == 0
    loaded, folder = compile_once(str(tmp_path))
    assert loaded > 0
    assert Path(folder).is_relative_to(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:100]])
def test_a_damaged_program_is_compiled_anew(tmp_path, damage):
    _, folder = compile_once(str(tmp_path))
    files = list(Path(folder).glob("*-cache"))
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert compile_once(str(tmp_path), PYTHONWARNINGS="ignore")[0] == 0


@pytest.mark.slow
def test_the_variable_and_the_default_and_off(tmp_path):
    assert Path(compile_once("", JAXMNIST_CACHE=str(tmp_path))[1]).is_relative_to(tmp_path)
    assert compile_once("off", JAXMNIST_CACHE=str(tmp_path))[1] == "None"
    assert compile_once("", JAXMNIST_CACHE="off")[1] == "None"
    if sys.platform == "linux":
        folder = compile_once("", XDG_CACHE_HOME=str(tmp_path / "home"))[1]
        assert Path(folder).is_relative_to(tmp_path / "home" / "jaxmnist")


@pytest.mark.slow
def test_the_users_own_settings_win(tmp_path):
    own = str(tmp_path / "own")
    assert compile_once(str(tmp_path), JAX_COMPILATION_CACHE_DIR=own)[1] == own
    assert compile_once(str(tmp_path), JAX_ENABLE_COMPILATION_CACHE="false")[1] == "None"


def test_where_jax_is_there_already_nothing_is_kept_for_a_cpu(tmp_path):
    """XLA would fill the terminal with complaints."""
    assert compile_once(str(tmp_path), "late")[1] == "None"


@pytest.fixture
def without_cache():
    """No cache of JAX's: that of the tests would be taken for the user's own."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("without_cache")
def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"can't keep compiled programs: .* for cache, or off"):
        devices.keep_programs(cache_folder(str(tmp_path / "file")), wanted=True)
    # The default folder was not asked for: the search continues without a cache.
    assert "note: " in devices.keep_programs(cache_folder(str(tmp_path / "file")))


def test_processors_have_folders_of_their_own(tmp_path, monkeypatch):
    here = cache_folder(str(tmp_path))
    monkeypatch.setattr(devices, "processor", lambda: "another")
    assert cache_folder(str(tmp_path)) != here


def test_old_programs_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "MOST_BYTES", 250)
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000))
    devices._drop_oldest(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.slow
def test_a_home_that_cannot_be_written_costs_only_the_cache(options, tmp_path):
    given = {**options, "max_trials": 1, "svm": False, "report": True, "tensorboard": True}
    del given["quiet"]
    line = [sys.executable, "-m", "jaxmnist.search", *flags(given), "--directory", str(tmp_path)]
    left_out = ("JAXMNIST_CACHE", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR")
    environment = {name: text for name, text in os.environ.items() if name not in left_out}
    environment["HOME"] = "/dev/null"  # not even root can make a folder there
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("note: /dev/null/") == 1
    assert "can't keep compiled programs" in done.stdout
    assert done.stderr == ""
    wanted = [*line, "--cache", "/dev/null/cache", "--overwrite"]
    done = subprocess.run(wanted, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "can't keep compiled programs" in done.stderr
    assert done.stderr.count("\n") == 1
