"""Seconds of the two codes of docs/from_keras_tuner.md, side by side, from a cold start.

Both are run as they stand there, but for what `CHANGES` names: fewer trials, epochs and images, the
same filters in every trial, so that both train networks of one size, and on the side of jaxmnist no
SVM and no page, which the other code doesn't make. Rounds alternate; medians, lowest to highest.

    python experiments/kerastuner_page.py --rounds 3 --python .venv-peers/bin/python
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import cold_environment

from jaxmnist.data.dataset import load_arrays
from jaxmnist.machine import machine

PAGE = Path(__file__).parents[1] / "docs" / "from_keras_tuner.md"
LOADING = "(x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()"
CHANGES = {
    'hp.Int("blocks", 1, 2)': 'hp.Int("blocks", 2, 2)',
    "16, 64, step=16": "32, 32",
    "max_trials=10": "max_trials={trials}",
    "epochs=5": "epochs={epochs}",
}
# Of one of the two codes.
KERAS_CHANGES = {LOADING: "x_train, y_train, x_test, y_test = map(np.load('{data}').get, NAMES)"}
OUR_CHANGES = {'recipe="study")': 'recipe="study", train_limit={images}, svm=False, report=False)'}
KERAS_HEAD = "import numpy as np\nNAMES = ('x_train', 'y_train', 'x_test', 'y_test')\n"


def changed(code: str, changes: dict[str, str], **values: object) -> str:
    """A code of the page with changes, each of which must apply."""
    for before, after in changes.items():
        if before not in code:
            raise SystemExit(f"{PAGE.name} has no {before!r} any more: mend CHANGES")
        code = code.replace(before, after.format(**values))
    return code


def seconds(python: str, code: str) -> float:
    """Wall time of a process in an empty folder, with empty caches."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "notebook.py").write_text(code)
        start = time.perf_counter()
        subprocess.run(
            [python, "notebook.py"],
            cwd=folder,
            env=cold_environment(folder),
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return time.perf_counter() - start


def main() -> None:
    """Measure, and print both figures and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=12_000, help="training and validation images")
    parser.add_argument("--python", required=True, help="one that has KerasTuner and TensorFlow")
    given = parser.parse_args()
    theirs, ours = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    mnist = load_arrays("mnist")
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "mnist.npz"
        arrays = {
            "x_train": mnist.x_train[: given.images],
            "y_train": mnist.y_train[: given.images],
            "x_test": mnist.x_test,
            "y_test": mnist.y_test,
        }
        np.savez(data, **arrays)
        values = {**vars(given), "data": data}
        codes = {
            "KerasTuner": (
                given.python,
                KERAS_HEAD + changed(theirs, CHANGES | KERAS_CHANGES, **values),
            ),
            "jaxmnist": (sys.executable, changed(ours, CHANGES | OUR_CHANGES, **values)),
        }
        found: dict[str, list[float]] = {name: [] for name in codes}
        for round_ in range(given.rounds):
            for name in list(codes) if round_ % 2 == 0 else reversed(list(codes)):
                found[name].append(seconds(*codes[name]))
    print(machine())
    for name, all_ in found.items():
        print(f"{name}: {statistics.median(all_):.1f} s ({min(all_):.1f} to {max(all_):.1f})")
    ratios = [a / b for a, b in zip(found["KerasTuner"], found["jaxmnist"], strict=True)]
    print(f"KerasTuner / jaxmnist: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
