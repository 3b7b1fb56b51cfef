"""A description of the machine that a run uses."""

from __future__ import annotations

import os
import platform
import re
from typing import Any

VECTORS = re.compile("sse|avx|fma|f16c|amx|asimd|sve|bf16|i8mm")


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, Any]:
    """Return a description of this machine; memory is in GiB."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": cores(),
        "system": platform.system() + " " + platform.release(),
        "python": platform.python_version(),
    }
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        found["memory_gib"] = round(memory / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        pass  # the system doesn't report it
    return found


def instructions() -> str:
    """Return the vector instructions that the processor has, which compilers choose by."""
    words = _cpuinfo("flags", "Features").split()
    return " ".join(sorted({word for word in words if VECTORS.match(word)}))


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(*names: str) -> str:
    """Return the first value that Linux has of the processor by one of these names; else ''."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(names):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return ""
