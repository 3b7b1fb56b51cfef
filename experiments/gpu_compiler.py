"""What the GPU's compiler makes of a search's programs, on a machine without a GPU.

XLA can compile for a GPU that isn't present. This compiles the programs of the default search's 10
trials, or with --space those of all 357 configurations, for one NVIDIA H100: training, evaluation
and features, for trials alone and for stacks of 8 and 32. It prints the CPU time of compiling, the
memory, and the kernels of the loop's body, and whether the steps of a block are one loop on the
device. The last line sums up.

These are the compiler's words, not a measurement: it gives no estimate of time for a GPU, and
without one it chooses kernels without autotuning, so that a real GPU may use others and takes
longer to compile.

It needs its own environment (5.7 GB), as CUDA's plugin makes JAX look for a GPU:

    python3 -m venv .venv-gpu
    .venv-gpu/bin/python -m pip install '.[cuda]'
    .venv-gpu/bin/python experiments/gpu_compiler.py

Reference: the description of an H100 is that of jax-ml/jax issue 28376.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

# Set before JAX is imported: JAX looks for no GPU, and kernels are chosen without running them.
os.environ |= {
    "CUDA_VISIBLE_DEVICES": "-1",
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}

import jax
from compiled import (
    compile_group,
    default_trials,
    new_builder,
    programs,
)
from gpu_kernels import Kernels, kernels_of
from jax.experimental import topologies

import jaxmnist
from jaxmnist.data.dataset import load_dataset
from jaxmnist.engine.lanes import Group, Stacking
from jaxmnist.engine.programs import Builder
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.machine import cores
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import Key
from jaxmnist.settings import PRECISIONS, RECIPES, USUAL_RECIPE, DataSettings

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
REFERENCE = configuration(112, 2, 1, 224)
STACKINGS = (("alone", 1), ("grouped", 8), ("grouped", 32))
MIB = 2**20
HEADINGS = (
    "configuration",
    "stacking",
    "trials",
    "program",
    "CPU-seconds",
    "arguments, MiB",
    "temporaries, MiB",
    *Kernels.HEADINGS,
)


@dataclass(frozen=True)
class Compiled:
    """A program: its name, CPU-seconds of compiling, bytes on the device, and kernels."""

    name: str
    seconds: float
    bytes: int
    kernels: Kernels


def name_of(hyperparameters: Hyperparameters) -> str:
    """A configuration in short: filters-conv_layers-dense_layers-units."""
    names = ("filters", "conv_layers", "dense_layers", "units")
    return "-".join(str(hyperparameters[name]) for name in names if name in hyperparameters)


def print_row(cells: Iterable[object]) -> None:
    """Print a row of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def compile_and_print(
    builder: Builder, group: Group, stacking: Stacking, trials: int
) -> list[Compiled]:
    """Compile a group's programs, which serve `trials` trials, with a row of the table for each."""
    found = []
    for name, program, seconds in compile_group(builder, group, stacking):
        memory, kernels = program.memory_analysis(), kernels_of(program.as_text())
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        way = f"{stacking.way} {group.lanes}"
        first = name_of(group.widest), way, trials, name, f"{seconds:.1f}"
        print_row([*first, *(f"{size / MIB:.0f}" for size in sizes), *kernels.cells()])
        found.append(Compiled(name, seconds, sum(sizes), kernels))
    return found


def summary(compiled: list[Compiled]) -> str:
    """What all programs need, and whether their kernels are what they should be, in a line."""
    training = [each.kernels for each in compiled if each.name == "training"]
    loops = sum(kernels.loop != "none" for kernels in training)
    others = sum(each.kernels.other_convolutions for each in compiled)
    return (
        f"{len(compiled)} programs, {sum(each.seconds for each in compiled):.0f} CPU-seconds of"
        f" compiling, at most {max(each.bytes for each in compiled) / 2**30:.2f} GiB each;"
        f" {loops} of {len(training)} training programs have their steps in a loop;"
        f" {others} convolutions are no calls of cuDNN"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=list(RECIPES), default=USUAL_RECIPE)
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    parser.add_argument("--space", action="store_true", help="the programs of all configurations")
    parser.add_argument("--reference", action="store_true", help="only 112-2-1-224, unpadded")
    given = parser.parse_args()
    dataset = load_dataset(DataSettings(), 0)
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H100, topology="1x1x1"
    )
    settings = replace(RECIPES[given.recipe], precision=given.precision)
    builder = new_builder(dataset, settings, "gpu", list(topology.devices))
    trials = default_trials(dataset, whole=given.space)
    padding = {} if given.reference else builder.stacking(trials, None, cores()).padding
    print(f"jaxmnist {jaxmnist.__version__}, jax {jax.__version__}, recipe {given.recipe},")
    print(f"{given.precision} precision,", end=" ")
    print(f"one H100, padding {dict(padding)}: the compiler's words, not a measurement.\n")
    print_row(HEADINGS)
    print_row(["---"] * len(HEADINGS))
    compiled = []
    for way, lanes in STACKINGS:
        stacking = Stacking(way, lanes, padding)
        alone = [Group(REFERENCE, ((Key(0), REFERENCE),), lanes)]
        groups = alone if given.reference else builder.groups(trials, stacking)
        for group, served in programs(groups).items():
            compiled += compile_and_print(builder, group, stacking, served)
    print(f"\n{summary(compiled)}")


if __name__ == "__main__":
    main()
