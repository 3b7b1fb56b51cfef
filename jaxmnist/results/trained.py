"""Trained networks, one or several together: prediction in batches, their file format, export."""

from __future__ import annotations

import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save as save_tensors

from jaxmnist import __version__
from jaxmnist.data.arrays import EIGHT_BITS, check_images, check_levels, class_names_of
from jaxmnist.data.preparation import Preparation
from jaxmnist.engine import programs
from jaxmnist.engine.devices import start_jax
from jaxmnist.engine.training import apply, weights_seed
from jaxmnist.errors import NetworkError, UsageError, local_path
from jaxmnist.files import (
    OPTIONAL,
    DamagedFile,
    MissingFile,
    as_json,
    disk,
    json_bytes,
    read_record,
    read_tensors,
    record_of,
    sha256,
    write_together,
)
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.convolution import block_size, usual_method
from jaxmnist.models.interface import DataSpec, Parameters, by_path, from_paths
from jaxmnist.models.network import STUDY, BoundNetwork, Network
from jaxmnist.runs.records import File, ModelRecord, ModelReport
from jaxmnist.runs.store import Store, exists
from jaxmnist.runs.trial import Computation, Key, Layer, summary

# --- What a run says about a model that was loaded from it ---


@dataclass(frozen=True)
class Origin:
    """The run that a model comes from.

    sha256: of the model's file.
    report: the report on test images that may be the model's; None for best/test.json.
    """

    store: Store
    sha256: str
    report: Path | None = None

    def test_accuracy(self) -> float | None:
        """The model's accuracy on the test images; None if it wasn't evaluated on them.

        Raises `UsageError` if the report on them is damaged.
        """
        try:
            report = read_record(self.report or self.store.file(File.TEST), ModelReport)
        except MissingFile:
            return None
        except DamagedFile as problem:
            mend = f"python -m jaxmnist evaluate {self.store.path} makes it again"
            if self.report:
                mend = "repeat the search's command, which makes it again"
            raise UsageError(f"{problem}; {mend}") from None
        return report.accuracy if report.model_sha256 == self.sha256 else None


# --- A trained network as one file for other programs ---


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The description that lies beside an exported model.

    file, file_sha256, file_bytes: the name, SHA-256 and size of the exported file.
    platforms: of a .stablehlo file.
    dtype: of the images that it takes. transposed: whether they have rows and columns swapped, as
      in training.
    class_names: in the order of `labels`; the labels as text where there are no others.
    test_accuracy: None if it isn't known.
    output, members: of an ensemble.
    versions: of the packages that wrote it.
    The other fields are those of `ModelRecord`.
    """

    file: str
    file_sha256: str
    file_bytes: int
    platforms: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    dtype: str
    transposed: bool
    network: str
    hyperparameters: Hyperparameters | None = field(default=None, metadata=OPTIONAL)
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    scale: float
    preparation: Preparation | None = field(default=None, metadata=OPTIONAL)
    computation: Computation | None = field(default=None, metadata=OPTIONAL)
    length: tuple[int, int, int] | None = field(default=None, metadata=OPTIONAL)
    output: str | None = field(default=None, metadata=OPTIONAL)
    members: tuple[ExportedMember, ...] | None = field(default=None, metadata=OPTIONAL)
    test_accuracy: float | None
    versions: dict[str, str]


@dataclass(frozen=True)
class ExportedMember:
    """A network of an exported ensemble."""

    trial: int
    model_sha256: str | None
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class Exportable:
    """What a model gives to be exported.

    probabilities: a pure function of images, [N, H, W, C], to float32[N, K].
    examples: a few random images, uint8 or float32[N, H, W, C].
    weights: returns the model as a safetensors file.
    described: the fields of `Exported` that describe the model.
    """

    probabilities: programs.Function
    examples: np.ndarray
    weights: Callable[[], bytes]
    described: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format to export to.

    content: returns the file's bytes.
    check: raises `UsageError` if the format can't be made here.
    packages: whose versions matter to who reads the file.
    platforms: on which the file runs; None if that isn't said.
    """

    content: Callable[[Exportable], bytes]
    check: Callable[[], None]
    packages: tuple[str, ...]
    platforms: tuple[str, ...] | None = None


def _nothing() -> None:
    """No check: all that the format needs is installed with jaxmnist."""


# By the ending of the file's name.
FORMATS = {
    ".stablehlo": Format(
        lambda model: programs.stablehlo(model.probabilities, model.examples),
        _nothing,
        ("jax", "jaxlib", "flax"),
        tuple(programs.PLATFORMS),
    ),
    ".onnx": Format(
        lambda model: programs.onnx(model.probabilities, model.examples),
        programs.check_onnx,
        ("jax", "flax", "jax2onnx", "onnx"),
    ),
    ".safetensors": Format(lambda model: model.weights(), _nothing, ("jax", "flax")),
}


