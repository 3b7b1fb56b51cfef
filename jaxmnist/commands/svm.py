"""`jaxmnist svm`: fit the SVM on a finished run's features, of its own or another dataset."""

from __future__ import annotations

from contextlib import suppress

from jaxmnist.commands.parser import Parser, add_model, add_run, add_settings
from jaxmnist.errors import Named, SettingError, UsageError, printable
from jaxmnist.settings import SearchSettings

NAMES = (
    "dataset",
    "data_dir",
    "transpose",
    "train_limit",
    "validation_split",
    "svm_backend",
    "svm_search",
)


# Flags that make the data another task's, and not the run's own in another place.
NEW_TASK = {"dataset", "transpose", "train_limit", "validation_split"}


def main(arguments: list[str], program: str = "jaxmnist svm") -> None:
    """Run the command."""
    parser = Parser(
        program,
        "Fit the SVM on the features of a run's winner, which stays as it is.",
        (
            ("runs/mnist --svm-search 20", "tune C and gamma on the validation images"),
            ("runs/mnist --dataset fashion_mnist", "another task on the same features"),
        ),
    )
    add_run(parser)
    add_model(parser)
    add_settings(parser, NAMES)
    given = vars(parser.parse_args(arguments))
    directory, model = given.pop("run"), given.pop("model")
    own = not given.keys() & {"dataset", "data_dir"}
    for name in ("train_limit", "validation_split"):
        if own and name in given:
            raise SettingError("{setting} needs {dataset} or {data_dir}", setting=Named(name))
    # Imported late: JAX takes a second, during which signals must already be handled.
    from jaxmnist.api import own_network
    from jaxmnist.data.dataset import load_dataset
    from jaxmnist.report.console import Console, fitted, notes_on
    from jaxmnist.results import comparisons
    from jaxmnist.results.run import locked_run
    from jaxmnist.results.svm import describe_svm, fit_on_run

    with notes_on(Console()), locked_run(directory, own_network(model)) as run:
        settings = SearchSettings(**{"seed": run.settings.space.seed, **given})
        dataset = None
        if own or not given.keys() & NEW_TASK:
            # With --data-dir alone the data may be the run's own, which have moved.
            with suppress(*() if own else (UsageError,)):
                dataset = run.load_dataset(settings.data.data_dir)
                own = True
        dataset = dataset or load_dataset(settings.data, settings.space.seed)
        for line in () if own else (*dataset.notes, dataset.scale_note):
            if line:
                print(fitted(printable(line)))
        content = fit_on_run(
            run,
            dataset,
            wanted=settings.output.svm_backend,
            draws=settings.output.svm_search,
            baselines=not own,
        )
        compared = (
            comparisons.write_comparisons(
                run.store, run.ranking.ranked, run.ranking.tested_sha256, dataset.y_test
            )
            if own
            else None
        )
    print(
        fitted(
            *describe_svm(run, content), "", *comparisons.describe_comparisons(compared)
        ).rstrip()
    )
