"""`jaxmnist export`: write a run's winner as a file for other programs."""

from __future__ import annotations

from jaxmnist.commands.parser import Parser, add_ensemble, add_model, add_run
from jaxmnist.errors import printable


def main(arguments: list[str], program: str = "jaxmnist export") -> None:
    """Run the command."""
    parser = Parser(
        program,
        "Write the winner of a run as a file that other programs use without jaxmnist, and a"
        " description of it as JSON beside that file.",
        (
            ("runs/mnist digits.onnx", "for ONNX Runtime and others"),
            ("runs/mnist digits.stablehlo", "for JAX, without jaxmnist"),
        ),
    )
    add_run(parser)
    parser.add_argument(
        "path",
        metavar="PATH",
        help="the file to write; its ending is the format: .stablehlo (for jax.export, on CPU, GPU"
        " and TPU), .onnx (needs jax2onnx) or .safetensors (the weights alone)",
    )
    add_model(parser)
    add_ensemble(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    given = parser.parse_args(arguments)
    # Imported late: JAX takes a second, during which signals must already be handled.
    from jaxmnist.api import own_network
    from jaxmnist.results.run import Run
    from jaxmnist.results.trained import target

    target(given.path, given.overwrite)  # a mistake in it is told before the run is read
    run = Run(given.run, own_network(given.model))
    run.winner()
    model = run.ensemble if given.ensemble else run.best_model
    found = model.export(given.path, overwrite=given.overwrite)
    print(
        f"{printable(given.path)}: {found.file_bytes} bytes; it is described in"
        f" {printable(given.path)}.json"
    )
    if found.transposed:
        print(
            "The training images were transposed: transpose images before you give them to the"
            " exported network."
        )