@dataclass(frozen=True)
class Target:
    """Where to export to.

    path: of the exported file; its description lies beside it, in `described`.
    """

    path: Path
    format: Format

    @property
    def described(self) -> Path:
        """The path of the description."""
        return self.path.with_name(f"{self.path.name}.json")


def target(path: str | os.PathLike[str], overwrite: bool = False) -> Target:
    """Check where a model is to be exported to, which needs no model yet.

    Raises:
      UsageError: the ending is unknown or its format can't be made here; the folder doesn't exist
        or belongs to a run; or the file or its description exists and isn't to be replaced.
    """
    found = Path(local_path(path, "PATH"))
    kind = FORMATS.get(found.suffix.lower())
    if kind is None:
        raise UsageError(f"{found}: the name must end in {', '.join(FORMATS)}")
    kind.check()
    where = Target(found, kind)
    with disk(found):
        if not found.parent.is_dir():
            raise UsageError(f"{found}: there is no folder {found.parent}; make it first")
        for file in (where.path, where.described):
            if file.is_dir():
                raise UsageError(f"{file}: is a folder; a name for a file is needed")
            if os.path.lexists(file) and not overwrite:
                raise UsageError(
                    f"{file}: exists already; --overwrite, in Python overwrite=True, replaces it"
                )
        for folder in found.resolve().parents:
            if exists(folder):
                raise UsageError(f"{found}: lies in the run {folder}; choose another folder")
    return where


def write(model: Exportable, where: Target) -> Exported:
    """Write a model and its description, both or neither; returns the description."""
    content = where.format.content(model)
    packages = {name: version(name) for name in where.format.packages}
    description = Exported(
        file=where.path.name,
        file_sha256=sha256(content),
        file_bytes=len(content),
        platforms=where.format.platforms,
        dtype=str(model.examples.dtype),
        **model.described,
        versions={"jaxmnist": __version__, **packages},
    )
    write_together({where.path: content, where.described: json_bytes(as_json(description))})
    return description


# --- A trained network ---

MODEL_METADATA = "jaxmnist"  # the metadata key for the description of the model
BATCH_SIZE = 512  # a multiple of every platform's block size
EXAMPLES = 5  # images that an exported model may be tried with
AHEAD = 3  # batches in flight beyond the one that is waited for


