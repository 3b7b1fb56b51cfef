"""`jaxmnist predict`: classify images from files."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jaxmnist.commands.parser import Parser, add_ensemble, add_model, add_run, complain
from jaxmnist.errors import UsageError, local_path, printable

if TYPE_CHECKING:
    import numpy as np

    from jaxmnist.data.preparation import Picture, Preparation
    from jaxmnist.results.trained import Ensemble, TrainedModel


def main(arguments: list[str], program: str = "jaxmnist predict") -> int:
    """Run the command: print a line for each image with its class, probability and preparation.

    A file without an image gets a line on standard error; the others are classified. Returns the
    exit status.
    """
    given = _parser(program).parse_args(arguments)
    # Imported late: JAX takes a second, during which signals must already be handled.
    import numpy as np

    from jaxmnist.api import own_network
    from jaxmnist.data.preparation import preparation_for
    from jaxmnist.report.console import fitted
    from jaxmnist.results.run import Run

    run = Run(given.run, own_network(given.model))
    model = run.ensemble if given.ensemble else run.best_model
    preparation = preparation_for(model, given.prepare, "--prepare")
    pictures, status = _read(given.files, preparation)
    if not pictures:
        return status
    transposition = preparation.describe_transposition()
    lines = [transposition] if transposition else []
    if any(picture.prepared for picture in pictures):
        like = "like the training images" if given.prepare == "auto" else "as --prepare says"
        lines.append(f"Pictures are prepared {like}: {preparation.describe()}.")
    for line in lines:
        # What machines read has predictions alone.
        if given.csv or given.json:
            print(line, file=sys.stderr)
        else:
            print(fitted(line))
    probabilities = model.predict_proba(np.stack([picture.image for picture in pictures]))
    write = _write_csv if given.csv else _write_json if given.json else _write_lines
    write(_names(model), pictures, probabilities)
    return status


def _parser(program: str) -> Parser:
    parser = Parser(
        program,
        "Classify images with the winner of a run.",
        (
            ("runs/mnist digit.png folder/", "a line for each picture"),
            ("runs/mnist digits.npy --csv", "a table for other programs"),
        ),
    )
    add_run(parser)
    add_model(parser)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="pictures (PNG, JPEG, BMP, GIF, WebP, TIFF, PPM), folders of them, or arrays of"
        " images: .npy, IDX, .npz (images, x_test or test_images), .csv of pixels",
    )
    add_ensemble(parser)
    parser.add_argument(
        "--prepare",
        metavar="WORD",
        default="auto",
        help="how pictures are prepared [auto, like the training images; resize, resized only]"
        " (default auto)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--csv", action="store_true", help="print CSV: the columns image, label, probability"
    )
    form.add_argument(
        "--json",
        action="store_true",
        help="print JSON: a list of objects with image, label, probability, probabilities (of each"
        " label), steps and warnings",
    )
    return parser


def _read(names: list[str], preparation: Preparation) -> tuple[list[Picture], int]:
    """The images of files and folders, and the exit status; complains of those that have none."""
    from jaxmnist.data.preparation import files_of, read_file

    pictures: list[Picture] = []
    status = 0
    for name in names:
        files: list[Path] = []
        try:
            files = files_of(Path(local_path(name, "FILE")))
        except UsageError as problem:
            complain(str(problem))
            status = problem.exit_status
        for file in files:
            try:
                pictures += read_file(file, preparation)
            except UsageError as problem:
                complain(str(problem))
                status = problem.exit_status
    return pictures, status


def _names(model: TrainedModel | Ensemble) -> list[int | str]:
    """The names of the classes where the data bring names, else their labels."""
    numbered = model.class_names == tuple(map(str, model.labels))
    return list(model.labels if numbered else model.class_names)


def _said(name: int | str) -> str:
    """A class as one line that is safe for a terminal."""
    return printable(str(name))


def _write_lines(names: list[int | str], pictures: list[Picture], rows: np.ndarray) -> None:
    """Print a line for each image; names: of the K classes; rows: probabilities, float32[N, K]."""
    from jaxmnist.report.console import fitted

    for picture, row in zip(pictures, rows, strict=True):
        best, second = (-row).argsort(kind="stable")[:2]
        done = ", ".join(picture.steps) or "used as it is"
        doubts = "".join(f"; warning: {line}" for line in picture.warnings)
        print(
            fitted(
                f"{printable(picture.name)}: {_said(names[best])} with probability {row[best]:.4f}"
                f" (then {_said(names[second])}, {row[second]:.4f}); {done}{doubts}"
            )
        )


def _write_csv(names: list[int | str], pictures: list[Picture], rows: np.ndarray) -> None:
    """Print a CSV table; warnings go to standard error."""
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(("image", "label", "probability"))
    for picture, row in zip(pictures, rows, strict=True):
        best = int(row.argmax())
        table.writerow((printable(picture.name), _said(names[best]), f"{row[best]:.6g}"))
    for picture in pictures:
        for line in picture.warnings:
            complain(f"{printable(picture.name)}: warning: {line}")


def _write_json(names: list[int | str], pictures: list[Picture], rows: np.ndarray) -> None:
    """Print a JSON list."""
    content = [
        {
            "image": printable(picture.name),
            "label": names[int(row.argmax())],
            "probability": round(float(row.max()), 6),
            "probabilities": {
                str(label): round(float(p), 6) for label, p in zip(names, row, strict=True)
            },
            "steps": picture.steps,
            "warnings": picture.warnings,
        }
        for picture, row in zip(pictures, rows, strict=True)
    ]
    print(json.dumps(content, indent=2, ensure_ascii=False))
