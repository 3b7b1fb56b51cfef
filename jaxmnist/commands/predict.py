"""`jaxmnist predict`: classify images from files."""

from __future__ import annotations

from pathlib import Path

from jaxmnist.commands.parser import Parser, add_model, add_run, complain
from jaxmnist.errors import UsageError, local_path, printable


def main(arguments: list[str], program: str = "jaxmnist predict") -> int:
    """Run the command: print a line for each image with its class, probability and preparation.

    A file without an image gets a line on standard error; the others are classified. Returns the
    exit status.
    """
    parser = Parser(program, "Classify images with the winner of a run.")
    add_run(parser)
    add_model(parser)
    parser.add_argument(
        "files", metavar="FILE", nargs="+", help="PNG or JPEG pictures, or .npy arrays of images"
    )
    given = parser.parse_args(arguments)
    # Imported late: JAX takes a second, during which signals must already be handled.
    import numpy as np

    from jaxmnist.api import own_network
    from jaxmnist.data.pictures import read_pictures
    from jaxmnist.results.run import Run

    model = Run(given.run, own_network(given.model)).best_model
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
