"""Training on a Ray cluster: real raylets on this machine, killed for real."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest
from processes import facts, flags, process
from raylets import Raylets

from jaxmnist import EnvironmentFailure, Run, UsageError, random_search
from jaxmnist.engine.cluster import Node, node_of, refusal
from jaxmnist.engine.devices import check_ray
from jaxmnist.engine.ray import together
from jaxmnist.machine import Machine
from jaxmnist.models.own_code import load_function, own_modules
from jaxmnist.runs.records import ModelReport

OWN = """
import flax.linen as nn
from helpers import HIDDEN


def build_model(hp):
    return nn.Sequential([
        lambda x: x.reshape(x.shape[0], -1),
        nn.Dense(hp.Int("width", 8, 32, step=8)),
        nn.relu,
        nn.Dense(HIDDEN),
        nn.relu,
        nn.Dense(hp.classes),
    ])
"""

OTHER_VERSION = """
from importlib import metadata

found = metadata.version
metadata.version = lambda name: "9.9" if name == "jaxmnist" else found(name)
"""

DEADLY = """
import importlib.abc, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "jaxmnist.engine.ray":
            with open({file!r}, "a") as file:
                file.write("died\\n")
            os._exit(1)

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def cluster():
    with Raylets() as raylets:
        raylets.add("a")
        raylets.add("b")
        yield raylets


@pytest.fixture(scope="module")
def long(options) -> dict:
    """A search whose trials take some seconds each."""
    return {**options, "epochs": 60, "checkpoint_every": 0, "svm": False, "max_trials": 3}


@pytest.fixture(scope="module")
def undisturbed(long, tmp_path_factory) -> Run:
    """What the long search finds on this machine alone."""
    folder = tmp_path_factory.mktemp("alone")
    return random_search(**{**long, "quiet": True}, directory=str(folder))


def start(options: dict, folder: Path, *more: str) -> subprocess.Popen:
    given = {name: value for name, value in options.items() if name != "quiet"}
    line = [sys.executable, "-m", "jaxmnist", "search", "--directory", str(folder), *flags(given)]
    return subprocess.Popen(
        [*line, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 90) -> None:
    """Wait for something that a running search does."""
    ends = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends, process.kill() or process.communicate()
        time.sleep(0.05)


def end(process: subprocess.Popen, seconds: float = 150) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=seconds)
    return process.returncode, output, errors


def records(folder: Path) -> list[dict]:
    paths = sorted(folder.glob("small/trials/*/trial.json"))
    return [json.loads(path.read_text()) for path in paths]


def checkpoints(folder: Path) -> list[Path]:
    return list(folder.glob("small/trials/*/checkpoint.*"))


def test_histories_equal_those_of_one_machine(cluster, options, finished, tmp_path, said):
    run = random_search(**options, directory=str(tmp_path), ray=cluster.address)
    assert facts(run) == facts(finished)
    for name in ("accuracy", "confusion_matrix"):
        theirs, ours = (each.result("best/test.json", ModelReport) for each in (finished, run))
        assert getattr(ours, name) == getattr(theirs, name)
    host = socket.gethostname()
    assert {trial.node for trial in run.trials} == {host, f"{host}-2"}
    assert {trial.device for trial in run.trials} == {"cpu"}
    assert f"trials run on node {host} (1 core)" in said


def test_variables_on_which_results_depend_reach_the_nodes(cluster, options, finished, tmp_path):
    environment = {**os.environ, "JAX_ENABLE_X64": "1"}
    found = []
    for name, more in (("here", []), ("nodes", ["--ray", cluster.address])):
        line = [*flags({**options, "max_trials": 1, "svm": False}), *more]
        done = process("search", *line, "--directory", tmp_path / name, env=environment)
        assert done.returncode == 0, done.stderr
        found.append(Run(tmp_path / name / "small").trials[0].history)
    assert found[0] == found[1] != finished.trials[0].history


def test_a_network_of_ones_own_needs_no_file_on_the_nodes(cluster, options, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "own_network.py").write_text(OWN)
    (folder / "helpers.py").write_text("HIDDEN = 12\n")
    study = ("filters", "conv_layers", "dense_layers", "units")
    given = {name: value for name, value in options.items() if name not in study}
    given |= {"max_trials": 3, "svm": False}
    found = []
    for more in ([], ["--ray", cluster.address]):
        model = ["--model", str(folder / "own_network.py")]
        status, _, errors = end(start(given, tmp_path / f"runs{len(found)}", *model, *more))
        assert status == 0, errors
        found.append(Run(tmp_path / f"runs{len(found)}" / "small"))
    assert facts(found[0]) == facts(found[1])
    assert all(trial.status == "completed" for trial in found[1].trials)


