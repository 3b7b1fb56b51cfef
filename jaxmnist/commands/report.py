"""`jaxmnist report`: a run's page made again, from its files alone."""

from __future__ import annotations

from jaxmnist.commands.parser import Parser, add_run
from jaxmnist.errors import printable


def main(arguments: list[str], program: str = "jaxmnist report") -> None:
    """The command."""
    parser = Parser(
        program, "Make the page of a run again, finished or not; the test set is not evaluated."
    )
    add_run(parser)
    path = parser.parse_args(arguments).run
    # JAX takes a second to import; until then a signal would meet no handler.
    from jaxmnist.report.page import write_page
    from jaxmnist.results.run import Run

    print(printable(str(write_page(Run(path)))))
