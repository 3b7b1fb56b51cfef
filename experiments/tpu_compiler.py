"""The TPU compiler's estimates for the programs of a search, on a machine without a TPU.

libtpu can compile for a TPU that isn't present. This compiles the programs of the default search's
10 trials, or with --space those of all 357 configurations: training, evaluation and features, for
one or four chips of a TPU v5e. It prints the CPU time of compiling, the memory, and the number of
cycles that the compiler expects a training step to take: an estimate, not a measurement. The last
line sums up.

The estimate is the sum of "estimated_cycles" over the instructions of the loop's body. (The
compiler's 'bytes accessed' and 'optimal_seconds' don't distinguish on-chip memory from HBM.) The
compiler gives no cycles for some instructions, such as a pad that isn't fused and copies between
memories; the bytes that pads and copies on the chip write are printed beside the cycles.

It needs its own environment, as libtpu makes JAX look for a TPU:

    python3 -m venv .venv-tpu
    .venv-tpu/bin/python -m pip install '.[tpu-check]'
    .venv-tpu/bin/python experiments/tpu_compiler.py
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from dataclasses import replace

# Set before JAX is imported: JAX looks for no TPU, and the compiler's target is a v5e.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_ID": "0",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

import compiled
import jax
from jax.experimental import topologies

import jaxmnist
from jaxmnist.data.dataset import Dataset, load_dataset
from jaxmnist.engine.lanes import Group, Stacking
from jaxmnist.engine.programs import Builder, multiplications
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import STUDY
from jaxmnist.models.space import Space
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import Key
from jaxmnist.settings import PRECISIONS, RECIPES, USUAL_RECIPE, DataSettings

REFERENCE = configuration(112, 2, 1, 224)
SMALLEST = configuration(32, 1, 0)
CLOCK = 1.5e9  # cycles a second of a TPU v5e, about
MIB, GIB = 2**20, 2**30
MEMORY = 16 * GIB  # of a chip
# Of the smallest program, unpadded, in thousands of cycles; --check fails above it.
MOST_CYCLES = 100


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


def unfused_bytes(text: str) -> int:
    """The bytes that pads and copies write, which have no estimate: outside of fusions only."""
    total = 0
    for line in text.splitlines():
        found = re.match(r"\s+%?[\w.-]+ = (\w+)\[([\d,]*)\]\S* (?:pad|copy)\(", line)
        if found and "used_scoped_memory_configs" in line:  # not inside a fusion
            width = {"f32": 4, "s32": 4, "bf16": 2, "s8": 1, "u8": 1, "pred": 1}.get(found[1], 4)
            total += width * math.prod(int(n) for n in found[2].split(",") if n)
    return total


def new_builder(dataset: Dataset, recipe: str, precision: str, chips: int) -> Builder:
    """A builder of programs for `chips` chips that aren't there."""
    topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    settings = replace(RECIPES[recipe], precision=precision)
    return compiled.new_builder(dataset, settings, "tpu", list(topology.devices[:chips]))


def compile_one(
    builder: Builder, hyperparameters: Hyperparameters, way: str = "corners"
) -> dict[str, float]:
    """What `compile_all` returns for one trial, unpadded."""
    chips = builder.devices.count
    group = Group(hyperparameters, ((Key(0), hyperparameters),), chips)
    return compile_all(builder, group, Stacking(way, chips))


def compile_all(builder: Builder, group: Group, stacking: Stacking) -> dict[str, float]:
    """CPU-seconds, cycles a step, bytes and convolutions of a group's programs."""
    found: dict[str, float] = {"seconds": 0.0}
    for name, program, seconds in compiled.compile_group(builder, group, stacking):
        found["seconds"] += seconds
        if name == "training":
            memory, text = program.memory_analysis(), program.as_text()
            found |= {
                "cycles": cycles_of_a_step(text),
                "unfused": unfused_bytes(text),
                "bytes": memory.temp_size_in_bytes + memory.argument_size_in_bytes,
                "convolutions": len(re.findall(r" convolution\(", text)),
            }
    return found


