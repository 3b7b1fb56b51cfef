"""The ledger of evaluations on test sets (in the code: looks), a line for each, written beforehand.

A line has a number and a SHA-256. A line that can't be read counts as an evaluation, and so does a
number that is missing: damage can't reduce the count, unless it removes the last lines.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from jaxmnist.whole_files import MissingFile, content_sha256, disk, fits, read_bytes

MOST_LOOKS = 10**4  # a line with a larger number is damaged


def write_look(path: Path, purpose: str, model_sha256: str, data: str) -> None:
    """Record, before it happens, that a model is evaluated on test images.

    Args:
      path: the ledger.
      purpose: what the evaluation is for: 'winner', 'evaluation', 'svm', ….
      model_sha256: the SHA-256 of the model's weights.
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
        # If the last line was cut short, start a new one.
        size = os.fstat(file.fileno()).st_size
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:
            line = line[file.write(line) :]
        os.fsync(file.fileno())


def read_looks(path: Path) -> list[dict[str, Any]]:
    """Return all test-set evaluations, oldest first; an unreadable line's purpose is 'unreadable'.

    Raises like `whole_files.read_bytes`, except if there is no ledger: there were no evaluations.
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
