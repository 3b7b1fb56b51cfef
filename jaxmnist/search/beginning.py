"""What a search begins with: its data, its space and its draws, checked before any trial."""

from __future__ import annotations

import itertools
import logging
import os
from dataclasses import dataclass, replace

from jaxmnist.data.dataset import Dataset, load_dataset
from jaxmnist.engine.devices import debugging_settings
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.network import DataSpec, Network
from jaxmnist.models.space import Space, SpaceDescription
from jaxmnist.results.rbf import choose_backend
from jaxmnist.runs.keys import TrialKey
from jaxmnist.search.checks import (
    check_counts,
    check_memory,
    check_network,
    check_optimizer_settings,
    describe_network,
    rehearse,
)
from jaxmnist.search.description import (
    describe_budget,
    describe_class_counts,
    describe_kept,
    describe_narrowed,
)
from jaxmnist.settings import SearchSettings

logger = logging.getLogger("jaxmnist")


@dataclass(frozen=True)
class Beginning:
    """What a search begins with.

    settings: of the search; a path of data in them is absolute.
    dataset: the data, split.
    space: the space for these images.
    draws: the hyperparameters of each trial, by index.
    """

    settings: SearchSettings
    dataset: Dataset
    space: SpaceDescription
    draws: dict[TrialKey, Hyperparameters]


def begin(settings: SearchSettings, network: Network, dataset: Dataset | None = None) -> Beginning:
    """Load the data and draw the trials; notes for the user are logged, and nothing is written.

    Args:
      settings: the settings of the search, for which JAX was started (`start.prepare`).
      network: the network whose configurations are trained.
      dataset: the data, where they are not those that the settings name.

    Raises:
      UsageError: the data can't be read, or the trials not be trained as the settings say.
    """
    if settings.data_dir is not None:
        # The run may later be read from another working directory.
        settings = replace(settings, data_dir=os.path.abspath(settings.data_dir))
    if settings.svm:
        choose_backend(settings.svm_backend, "cpu")  # fail before the search, not after it
    dataset = dataset or load_dataset(settings)
    data = DataSpec.of(dataset, settings.training())
    declared = Space(network.definition, settings.ranges)
    space = Space(
        network.definition,
        settings.ranges,
        dataset.image_shape,
        dataset.classes,
        data.steps,
        settings.max_trials,
    )
    description = space.describe()
    drawn = itertools.islice(space.draws(settings.seed), settings.max_trials)
    draws: dict[TrialKey, Hyperparameters] = dict(enumerate(drawn))
    check_counts(len(draws), settings)
    trainable = check_network(network, draws.values(), data)
    check_memory(draws.values(), settings, dataset, network)
    check_optimizer_settings(draws.values(), settings, dataset, network)
    for line in (
        describe_narrowed(declared, space, dataset.image_shape),
        *dataset.notes,
        dataset.scale_note,
        describe_class_counts(dataset),
        describe_budget(len(draws), settings.max_trials, description),
        *describe_network(network, trainable, data),
        describe_kept(settings),
    ):
        if line:
            logger.info(line)
    if debugging := debugging_settings():
        rehearse(network, trainable[0], dataset, debugging)
    return Beginning(settings, dataset, description, draws)