def test_lanes_reruns_and_a_limit_of_time(cluster, options, tmp_path):
    given = {**options, "max_trials": 3, "svm": False, "ray": cluster.address}
    run = random_search(**given, lanes=2, finalists=2, reruns=1, directory=str(tmp_path / "reruns"))
    assert [trial.status for trial in run.trials] == ["completed"] * 3
    assert len(run.ranking.finals) == 2
    short = {**options, "max_seconds": 0.01, "svm": False, "ray": cluster.address}
    run = random_search(**short, directory=str(tmp_path / "short"))
    assert 1 <= len(run.ranking.ranked) < 4


def test_a_worker_that_is_killed_is_counted(cluster, long, undisturbed, tmp_path):
    until_gone(cluster)
    process = start({**long, "max_trials": 1}, tmp_path, "--ray", cluster.address)
    # It trains: a worker that dies before its trial starts doesn't count.
    until(lambda: checkpoints(tmp_path) and cluster.workers(), process)
    (worker,) = cluster.workers()
    os.kill(worker, signal.SIGKILL)
    status, output, errors = end(process)
    assert status == 0, errors
    assert "has died; the trial is tried again later" in output
    assert facts(Run(tmp_path / "small")) == facts(undisturbed)[:1]
    assert [record["attempts"] for record in records(tmp_path)] == [2]


def test_ctrl_c_keeps_the_running_trials(cluster, long, tmp_path):
    """Their state comes although no checkpoint was due."""
    given = {**long, "checkpoint_every": 600, "epochs": 5000, "max_trials": 2}
    process = start(given, tmp_path, "--ray", cluster.address)
    until(lambda: sum(r["status"] == "running" for r in records(tmp_path)) == 2, process)
    process.send_signal(signal.SIGINT)
    status, _, errors = end(process)
    assert status == 130, errors
    assert len(checkpoints(tmp_path)) == 2
    assert {record["attempts"] for record in records(tmp_path)} == {0}
    until_gone(cluster)


def test_a_search_that_is_killed_leaves_no_process_and_goes_on(
    cluster, long, undisturbed, tmp_path
):
    process = start(long, tmp_path, "--ray", cluster.address)
    until(lambda: checkpoints(tmp_path), process)
    process.kill()
    end(process)
    until_gone(cluster)
    status, _, errors = end(start(long, tmp_path, "--ray", cluster.address))
    assert status == 0, errors
    assert facts(Run(tmp_path / "small")) == facts(undisturbed)


def until_gone(cluster: Raylets) -> None:
    """Wait until no task runs and no process speaks with the cluster."""
    ends = time.monotonic() + 30
    while cluster.workers() or beside():
        assert time.monotonic() < ends, (cluster.workers(), beside())
        time.sleep(0.1)


def beside() -> list[str]:
    """The processes that speak with a cluster, of searches that were started here."""
    # The worker of pytest-xdist, which may run other tests of clusters beside these.
    own = f"PYTEST_XDIST_WORKER={os.environ.get('PYTEST_XDIST_WORKER')}\0".encode()
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            there = b"jaxmnist.engine.cluster" in path.read_bytes()
            if there and (alone or own in path.with_name("environ").read_bytes()):
                found.append(path.parent.name)
    return found


@pytest.mark.slow
def test_nodes_come_and_go_and_the_head_is_lost(long, undisturbed, tmp_path):
    """A node is out of reach, a late one is killed, another goes on; then the head is killed."""
    health = {f"RAY_health_check_{name}": "1000" for name in ("period_ms", "timeout_ms")}
    with Raylets(RAY_health_check_failure_threshold="2", **health) as raylets:
        raylets.add("first")
        process = start(long, tmp_path / "node", "--ray", raylets.address)
        until(lambda: checkpoints(tmp_path / "node"), process)
        raylets.freeze("first")
        raylets.add("late")
        late = f"{socket.gethostname()}-2"
        until(lambda: late in {record["node"] for record in records(tmp_path / "node")}, process)
        raylets.kill("late")
        raylets.add("another")
        status, output, errors = end(process)
        assert status == 0, errors
        assert output.count("is lost; the trial goes on elsewhere from its last checkpoint") == 2
        assert facts(Run(tmp_path / "node" / "small")) == facts(undisturbed)
        assert {record["attempts"] for record in records(tmp_path / "node")} == {1}
        assert {record["deaths"] for record in records(tmp_path / "node")} == {0}

        process = start(long, tmp_path / "head", "--ray", raylets.address)
        until(lambda: checkpoints(tmp_path / "head"), process)
        raylets.kill("head")
        status, output, errors = end(process)
        assert status == 1
        assert len(errors.splitlines()) == 1, errors
        assert f"the head of the Ray cluster at {raylets.address} is lost" in errors
    status, output, errors = end(start(long, tmp_path / "head"))
    assert status == 0, errors
    assert facts(Run(tmp_path / "head" / "small")) == facts(undisturbed)


