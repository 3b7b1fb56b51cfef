"""The kernels that a GPU runs in each step of a program, counted in its compiled module's text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

BYTES = {"f64": 8, "s64": 8, "u64": 8, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
MIB = 2**20
# The kinds of calls, by the start of their target.
CALLS = {
    "__cudnn$convForward": "forward",
    "__cudnn$convBiasActivationForward": "forward",
    "__cudnn$convBackwardFilter": "by_kernel",
    "__cudnn$convBackwardInput": "by_inputs",
    "__cublas$": "products",
}


class Instruction(NamedTuple):
    """An instruction: its result's type, its operation, and its whole line."""

    type: str
    operation: str
    line: str


@dataclass(frozen=True)
class Kernels:
    """What the largest loop of a module runs in each turn, or the whole module without a loop.

    loop: 'known' or 'unknown', whether the compiler knows the number of turns, so that the host
      need not wait for the loop's condition at each turn; 'none' without a loop.
    forward, by_kernel, by_inputs: calls of cuDNN's convolutions and of their two gradients.
    other_convolutions: convolutions that are no calls of cuDNN.
    products: products of matrices, as calls of cuBLAS or kernels in Triton.
    fusions: other fused kernels.
    layouts, layout_bytes: copies and transposes, fused or not, of arrays that are no scalars, and
      the bytes that they write.
    rest: calls of other libraries, reductions and sorts that aren't fused.
    """

    loop: str
    forward: int
    by_kernel: int
    by_inputs: int
    other_convolutions: int
    products: int
    fusions: int
    layouts: int
    layout_bytes: int
    rest: int

    HEADINGS: ClassVar[tuple[str, ...]] = (
        "turns of the loop",
        "cuDNN convolutions, gradients by kernel, by inputs",
        "other convolutions",
        "products",
        "fusions",
        "copies and transposes",
        "of MiB",
        "rest",
    )

    def cells(self) -> tuple[str, ...]:
        """The cells of a table's row under `HEADINGS`."""
        size = f"{self.layout_bytes / MIB:.1f}"
        cudnn = f"{self.forward}, {self.by_kernel}, {self.by_inputs}"
        counts = self.other_convolutions, self.products, self.fusions, self.layouts
        return self.loop, cudnn, *map(str, counts), size, str(self.rest)


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """The instructions of a module's computations, by name, and the name of the entry."""
    found: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in map(str.strip, text.splitlines()):
        if header := re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = header[2]
            entry = name if header[1] else entry
            found[name] = []
        elif parts := re.match(r"(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][\w-]*)\(", line):
            found[name].append(Instruction(parts[1], parts[2], line))
    return found, entry


def size(type_: str) -> int:
    """The bytes of an array, or of a tuple of arrays."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", type_)
    return sum(
        BYTES.get(dtype, 4) * math.prod(int(n) for n in shape.split(",") if n)
        for dtype, shape in arrays
    )


def _called(instruction: Instruction) -> list[str]:
    """The computations that an instruction runs: a fusion's, a loop's body, a call's, branches."""
    named = re.findall(
        r"(?:calls|body|to_apply|true_computation|false_computation)=%?([\w.-]+)", instruction.line
    )
    branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.line)
    return named + (re.findall(r"[\w.-]+", branches[1]) if branches else [])


def kernels_of(text: str) -> Kernels:
    """The kernels of a compiled module's largest loop, each branch and inner loop counted once."""
    module, entry = computations(text)

    def run(name: str) -> Iterator[Instruction]:
        """The instructions outside of fusions that a computation runs."""
        for instruction in module[name]:
            yield instruction
            if instruction.operation in ("while", "call", "conditional"):
                for called in _called(instruction):
                    yield from run(called)

    loops = [i for i in run(entry) if i.operation == "while"]
    turns = [(list(run(_called(loop)[0])), loop) for loop in loops]
    body, loop = max(turns, key=lambda turn: len(turn[0]), default=(list(run(entry)), None))
    counts: Counter[str] = Counter()
    layouts = layout_bytes = 0
    for instruction in body:
        inner = [i for name in _called(instruction) for i in module[name]]
        inner = inner if instruction.operation == "fusion" else [instruction]
        moved = [i for i in inner if i.operation in ("copy", "transpose") and size(i.type) > 8]
        layouts += len(moved)
        layout_bytes += sum(size(i.type) for i in moved)
        if kind := _kind(instruction, inner):
            counts[kind] += 1
    return Kernels(
        "none" if loop is None else "known" if "known_trip_count" in loop.line else "unknown",
        counts["forward"],
        counts["by_kernel"],
        counts["by_inputs"],
        counts["other"],
        counts["products"],
        counts["fusions"],
        layouts,
        layout_bytes,
        counts["rest"],
    )


def _kind(instruction: Instruction, inner: list[Instruction]) -> str | None:
    """The kind of an instruction's kernel, which `inner` says what it computes; None for none."""
    operations = {i.operation for i in inner}
    target = re.search(r'custom_call_target="([^"]*)"', instruction.line)
    if target:
        return next((kind for start, kind in CALLS.items() if target[1].startswith(start)), "rest")
    if "convolution" in operations:
        return "other"
    if "dot" in operations:
        return "products"
    if instruction.operation == "fusion":
        return "fusions"
    rest = ("reduce", "reduce-window", "sort", "scatter", "gather", "select-and-scatter", "pad")
    return "rest" if instruction.operation in rest else None
