"""How a test runs a script of this folder.

The tests are marked slow, and on a small scale by default: `python -m pytest -m slow
tests/robustness --size full` takes an hour and a half.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def script(name: str, *arguments: object) -> str:
    """What a script prints."""
    line = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
