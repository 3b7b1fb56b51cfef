"""Whether a network of one's own is the one that a run trained, wherever its weights are used.

What it computes is compared by hashes. Other versions of JAX or Flax write the same computation in
another way: then outputs for a few images decide, which each trial keeps.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jaxmnist.engine.training import weights_seed
from jaxmnist.errors import NetworkError, SettingError, UsageError
from jaxmnist.files import DamagedFile, MissingFile, read_tensors
from jaxmnist.models.interface import DataSpec, Parameters, from_paths
from jaxmnist.models.network import BoundNetwork, Network
from jaxmnist.models.space import Space
from jaxmnist.results.trained import MODEL_METADATA
from jaxmnist.runs.records import File
from jaxmnist.runs.store import Store
from jaxmnist.runs.trial import Trial
from jaxmnist.settings import SearchSettings, TrainingSettings

logger = logging.getLogger("jaxmnist")
IMAGES = 4  # that outputs are kept for
SAME = "give the network that was trained"
# What outputs show, in the order in which they are compared.
WHAT = {"random": "evaluation", "trained": "evaluation", "initial": "initial weights"}


def data_of(store: Store, training: TrainingSettings, *, refit: bool = False) -> DataSpec:
    """The properties of a run's data that its networks depend on; see `DataSpec.of`."""
    data = store.search.data
    return DataSpec(
        data.image_shape,
        len(data.labels),
        data.scale,
        data.train + refit * data.validation,
        training.epochs,
        training.batch_size,
    )


def check_space(store: Store, settings: SearchSettings, network: Network) -> None:
    """Raise `UsageError` if a network of one's own has another space than the run has searched."""
    name, known = (store.search.identity[key] for key in ("network", "space"))
    if network.definition.name != name:
        raise UsageError(
            f"{store.path}: holds the network {name!r}, not {network.definition.name!r}"
        )
    if network.known:
        return
    data = data_of(store, settings.training)
    try:
        space = Space(
            network.definition, settings.ranges, data.image_shape, data.classes, data.steps
        )
    except UsageError as problem:
        raise SettingError(
            "{path}: {problem}; {same}", path=store.path, problem=problem, same=SAME
        ) from problem
    now = space.describe().ranges()
    if now == known:
        return
    for hyperparameter in {**now, **(known or {})}:
        was, is_now = (dict(each or {}).get(hyperparameter, "absent") for each in (known, now))
        if was != is_now:
            raise UsageError(
                f"{store.path}: build_model has another search space than this run:"
                f" {hyperparameter} was {was}, is now {is_now}; {SAME}"
            )


def check_trial(
    store: Store,
    trial: Trial,
    network: Network,
    seed: int,
    data: DataSpec,
    remedy: str = SAME,
) -> str | None:
    """Raise `UsageError` if a network is not the one that a trial was trained with.

    Args:
      store: of the run.
      trial: its record.
      network: to compare; it may be the study's, which needs no comparison.
      seed: of the search.
      data: what the trial was trained on; see `data_of`.
      remedy: what to do about a difference.

    Returns:
      A note on what other versions of JAX or Flax leave open; None if the versions are the same.
    """
    recorded, place = trial.computation, f"{store.path}: trial {trial.key}"
    if recorded is None or network.known:
        return None
    note: str | None = None
    try:
        now = network.bind(trial.hyperparameters, data).computation
        assert now is not None
        if recorded.versions == now.versions:
            different = recorded.differences(now)
        else:
            different = StoredOutputs(network, trial, seed, data).differences(store)
            note = (
                f"note: trials were trained with {recorded.versions}; this is {now.versions}: the"
                " network's outputs are compared, its training step is not"
            )
    except NetworkError as problem:
        line = f"{place} can't be built again: {problem}; {remedy}"
        raise NetworkError(line, problem.traceback) from (problem.__cause__ or problem)
    if different:
        raise UsageError(
            f"{place} ({trial.hyperparameters}) was trained with another network, with different"
            f" {different}: {remedy}"
        )
    return note


@dataclass(frozen=True)
class StoredOutputs:
    """The outputs of a trial's network for a few images, by which versions of JAX compare it.

    seed: of the search. data: what it is trained on.
    """

    network: Network
    trial: Trial
    seed: int
    data: DataSpec

    def of_start(self) -> dict[str, np.ndarray]:
        """What a trial keeps when it starts.

        Returns:
          images uint8[N, H, W, C], random ones; and the logits float32[N, K] for them: `initial`
          of the initial weights, and `random` of random ones, as layers may begin with zeros.
        """
        shape = (IMAGES, *self.data.image_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return {"images": images, **self._of(images)}

    def of_end(
        self, kept: Mapping[str, np.ndarray], weights: Parameters | None
    ) -> dict[str, np.ndarray]:
        """The logits `trained` of the trained weights, if there are some."""
        return {} if weights is None else {"trained": self._logits(weights, kept["images"])}

    def differences(self, store: Store) -> str:
        """What differs from what the trial has kept; '' if nothing does, or nothing is kept."""
        key, within = self.trial.key, self._bound.rounding
        try:
            kept = store.read_outputs(key)
        except (MissingFile, DamagedFile) as problem:
            logger.info(f"note: {problem}: the network of trial {key} isn't compared")
            return ""
        found = self._of(kept["images"])
        try:
            arrays, _ = read_tensors(store.file(File.WEIGHTS, key), MODEL_METADATA)
            found |= self.of_end(kept, from_paths(arrays, self._bound.shapes))
        except DamagedFile:  # they were not kept, or are mended elsewhere
            pass
        except (KeyError, NetworkError):  # they don't fit
            return "evaluation"
        for name, say in WHAT.items():
            if name in found and name in kept and not _agree(found[name], kept[name], within):
                return say
        return ""

    def _of(self, images: np.ndarray) -> dict[str, np.ndarray]:
        key = self.trial.key
        initial = self._bound.initial_weights(weights_seed(self.seed, key), key.index)
        weights = self._bound.random_weights(initial)
        return {"initial": self._logits(initial, images), "random": self._logits(weights, images)}

    def _logits(self, weights: Parameters, images: np.ndarray) -> np.ndarray:
        fractions = images.astype(np.float32) / np.float32(255)
        return self._bound.logits(weights, fractions)

    @property
    def _bound(self) -> BoundNetwork:
        return self.network.bind(self.trial.hyperparameters, self.data)


def _agree(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    """Whether logits are equal, relatively `within` the largest one; NaN is equal to NaN."""
    if a.shape != b.shape:
        return False
    finite = np.abs(b[np.isfinite(b)])
    scale = float(finite.max()) if finite.size else 1.0
    return bool(np.allclose(a, b, rtol=0, atol=within * scale, equal_nan=True))