@functools.lru_cache(maxsize=8)
def _program(bound: BoundNetwork, platform: str, output: str) -> Callable[..., jax.Array]:
    """The compiled function of (weights, images) that returns 'logits' or 'features'."""
    model = bound.model(usual_method(platform), "default")
    return jax.jit(apply(model, output, block_size(platform, BATCH_SIZE)))


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A network with its weights.

    labels: class k stands for label `labels[k]` of the data.
    image_shape: (H, W, C) of the images that it takes, with pixels on the scale of the data that
      it was trained on.
    scale: what pixels are divided by; see `Dataset`.
    network: the network that `hyperparameters` configure.
    origin: the run that it comes from; None if it comes from a file alone.
    preparation: how pictures are prepared like the images that it was trained on; None if that
      isn't known.
    computation, length: what a network of one's own computed when it was trained, None of the
      study's; and on how much it was trained: see `DataSpec.length`.

    >>> model = run.get_best_models(1)[0]
    >>> model.predict(images).shape, model.features(images).shape == (5, model.feature_count)
    ((5,), True)
    """

    hyperparameters: Hyperparameters
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    scale: float
    parameters: Parameters
    network: Network = STUDY
    origin: Origin | None = None
    preparation: Preparation | None = None
    computation: Computation | None = None
    length: tuple[int, int, int] = (0, 0, 1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The labels of images [N, H, W, C] (or [N, H, W] of one channel): int64[N]."""
        found: np.ndarray = np.asarray(self.labels)[self._run("logits", images).argmax(1)]
        return found

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """The probability of each class, in the order of `labels`: float32[N, K]."""
        logits = self._run("logits", images)
        exponentials = np.exp(logits - logits.max(1, keepdims=True))
        found: np.ndarray = exponentials / exponentials.sum(1, keepdims=True)
        return found

    def features(self, images: np.ndarray) -> np.ndarray:
        """The flatten features of images: float32[N, D]."""
        return self._run("features", images)

    def summary(self) -> str:
        """The layers with their output shapes and parameters, under Keras' columns."""
        return summary(self.layers)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of `labels`; the labels as text without names.

        Raises `DamagedFile` if the run has other than K names.
        """
        names = self.origin.store.search.data.class_names if self.origin else None
        return class_names_of(self.labels, names or ())

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layer table."""
        return self._bound.layers

    @property
    def feature_count(self) -> int:
        """The number of flatten features of an image, D."""
        return self._bound.feature_count

    @property
    def _bound(self) -> BoundNetwork:
        data = DataSpec(self.image_shape, len(self.labels), self.scale, *self.length)
        return self.network.bind(self.hyperparameters, data)

    def untrained(self, seed: int, key: Key) -> TrainedModel:
        """The same network with the initial weights of trial or rerun `key` of `seed`."""
        parameters = self._bound.initial_weights(weights_seed(seed, key), key.index)
        return replace(self, parameters=parameters, origin=None)

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        images = self._check(images)
        width = len(self.labels) if output == "logits" else self.feature_count
        result = np.empty((len(images), width), np.float32)
        for first, values in self.batches(output, images):
            result[first : first + len(values)] = values
        return result

    def batches(self, output: str, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """'logits' or 'features' a batch at a time: (index of its first image, float32[B, D])."""
        platform = start_jax()
        program = _program(self._bound, platform, output)
        weights = jax.device_put(self.parameters)
        images = self._check(images)

        def start(first: int) -> tuple[int, int, jax.Array]:
            batch = images[first : first + BATCH_SIZE]
            # The last batch is padded, so that one compiled program serves all.
            padded = np.zeros((BATCH_SIZE, *self.image_shape), images.dtype)
            padded[: len(batch)] = batch
            return first, len(batch), program(weights, padded)

        # JAX computes the batches in flight while the host waits for an earlier one.
        started: deque[tuple[int, int, jax.Array]] = deque()
        for first in range(0, len(images), BATCH_SIZE):
            started.append(start(first))
            if len(started) > AHEAD:
                first, count, values = started.popleft()
                yield first, np.asarray(values)[:count]
        for first, count, values in started:
            yield first, np.asarray(values)[:count]

    def _check(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.ndim == 3 and self.image_shape[2] == 1:
            images = images[..., None]
        if images.shape[1:] != self.image_shape:
            raise UsageError(
                f"images must be of shape (N, {', '.join(map(str, self.image_shape))}),"
                f" not {images.shape}"
            )
        images = check_images("images", images)
        check_levels("images", images, self.scale)
        return images

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Exported:
        """Write the model for other programs, and a description beside it, in `path` + '.json'.

        Args:
          path: its ending is the format. '.stablehlo' and '.onnx' (for which jax2onnx must be
            installed) are a function of images [N, H, W, C], of any N and of the dtype that the
            run's data have, that returns the probabilities float32[N, K]; pixels are divided by
            `scale` inside. '.safetensors' is the weights alone, as a run keeps them. The dtype of
            a model without `origin` is uint8 if its scale is 255, else float32.
          overwrite: replace the two files if they exist.

        Returns:
          The description: the file's SHA-256, the dtype and shape of images, labels and class
          names, hyperparameters, test accuracy, versions.

        Raises:
          UsageError: `path` can't be written to, or the network can't be exported.
        """
        return write(self.exportable, target(path, overwrite))

    @property
    def exportable(self) -> Exportable:
        """What `export` writes of it."""
        # XLA's own convolution on every platform: the methods for a CPU serve training.
        model = self._bound.model("convolution", "default")
        guess = "uint8" if self.scale == EIGHT_BITS else "float32"
        dtype = self.origin.store.search.data.dtype if self.origin else guess
        examples = np.random.default_rng(0).uniform(0, self.scale, (EXAMPLES, *self.image_shape))
        return Exportable(
            lambda images: model.probabilities(self.parameters, images),
            examples.astype(dtype),
            self.to_bytes,
            {
                **vars(self._record),
                "class_names": self.class_names,
                "test_accuracy": self.origin.test_accuracy() if self.origin else None,
                "transposed": bool(self.preparation and self.preparation.source.transposed),
            },
        )

    @property
    def _record(self) -> ModelRecord:
        """What belongs to the weights in a file."""
        return ModelRecord(
            self.network.definition.name,
            self.hyperparameters,
            self.image_shape,
            self.labels,
            self.scale,
            self.preparation,
            self.computation,
            self.length if self.computation else None,
        )

    def to_bytes(self) -> bytes:
        """The model as a safetensors file."""
        arrays = {
            path: np.asarray(jax.device_get(array), order="C")
            for path, array in by_path(self.parameters)
        }
        return save_tensors(arrays, {MODEL_METADATA: json.dumps(as_json(self._record))})

    @classmethod
    def load(cls, path: Path, sha256: str | None = None, network: Network = STUDY) -> TrainedModel:
        """Load a model, a configuration of `network`, from a safetensors file.

        The file of a network of one's own names what it computed. If versions of JAX and Flax are
        the same, the network must compute it still.

        Raises `DamagedFile` if the file isn't a model or its SHA-256 isn't `sha256`, and
        `UsageError` if it holds another network.
        """
        path = Path(local_path(path))
        arrays, content = read_tensors(path, MODEL_METADATA, sha256)
        problem = "lacks the description of its model"
        record = record_of(path, content, ModelRecord, problem)
        hyperparameters, name = record.hyperparameters, network.definition.name
        if record.network != name:
            raise UsageError(f"{path}: holds the network {record.network!r}, not {name!r}")
        length = record.length or (0, 0, 1)
        data = DataSpec(record.image_shape, len(record.labels), record.scale, *length)
        try:
            network.definition.check(hyperparameters, data.image_shape)
            bound = network.bind(hyperparameters, data)
            expected = bound.shapes
        except NetworkError as error:
            raise NetworkError(f"{path}: {error}", error.traceback) from (error.__cause__ or error)
        except (ValueError, TypeError, KeyError):
            raise DamagedFile(path, problem) from None
        computation = record.computation
        now, different = bound.computation, ""
        if computation and now and computation.versions == now.versions:
            different = computation.differences(now)
        if different:
            raise UsageError(
                f"{path}: holds the weights of another network, with different {different}: give"
                " the network that was trained"
            )
        found = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        if found != {name: (x.shape, x.dtype) for name, x in by_path(expected)}:
            raise DamagedFile(path, "its weights don't fit its hyperparameters")
        return cls(
            hyperparameters,
            record.image_shape,
            record.labels,
            record.scale,
            from_paths(arrays, expected),
            network,
            preparation=record.preparation,
            computation=computation,
            length=data.length,
        )


# --- Several trained networks that predict together, by the mean of their probabilities ---


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The mean of the probabilities of K networks that were trained on the same data.

    Predicting costs K times the computing of one network.

    members: the networks, of the same image shape, scale and labels; at least two.
    trials: the indices of their trials.
    origin: the run that they come from.

    References:
      Hansen and Salamon, 'Neural network ensembles', 1990; Lakshminarayanan, Pritzel and Blundell,
      'Simple and scalable predictive uncertainty estimation using deep ensembles', 2017, for the
      mean of the probabilities.

    >>> ensemble = run.ensemble_of([run.best_trial])  # run.ensemble is the one that was tested
    >>> ensemble.predict_proba(images).shape == (5, len(ensemble.labels))
    True
    """

    members: tuple[TrainedModel, ...]
    trials: tuple[int, ...]
    origin: Origin

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The labels of images [N, H, W, C] (or [N, H, W] of one channel): int64[N]."""
        found: np.ndarray = np.asarray(self.labels)[self.predict_proba(images).argmax(1)]
        return found

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        """The members' mean probability of each class, in the order of `labels`: float32[N, K]."""
        first, *others = self.members
        total = first.predict_proba(images).astype(np.float64)
        for member in others:
            total += member.predict_proba(images)
        found: np.ndarray = (total / len(self.members)).astype(np.float32)
        return found

    @property
    def labels(self) -> tuple[int, ...]:
        """Class k stands for label `labels[k]` of the data."""
        return self.members[0].labels

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes; see `TrainedModel.class_names`."""
        return self.members[0].class_names

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that it takes."""
        return self.members[0].image_shape

    @property
    def scale(self) -> float:
        """What pixels are divided by; see `Dataset`."""
        return self.members[0].scale

    @property
    def preparation(self) -> Preparation | None:
        """How pictures are prepared; see `TrainedModel`."""
        return self.members[0].preparation

    def export(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Exported:
        """Write the ensemble as one function for other programs; see `TrainedModel.export`.

        The function returns the members' mean probability, float32[N, K]. The description lists the
        members. '.safetensors' holds the weights of one network and is refused.
        """
        return write(self.exportable, target(path, overwrite))

    @property
    def exportable(self) -> Exportable:
        """What `export` writes of it."""
        parts = [member.exportable for member in self.members]
        shared = ("network", "image_shape", "labels", "scale", "preparation", "transposed")
        members = [
            ExportedMember(trial, each.origin.sha256 if each.origin else None, each.hyperparameters)
            for trial, each in zip(self.trials, self.members, strict=True)
        ]
        return Exportable(
            _mean([part.probabilities for part in parts]),
            parts[0].examples,
            _refuse_weights,
            {
                **{name: parts[0].described[name] for name in shared},
                "class_names": self.class_names,
                "output": "the mean of the members' probabilities",
                "members": tuple(members),
                "test_accuracy": self.origin.test_accuracy(),
            },
        )


def _mean(functions: Sequence[Callable[[jax.Array], jax.Array]]) -> Callable[..., jax.Array]:
    """The function that is the mean of functions of images."""

    def mean(images: jax.Array) -> jax.Array:
        first, *others = (function(images) for function in functions)
        return sum(others, first) / len(functions)

    return mean


def _refuse_weights() -> bytes:
    raise UsageError(
        "an ensemble is not one network's weights: export it to .stablehlo or .onnx, or its members"
        " one by one"
    )
