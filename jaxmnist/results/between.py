"""Several runs compared: what differs between them, and paired tests of their winners.

Reading needs the runs' files, and the data of one run of those with the same test images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.data.dataset import Dataset
from jaxmnist.errors import JaxmnistError
from jaxmnist.hyperparameters import text
from jaxmnist.results.comparisons import Predictions, compare, tested
from jaxmnist.results.run import Run

# Settings that say where a run lies and how it is shown, and don't change its results.
LEFT_OUT = (
    "directory",
    "project_name",
    "overwrite",
    "quiet",
    "cache",
    "report",
    "tensorboard",
    "ranges",
    "checkpoint_every",
)
MISSING = "–"


@dataclass(frozen=True)
class Family:
    """Runs whose winners were tested on the same images.

    runs: their names.
    images: number of test images.
    pairs: McNemar's test of each pair of winners, as one family; see `comparisons.compare`. None
      for one run alone, and without the true classes.
    problem: why there are none, although there are several runs.
    """

    runs: tuple[str, ...]
    images: int
    pairs: tuple[Mapping[str, Any], ...] = ()
    problem: str | None = None


def families(runs: Mapping[str, Run]) -> list[Family]:
    """The runs with a tested winner, by the test images; their winners are compared in pairs.

    The stored predictions are compared: the test set is not evaluated.

    Args:
      runs: by their names; of records that can't be read, each leaves out the damaged ones.
    """
    groups: dict[str, dict[str, Predictions]] = defaultdict(dict)
    for name, run in runs.items():
        found = tested(run.directory, run.ranked, run.tested_sha256).get("network")
        if found is not None:
            groups[run.directory.test_sha256][name] = found
    return [_family({name: runs[name] for name in members}, members) for members in groups.values()]


def _family(runs: Mapping[str, Run], members: Mapping[str, Predictions]) -> Family:
    names, first = tuple(runs), next(iter(runs.values()))
    images = int(first.search["data"]["test"])
    if len(names) == 1:
        return Family(names, images)
    try:
        truth = _true_labels(list(runs.values()))
        right = {
            name: labels_of(run)[members[name].classes()] == truth for name, run in runs.items()
        }
    except JaxmnistError as problem:
        return Family(names, images, problem=str(problem))
    return Family(names, images, tuple(compare(right)))


def labels_of(run: Run) -> np.ndarray:
    """The label of each class of a run, int64[K]: classes are numbered anew in each run."""
    return np.asarray(run.search["data"]["labels"], np.int64)


def _true_labels(runs: Sequence[Run]) -> np.ndarray:
    """The labels of the test images that runs share, from the data of the first that has them."""
    problems = []
    for run in runs:
        try:
            data: Dataset = run.load_dataset()
        except JaxmnistError as problem:
            problems.append(problem)
            continue
        labels: np.ndarray = np.asarray(data.labels, np.int64)[data.y_test]
        return labels
    raise problems[0]


def names_of(paths: Sequence[Path]) -> list[str]:
    """A short name for each run directory: its folder's, or with folders above where equal."""
    whole = [path.absolute() for path in paths]
    most = max(len(path.parts) for path in whole)
    for parts in range(1, most + 1):
        names = [str(Path(*path.parts[-parts:])) for path in whole]
        if len(set(names)) == len(names):
            break
    return names


def described(run: Run) -> dict[str, str]:
    """What a run was given, as text by name: data, settings, ranges, versions and device."""
    data, identity = run.search["data"], run.search["identity"]
    settings = {name: v for name, v in run.settings.to_json().items() if name not in LEFT_OUT}
    found: dict[str, Any] = {"data": data["name"]}
    found |= {f"{part} images": f"{data[part]:,}" for part in ("train", "validation", "test")}
    found |= {"test images' SHA-256": str(data.get("test_sha256", MISSING))[:12]}
    found |= {**settings, "network": identity["network"], **identity.get("space", {})}
    for session in run.search["sessions"][-1:]:
        versions, device = session["versions"], session["device"]
        found |= {name: versions[name] for name in ("jaxmnist", "jax") if name in versions}
        found |= {"device": device.get("kind", MISSING)}
    return {name: "default" if value is None else text(value) for name, value in found.items()}


def differing(runs: Sequence[Run]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What differs between runs, by name with the text of each run; and what is the same."""
    each = [described(run) for run in runs]
    names = dict.fromkeys(name for found in each for name in found)
    rows = {name: [found.get(name, MISSING) for found in each] for name in names}
    different = {name: row for name, row in rows.items() if len(set(row)) > 1}
    return different, {name: row[0] for name, row in rows.items() if name not in different}
