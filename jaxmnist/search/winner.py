"""The steps after the trials: the winner, its test-set evaluation, the SVM on its features."""

from __future__ import annotations

import logging

from jaxmnist.data.dataset import Dataset
from jaxmnist.results import comparisons, evaluation, finalists, members, svm
from jaxmnist.results.ensemble_look import evaluate_ensemble
from jaxmnist.results.run import CONFIG_SHAPE, Run
from jaxmnist.search.listener import Listener
from jaxmnist.settings import SearchSettings
from jaxmnist.whole_files import (
    DamagedFile,
    read_bytes,
    read_json,
    sha256,
)

logger = logging.getLogger("jaxmnist")


def finish(run: Run, settings: SearchSettings, dataset: Dataset, listener: Listener) -> None:
    """Write and show the winner, its single test-set evaluation and the SVM on its features.

    And of the best trials' ensemble, if that is wanted; then how these compare.
    """
    listener.stage("test")
    keep_winner(run)
    listener.detail("\n" + run.best_model.summary() + "\n")
    kept = run.files.mended(lambda: evaluation.kept_look(run))
    test = kept or evaluation.look(run, dataset, "winner")
    listener.detail(evaluation.describe(run, test))
    if settings.ensemble is not None:
        _test_ensemble(run, settings.ensemble, dataset, listener)
    if settings.svm:
        listener.stage("SVM")
        content = svm.fit_on_run(
            run,
            dataset,
            wanted=settings.svm_backend,
            draws=settings.svm_search,
        )
        listener.detail("\n" + svm.describe(run, content))
    if lines := comparisons.describe(
        comparisons.write(run.files, run.ranked, run.tested_sha256, dataset.y_test)
    ):
        listener.detail("\n" + "\n".join(lines))


def _test_ensemble(run: Run, count: int, dataset: Dataset, listener: Listener) -> None:
    """Evaluate the ensemble, and show it; a warning if too many trials have failed for it."""
    if len(run.ranked) < count:
        logger.warning(
            f"no ensemble of {count} is made: only {len(run.ranked)} trials have completed"
        )
        return
    listener.stage("ensemble")
    said = members.describe(evaluate_ensemble(run, dataset, count))
    listener.detail(f"\n{said}\n{evaluation.looks_at_test(run)}")


def keep_winner(run: Run) -> None:
    """Write best/: the winner's weights, their description and the network's summary."""
    best, trial, files = run.best_trial, run.final_trial, run.files
    assert trial is not None  # the search is finished
    model = run.load_model(trial)
    config = {
        "trial": trial.index,
        "hyperparameters": trial.hyperparameters.to_json(),
        "image_shape": list(model.image_shape),
        "labels": list(model.labels),
        "class_names": list(model.class_names),
        "scale": model.scale,
        "preparation": None if model.preparation is None else model.preparation.to_json(),
        "score": best.score,
        "corrected_score": run.corrected.score,
        "corrected_interval": list(run.corrected.interval),
        "indistinguishable": list(run.corrected.indistinguishable),
        **({"finalists": finalists.to_json(run.finals)} if run.finals else {}),
        "selection": f"{run.why()} {run.about_score()}" if run.finals else run.why(),
        "rerun": best.rerun,
        "refit": run.settings.refit,
        "model_sha256": trial.weights_sha256,
    }
    weights = read_bytes(run.directory.weights_path(trial.key))
    summary = (model.summary() + "\n").encode()

    def check() -> None:
        """Raise `DamagedFile` unless best/ is intact; it may hold an earlier winner."""
        before = read_json(files.config_path, CONFIG_SHAPE)
        known = (before["model_sha256"], trial.weights_sha256)  # killed between two writes
        if sha256(read_bytes(files.model_path)) not in known:
            raise DamagedFile(files.model_path, "its SHA-256 differs from the one in config.json")
        if before["trial"] == trial.index and read_bytes(files.summary_path) != summary:
            raise DamagedFile(files.summary_path, "is not the winner's summary")

    files.mended(check)
    files.write_file(files.model_path, weights)
    files.write_file(files.summary_path, summary)
    files.write_json(files.config_path, config)
