"""The process that reads a MATLAB file: from its standard input, to an .npz file at its output.

It is a program of its own, with SciPy and NumPy only, since a file can crash SciPy's reader, let
it take all memory, or keep it busy for ever. Its arguments: bytes of memory, seconds, `sys.path`.
"""

from __future__ import annotations

import resource
import sys
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from typing import Any


def main(size: str, seconds: str, *folders: str) -> None:
    """Write the arrays of numbers or text, each named by its variable and fields: a.b.c."""
    sys.path[:] = folders
    import numpy as np
    from scipy.io import loadmat

    limits = {"RLIMIT_AS": size, "RLIMIT_CPU": seconds, "RLIMIT_CORE": "0"}
    for name, limit in limits.items():
        with suppress(ValueError):  # a lower limit is in force already
            hard = int(limit) + (name == "RLIMIT_CPU")  # a second after the signal for the soft one
            resource.setrlimit(getattr(resource, name), (int(limit), hard))

    def arrays(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in content.items():
            if isinstance(value, dict):
                yield from arrays(value, f"{prefix}{name}.")
            elif isinstance(value, np.ndarray) and not name.startswith("__"):
                if value.dtype.hasobject:  # cells
                    is_text = all(isinstance(cell, str) for cell in value.flat)
                    value = value.astype(str) if is_text else np.empty(0, "V1")
                yield prefix + name, value

    with zipfile.ZipFile(sys.stdout.buffer, "w") as archive:
        for name, array in arrays(loadmat(sys.stdin.buffer, simplify_cells=True)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MemoryError:
        sys.exit("SciPy's reader needs too much memory for it")
    except Exception as error:  # given damaged bytes, decoders raise anything
        sys.exit(" ".join(str(error).split()) or type(error).__name__)
