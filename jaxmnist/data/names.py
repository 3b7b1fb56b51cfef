"""Names of arrays and files: which part of a dataset they hold, and whether images or labels.

`x_train`, `train_images`, `X_test.npy`, `emnist-letters-train-labels-idx1-ubyte.gz` and
`kmnist-test-imgs.npz` all say both; what is left, such as `emnist-letters`, is the dataset's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from jaxmnist.errors import UsageError

PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
KINDS = {
    **dict.fromkeys(("x", "images", "image", "imgs", "img", "data", "features"), "images"),
    **dict.fromkeys(("y", "labels", "label", "target", "targets"), "labels"),
}
# Tokens that say how an array is stored.
STORAGE = re.compile(r"idx\d|ubyte|byte|short|int|float|double|gz|npy|npz")
WORDS = "train|test|val|valid|validation"
JOINED = re.compile(rf"(x|y)({WORDS})|({WORDS})(x|y)")
LABELS_OF = {"images": "labels", "image": "label", "imgs": "labels", "img": "label", "x": "y"}
LABELS_OF |= {"X": "y", "data": "target", "features": "labels", "idx3": "idx1"}
MOST_NAMES = 200  # characters of a list of names in an error


class Name(NamedTuple):
    """What a name says.

    dataset: the rest of the name; often empty.
    part: 'train', 'validation' or 'test'; None if it names no part.
    kind: 'images' or 'labels'.
    """

    dataset: str
    part: str | None
    kind: str


def parse(name: str) -> Name | None:
    """Return what the name of an array or file says; None if neither images nor labels.

    >>> parse("emnist-letters-train-images-idx3-ubyte.gz")
    Name(dataset='emnist-letters', part='train', kind='images')
    >>> parse("y_val"), parse("weights")
    (Name(dataset='', part='validation', kind='labels'), None)
    """
    part = kind = None
    rest = []
    for token in reversed(re.split(r"[-_. ]+", name)):
        lower = token.lower()
        if joined := JOINED.fullmatch(lower):
            first, second, third, fourth = joined.groups()
            part, kind = PARTS[second or third], KINDS[first or fourth]
        elif part is None and lower in PARTS:
            part = PARTS[lower]
        elif kind is None and lower in KINDS:
            kind = KINDS[lower]
        elif not STORAGE.fullmatch(lower):
            rest.append(token)
    return None if kind is None else Name("-".join(reversed(rest)), part, kind)


def choose(source: str, names: Iterable[str], what: str) -> dict[str, tuple[str, str]]:
    """Return the names of the images and the labels of each part; empty if there are none.

    Args:
      source: the file or folder, for errors.
      names: of the arrays or files in it. Of several names for the same array an uncompressed
        one is taken.
      what: 'array' or 'file', for errors.

    Returns:
      By 'train', 'validation' and 'test', as far as there is such a part: the names of its images
      and its labels. Data without parts are 'train'.

    Raises:
      UsageError: several datasets, or images without their labels.
    """
    datasets: dict[str, dict[tuple[str, str], str]] = {}
    for name in sorted(names, key=lambda name: (name.endswith(".gz"), name)):
        if found := parse(name):
            parts = datasets.setdefault(found.dataset, {})
            parts.setdefault((found.part or "all", found.kind), name)
    trained = {
        dataset: parts
        for dataset, parts in datasets.items()
        if ("train", "images") in parts or {("all", "images"), ("all", "labels")} <= set(parts)
    }
    if not trained:
        return {}
    if len(trained) > 1 and (what == "file" or "" not in trained):
        mend = "keep one of them in it"
        if what == "file":
            first = trained[min(trained)]
            one = min(trained) or first.get(("train", "images")) or first["all", "images"]
            mend = f"name one, as in --data-dir {source}/{one}"
        known = listed(dataset or "one without a name" for dataset in sorted(trained))
        raise UsageError(f"{source}: holds {len(trained)} datasets, {known}: {mend}")
    parts = trained[""] if "" in trained else next(iter(trained.values()))
    chosen = {}
    for part in ("train", "validation", "test"):
        stored = "all" if part == "train" and ("train", "images") not in parts else part
        images, labels = (parts.get((stored, kind)) for kind in ("images", "labels"))
        if images and labels:
            chosen[part] = images, labels
        elif images or labels:
            needed = f"{_labels_of(images)}, the labels of {images}" if images else ""
            raise UsageError(
                f"{source}: has no {what} {needed or f'with the images of {labels}'}; it has"
                f" {listed(sorted(parts.values()))}"
            )
    return chosen


def listed(names: Iterable[str]) -> str:
    """Return names as text, cut off if long; 'none' if there are none."""
    text = ", ".join(names)
    return f"{text[:MOST_NAMES]}…" if len(text) > MOST_NAMES else text or "none"


def _labels_of(images: str) -> str:
    """Return the name that the labels would have beside these images."""
    tokens = re.split(r"([-_. ])", images.removesuffix(".gz"))
    return "".join(LABELS_OF.get(token, token) for token in tokens)
