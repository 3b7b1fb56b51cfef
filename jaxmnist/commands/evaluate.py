"""`jaxmnist evaluate`: the winner on the test set once more."""

from __future__ import annotations

from jaxmnist.commands.parser import Parser, add_run


def main(arguments: list[str], program: str = "jaxmnist evaluate") -> None:
    """The command: one more evaluation on the test set, which the ledger counts."""
    parser = Parser(program, "Evaluate a run's winner on the test set again, and write that down.")
    add_run(parser)
    directory = parser.parse_args(arguments).run
    # JAX takes a second to import; until then a signal would meet no handler.
    from jaxmnist.report.console import Console, notes_on
    from jaxmnist.results.evaluation import describe, look
    from jaxmnist.results.run import locked_run

    with notes_on(Console()), locked_run(directory) as run:
        print(describe(look(run, run.load_dataset(), "evaluation")))