@pytest.mark.slow
def test_nothing_free_and_nodes_that_may_not_train(options, tmp_path):
    # Ray gives workers the search's own sys.path, so that another version can't just be installed.
    (tmp_path / "sitecustomize.py").write_text(OTHER_VERSION)
    with Raylets(PYTHONPATH=str(tmp_path)) as raylets:
        process = start(options, tmp_path, "--ray", raylets.address)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "waiting for a node that can train" in line:
                raylets.add("other")
        status, _, errors = end(process)
        assert len([line for line in lines if "waiting" in line]) == 1
        assert status == 1
        assert "it has jaxmnist 9.9, and this machine has" in errors
        assert len(errors.splitlines()) == 1, errors


@pytest.mark.slow
def test_a_node_whose_processes_die_before_they_train_is_not_used(options, tmp_path):
    """After three of them, as a trial can't be to blame that had not begun."""
    died = tmp_path / "died"
    (tmp_path / "sitecustomize.py").write_text(DEADLY.format(file=str(died)))
    with Raylets(PYTHONPATH=str(tmp_path)) as raylets:
        raylets.add("deadly")
        status, output, errors = end(start(options, tmp_path, "--ray", raylets.address))
    assert status == 1, output
    assert died.read_text() == "died\n" * 3
    assert "is not used: its processes die before they train" in errors
    assert len(errors.splitlines()) == 1, errors
    assert {record["deaths"] for record in records(tmp_path)} <= {0}


@pytest.mark.slow
def test_nothing_is_imported_beside_ray(options, tmp_path):
    given = {**options, "ray": "127.0.0.1:1", "directory": str(tmp_path)}
    script = f"""
import sys
from jaxmnist import EnvironmentFailure, random_search
from jaxmnist.results import evaluation

evaluation.prepare = lambda: print("before the thread:", "ray.cloudpickle" in sys.modules)
try:
    random_search(**{given!r})
except EnvironmentFailure as failure:
    print(failure)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "before the thread: True\n" in ended.stdout
    assert "no Ray cluster answers at 127.0.0.1:1" in ended.stdout


def test_a_cluster_in_use_is_waited_for(cluster, options, tmp_path):
    holding = f"""
import ray, sys
ray.init(address={cluster.address!r}, log_to_driver=False)
free = [ray.remote(num_cpus=1)(lambda: __import__("time").sleep(600)).remote() for _ in range(2)]
while ray.available_resources().get("CPU"):
    pass
print("holding", flush=True)
sys.stdin.read()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    other = subprocess.Popen([sys.executable, "-c", holding], text=True, **pipes)
    assert other.stdout.readline() == "holding\n"
    given = {**options, "max_trials": 2, "svm": False}
    process = start(given, tmp_path, "--ray", cluster.address)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "waiting: everything is in use on the nodes" in line:
            other.communicate("")
    status, _, errors = end(process)
    assert (status, errors) == (0, "")
    assert len([line for line in lines if "waiting" in line]) == 1


def test_a_node_with_a_gpu_needs_jax_for_it(cluster, options, tmp_path):
    cluster.add("graphics", num_cpus=1, num_gpus=2)
    status, _, errors = end(start(options, tmp_path, "--ray", cluster.address))
    cluster.kill("graphics")
    assert status == 1
    assert "JAX finds no GPU that Ray says is there" in errors


@pytest.mark.slow
def test_addresses_at_which_no_cluster_answers(options, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(EnvironmentFailure, match=f"no Ray cluster answers at {nobody}: .*refused"):
        random_search(**options, directory=str(tmp_path), ray=nobody)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EnvironmentFailure, match=f"no Ray cluster answers at {address}"):
            random_search(**options, directory=str(tmp_path), ray=address)


def test_addresses_that_are_none(options, tmp_path, monkeypatch):
    """They are refused before anything is trained."""
    for wrong in ("ray://head:10001", "head", "head:", "head:70000", ""):
        with pytest.raises(UsageError, match="host:port"):
            check_ray(wrong)
    with pytest.raises(UsageError, match="host:port"):
        random_search(**options, directory=str(tmp_path), ray="head")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr("jaxmnist.engine.devices.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'ray>=2\.60'"):
        check_ray("auto")
    with pytest.raises(UsageError, match="jobs is for one machine"):
        random_search(**options, directory=str(tmp_path), ray="auto", jobs=2)


