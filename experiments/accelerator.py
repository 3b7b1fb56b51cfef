"""A search of the whole space on one GPU or TPU, compared with Keras on JAX on the same device.

One call measures the following, one after the other, each in its own process with empty caches:

- the matrix-product peak of the device in float32 (as JAX computes it by default) and bfloat16;
- a search of the whole space, compiling included, then the same again with the programs that the
  first one cached; the fraction of the peak, counted in FLOPs of direct convolutions;
- a sample of its configurations trained one after another by Keras on JAX and by the plain Flax
  loop, compiling included, scaled up to all configurations of the search;
- for each precision, time and validation accuracy of the same trials.

    python experiments/accelerator.py --json accelerator.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import (
    PEERS,
    PeerFailed,
    last_json,
    matrix_product_peak,
    present,
    run_together,
)
from peers.task import Task
from steps import STEP_PEERS, training_flops

import jaxmnist
from jaxmnist.engine.lanes import Stacking, group_trials
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.machine import machine
from jaxmnist.models.study import HELP
from jaxmnist.settings import PRECISIONS, SearchSettings
from jaxmnist.settings import flag as flag_of

ONE_AT_A_TIME = ("Keras on JAX", "plain Flax loop")


def search(settings: SearchSettings, cache: str) -> dict[str, Any]:
    """One run of the command: its time, its stacking, its scores."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jaxmnist.search", "--no-svm", "--no-report"]
        for flag, value in (
            ("--directory", folder),
            ("--cache", cache),
            ("--max-trials", settings.selection.max_trials),
            ("--epochs", settings.training.epochs),
            ("--train-limit", settings.data.train_limit),
            ("--precision", settings.training.precision),
            ("--lanes", settings.running.lanes),
            *((flag_of(name), given) for name, given in settings.ranges.items()),
        ):
            if value is not None:
                command += [flag, str(value)]
        outputs, seconds = run_together([command])
        run = jaxmnist.Run(Path(folder) / "mnist")
        description = json.loads((Path(folder) / "mnist" / "search.json").read_text())
        trials = [trial for trial in run.trials if trial.status == "completed"]
    stacking = Stacking(**description["stacking"]) if description["stacking"] else Stacking()
    devices = description["device"]["devices"]
    groups = group_trials(((t.key, t.hyperparameters) for t in trials), stacking, devices)
    images = description["data"]["train"]
    flops = (
        sum(training_flops(t.hyperparameters) for t in trials) * images * settings.training.epochs
    )
    return {
        "seconds": seconds,
        "stages": [line for line in outputs[0].splitlines() if " s in all" in line],
        "stacking": asdict(stacking),
        "measured": [line for line in outputs[0].splitlines() if line.startswith("training ")],
        "programs": len({group.program for group in groups}),
        "completed": len(trials),
        "training_images": images,
        "teraflops": flops / 1e12,
        "scores": [trial.score for trial in trials],
        "configurations": [trial.hyperparameters.to_json() for trial in trials],
        "device": description["device"],
        "versions": description["versions"],
    }


