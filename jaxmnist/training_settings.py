"""How each trial is trained: settings that check themselves, and the recipes by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxmnist.checked import check_choice, check_number, check_whole

OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd", "lion")
DECAYING = ("adamw", "lion")  # optimizers that have a weight decay
SCHEDULES = ("constant", "cosine", "linear", "one-cycle")
# Settings of training that may be hyperparameters: of a network that asks for them, or of any
# network where a person gives a range.
TRAINING = (
    "learning_rate",
    "weight_decay",
    "batch_size",
    "optimizer",
    "schedule",
    "label_smoothing",
    "ema_momentum",
    "random_shift",
    "random_rotation",
)
# Those of them that an optimizer of a network's own has in it.
OF_OPTIMIZER = ("learning_rate", "weight_decay", "optimizer", "schedule")
PRECISIONS = ("default", "highest", "bfloat16")
TRAINING_NUMBERS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("learning_rate", lambda value: value > 0, "above 0"),
    ("weight_decay", lambda value: value >= 0, "of at least 0"),
    ("label_smoothing", lambda value: 0 <= value < 1, "of at least 0 and below 1"),
    ("ema_momentum", lambda value: 0 <= value < 1, "of at least 0 and below 1"),
    ("random_rotation", lambda value: 0 <= value <= 180, "from 0 to 180"),
)


@dataclass(frozen=True)
class TrainingSettings:
    """How each trial is trained: the settings that `engine.training` needs, and no others.

    learning_rate is the optimizer's step size, which the schedule changes step by step;
    weight_decay is that of the optimizers in `DECAYING`; batch_size counts images. precision:
    'default' is JAX's own for the device, 'highest' computes products in full float32, 'bfloat16'
    computes the network in bfloat16 with weights and loss in float32.
    """

    epochs: int = 5
    batch_size: int = 128
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    weight_decay: float = 1e-4
    schedule: str = "constant"
    label_smoothing: float = 0.0
    ema_momentum: float = 0.0
    random_shift: int = 0
    random_rotation: float = 0.0
    precision: str = "default"

    def for_trial(self, hyperparameters: Mapping[str, Any]) -> TrainingSettings:
        """Return these settings with a trial's own hyperparameters of training in their place."""
        own = {name: hyperparameters[name] for name in TRAINING if name in hyperparameters}
        return replace(self, **own) if own else self

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))
        object.__setattr__(self, "random_shift", check_whole("random_shift", self.random_shift, 0))
        for name, accepts, wanted in TRAINING_NUMBERS:
            number = check_number(name, getattr(self, name), accepts, wanted)
            object.__setattr__(self, name, number)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)


# How trials are trained where nothing else is said, by name.
RECIPES: Mapping[str, TrainingSettings] = {
    "study": TrainingSettings(),
    "fast": TrainingSettings(
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=0.1,
        schedule="linear",
        label_smoothing=0.1,
    ),
}
USUAL_RECIPE = "fast"
