"""Hash all that must not change when code moves: the results of small searches, to the bit.

    python experiments/pin.py record before.json     # with the code as it was
    python experiments/pin.py check before.json      # with the code as it is, on the same machine

Three searches on 400 images of MNIST run in processes of their own: one with finalists and a refit,
one with finalists and an ensemble, one of a network of one's own. Each fits the SVM. Recorded are
the content of every JSON file of a run, the hashes of weights, arrays and summaries, the CSV of
`jaxmnist predict`, and what the search prints. Left out is what depends on time or machine:
seconds, dates, versions, devices. A key or file that only the new code writes is no change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import jaxmnist

TRAIN, TEST = 400, 200  # images
# Keys of a run's JSON files that depend on time, machine or versions, or hash such a file.
VARYING = (
    *("cache", "data_dir", "device", "directory", "environment", "finished", "machine", "model"),
    *("node", "pipeline_sha256", "seconds", "sessions", "sha256", "stated_seconds", "threads"),
    *("time", "versions"),
)
SMALL = """
    --filters 4:7:1 --conv-layers 1 --dense-layers 0 --max-trials 4 --epochs 3 --batch-size 64
    --validation-split 0.25 --keep 2 --svm-search 3
"""
OWN = """
    --max-trials 2 --epochs 2 --batch-size 64 --optimizer adam,lion --label-smoothing 0:0.2
    --random-shift 1
"""
SEARCHES = {
    "refit": SMALL + "--finalists 2 --reruns 2 --refit",
    "ensemble": SMALL + "--finalists 2 --reruns 1 --ensemble 2",
    "own": OWN,
}
COMMON = "--jobs 1 --svm-backend sklearn --verbose --no-tensorboard --no-report"
# In what a search prints: seconds and speeds, which move what is beside them.
TIMES = re.compile(r" *(\d+\.\d\b|\d+ images/s|, \d+ s\b)")
NETWORK = """
import flax.linen as nn


class Network(nn.Module):
    width: int
    classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(not train)(nn.Conv(self.width, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.2, deterministic=not train)(x.reshape(len(x), -1))
        return nn.Dense(self.classes)(x)


def build_model(hp):
    return Network(hp.Int("width", 4, 8), hp.classes)
"""


def write_data(place: Path) -> None:
    """Write the images, those to predict, and the network of one's own into a folder."""
    mnist = jaxmnist.load_arrays("mnist")
    parts = {key: getattr(mnist, key)[:TRAIN] for key in ("x_train", "y_train")}
    parts |= {key: getattr(mnist, key)[:TEST] for key in ("x_test", "y_test")}
    np.savez(place / "data.npz", **parts)
    np.save(place / "images.npy", mnist.x_test[TEST : 2 * TEST])
    (place / "network.py").write_text(NETWORK)


def run(*words: str) -> str:
    """Run a command of jaxmnist in a process; returns what it prints."""
    line = [sys.executable, "-m", "jaxmnist", *words]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a JSON object by their path: `history.loss`; an array is one value."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key not in VARYING:
                yield from flat(member, f"{name}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(member, dict) for member in value):
        for i, member in enumerate(value):
            yield from flat(member, f"{name}[{i}]")
    else:
        yield name, value


def tensors(content: bytes) -> dict[str, Any]:
    """The arrays of a safetensors file as one hash, and the metadata as `flat` has them."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    found = dict(flat({key: json.loads(text) for key, text in metadata.items()}))
    shapes = json.dumps({k: [v["dtype"], v["shape"], v["data_offsets"]] for k, v in header.items()})
    return {**found, "arrays": hashlib.sha256(shapes.encode() + content[start:]).hexdigest()}


def facts_of(path: Path) -> dict[str, Any]:
    """The facts of a file."""
    content = path.read_bytes()
    if path.suffix == ".json":
        return dict(flat(json.loads(content)))
    if path.suffix == ".safetensors":
        return tensors(content)
    return {"": hashlib.sha256(content).hexdigest()}


def facts() -> dict[str, Any]:
    """Run the searches; returns their facts by file and key."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "runs"
        place.mkdir()
        write_data(place)
        for name, words in SEARCHES.items():
            model = ["--model", str(place / "network.py")] if name == "own" else []
            data = ["--data-dir", str(place / "data.npz")]
            place_words = ["--directory", str(place), "--project-name", name]
            words = [*data, *model, *place_words, *COMMON.split(), *words.split()]
            printed = TIMES.sub("#", run("search", *words).replace(folder, ""))
            found |= {f"{name}: printed {i}": line for i, line in enumerate(printed.splitlines())}
            for path in sorted((place / name).rglob("*")):
                if path.is_file() and path.name not in ("lock", "report.html", "times.json"):
                    facts = facts_of(path)
                    file = path.relative_to(place)
                    found |= {f"{file}: {key}": value for key, value in facts.items()}
            predicted = run("predict", str(place / name), str(place / "images.npy"), *model)
            found[f"{name}: predict"] = predicted.replace(folder, "")
    return found


def main() -> None:
    """Record the facts, or compare them; the exit status is 1 if one differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("file", type=Path, help="the JSON file of the facts")
    given = parser.parse_args()
    now = facts()
    if given.action == "record":
        given.file.write_text(json.dumps(now, indent=0))
        print(f"{len(now)} facts")
        return
    before = json.loads(given.file.read_text())
    different = [key for key, value in before.items() if now.get(key) != value]
    for key in different[:40]:
        print(f"{key}: was {before[key]!r:.200}, is {now.get(key)!r:.200}")
    print(
        f"{len(before)} facts: {len(different)} differ; {len(now.keys() - before.keys())} are new"
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
