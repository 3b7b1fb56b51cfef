"""`jaxmnist evaluate`: evaluate the winner on the test set again."""

from __future__ import annotations

from jaxmnist.commands.parser import Parser, add_model, add_run, add_settings


def main(arguments: list[str], program: str = "jaxmnist evaluate") -> None:
    """Run the command: an evaluation on the test set, which the ledger records.

    It shows nothing new if it is repeated for the same winner, and then counts once.
    """
    parser = Parser(
        program,
        "Evaluate a run's winner on the test set again, and record that in the ledger.",
        (
            ("runs/mnist", "the same images and winner as in the search: counts once"),
            ("runs/mine --data-dir moved/data", "where the run's data have been moved"),
        ),
    )
    add_run(parser)
    add_model(parser)
    add_settings(parser, ("data_dir",))
    given = parser.parse_args(arguments)
    # Imported late: JAX takes a second, during which signals must already be handled.
    from jaxmnist.api import own_network
    from jaxmnist.report.console import Console, fitted, notes_on
    from jaxmnist.results import comparisons
    from jaxmnist.results.evaluation import describe_evaluation, look
    from jaxmnist.results.run import locked_run

    with notes_on(Console()), locked_run(given.run, own_network(given.model)) as run:
        dataset = run.load_dataset(getattr(given, "data_dir", None))
        print(fitted(*describe_evaluation(run, look(run, dataset, "evaluation"))))
        comparisons.write_comparisons(
            run.store, run.ranking.ranked, run.ranking.tested_sha256, dataset.y_test
        )