def test_events_that_come_in_quick_succession_travel_together():
    now = 0.0
    coming = [
        (0.0, "TrialStarted", 0),
        (0.1, "TrialCompiled", 0),
        (0.05, "EpochFinished", 0),
        (0.3, "StepsFinished", 0),
        (0.01, "Checkpoint", 9_000_000),
        (0.01, "TrialFinished", 0),
        (0.01, "TrialStarted", 0),
    ]

    def take(patience):
        nonlocal now
        if not coming:
            raise StopIteration
        seconds, name, size = coming[0]
        if patience is not None and patience < seconds:
            now += patience
            coming[0] = (seconds - patience, name, size)
            return None
        now += seconds
        coming.pop(0)
        return name, 0, bytes(size)

    found = []
    for each in together(take, lambda: now):
        found.append((round(now, 2), [name for name, _, _ in each]))
    assert found == [
        (0.0, ["TrialStarted"]),
        (0.2, ["TrialCompiled", "EpochFinished"]),
        (0.45, ["StepsFinished"]),
        (0.46, ["Checkpoint"]),
        (0.48, ["TrialFinished", "TrialStarted"]),
    ]


def test_what_is_installed_is_not_a_persons_own(tmp_path, monkeypatch):
    """Also where the environment, and this package, lie in the folder of the person's file."""
    (tmp_path / "beside_it.py").write_text("")
    (tmp_path / "its_network.py").write_text("import beside_it\ndef build_model(hp): pass\n")
    function = load_function(str(tmp_path / "its_network.py"))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = {sys.modules[name] for name in ("its_network", "beside_it")}
    assert {*own_modules(function)} == own
    # A file at the root of the file system has every module below it.
    monkeypatch.setattr(sys.modules["its_network"], "__file__", "/its_network.py")
    found = {module.__name__.partition(".")[0] for module in own_modules(function)}
    assert {"its_network", "beside_it"} <= found
    assert not found & {"jaxmnist", "jax", "flax", "numpy", "json", "pytest", "subprocess"}
    assert own_modules(json.dumps) == []


def described(host: str = "vm", **resources: float) -> dict:
    return {"NodeID": "1", "NodeManagerHostname": host, "Resources": resources}


def test_what_a_node_trains():
    assert node_of(described(CPU=4.0, memory=1e9), []) == Node("1", "vm", "CPU", 4)
    assert node_of(described(CPU=8.0, GPU=2.0), ["vm", "vm-2"]) == Node("1", "vm-3", "GPU", 2)
    assert node_of(described(CPU=8.0, TPU=4.0), []) == Node("1", "vm", "TPU", 1, 4.0)
    assert node_of(described(memory=1e9), []) is None
    assert node_of(described(CPU=0.0), []) is None
    core, gpu = Node("1", "a", "CPU", 4), Node("2", "b", "GPU", 2)
    assert [core.trials(waiting, 6, None) for waiting in (1000, 100, 47, 1)] == [16, 4, 1, 1]
    assert core.trials(1000, 6, None, consecutive=True) == 1
    assert core.trials(100, 6, 4) == 4
    # Two GPUs and nothing else: shares halve until they are one.
    waiting, shares = 100, []
    while waiting:
        shares.append(min(waiting, gpu.trials(waiting, 2, None)))
        waiting -= shares[-1]
    assert shares[:4] == [25, 19, 14, 11]
    assert shares[-1] == 1
    assert gpu.trials(1000, 2, None) == 32


def test_nodes_with_other_versions_are_refused():
    own = Machine({"jaxmnist": "0.1", "jax": "0.10.1", "flax": "0.12"}, "x")
    assert refusal("b", Machine(dict(own.versions), "another"), own) is None
    without = Machine({"jaxmnist": None, "jax": None, "flax": None}, "x")
    assert "jaxmnist is not installed" in str(refusal("b", without, own))
    for changed, says in (("0.9.0", "it has jax 0.9.0"), (None, "it has no jax")):
        node = Machine({**own.versions, "jax": changed}, "x")
        assert says in str(refusal("b", node, own))


def test_modules_are_imported_while_they_are_listed():
    """Another thread may import at any moment; here Python's own clean-up does."""
    names = [f"imported_meanwhile_{number}" for number in range(20)]
    left = iter(names)

    def load(phase: str, info: dict) -> None:
        if name := next(left, None):
            sys.modules[name] = ModuleType("meanwhile")

    before = gc.get_threshold()
    gc.callbacks.append(load)
    gc.set_threshold(1)
    try:
        assert own_modules(json.dumps) == []
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(load)
        for name in names:
            sys.modules.pop(name, None)
    assert next(left, None) is None  # it did happen
