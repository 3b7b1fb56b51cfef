"""The ledger of evaluations on test sets, called looks: a line for each, written before it happens.

A look has its number and a SHA-256. A line that can't be read counts as a look, and so does a
number that is missing: damage can't reduce the count, unless it takes the last lines.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from jaxmnist.whole_files import MissingFile, content_sha256, disk, fits, read_bytes

MOST_LOOKS = 10**4  # a larger number in a line is damage


def write_look(path: Path, purpose: str, model_sha256: str, data: str) -> None:
    """Write down, before it happens, that a model is evaluated on test images.

    Args:
      path: of the ledger.
      purpose: what looks: 'winner', 'evaluation', 'svm', ….
      model_sha256: of the model's weights.
      data: the fingerprint of the dataset.
    """
    look = {
        "look": len(read_looks(path)) + 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "purpose": purpose,
        "model_sha256": model_sha256,
        "data": data,
    }
    line = json.dumps({**look, "sha256": content_sha256(look)}).encode() + b"\n"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with disk(path), open(os.open(path, flags, 0o666), "r+b", buffering=0) as file:
        # A line that was cut short stays a line of its own.
        size = os.fstat(file.fileno()).st_size
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def read_looks(path: Path) -> list[dict[str, Any]]:
    """Every look at a test set, oldest first; 'unreadable' is the purpose of an unreadable line.

    Raises as `whole_files.read_bytes`, but for a ledger that isn't there: nobody has looked.
    """
    try:
        lines = read_bytes(path).splitlines()
    except MissingFile:
        return []
    looks: list[dict[str, Any]] = []
    for line in lines:
        if line.strip():
            look = _parse(line)
            number = look.get("look", 0)
            looks += [{"purpose": "unreadable"} for _ in range(number - 1 - len(looks))]
            looks.append(look)
    return looks


def _parse(line: bytes) -> dict[str, Any]:
    try:
        look: dict[str, Any] = json.loads(line)
        genuine = look.pop("sha256", None) == content_sha256(look)
    except (ValueError, TypeError, AttributeError, RecursionError):
        genuine = False
    known = genuine and fits(look, {"purpose": str, "look": int})
    if known and look["look"] in range(1, MOST_LOOKS):
        return look
    return {"purpose": "unreadable"}
