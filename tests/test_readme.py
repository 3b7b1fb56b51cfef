"""README's commands and examples, run as they are printed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from jaxmnist.commands.main import COMMANDS

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_python_sessions(tmp_path):
    session = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    done = subprocess.run(
        [sys.executable, "-c", session], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    numbers = [line for line in done.stdout.splitlines() if re.fullmatch(r"[01]\.\d+", line)]
    score, probability = map(float, numbers[-2:])
    assert score > 0.85
    assert 0.1 < probability <= 1
    assert (tmp_path / "runs" / "session" / "best" / "test.json").is_file()


def test_every_flag_in_readme_exists():
    helps = [
        subprocess.run(
            [sys.executable, "-m", "jaxmnist", name, "--help"], capture_output=True, text=True
        ).stdout
        for name in COMMANDS
    ]
    commands = "\n".join(line for line in README.splitlines() if "-m jaxmnist" in line)
    mentioned = set(
        re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", commands + README.split("## Development")[0])
    )
    mentioned -= {"--editable", "--dist", "--quiet", "--help"}
    assert mentioned
    for flag in mentioned:
        assert any(re.search(rf"{flag}(?![\w-])", text) for text in helps), flag


def test_the_page_about_keras_tuner(tmp_path):
    """Its second code, as it is printed but for the size of the search."""
    page = (Path(__file__).parents[1] / "docs" / "from_keras_tuner.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[1]
    small = "max_trials=2, epochs=1, train_limit=2000, svm=False"
    assert "max_trials=10, epochs=5" in code
    session = code.replace("max_trials=10, epochs=5", small) + "print(len(run.trials))\n"
    done = subprocess.run(
        [sys.executable, "-c", session], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2"
