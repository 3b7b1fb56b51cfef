"""`jaxmnist report`: rebuild a run's report page, or compare runs, from their files alone."""

from __future__ import annotations

from pathlib import Path

from jaxmnist.commands.parser import Parser
from jaxmnist.errors import local_path, printable

COMPARISON = "comparison.html"


def main(arguments: list[str], program: str = "jaxmnist report") -> None:
    """Run the command."""
    parser = Parser(
        program,
        "Rebuild the report page of a run, finished or not; or make one page that compares several"
        " runs. The test set is not evaluated.",
        (
            ("runs/mnist", "its report.html"),
            ("runs/mnist runs/other", f"{COMPARISON}, in this folder"),
        ),
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="run directory, such as runs/mnist; several are compared",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"the page to write (default: report.html of the run; {COMPARISON} of several)",
    )
    given = parser.parse_args(arguments)
    output = None if given.output is None else Path(local_path(given.output, "--output"))
    # Imported late: JAX takes a second, during which signals must already be handled.
    from jaxmnist.report.comparison import check_replaceable, write_comparison
    from jaxmnist.report.page import write_page
    from jaxmnist.results.run import Run

    if output is not None:
        check_replaceable(output)
    if len(given.runs) == 1:
        path = write_page(Run(given.runs[0]), output=output)
    else:
        path = write_comparison(given.runs, output or Path(COMPARISON))
    print(printable(str(path)))
