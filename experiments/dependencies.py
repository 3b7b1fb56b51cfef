"""What the dependencies cost: installed size, time to import, what for; prints a Markdown table.

The size is that of the files in a distribution's RECORD, byte code included, and of those that no
other dependency needs. The time to import is CPU time in a fresh process whose byte code is
compiled: the median of several. Run it where jaxmnist is installed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable
from importlib import metadata
from importlib.util import cache_from_source
from pathlib import Path
from statistics import median

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
# The module of each dependency, and what it is for.
PURPOSES = {
    "jax": ("jax", "all computing"),
    "flax": ("flax.linen", "networks"),
    "optax": ("optax", "optimizers, losses, schedules"),
    "numpy": ("numpy", "arrays on the host"),
    "scikit-learn": ("sklearn.svm", "scaler, PCA, SVM, classification report"),
    "scipy": ("scipy.stats", "tests and intervals, distributions, pictures, MATLAB files"),
    "threadpoolctl": ("threadpoolctl", "the same SVM for any number of cores"),
    "joblib": ("joblib", "the SVM's pairs of classes on all cores"),
    "safetensors": ("safetensors.numpy", "weights as files that can't run code"),
    "msgspec": ("msgspec", "records of JSON files, checked against their types"),
    "flatbuffers": ("flatbuffers", "exported programs; jax.export needs it"),
    "pillow": ("PIL.Image", "pictures as data, for predict, on the page"),
    "platformdirs": ("platformdirs", "the user's cache folder"),
    "tensorflow-datasets": ("tensorflow_datasets", "--dataset NAME"),
    "importlib-resources": ("importlib_resources", "needed by tensorflow-datasets"),
    "matplotlib": ("matplotlib.figure", "figures of the page and in TensorBoard"),
    "jinja2": ("jinja2", "the page"),
    "rich": ("rich.live", "the live display; the width of text"),
    "tensorboardx": ("tensorboardX", "TensorBoard's files, without TensorFlow"),
}
# What a search imports before its first trial.
START = "import jaxmnist.search.search, jaxmnist.report.live, jaxmnist.models.study"


def name_of(requirement: str) -> str:
    """The normal form of the name that a requirement begins with."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]).lower()


def dependencies() -> list[str]:
    """The names of pyproject.toml's dependencies, in its order."""
    return [name_of(line) for line in tomllib.loads(PROJECT.read_text())["project"]["dependencies"]]


def needed_by(names: Iterable[str], without: Collection[str] = ()) -> set[str]:
    """Installed distributions that these need, themselves included; the graph lacks `without`."""
    found: set[str] = set()
    left = [name for name in names if name not in without]
    while left:
        name = left.pop()
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        found.add(name)
        wanted = {name_of(line) for line in requirements if "extra ==" not in line}
        left += wanted - found - set(without) - set(left)
    return found


def alone(name: str) -> set[str]:
    """The distributions that would not be installed if jaxmnist didn't depend on `name`."""
    others = [other for other in dependencies() if other != name]
    return needed_by([name]) - needed_by(others, without=[name])


def megabytes(names: Iterable[str]) -> float:
    """The installed size of distributions with their modules' byte code, in MB of 10⁶ bytes.

    RECORD has the byte code only if pip has compiled it, and not if the first import has.
    """
    recorded = [file.locate() for name in names for file in metadata.files(name) or ()]
    files = {Path(str(file)) for file in recorded}
    files |= {Path(cache_from_source(str(file))) for file in files if file.suffix == ".py"}
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def seconds_to_import(module: str, times: int) -> float:
    """The median CPU seconds of importing a module in `times` fresh processes, after a first."""
    code = f"import time; began = time.process_time(); import {module}"
    code += "; print(time.process_time() - began)"
    line = [sys.executable, "-c", code]
    taken = [float(subprocess.check_output(line, text=True)) for _ in range(times + 1)]
    return median(taken[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, help="imports of each module (5)")
    times = parser.parse_args().times
    code = f"{START}; import sys; print(*sys.modules)"
    started = set(subprocess.check_output([sys.executable, "-c", code], text=True).split())
    print("| dependency | MB, with what it alone brings | CPU s to import | imported | what for |")
    print("| --- | --- | --- | --- | --- |")
    shared = needed_by(dependencies())
    for name in dependencies():
        module, purpose = PURPOSES[name]
        own = alone(name)
        shared -= own
        brings = f", {len(own) - 1} more" if len(own) > 1 else ""
        when = "at the start" if module.partition(".")[0] in started else "when used"
        seconds = seconds_to_import(module, times)
        print(f"| {name} | {megabytes(own):.1f}{brings} | {seconds:.2f} | {when} | {purpose} |")
    names = ", ".join(sorted(shared))
    print(f"| what several need ({names}) | {megabytes(shared):.1f} | | | |")
    everything = needed_by(dependencies())
    print(f"| all | {megabytes(everything):.1f}, {len(everything)} packages | | | |")


if __name__ == "__main__":
    main()
