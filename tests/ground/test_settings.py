from __future__ import annotations

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from jaxmnist.errors import UsageError
from jaxmnist.settings import RECIPES, SearchSettings, TrainingSettings


class Colour:
    """No value of JSON."""


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("32:128:16", "32:128:16"),
        ((32, 128, 16), "32:128:16"),
        ((1e-4, 1e-2, "log"), "0.0001:0.01:log"),
        ((7,), "7"),
        ([32, 64], [32, 64]),
        ([np.int64(5), np.float32(0.5)], [5, 0.5]),
        (["relu", True, None], ["relu", True, None]),
        (112, 112),
        (np.int32(3), 3),
        (np.bool_(True), True),
        (0.5, 0.5),
        (False, False),
    ],
)
def test_a_range_is_kept_as_it_was_given(given, kept):
    settings = SearchSettings(ranges={"width": given})
    assert settings.ranges == {"width": kept}
    assert type(settings.ranges["width"]) is type(kept)
    again = SearchSettings(**json.loads(json.dumps(settings.to_json(), allow_nan=False)))
    assert again == settings


def test_a_recipe_is_what_is_not_given():
    fast = SearchSettings(recipe="fast", learning_rate=0.002)
    assert fast.training.optimizer == RECIPES["fast"].optimizer
    assert fast.given == {"recipe": "fast", "learning_rate": 0.002}
    assert replace(RECIPES["fast"], learning_rate=0.002) == fast.training
    assert SearchSettings(recipe="study").training == RECIPES["study"]
    assert SearchSettings().training == TrainingSettings() == RECIPES["fast"]
    for wrong, shown in (("slow", "'slow'"), (["fast"], r"\['fast'\]"), (None, "None")):
        with pytest.raises(UsageError, match=f"^recipe must be one of study, fast, not {shown}$"):
            SearchSettings(recipe=wrong)


def test_a_run_is_known_by_its_training_whatever_the_recipe_is_called():
    fast, study = (SearchSettings(recipe=name) for name in ("fast", "study"))
    assert fast.identity() != study.identity()
    spelled_out = SearchSettings(**{**asdict(fast.training), "recipe": "study"})
    assert spelled_out.identity() == fast.identity()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("ema_momentum", 1.0),
        ("random_shift", -1),
        ("random_shift", 1001),
        ("epochs", None),
        ("precision", None),
        ("random_shift", 1.5),
        ("random_rotation", 181.0),
        ("schedule", "sine"),
    ],
)
def test_what_training_can_not_be(name, value):
    with pytest.raises(UsageError, match=f"^{name} must be "):
        SearchSettings(**{name: value})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, "must be a range, values or one value, not None"),
        ((), r"must be a range \(first, last"),
        ((1, 2, 3, 4), r"must be a range \(first, last"),
        ((True, 2), "must be a range of numbers as a tuple"),
        (([1], 2), "must be a range of numbers as a tuple"),
        ([], "must have at least one value"),
        (math.nan, "must be a finite number, not nan"),
        ([math.inf], "must be a finite number, not inf"),
        (Colour(), "a Colour is not text, a number"),
        ([len], "len is a callable: use its name as text"),
        ({"a": 1}, "a dict is not text, a number"),
        (np.zeros(3), "a ndarray is not text, a number"),
    ],
)
def test_what_can_be_no_range(given, reason):
    with pytest.raises(UsageError, match=f"the_width {reason}") as caught:
        SearchSettings(ranges={"the_width": given})
    assert "\n" not in str(caught.value)


def test_the_identity_is_what_the_settings_declare():
    """All of training, and the settings that say so; nothing of how the run is shown or kept."""
    assert SearchSettings().identity() == {
        "seed": 0,
        "validation_split": 0.1,
        "train_limit": None,
        **{name: v for name, v in asdict(RECIPES["fast"]).items() if name != "recipe"},
    }
    others = SearchSettings(max_trials=3, keep=1, jobs=1, select="best", quiet=True, svm=False)
    assert others.identity() == SearchSettings().identity()
    assert SearchSettings(learning_rate=0.1).identity()["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_trials", 0),
        ("ray", 7),
        ("ray", "\x1b[2J"),
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", "5"),
        ("batch_size", 0),
        ("learning_rate", 0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("learning_rate", -1e-3),
        ("learning_rate", 10**400),
        ("max_trials", 10**30),
        ("max_trials", 10**6),
        pytest.param("epochs", 10**5000, id="more digits than Python writes"),
        ("select", ["steady"]),
        ("ranges", 3),
        ("ranges", ["filters"]),
        ("dataset", ".."),
        ("validation_split", 0),
        ("validation_split", 1),
        ("validation_split", math.nan),
        ("validation_split", -0.1),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", True),
        ("tolerance", -0.1),
        ("tolerance", math.inf),
        ("max_seconds", 0),
        ("max_seconds", -1.5),
        ("max_seconds", math.nan),
        ("max_seconds", math.inf),
        ("max_seconds", True),
        ("keep", 0),
        ("jobs", 0),
        ("train_limit", 0),
        ("svm_search", -1),
        ("select", "worst"),
        ("svm_backend", "libsvm"),
        ("project_name", "../elsewhere"),
        ("project_name", ""),
        ("directory", ""),
        ("data_dir", "a\0b"),
        ("dataset", 3),
        ("quiet", 1),
    ],
)
def test_settings_refuse(name, value):
    with pytest.raises(UsageError) as caught:
        SearchSettings(**{name: value})
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numpy_numbers_are_numbers():
    settings = SearchSettings(seed=np.int64(3), epochs=np.uint8(2))
    assert json.loads(json.dumps(settings.to_json()))["seed"] == 3
    assert settings.training.epochs == 2


def test_the_time_of_a_search_is_not_its_identity():
    assert SearchSettings(max_seconds=600).identity() == SearchSettings().identity()
    assert SearchSettings(max_seconds=0.5).selection.max_seconds == 0.5


def test_settings_survive_json():
    settings = SearchSettings(
        ranges={"filters": "16:32:8"}, seed=0, data_dir="some/folder", tolerance=0.01
    )
    assert SearchSettings(**json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "mnist"),
        ({"dataset": "kmnist"}, "kmnist"),
        ({"data_dir": "a/fashion/"}, "fashion"),
        ({"data_dir": "a/mine.npz"}, "mine"),
        ({"data_dir": "a/mine.csv.gz"}, "mine"),
        ({"data_dir": "a/exp.1"}, "exp.1"),
        ({"data_dir": "a/mine.npz", "dataset": "mnist"}, "mnist"),
    ],
)
def test_dataset_name(given, name):
    assert SearchSettings(**given).data.dataset_name == name
