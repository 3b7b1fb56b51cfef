"""The files of a run, and their records: see `files.as_json`.

`files.as_json` says how a record is stored. A record with impossible values raises ValueError.
`results/` computes the numbers and says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from jaxmnist.data.arrays import class_names_of
from jaxmnist.data.preparation import Preparation
from jaxmnist.files import OPTIONAL
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.runs.ledger import Look
from jaxmnist.runs.trial import Computation

# --- The files of a run, below its folder ---


class File(StrEnum):
    """The files of a run, below its folder.

    {} stands for the folder of a trial or rerun, or for the place of an SVM: the name of the
    dataset that it is fitted on, and for an SVM beside the first one its backend.
    """

    SEARCH = "search.json"
    LOCK = "lock"
    PAGE = "report.html"
    TIMES = "best/times.json"  # the wall time of each stage
    # The winner: its description, weights, layer table, and report on the test set.
    WINNER = "best/config.json"
    MODEL = "best/model.safetensors"
    SUMMARY = "best/summary.txt"
    TEST = "best/test.json"
    PROBABILITIES = "best/test_probabilities.npy"  # for the test images: float32[N, K]
    ENSEMBLE = "best/ensemble/ensemble.json"
    ENSEMBLE_PROBABILITIES = "best/ensemble/test_probabilities.npy"  # float32[N, K]
    COMPARISONS = "best/comparisons.json"  # of all models on the test set
    SVM = "svm/{}/svm.json"
    PIPELINE = "svm/{}/pipeline.safetensors"
    PREDICTIONS = "svm/{}/test_predictions.npy"  # classes of the test images: int64[N]
    TRIAL = "{}/trial.json"
    WEIGHTS = "{}/model.safetensors"  # while the trial is among the best
    VALIDATION = "{}/validation.npy"  # which validation images it classified correctly
    CHECKPOINT = "{}/checkpoint.safetensors"  # while it runs
    OUTPUTS = "{}/outputs.safetensors"  # a few images with its outputs: see `read_outputs`
    ERROR = "{}/error.txt"  # the traceback of a trial that has failed


class Stored(Protocol):
    """A record that is a file of a run."""

    FILE: ClassVar[File]


# --- What is searched ---

PROGRAM, FORMAT = "jaxmnist", 2  # of a search.json that this version reads
MOST_THREADS = 4096  # the largest size of XLA's thread pool that search.json may state


@dataclass(frozen=True, kw_only=True)
class SearchedData:
    """The dataset of a search; see `Dataset`, whose names these are.

    train, validation, test: numbers of images. validation_different: without equal ones.
    dtype: of the images as they were read.
    """

    name: str
    in_memory: bool
    train: int
    validation: int
    validation_different: int
    test: int
    test_sha256: str
    dtype: Literal["uint8", "float32"]
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    scale: float
    notes: tuple[str, ...]
    preparation: dict[str, Any]

    def __post_init__(self) -> None:
        if min(self.train, self.validation, self.validation_different, self.test) < 1:
            raise ValueError("a part without images")
        if not 0 < self.scale < math.inf or len(self.class_names) != len(self.labels):
            raise ValueError("not labels, names and a scale")
        names = class_names_of(self.labels, self.class_names)
        object.__setattr__(self, "class_names", names)


@dataclass(frozen=True)
class Environment:
    """What results depend on beside the search: versions, device and settings of JAX."""

    versions: dict[str, str]
    device: dict[str, Any]
    environment: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.device.get("kind"), str):
            raise ValueError("a device without its kind")


@dataclass(frozen=True)
class Sharing:
    """How the trials share programs: see `engine.lanes.Stacking`."""

    way: str
    lanes: int
    padding: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Search:
    """search.json: what is searched, and where.

    identity: a search with another one is another run; it has the fingerprint `data`, the name
      `network` and the ranges `space`, and settings.
    space: see `SpaceDescription`. settings, given: by their names.
    versions, device, environment: of the last session; sessions: of all that differed.
    threads: the size of XLA's thread pool.
    machine: a description of the machine, for people.
    stacking: None until it is chosen.
    """

    FILE: ClassVar[File] = File.SEARCH

    program: Literal["jaxmnist"] = "jaxmnist"
    format: int = FORMAT
    identity: dict[str, Any]
    space: dict[str, Any]
    settings: dict[str, Any]
    given: dict[str, Any]
    data: SearchedData
    versions: dict[str, str]
    device: dict[str, Any]
    environment: dict[str, Any]
    threads: int | None
    machine: dict[str, Any]
    stacking: Sharing | None = None
    sessions: tuple[Environment, ...] = ()

    def __post_init__(self) -> None:
        known = [isinstance(self.identity.get(name), str) for name in ("data", "network")]
        if not all(known) or not isinstance(self.identity.get("space"), dict):
            raise ValueError("an identity without data, network and space")
        if self.threads is not None and not 0 < self.threads <= MOST_THREADS:
            raise ValueError("an impossible number of threads")
        _ = self.session

    @property
    def session(self) -> Environment:
        """What results depend on in the last session."""
        return Environment(self.versions, self.device, self.environment)


# --- Reports on test images ---

MOST_IMAGES = 10**7  # the most images that a report may count
# Rows of a classification report that are not classes.
AVERAGES = ("accuracy", "micro avg", "macro avg", "weighted avg")
BINS = 15  # of a calibration


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Predicted classes of test images compared with the true ones; part of every report.

    confidence_interval: the 95 % interval of the accuracy.
    labels, class_names: of the K classes, in the order of the matrix; see `class_names_of`.
    confusion_matrix: K rows of K numbers of images; rows: true classes, columns: predicted ones.
    classification_report: scikit-learn's, by class name.
    FILE: the file that a report is stored as.
    BESIDE: the files beside it, by the fields that hold their SHA-256.
    """

    FILE: ClassVar[File]
    BESIDE: ClassVar[dict[str, File]] = {}

    accuracy: float
    confidence_interval: tuple[float, float]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    confusion_matrix: tuple[tuple[int, ...], ...]
    classification_report: dict[str, Any]

    def __post_init__(self) -> None:
        matrix, classes = self.confusion_matrix, len(self.labels)
        square = [len(row) for row in matrix] == [classes] * classes
        if not square or min(map(min, matrix), default=-1) < 0:
            raise ValueError("invalid confusion matrix")
        right = sum(row[k] for k, row in enumerate(matrix))
        if not 0 < self.images <= MOST_IMAGES or self.accuracy != right / self.images:
            raise ValueError("the accuracy is not that of the confusion matrix")
        if not self.class_names:
            raise ValueError("no class names")
        names = class_names_of(self.labels, self.class_names, AVERAGES)
        object.__setattr__(self, "class_names", names)

    @property
    def images(self) -> int:
        """The number of test images."""
        return sum(map(sum, self.confusion_matrix))


