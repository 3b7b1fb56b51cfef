"""Whether a network of one's own is the one that a run trained, wherever its weights are used.

What it computes is compared by hashes. Other versions of JAX or Flax write the same computation in
another way: then outputs for a few images decide, which each trial keeps.
"""

from __future__ import annotations

import logging

import numpy as np

from jaxmnist.engine.seeds import weights_seed
from jaxmnist.errors import NetworkError, UsageError
from jaxmnist.models.network import DataSpec, Network, Parameters, from_paths
from jaxmnist.models.space import Space
from jaxmnist.results.trained import MODEL_METADATA
from jaxmnist.runs.directory import RunDirectory
from jaxmnist.runs.keys import index_of
from jaxmnist.runs.trial import Trial
from jaxmnist.settings import SearchSettings
from jaxmnist.whole_files import DamagedFile, MissingFile, fits, read_tensors

logger = logging.getLogger("jaxmnist")
IMAGES = 4  # that outputs are kept for
SAME = "give the network that was trained"
DATA_SHAPE = {
    "train": int,
    "validation": int,
    "image_shape": (int, int, int),
    "labels": [int],
    "scale": float,
}


def data_of(directory: RunDirectory, settings: SearchSettings, *, refit: bool = False) -> DataSpec:
    """The properties of a run's data that its networks depend on; see `DataSpec.of`."""
    data = directory.search["data"]
    if not fits(data, DATA_SHAPE):
        raise DamagedFile(directory.path / "search.json", "lacks the shape of its images")
    height, width, channels = data["image_shape"]
    training = settings.training()
    return DataSpec(
        (height, width, channels),
        len(data["labels"]),
        float(data["scale"]),
        data["train"] + refit * data["validation"],
        training.epochs,
        training.batch_size,
    )


def check_space(directory: RunDirectory, settings: SearchSettings, network: Network) -> None:
    """Raise `UsageError` if a network of one's own has another space than the run has searched."""
    name, known = (directory.search["identity"].get(key) for key in ("network", "space"))
    if network.definition.name != name:
        raise UsageError(
            f"{directory.path}: holds the network {name!r}, not {network.definition.name!r}"
        )
    if not network.traced:
        return
    data = data_of(directory, settings)
    try:
        space = Space(
            network.definition, settings.ranges, data.image_shape, data.classes, data.steps
        )
    except UsageError as problem:
        raise UsageError(f"{directory.path}: {problem}; {SAME}") from problem
    now = space.describe().ranges()
    if now == known:
        return
    for hyperparameter in {**now, **(known or {})}:
        was, is_now = (dict(each or {}).get(hyperparameter, "absent") for each in (known, now))
        if was != is_now:
            raise UsageError(
                f"{directory.path}: its network was searched in another space: {hyperparameter} was"
                f" {was}, and is {is_now} now; {SAME}"
            )


def check_trial(
    directory: RunDirectory,
    trial: Trial,
    network: Network,
    settings: SearchSettings,
    data: DataSpec,
    remedy: str = SAME,
) -> None:
    """Raise `UsageError` if a network is not the one that a trial was trained with.

    Other versions of JAX or Flax are noted.

    Args:
      directory: of the run.
      trial: its record.
      network: to compare; it may be the study's, which needs no comparison.
      settings: of the search.
      data: what the trial was trained on; see `data_of`.
      remedy: what to do about a difference.
    """
    recorded, place = trial.computation, f"{directory.path}: trial {trial.key}"
    if recorded is None or not network.traced:
        return
    try:
        now = network.computation(trial.hyperparameters, data)
    except NetworkError as problem:
        line = f"{place} can't be built again: {problem}; {remedy}"
        raise NetworkError(line, problem.traceback) from problem
    assert now is not None
    if recorded.versions == now.versions:
        differences = recorded.differences(now)
    else:
        differences = _compare_outputs(directory, trial, network, settings, data)
        logger.info(
            f"note: {place} was trained with {recorded.versions}, and this is {now.versions}: its"
            " outputs are compared; its training step can't be"
        )
    if differences:
        raise UsageError(
            f"{place} ({trial.hyperparameters}) was trained with another network (what differs:"
            f" {', '.join(differences)}): {remedy}"
        )


def outputs_of(
    network: Network,
    trial: Trial,
    settings: SearchSettings,
    data: DataSpec,
    weights: Parameters | None = None,
) -> dict[str, np.ndarray]:
    """What `check_trial` compares across versions, for a trial to keep.

    Returns:
      images uint8[N, H, W, C], random ones; the logits `initial` float32[N, K] of the initial
      weights for them; and the logits `trained` of `weights`, if they are given.
    """
    shape = (IMAGES, *data.image_shape)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = {"images": images, "initial": _initial(network, trial, settings, data, images)}
    if weights is not None:
        found["trained"] = network.logits(trial.hyperparameters, data, weights, _fractions(images))
    return found


def _initial(
    network: Network, trial: Trial, settings: SearchSettings, data: DataSpec, images: np.ndarray
) -> np.ndarray:
    """The logits of a trial's initial weights."""
    drawn = trial.hyperparameters
    weights = network.initial_parameters(
        drawn, data, seed=weights_seed(settings.seed, trial.key), index=index_of(trial.key)
    )
    return network.logits(drawn, data, weights, _fractions(images))


def _fractions(images: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 255 as float32 from 0 to 1."""
    return images.astype(np.float32) / np.float32(255)


def _compare_outputs(
    directory: RunDirectory,
    trial: Trial,
    network: Network,
    settings: SearchSettings,
    data: DataSpec,
) -> list[str]:
    """What differs, by the outputs that a trial has kept."""
    drawn = trial.hyperparameters
    try:
        kept = directory.read_outputs(trial.key)
    except (MissingFile, DamagedFile) as problem:
        logger.info(f"note: {problem}: there is nothing to compare the network's outputs with")
        return []
    images, within = kept["images"], network.rounding(drawn, data)
    if not _agree(_initial(network, trial, settings, data, images), kept["initial"], within):
        return ["initial weights or evaluation"]
    path = directory.weights_path(trial.key)
    if "trained" in kept and path.is_file():
        weights = from_paths(read_tensors(path, MODEL_METADATA)[0])
        if not _agree(
            network.logits(drawn, data, weights, _fractions(images)), kept["trained"], within
        ):
            return ["evaluation"]
    return []


def _agree(a: np.ndarray, b: np.ndarray, within: float) -> bool:
    """Whether logits are equal, relatively `within` the largest one; NaN is equal to NaN."""
    if a.shape != b.shape:
        return False
    finite = np.abs(b[np.isfinite(b)])
    scale = float(finite.max()) if finite.size else 1.0
    return bool(np.allclose(a, b, rtol=0, atol=within * scale, equal_nan=True))
