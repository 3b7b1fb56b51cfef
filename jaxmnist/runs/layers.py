"""The layer table of a network: its rows, as JSON, and as text with Keras' columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxmnist.whole_files import fits

ROW_SHAPE = {"name": str, "kind": str, "output_shape": [int], "parameters": int}


@dataclass(frozen=True)
class Layer:
    """A row of the table.

    output_shape: for one image. parameters: the number of parameters of the layer.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object."""
        return {
            "name": self.name,
            "kind": self.kind,
            "output_shape": list(self.output_shape),
            "parameters": self.parameters,
        }

    @classmethod
    def from_json(cls, content: Any) -> Layer:
        """Return the row from the object of `to_json`; ValueError if it isn't one."""
        if not fits(content, ROW_SHAPE):
            raise ValueError("not a row of a layer table")
        shape = tuple(content["output_shape"])
        return cls(content["name"], content["kind"], shape, content["parameters"])


def count_parameters(layers: Sequence[Layer]) -> int:
    """Return the number of parameters of a network."""
    return sum(layer.parameters for layer in layers)


def summary(layers: Sequence[Layer]) -> str:
    """Return the table as text with totals; all parameters are trainable."""
    cells = [("Layer (type)", "Output Shape", "Param #")]
    for layer in layers:
        shape = ", ".join(str(side) for side in (None, *layer.output_shape))
        cells.append((f"{layer.name} ({layer.kind})", f"({shape})", str(layer.parameters)))
    widths = [max(len(cell[i]) for cell in cells) for i in range(3)]
    lines = [
        "  ".join((a.ljust(widths[0]), b.ljust(widths[1]), c.rjust(widths[2]))) for a, b, c in cells
    ]
    rule = "=" * len(lines[0])
    total = count_parameters(layers)
    size = f"{total} ({_bytes(4 * total)})"
    totals = [
        f"Total params: {size}",
        f"Trainable params: {size}",
        f"Non-trainable params: 0 ({_bytes(0)})",
    ]
    return "\n".join(['Model: "sequential"', lines[0], rule, *lines[1:], rule, *totals])


def _bytes(count: int) -> str:
    """Return `count` bytes in Keras' units, powers of 1024: '3.90 MB'."""
    size, unit = float(count), "Byte"
    for larger in ("KB", "MB", "GB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:.2f} {unit}"
