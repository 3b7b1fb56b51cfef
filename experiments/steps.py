"""Training speed compared with peers: steady images per second of the whole machine."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from measure import (
    ONE_A_CORE,
    ONE_PROCESS,
    PEERS,
    Peer,
    PeerFailed,
    alternate,
    described,
    geometric_mean,
    last_json,
    processors,
    run_together,
    spread,
)
from peers.task import Task

from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import count_parameters

OURS = "jaxmnist"
MNIST = DataSpec((28, 28, 1), 10)
FASTEST = "the fastest peer of each"
# filters-conv_layers-dense_layers-units
CONFIGURATIONS = {
    "112-2-1-224": Task(112, 2, 1, 224),
    "64-3-1-128": Task(64, 3, 1, 128),
    "32-1-0": Task(32, 1, 0, None, images=51_200),
}
_TENSORFLOW, _JAX = ("keras", "tensorflow"), ("keras", "jax")
STEP_PEERS = {
    OURS: Peer("jaxmnist_engine.py", arrangements=(ONE_PROCESS,), elsewhere=False),
    "plain Flax loop": Peer("plain_flax.py", elsewhere=False),
    "Keras on TensorFlow": Peer("keras_fit.py", ("tensorflow", "default"), _TENSORFLOW),
    "Keras on TensorFlow, 16 steps an execution": Peer(
        "keras_fit.py", ("tensorflow", "steps"), _TENSORFLOW
    ),
    "Keras on TensorFlow, 16 steps an execution, jit_compile": Peer(
        "keras_fit.py", ("tensorflow", "steps-xla"), _TENSORFLOW
    ),
    "Keras on JAX": Peer("keras_fit.py", ("jax", "default"), _JAX),
    "Keras on JAX, 16 steps an execution": Peer("keras_fit.py", ("jax", "steps-xla"), _JAX),
    "PyTorch": Peer("pytorch.py", ("default",), ("torch",), "pip install torch"),
    "PyTorch, channels last, fused Adam": Peer(
        "pytorch.py", ("tuned",), ("torch",), "pip install torch"
    ),
}


def hyperparameters(task: Task) -> Hyperparameters:
    """Those of the task."""
    return configuration(task.filters, task.conv_layers, task.dense_layers, task.units or 0)


def training_flops(hyperparameters: Hyperparameters) -> int:
    """FLOPs of training on one MNIST image, its convolutions computed directly.

    A multiplication and an addition for each weight and output position, three times: forward,
    for the gradient of the weights, and, but for the first layer, for that of its inputs.
    """
    bound = STUDY.bind(hyperparameters, MNIST)
    weighted = [row for row in bound.layers if row.parameters]
    kernels = [bound.shapes["params"][row.name]["kernel"] for row in weighted]
    passes = [2] + [3] * (len(weighted) - 1)
    return sum(
        2 * count * math.prod(row.output_shape[:-1]) * math.prod(kernel.shape)
        for count, row, kernel in zip(passes, weighted, kernels, strict=True)
    )


def steady_rate(moments: list[list[float]], images: int) -> float:
    """Images a second of all trials together, while all of them are past their first epoch.

    Where they hardly overlap, each counts in its own time.

    Args:
      moments: of each trial: its beginning and the end of each epoch.
      images: of an epoch.
    """
    ends = [np.asarray(trial[1:]) for trial in moments]
    began, ended = max(trial[0] for trial in ends), min(trial[-1] for trial in ends)
    if ended - began < max(np.diff(trial).max() for trial in ends):
        return sum(images * (len(trial) - 1) / (trial[-1] - trial[0]) for trial in ends)
    epochs = [np.diff(np.interp([began, ended], t, np.arange(len(t))))[0] for t in ends]
    return float(images * sum(epochs) / (ended - began))


def measure(peer: Peer, task: Task, arrangement: str, python: str) -> dict[str, Any]:
    """One run of a peer; raises `PeerFailed`, also where its network isn't the task's."""
    script = [python if peer.elsewhere else sys.executable, str(PEERS / peer.script)]
    command = [*script, json.dumps(asdict(task)), *peer.arguments]
    pinned = arrangement == ONE_A_CORE
    outputs, _ = run_together([command] * (len(processors()) if pinned else 1), pinned)
    answers = [last_json(output) for output in outputs]
    expected = count_parameters(STUDY.bind(hyperparameters(task), MNIST).layers)
    for answer in answers:
        if answer["parameters"] != expected:
            raise PeerFailed(f"learns {answer['parameters']} parameters, not {expected}")
    trials = [moments for answer in answers for moments in answer["moments"]]
    compiling = [
        trial[1] - trial[0] - (trial[-1] - trial[1]) / (len(trial) - 2) for trial in trials
    ]
    return {
        "images_per_second": steady_rate(trials, task.images),
        "compile_seconds": max(compiling),
        "import_seconds": max(answer["import_seconds"] for answer in answers),
        "loss": statistics.mean(losses[-1] for a in answers for losses in a["losses"]),
        "accuracy": statistics.mean(rates[-1] for a in answers for rates in a["accuracies"]),
        "versions": answers[0]["versions"],
    }


def compare(
    configurations: list[str], names: list[str], rounds: int, images: int | None, python: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """All measurements: a row for each configuration, peer and arrangement.

    Also returns a line for each that failed.
    """
    tasks = {name: CONFIGURATIONS[name] for name in configurations}
    if images is not None:
        tasks = {name: replace(task, images=images) for name, task in tasks.items()}

    def one(configuration: str, name: str, arrangement: str) -> dict[str, Any]:
        # By default jaxmnist trains several trials at once in one process.
        at_once = len(processors()) if name == OURS else 1
        task = replace(tasks[configuration], trials=at_once)
        return measure(STEP_PEERS[name], task, arrangement, python)

    cases = [(c, p, a) for c in tasks for p in names for a in STEP_PEERS[p].arrangements]
    results, failed = alternate(cases, rounds, one, "images_per_second")
    return [row(case, tasks[case[0]], found) for case, found in results.items()], failed


def row(case: tuple[str, ...], task: Task, results: list[dict[str, Any]]) -> dict[str, Any]:
    """What the rounds of one case come to."""
    rates = [result["images_per_second"] for result in results]
    medians = {
        key: statistics.median(result[key] for result in results)
        for key in ("import_seconds", "compile_seconds", "loss", "accuracy")
    }
    return {
        "configuration": case[0],
        "peer": case[1],
        "arrangement": case[2],
        "images_per_second": spread(rates),
        "rounds": rates,
        **medians,
        "images": task.images,
        "epochs": task.epochs,
        "batch_size": task.batch_size,
        "flops_per_image": training_flops(hyperparameters(task)),
        "versions": results[0]["versions"],
    }


def add_ratios(rows: list[dict[str, Any]], peak_gflops: float) -> None:
    """Give each row the fraction of the peak, and jaxmnist's rate over its own."""
    ours = {r["configuration"]: r["images_per_second"]["median"] for r in rows if r["peer"] == OURS}
    for r in rows:
        rate = r["images_per_second"]["median"]
        r["fraction_of_peak"] = rate * r["flops_per_image"] / (peak_gflops * 1e9)
        r["ratio"] = ours[r["configuration"]] / rate if r["configuration"] in ours else None


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over the configurations of jaxmnist's ratio to each peer.

    A row for each peer, and a last one for the fastest peer of each configuration: `default` is the
    ratio to its one process on all cores, `better` to the better of that and a process a core.
    """
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for r in rows:
        if r["ratio"] is not None and r["peer"] != OURS:
            for name in (r["peer"], FASTEST):
                found = ratios.setdefault(name, {}).setdefault(r["configuration"], {})
                lowest = min(r["ratio"], found.get(r["arrangement"], math.inf))
                found[r["arrangement"]] = lowest
    order = sorted(ratios, key=lambda name: name == FASTEST)
    return [
        {
            "peer": name,
            "configurations": list(ratios[name]),
            "default": geometric_mean(
                found[ONE_PROCESS] for found in ratios[name].values() if ONE_PROCESS in found
            ),
            "better": geometric_mean(min(found.values()) for found in ratios[name].values()),
        }
        for name in order
    ]


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The comparison as text: the table, who was faster, the geometric means, the versions."""
    yield (
        "| configuration | peer | images/s (lowest to highest) | jaxmnist / it | of the peak "
        "| import | compile |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for r in rows:
        rate = r["images_per_second"]
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        yield (
            f"| {r['configuration']} | {r['peer']}, {r['arrangement']} "
            f"| {rate['median']:.0f} ({rate['lowest']:.0f} to {rate['highest']:.0f}) | {ratio} "
            f"| {r['fraction_of_peak']:.2f} | {r['import_seconds']:.1f} s "
            f"| {r['compile_seconds']:.1f} s |"
        )
    summary = summarise(rows)
    if summary:
        yield "\n| geometric mean, jaxmnist / it | one process | the better arrangement | over |"
        yield "| --- | --- | --- | --- |"
    for s in summary:
        means = f"{s['default']:.2f} | {s['better']:.2f}"
        yield f"| {s['peer']} | {means} | {', '.join(s['configurations'])} |"
    yield ""
    for r in rows:
        if r["ratio"] is not None and r["ratio"] < 1:
            case = f"{r['configuration']}: {r['peer']}, {r['arrangement']}"
            yield f"Faster than jaxmnist: {case}, by {1 / r['ratio']:.2f}"
    for name, versions in {r["peer"]: r["versions"] for r in rows}.items():
        yield f"{name}: {described(versions)}"
