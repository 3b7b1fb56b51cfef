"""The scripts of experiments/, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def script(name: str, *arguments: object) -> str:
    """What a script prints."""
    line = [sys.executable, str(EXPERIMENTS / name), *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_study(tmp_path):
    output = script("study.py", "--epochs", 1, "--train-limit", 1000, "--directory", tmp_path)
    table = output[output.index("the study") :].splitlines()
    assert table[1].split() == ["parameters", "1021562", "1021562"]
    assert len(table) == 29
    test = json.loads((tmp_path / "study-seed0" / "best" / "test.json").read_text())
    assert table[2].split() == ["accuracy,", "network", "0.9885", f"{test['accuracy']:.4f}"]


def test_the_benchmark(tmp_path):
    rows = tmp_path / "rows.json"
    options = ["--configurations", "32-1-0", "--rounds", 1, "--images", 512, "--json", rows]
    output = script("benchmark.py", *options)
    table = json.loads(rows.read_text())
    assert [(row["peer"], row["arrangement"]) for row in table] == [
        ("jaxmnist", "one process"),
        ("plain Flax loop", "one process"),
        ("plain Flax loop", "one a core"),
    ]
    assert all(row["lowest"] <= row["images_per_second"] <= row["highest"] for row in table)
    assert "| 32-1-0 | jaxmnist, one process (jax " in output
