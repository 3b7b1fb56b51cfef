"""The TPU compiler's estimates for the training programs, on a machine without a TPU.

libtpu can compile for a TPU that isn't present. For each depth of the default space, at its largest
widths, this prints the CPU time of compiling the training program and the number of cycles that the
compiler expects a step to take: an estimate, not a measurement.

The estimate is the sum of "estimated_cycles" over the instructions of the loop's body. (The
compiler's 'bytes accessed' and 'optimal_seconds' don't distinguish on-chip memory from HBM.)

It needs its own environment, as libtpu makes JAX look for a TPU:

    python3 -m venv .venv-tpu
    .venv-tpu/bin/python -m pip install '.[tpu]'
    .venv-tpu/bin/python experiments/tpu_compiler.py
"""

from __future__ import annotations

import argparse
import os
import re
import time
from typing import Any

# Set before JAX is imported: JAX looks for no TPU, and the compiler's target is a v5e.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

import jaxmnist
from jaxmnist.data.dataset import load_dataset
from jaxmnist.engine.lanes import Group
from jaxmnist.engine.local import Engine
from jaxmnist.engine.stacking import candidates
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.study.network import STUDY
from jaxmnist.models.study.space import configuration
from jaxmnist.settings import PRECISIONS, SearchSettings, TrainingSettings

WIDEST = {"filters": 128, "units": 256}
GIB = 2**30


def cycles_of_a_step(text: str) -> int:
    """The cycles that a compiled module's text expects of one turn of its outermost loop."""
    computations: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if found := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = found[1]
            computations[name] = []
        elif name:
            computations[name].append(line)

    def cycles(lines: list[str]) -> int:
        total = sum(
            int(n) for line in lines for n in re.findall(r'"estimated_cycles":"(\d+)"', line)
        )
        inner = [found[1] for line in lines if (found := re.search(r"body=%?([\w.-]+)", line))]
        return total + sum(cycles(computations[body]) for body in inner)

    loops = [m[1] for m in re.finditer(r" while\(.*body=%?([\w.-]+)", text)]
    return max((cycles(computations[body]) for body in loops), default=0)


def compile_training(engine: Engine, hyperparameters: Hyperparameters) -> dict[str, Any]:
    """CPU-seconds of compiling, cycles a step and bytes of a training program, for one chip."""
    topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    sharding = SingleDeviceSharding(topology.devices[0])
    engine.stacking = candidates("tpu", 1, 357, None, STUDY.padding("tpu"))[0]
    group = Group(engine.stacking.widest(hyperparameters), ((0, hyperparameters),), 1)
    (train, arguments), _ = engine.functions(group)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), arguments
    )
    lowered = train.lower(*shapes)
    began = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - began
    memory = compiled.memory_analysis()
    return {
        "seconds": seconds,
        "cycles": cycles_of_a_step(compiled.as_text()),
        "bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    precision = parser.parse_args().precision
    dataset = load_dataset(SearchSettings())
    settings = TrainingSettings(precision=precision)
    engine = Engine(STUDY, dataset, settings, 0, platform="tpu", lanes=1)
    print(f"jaxmnist {jaxmnist.__version__}, jax {jax.__version__}, one TPU v5e, {precision}")
    print("| convolutions | dense layers | compiling, CPU-seconds | thousand cycles a step | GiB |")
    print("| --- | --- | --- | --- | --- |")
    total = 0.0
    for conv_layers in (1, 2, 3):
        for dense_layers in (0, 1, 2):
            h = configuration(WIDEST["filters"], conv_layers, dense_layers, WIDEST["units"])
            found = compile_training(engine, h)
            total += found["seconds"]
            print(
                f"| {conv_layers} | {dense_layers} | {found['seconds']:.1f}"
                f" | {found['cycles'] / 1000:.0f} | {found['bytes'] / GIB:.2f} |",
                flush=True,
            )
    print(f"{total:.0f} CPU-seconds of compiling in all; cycles are the compiler's estimate")


if __name__ == "__main__":
    main()