def one_at_a_time(
    name: str,
    configurations: list[Hyperparameters],
    sample: int,
    images: int,
    epochs: int,
    python: str,
) -> dict[str, Any]:
    """Seconds that a peer takes for a sample of configurations, scaled up to all of them."""
    peer = STEP_PEERS[name]
    # Evenly spread over the configurations, which are ordered by their work.
    ordered = sorted(configurations, key=training_flops)
    step = max(1, len(ordered) // sample)
    chosen = ordered[step // 2 :: step][:sample]
    interpreter = python if peer.elsewhere else sys.executable
    seconds = []
    for h in chosen:
        shape = (h.get(name) for name in ("filters", "conv_layers", "dense_layers", "units"))
        task = Task(*shape, images=images, epochs=epochs)
        command = [interpreter, str(PEERS / peer.script), json.dumps(asdict(task)), *peer.arguments]
        outputs, _ = run_together([command])
        (moments,) = last_json(outputs[0])["moments"]
        seconds.append(moments[-1] - moments[0])
    return {
        "peer": name,
        "configurations": [h.to_json() for h in chosen],
        "seconds": seconds,
        "seconds_for_all": statistics.mean(seconds) * len(configurations),
    }


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Everything; what fails is named in `left_out`."""
    ranges = {name: value for name in HELP if (value := getattr(given, name)) is not None}
    settings = SearchSettings(
        max_trials=given.trials,
        epochs=given.epochs,
        train_limit=given.train_limit,
        lanes=given.lanes,
        ranges=ranges,
    )
    content: dict[str, Any] = {
        "machine": machine(),
        "peak_gflops": {},
        "peers": [],
        "precisions": {},
    }
    for dtype in ("float32", "bfloat16"):
        content["peak_gflops"][dtype] = matrix_product_peak(given.side, dtype)
    with tempfile.TemporaryDirectory() as cache:
        content["cold"] = search(settings, cache)
        content["warm"] = search(settings, cache)
    configurations = [Hyperparameters(h) for h in content["cold"]["configurations"]]
    names, content["left_out"] = present(STEP_PEERS, ONE_AT_A_TIME, given.python)
    images = content["cold"]["training_images"]
    for name in names:
        try:
            result = one_at_a_time(
                name, configurations, given.sample, images, given.epochs, given.python
            )
        except PeerFailed as error:
            content["left_out"].append(f"{name} is left out: {error}")
            continue
        result["ratio"] = result["seconds_for_all"] / content["cold"]["seconds"]
        content["peers"].append(result)
    for precision in given.precisions:
        fewer = min(given.trials, given.precision_trials)
        few = settings.replace(max_trials=fewer, precision=precision)
        try:
            with tempfile.TemporaryDirectory() as cache:
                content["precisions"][precision] = search(few, cache)
        except PeerFailed as error:
            content["left_out"].append(f"precision {precision} is left out: {error}")
    return content


def lines(content: dict[str, Any]) -> list[str]:
    """What was measured, for a person."""
    cold, warm, peak = content["cold"], content["warm"], content["peak_gflops"]
    rate = cold["teraflops"] / cold["seconds"]
    versions = ", ".join(f"{name} {version}" for name, version in cold["versions"].items())
    text = [
        f"{cold['device']['kind']} ({cold['device']['devices']}); {versions}",
        "matrix product: " + ", ".join(f"{k} {v / 1e3:.1f} TFLOP/s" for k, v in peak.items()),
        *cold["measured"],
        f"{cold['completed']} configurations, {cold['training_images']} images an epoch:"
        f" {cold['seconds']:.1f} s in all, {cold['programs']} pairs of programs compiled;"
        f" with kept programs {warm['seconds']:.1f} s",
        f"{rate:.2f} TFLOP/s in direct convolutions, everything counted:"
        f" {1e3 * rate / peak['float32']:.3f} of the float32 peak",
    ]
    for peer in content["peers"]:
        text.append(
            f"{peer['peer']}, one after another: {statistics.mean(peer['seconds']):.1f} s a"
            f" configuration (mean of {len(peer['seconds'])}, compiling included), scaled to all:"
            f" {peer['seconds_for_all']:.0f} s, {peer['ratio']:.1f} times as long"
        )
    for name, result in content["precisions"].items():
        mean = statistics.mean(result["scores"])
        text.append(
            f"precision {name}: {result['completed']} trials in {result['seconds']:.1f} s, mean"
            f" validation accuracy {mean:.4f}, best {max(result['scores']):.4f}"
        )
    return [*text, *content["left_out"]]


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=357, help="configurations of the search")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-limit", type=int, help="of the search (default: all 60,000)")
    for name, what in HELP.items():
        parser.add_argument(flag_of(name), help=f"range of the {what}")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--lanes", type=int, help="as in the command (default: measured)")
    parser.add_argument("--sample", type=int, default=5, help="configurations of each peer")
    parser.add_argument("--precision-trials", type=int, default=32, help="of each precision")
    parser.add_argument("--side", type=int, default=8192, help="of the matrices of the peak")
    parser.add_argument("--python", default=sys.executable, help="of Keras (default: this one)")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    given = parser.parse_args()
    content = measure(given)
    print("\n".join(lines(content)))
    if given.json:
        given.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
