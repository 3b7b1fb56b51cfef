"""A trained network as one file for other programs, and a description of it beside that file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist import __version__
from jaxmnist.engine import portable
from jaxmnist.errors import UsageError, local_path
from jaxmnist.runs.directory import exists
from jaxmnist.whole_files import disk, json_bytes, sha256, write_together


@dataclass(frozen=True)
class Exportable:
    """What a model gives to be exported.

    probabilities: a pure function of images, [N, H, W, C], to float32[N, K].
    examples: a few random images, uint8 or float32[N, H, W, C].
    weights: returns the model as a safetensors file.
    description: of the model, for JSON.
    """

    probabilities: portable.Function
    examples: np.ndarray
    weights: Callable[[], bytes]
    description: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format to export to.

    content: returns the file's bytes.
    check: raises `UsageError` if the format can't be made here.
    packages: whose versions matter to who reads the file.
    says: what else the description says about the file.
    """

    content: Callable[[Exportable], bytes]
    check: Callable[[], None]
    packages: tuple[str, ...]
    says: Mapping[str, Any]


def _nothing() -> None:
    """No check: all that the format needs is installed with jaxmnist."""


# By the ending of the file's name.
FORMATS = {
    ".stablehlo": Format(
        lambda model: portable.stablehlo(model.probabilities, model.examples),
        _nothing,
        ("jax", "jaxlib", "flax"),
        {"platforms": list(portable.PLATFORMS)},
    ),
    ".onnx": Format(
        lambda model: portable.onnx(model.probabilities, model.examples),
        portable.check_onnx,
        ("jax", "flax", "jax2onnx", "onnx"),
        {},
    ),
    ".safetensors": Format(lambda model: model.weights(), _nothing, ("jax", "flax"), {}),
}


@dataclass(frozen=True)
class Target:
    """Where to export to.

    path: of the exported file; its description lies beside it, in `described`.
    """

    path: Path
    format: Format

    @property
    def described(self) -> Path:
        """The path of the description."""
        return self.path.with_name(f"{self.path.name}.json")


def target(path: str | os.PathLike[str], overwrite: bool = False) -> Target:
    """Check where a model is to be exported to, which needs no model yet.

    Raises:
      UsageError: the ending is unknown or its format can't be made here; the folder doesn't exist
        or belongs to a run; or the file or its description exists and isn't to be replaced.
    """
    found = Path(local_path(path, "PATH"))
    kind = FORMATS.get(found.suffix.lower())
    if kind is None:
        raise UsageError(f"{found}: the name must end in {', '.join(FORMATS)}")
    kind.check()
    where = Target(found, kind)
    with disk(found):
        if not found.parent.is_dir():
            raise UsageError(f"{found}: there is no folder {found.parent}; make it first")
        for file in (where.path, where.described):
            if file.is_dir():
                raise UsageError(f"{file}: is a folder; a name for a file is needed")
            if os.path.lexists(file) and not overwrite:
                raise UsageError(
                    f"{file}: exists already; --overwrite, in Python overwrite=True, replaces it"
                )
        for folder in found.resolve().parents:
            if exists(folder):
                raise UsageError(f"{found}: lies in the run {folder}; choose another folder")
    return where


def write(model: Exportable, where: Target) -> dict[str, Any]:
    """Write a model and its description, both or neither; returns the description."""
    content = where.format.content(model)
    description = {
        "file": where.path.name,
        "file_sha256": sha256(content),
        "file_bytes": len(content),
        **where.format.says,
        "dtype": str(model.examples.dtype),
        **model.description,
        "versions": {
            "jaxmnist": __version__,
            **{name: version(name) for name in where.format.packages},
        },
    }
    write_together({where.path: content, where.described: json_bytes(description)})
    return description
