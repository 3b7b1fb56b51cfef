"""README and the pages of docs/ as sessions: their commands and code, run as they are printed.

    python tests/sessions.py PAGE …

runs the blocks of each page in the current folder, in their order; a page's Python code is one
session. A comment right before a block says what is different:

    <!-- not run: why -->
    <!-- run: TEXT => OTHER -->     the block is run with OTHER in place of TEXT
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(
    r"^(?P<comments>(?:<!--[^\n]*-->\n)*)```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S
)
NOT_RUN = re.compile(r"<!-- not run: (.+) -->")
RUN = re.compile(r"<!-- run: (.+) => (.+) -->")
LANGUAGES = ("sh", "python")


class Block(NamedTuple):
    """A block of code of a page.

    code: as it is run.
    reason: why it isn't run; None if it is.
    """

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in the languages that are run."""
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        comments, code = found["comments"], found["code"]
        line = text.count("\n", 0, found.start("language")) + 1
        if found["language"] not in LANGUAGES:
            continue
        for old, new in RUN.findall(comments):
            if old not in code:
                raise SystemExit(f"{page.name}:{line}: the block has no {old!r} to replace")
            code = code.replace(old, new)
        known = NOT_RUN.search(comments)
        if comments and not known and not RUN.search(comments):
            raise SystemExit(f"{page.name}:{line}: an unknown comment: {comments.strip()}")
        yield Block(found["language"], code, line, known[1] if known else None)


def commands(folder: Path) -> dict[str, str]:
    """The environment of shells in which `python` and `jaxmnist` are those of this Python."""
    for name, words in (("python", ""), ("jaxmnist", "-m jaxmnist ")):
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def run(page: Path, environment: dict[str, str]) -> None:
    """Run the blocks of a page in the current folder; `SystemExit` at the first that fails."""
    known: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        if block.reason is not None:
            print(f"{place}: not run: {block.reason}", flush=True)
            continue
        print(f"{place}: {block.code.splitlines()[0]}", flush=True)
        if block.language == "python":
            exec(compile("\n" * block.line + block.code, str(page), "exec"), known)
            sys.stdout.flush()
            continue
        line = ["bash", "-euo", "pipefail", "-c", block.code]
        if status := subprocess.run(line, env=environment).returncode:
            raise SystemExit(f"{place}: exit status {status}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        environment = commands(Path(folder))
        for name in sys.argv[1:]:
            run(Path(name).resolve(), environment)
