"""MATLAB files of version 5 to 7.2: EMNIST's, and those with arrays x and y; SciPy reads them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.arrays import Found, Part
from jaxmnist.data.contents import reason
from jaxmnist.data.names import PARTS, choose, listed
from jaxmnist.errors import UsageError
from jaxmnist.reading import PIECE, largest_file

MATLAB = b"MATLAB 5.0 MAT-file"
HEADER = 128  # bytes before the first variable
COMPRESSED = 15  # the type of a variable that zlib has packed


def read_matlab(path: Path) -> Found:
    """Read a dataset from a MATLAB file.

    That is EMNIST's structure `dataset.train.images` and so on, or arrays whose names say what
    they are; see `names`.

    Raises:
      UsageError: the file holds something else, is damaged, or unpacks to too much.
    """
    # Imported here: few data are MATLAB's, and the import takes time.
    from scipy.io import loadmat

    try:
        if _unpacked_size(path) > largest_file():
            raise UsageError(f"{path}: unpacks to more bytes than can be loaded")
        content = loadmat(path, appendmat=False, simplify_cells=True)
    except UsageError:
        raise
    except Exception as error:  # given damaged bytes, decoders raise anything
        raise UsageError(f"{path}: can't be read: {reason(error)}") from None
    arrays = {name: value for name, value in content.items() if not name.startswith("__")}
    if found := _emnist(arrays.get("dataset")):
        return Found.of(found)
    chosen = choose(str(path), (n for n, v in arrays.items() if isinstance(v, np.ndarray)), "array")
    if not chosen:
        raise UsageError(f"{path}: has no array x_train; it has {listed(sorted(arrays))}")
    return Found.of({part: (arrays[x], arrays[y]) for part, (x, y) in chosen.items()})


def _emnist(dataset: Any) -> dict[str, Part] | None:
    """Return the parts of EMNIST's structure; None if it is something else."""
    parts: dict[str, Part] = {}
    for name, part in dataset.items() if isinstance(dataset, dict) else ():
        if name in PARTS and isinstance(part, dict):
            pair = part.get("images"), part.get("labels")
            if isinstance(pair[0], np.ndarray) and isinstance(pair[1], np.ndarray):
                parts[PARTS[name]] = pair[0], pair[1]
    return parts if "train" in parts else None


def _unpacked_size(path: Path) -> int:
    """Return the bytes of all variables unpacked, counted up to a little above the largest."""
    total = 0
    with path.open("rb") as file:
        order = "<" if file.read(HEADER)[-2:] == b"IM" else ">"
        while len(head := file.read(8)) == 8:
            kind, size = struct.unpack(f"{order}2I", head)
            if kind != COMPRESSED:
                total += size
                file.seek(size, 1)
                continue
            unpacker = zlib.decompressobj()
            while size > 0 and (packed := file.read(min(PIECE, size))):
                size -= len(packed)
                while packed and total <= largest_file():
                    total += len(unpacker.decompress(packed, PIECE))
                    packed = unpacker.unconsumed_tail
    return total