def report(builder: Builder, programs: dict[Group, int], stacking: Stacking) -> tuple[float, float]:
    """Print a line for each program; returns CPU-seconds of compiling and seconds of training."""
    settings, chips = builder.settings, builder.devices.count
    steps = settings.epochs * -(-len(builder.dataset.y_train) // settings.batch_size)
    print("| configuration | trials | compiling, CPU-seconds | thousand cycles a step |", end="")
    print(" unfused pads and copies, MiB | GiB | convolutions |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    compiling = training = 0.0
    for group, trials in programs.items():
        found = compile_all(builder, group, stacking)
        compiling += found["seconds"]
        # Each chip trains one trial at a time.
        training += -(-trials // chips) * steps * found["cycles"] / CLOCK
        print(
            f"| {group.widest} | {trials} | {found['seconds']:.1f}"
            f" | {found['cycles'] / 1000:.0f} | {found['unfused'] / MIB:.1f}"
            f" | {found['bytes'] / GIB:.2f} | {found['convolutions']} |",
            flush=True,
        )
    return compiling, training


# Of a program: seconds of a step, of each output of all layers and each multiplication of an image
# in it, core-seconds of compiling, and of each multiplication in them. Fitted to what this script
# printed for programs of all depths (within 28 %).
FITTED = {
    "alone": (0.0, 2.2e-11, 3.3e-14, 36.0, 0.0),
    "corners": (4e-5, 2.7e-12, 3.4e-14, 23.0, 2.5e-6),
}


def print_paddings(builder: Builder) -> None:
    """What padding saves in searches on hosts of 2 and 24 cores, reckoned by `FITTED`."""
    assert STUDY.known is not None
    paddings = ({}, *STUDY.known.paddings)
    settings = builder.settings
    steps = settings.epochs * -(-len(builder.dataset.y_train) // settings.batch_size)
    space = [*enumerate(Space(STUDY.definition, {}).draws(0))]
    hosts = (2, 24)
    print("| trials | padding | programs | compiling, core-seconds | training, s |", end="")
    print("".join(f" {cores} cores, s |" for cores in hosts) + " chosen with |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for count in (10, 100, len(space)):
        trials = [(Key(index), drawn) for index, drawn in space[:count]]
        chosen = {cores: builder.stacking(trials, None, cores) for cores in hosts}
        way = chosen[hosts[0]].way
        step, value, multiplication, compiling, more = FITTED[way]
        for padding in paddings:
            training, programs = 0.0, dict[object, float]()
            for group in builder.groups(trials, Stacking(way, 1, padding)):
                layers = builder.bind(group.widest).layers
                values = sum(math.prod(row.output_shape) for row in layers)
                work = multiplications(layers)
                images = settings.batch_size * (value * values + multiplication * work)
                training += steps * len(group.trials) * (step + images)
                programs[group.program] = compiling + more * work
            whole, longest = sum(programs.values()), max(programs.values())
            ends = (f" {max(whole / cores, longest) + training:.0f} |" for cores in hosts)
            by = [str(cores) for cores in hosts if chosen[cores].padding == padding]
            print(f"| {count} | {dict(padding) or 'none'} | {len(programs)} | {whole:.0f}", end="")
            print(f" | {training:.0f} |{''.join(ends)} {', '.join(by)} |")


def check(dataset: Dataset, recipe: str) -> int:
    """Compile the smallest configuration's programs for one chip and for four, in two precisions.

    Returns 1 if a program doesn't fit, has no convolution or takes too many cycles.
    """
    wrong = 0
    for chips, precision in ((1, "default"), (4, "bfloat16")):
        found = compile_one(new_builder(dataset, recipe, precision, chips), SMALLEST)
        print(
            f"{chips} × v5e, {precision}, {SMALLEST}: {found['cycles'] / 1000:.0f} thousand cycles"
            f" a step (the compiler's estimate), {found['bytes'] / GIB:.2f} GiB,"
            f" {found['convolutions']} convolutions, {found['seconds']:.0f} CPU-seconds",
            flush=True,
        )
        sound = 0 < found["cycles"] <= 1000 * MOST_CYCLES and found["convolutions"] > 0
        wrong += not sound or found["bytes"] > MEMORY
    if wrong:
        print(
            f"expected convolutions, {MOST_CYCLES} thousand cycles and {MEMORY // GIB} GiB at most",
            file=sys.stderr,
        )
    return min(wrong, 1)


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", choices=list(RECIPES), default=USUAL_RECIPE)
    parser.add_argument("--precision", choices=PRECISIONS, default="default")
    parser.add_argument("--space", action="store_true", help="the programs of all configurations")
    parser.add_argument("--chips", type=int, choices=(1, 4), default=1)
    parser.add_argument("--cores", type=int, default=24, help="of the TPU's host (default 24)")
    parser.add_argument("--check", action="store_true", help="only the smallest configuration")
    parser.add_argument("--padding", action="store_true", help="what padding saves, reckoned")
    given = parser.parse_args()
    dataset = load_dataset(DataSettings(), 0)
    if given.check:
        return check(dataset, given.recipe)
    trials = compiled.default_trials(dataset, whole=given.space)
    builder = new_builder(dataset, given.recipe, given.precision, given.chips)
    if given.padding:
        print_paddings(builder)
        return 0
    stacking = builder.stacking(trials, None, given.cores)
    programs = compiled.programs(builder.groups(trials, stacking))
    print(f"jaxmnist {jaxmnist.__version__}, jax {jax.__version__}, recipe {given.recipe},")
    print(f"{given.precision} precision,", end=" ")
    print(f"{given.chips} × TPU v5e on a host of {given.cores} cores: {stacking}.")
    print("Cycles and seconds are estimates, not measurements.")
    one = new_builder(dataset, given.recipe, given.precision, 1)
    reference = compile_one(one, REFERENCE, stacking.way)
    compiling, training = report(builder, programs, stacking)
    what = "whole space" if given.space else f"{len(trials)} trials"
    cycles = f"{reference['cycles'] / 1000:.0f} thousand cycles"
    print(
        f"reference step {cycles}, {len(programs)} programs,"
        f" {compiling:.0f} CPU-seconds, {what} {training:.0f} s (estimate, without compiling)"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
