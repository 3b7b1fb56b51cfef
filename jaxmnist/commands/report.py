"""`jaxmnist report`: rebuild a run's report page, from its files alone."""

from __future__ import annotations

from jaxmnist.commands.parser import Parser, add_run
from jaxmnist.errors import printable


def main(arguments: list[str], program: str = "jaxmnist report") -> None:
    """Run the command."""
    parser = Parser(
        program,
        "Rebuild the report page of a run, finished or not; the test set is not evaluated.",
    )
    add_run(parser)
    path = parser.parse_args(arguments).run
    # Imported late: JAX takes a second, during which signals must already be handled.
    from jaxmnist.report.page import write_page
    from jaxmnist.results.run import Run

    print(printable(str(write_page(Run(path)))))
