"""Images from files to classes: `python -m jaxmnist.predict RUN FILE…`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from jaxmnist.command import Parser, complain, run_command
from jaxmnist.errors import UsageError, local_path, printable
from jaxmnist.pictures import read_pictures
from jaxmnist.run import Run


def main(arguments: list[str]) -> int:
    """The command: a line for each image: its class, its probability, what was done to it.

    A file that gives no image gets a line on standard error; the others are answered. Returns the
    exit status.
    """
    parser = Parser("predict", "Say which class the winner of a run takes images for.")
    parser.add_argument(
        "run", metavar="RUN", help="directory of a finished run, such as runs/mnist"
    )
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="PNG or JPEG pictures, or .npy arrays of images"
    )
    given = parser.parse_args(arguments)
    model = Run(given.run).best_model
    pictures, status = [], 0
    for name in given.files:
        try:
            path = Path(local_path(name, "FILE"))
            pictures += read_pictures(path, model.image_shape, model.scale)
        except UsageError as problem:
            complain(str(problem))
            status = problem.exit_status
    if not pictures:
        return status
    probabilities = model.predict_proba(np.stack([picture.image for picture in pictures]))
    for picture, row in zip(pictures, probabilities, strict=True):
        best, second = np.argsort(-row, kind="stable")[:2]
        done = ", ".join(picture.steps) or "used as it is"
        print(
            f"{printable(picture.name)}: {model.labels[best]} with probability {row[best]:.4f}"
            f" (then {model.labels[second]}, {row[second]:.4f}); {done}"
        )
    return status


if __name__ == "__main__":
    sys.exit(run_command(main))
