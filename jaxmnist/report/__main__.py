"""`python -m jaxmnist.report RUN` makes a run's page again, from its files alone."""

from __future__ import annotations

import sys

from jaxmnist.command import Parser, run_command
from jaxmnist.errors import printable


def main(arguments: list[str]) -> None:
    """The command."""
    parser = Parser(
        "report", "Make the page of a run again, finished or not, without a look at the test set."
    )
    parser.add_argument("run", metavar="RUN", help="directory of a run, such as runs/mnist")
    path = parser.parse_args(arguments).run
    from jaxmnist.report.page import write_page
    from jaxmnist.run import Run

    print(printable(str(write_page(Run(path)))))


if __name__ == "__main__":
    sys.exit(run_command(main))