class Bin(NamedTuple):
    """Images whose predicted class has a probability in one of the 15 equal parts of 0 to 1.

    images, right: their number, and how many of them are classified correctly.
    probability: the sum of the probabilities of their predicted classes.
    """

    images: int
    right: int
    probability: float

    @property
    def gap(self) -> float:
        """The mean probability less the accuracy, times the number of images."""
        return self.probability - self.right


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: Σ |mean probability − accuracy| · images/N over the bins.

    References:
      Guo, Pleiss, Sun and Weinberger, 'On calibration of modern neural networks', 2017: 15
      bins of equal width.
    """
    return sum(abs(part.gap) for part in bins) / sum(part.images for part in bins)


@dataclass(frozen=True, kw_only=True)
class ModelReport(Classification):
    """best/test.json: a model on test images.

    model_sha256: of the model's weights; of an ensemble see `comparisons.members_identity`.
    loss: the mean cross-entropy.
    calibration_error, reliability: see `calibration_error`, and its 15 bins.
    probabilities_sha256: of the file of its probabilities.
    looks: the evaluations of these images that were known, this one the last.
    validation_accuracy, validation_images: on the images that it was selected on, and their number.
    refit_images: in place of these, the number of images that a refitted network was trained on.
    """

    FILE: ClassVar[File] = File.TEST
    BESIDE: ClassVar[dict[str, File]] = {"probabilities_sha256": File.PROBABILITIES}

    model_sha256: str
    loss: float
    calibration_error: float
    reliability: tuple[Bin, ...]
    probabilities_sha256: str
    looks: tuple[Look, ...]
    validation_accuracy: float | None = field(default=None, metadata=OPTIONAL)
    validation_images: int | None = field(default=None, metadata=OPTIONAL)
    refit_images: int | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        bins = self.reliability
        possible = all(
            0 <= part.right <= part.images and 0 <= part.probability <= part.images * (1 + 1e-6)
            for part in bins
        )
        if not possible or len(bins) != BINS or self.loss < 0:
            raise ValueError("invalid calibration")
        if sum(part.images for part in bins) != self.images:
            raise ValueError("the calibration counts other images")
        if not math.isclose(calibration_error(bins), self.calibration_error, abs_tol=1e-9):
            raise ValueError("the calibration error is not that of the bins")
        accuracy, images = self.validation_accuracy, self.validation_images
        known = (self.refit_images,) if self.refit_images is not None else (accuracy, images)
        if any(each is None or each < 0 for each in known) or (accuracy or 0) > 1:
            raise ValueError("invalid validation accuracy or number of images")


@dataclass(frozen=True)
class Member:
    """A network of an ensemble."""

    trial: int
    model_sha256: str


@dataclass(frozen=True, kw_only=True)
class EnsembleReport(ModelReport):
    """best/ensemble/ensemble.json: an ensemble on test images.

    members: in ascending order of their trials' indices.
    """

    FILE: ClassVar[File] = File.ENSEMBLE
    BESIDE: ClassVar[dict[str, File]] = {"probabilities_sha256": File.ENSEMBLE_PROBABILITIES}

    members: tuple[Member, ...]
    validation_accuracy: float
    validation_images: int


@dataclass(frozen=True, kw_only=True)
class SvmFit(Classification):
    """An SVM on test images, and how it was fitted.

    seconds: wall time of each stage, and `total`.
    kind, description: of the SVM. C, gamma, support_vectors: of its kernel.
    components: number of principal components.
    search: parameters and validation accuracy of each draw, best first; empty without a search.
    """

    backend: str
    seconds: dict[str, float]
    kind: str
    description: str
    C: float
    gamma: float
    support_vectors: int
    components: int
    search: tuple[dict[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class SvmReport(SvmFit):
    """svm.json: the SVM on the winner's features.

    model_sha256: of the winner's weights.
    data: the fingerprint of the dataset; dataset: the name of its folder.
    folder: below svm/. draws: of the search for parameters.
    baselines: the same SVM on other features, by their names.
    pipeline_sha256, predictions_sha256: of the files beside it.
    test_sha256, looks: the fingerprint of the test images, and their evaluations known so far.
    """

    FILE: ClassVar[File] = File.SVM
    BESIDE: ClassVar[dict[str, File]] = {
        "pipeline_sha256": File.PIPELINE,
        "predictions_sha256": File.PREDICTIONS,
    }

    model_sha256: str
    data: str
    dataset: str
    folder: str
    draws: int
    baselines: dict[str, SvmFit]
    pipeline_sha256: str
    predictions_sha256: str
    test_sha256: str
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Compared:
    """A tested model: its accuracy, and the SHA-256 of the file of its predictions."""

    accuracy: float
    predictions_sha256: str


@dataclass(frozen=True)
class Pair:
    """Two models on the same test images.

    only_first, only_second: images that one of them alone classified correctly.
    p_value: of McNemar's exact test. significant: at 5 % for all pairs together.
    """

    first: str
    second: str
    only_first: int
    only_second: int
    p_value: float
    significant: bool


@dataclass(frozen=True)
class Comparisons:
    """best/comparisons.json: the tested models by name, and all pairs of them."""

    FILE: ClassVar[File] = File.COMPARISONS

    models: dict[str, Compared]
    comparisons: tuple[Pair, ...]

    def __post_init__(self) -> None:
        named = {name for pair in self.comparisons for name in (pair.first, pair.second)}
        if named != set(self.models):
            raise ValueError("the pairs are not those of the models")


# --- The winner, and the weights of a network ---


@dataclass(frozen=True)
class FinalistRecord:
    """A finalist in config.json.

    scores: the validation accuracies of its completed reruns. failed: the number of failed ones.
    mean, interval: of the scores, and its 95 % interval. deviation: standard, of two or more.
    """

    trial: int
    scores: tuple[float, ...]
    failed: int
    mean: float | None = field(default=None, metadata=OPTIONAL)
    interval: tuple[float, float] | None = field(default=None, metadata=OPTIONAL)
    deviation: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Winner:
    """best/config.json: the winner.

    score: its validation accuracy, before a refit.
    corrected_score, corrected_interval, indistinguishable: see `ranking.Corrected`.
    selection: why it won, in words.
    rerun, refit: whether its network is that of a rerun, by its number, or of the refit.
    model_sha256: of best/model.safetensors.
    The other fields are those of `TrainedModel`.
    """

    FILE: ClassVar[File] = File.WINNER

    trial: int
    hyperparameters: Hyperparameters
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    scale: float
    preparation: Preparation | None
    score: float
    corrected_score: float
    corrected_interval: tuple[float, float]
    indistinguishable: tuple[int, ...]
    finalists: tuple[FinalistRecord, ...] | None = field(default=None, metadata=OPTIONAL)
    selection: str
    rerun: int | None
    refit: bool
    model_sha256: str


@dataclass(frozen=True)
class ModelRecord:
    """What the file of a network's weights says of them; the fields are those of `TrainedModel`.

    length: of a network of one's own, with `computation`.
    """

    network: str
    hyperparameters: Hyperparameters
    image_shape: tuple[int, int, int]
    labels: tuple[int, ...]
    scale: float
    preparation: Preparation | None = field(default=None, metadata=OPTIONAL)
    computation: Computation | None = field(default=None, metadata=OPTIONAL)
    length: tuple[int, int, int] | None = field(default=None, metadata=OPTIONAL)

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf or len(set(self.labels)) < max(2, len(self.labels)):
            raise ValueError("not labels and a scale")
        if self.length is not None and self.length[2] < 1:
            raise ValueError("not a length of training")
        if self.preparation is not None:
            whole = replace(self.preparation, image_shape=self.image_shape, scale=self.scale)
            object.__setattr__(self, "preparation", whole)


# --- The wall time of each stage ---


@dataclass(frozen=True)
class Session:
    """When a search ended, in UTC, and the seconds that each of its stages took."""

    finished: str
    seconds: dict[str, float]


@dataclass(frozen=True)
class Times:
    """best/times.json; the oldest session first."""

    FILE: ClassVar[File] = File.TIMES

    sessions: tuple[Session, ...]
