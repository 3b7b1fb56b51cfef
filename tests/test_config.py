from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxmnist.config import Hyperparameters, Range, SearchSettings, Values
from jaxmnist.errors import UsageError


def test_units_are_none_without_dense_layers():
    assert Hyperparameters(32, 1, 0, 64) == Hyperparameters(32, 1, 0)
    assert Hyperparameters(32, 1, 0, 64).units is None


@pytest.mark.parametrize(
    "values",
    [(0, 1, 0), (32, 0, 0), (32, 1, -1), (32, 1, 1), (32, 1, 1, 0), (32.0, 1, 0), (True, 1, 0)],
)
def test_hyperparameters_refuse(values):
    with pytest.raises(UsageError, match="must be a whole number"):
        Hyperparameters(*values)


@pytest.mark.parametrize(
    ("value", "members"),
    [
        ("32:128:16", [32, 48, 64, 80, 96, 112, 128]),
        ("1:3", [1, 2, 3]),
        ("112", [112]),
        (112, [112]),
        ((1, 6, 2), [1, 3, 5]),
        (Range(2, 4), [2, 3, 4]),
        ((1, 6), [1, 2, 3, 4, 5, 6]),
        ((7,), [7]),
        ("32,64,128", [32, 64, 128]),
        ("128,32", [32, 128]),
        ([32, 64, 128], [32, 64, 128]),
        ([32, 64], [32, 64]),
        ([1, 6, 2, 9], [1, 2, 6, 9]),
        ([np.int64(5)], [5]),
        (Values((3, 8)), [3, 8]),
    ],
)
def test_range(value, members):
    assert list(Range.parse("filters", value).values) == members


@pytest.mark.parametrize("value", ["32:128:16", "1:3", "112", "32,64,128"])
def test_range_text_reads_back(value):
    assert str(Range.parse("filters", value)) == value


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("filters", "128:32", "is empty"),
        ("filters", "-3", "must start at 1"),
        ("conv_layers", "0:2", "must start at 1"),
        ("dense_layers", "-1:2", "must start at 0"),
        ("units", "32:64:0", "step of at least 1"),
        ("units", "32:64:-8", "step of at least 1"),
        ("filters", "a:b", "must be a number"),
        ("filters", "", "must be a number"),
        ("filters", "1:2:3:4", "must be a number"),
        ("filters", 3.5, "must be a number"),
        ("filters", math.nan, "must be a number"),
        ("filters", True, "must be a number"),
        ("filters", None, "must be a number"),
        ("filters", [], "must be a number"),
        ("filters", (), "must be a number"),
        ("filters", (1, 2, 3, 4), "must be a number"),
        ("filters", [1, 2.5], "must be a number"),
        ("filters", [True, 2], "must be a number"),
        ("filters", "1,2:3", "must be a number"),
        ("filters", "1,", "must be a number"),
        ("filters", ["1:3", "5"], "must be a number"),
        ("filters", [8, 8], "names the value 8 twice"),
        ("filters", "8,16,8", "names the value 8 twice"),
        ("filters", [0, 8], "must be a whole number of at least 1"),
        ("units", "8,99999999999999999999", "must be a whole number"),
        ("units", "1:99999999999999999999", "must be a whole number"),
    ],
)
def test_range_refuses(name, value, reason):
    with pytest.raises(UsageError, match=reason) as caught:
        Range.parse(name, value)
    assert "--" + name.replace("_", "-") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_trials", 0),
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
        ("filters", 10**6),
        ("dense_layers", "0:1000"),
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
    assert "--" + name.replace("_", "-") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numpy_numbers_are_numbers():
    settings = SearchSettings(seed=np.int64(3), epochs=np.uint8(2), filters=np.int32(32))
    assert json.loads(json.dumps(settings.to_json()))["seed"] == 3
    assert settings.filters == Range(32, 32)


def test_settings_survive_json():
    settings = SearchSettings(filters="16:32:8", seed=0, data_dir="some/folder", tolerance=0.01)
    assert SearchSettings(**json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "mnist"),
        ({"dataset": "kmnist"}, "kmnist"),
        ({"data_dir": "a/fashion/"}, "fashion"),
        ({"data_dir": "a/mine.npz"}, "mine"),
        ({"data_dir": "a/exp.1"}, "exp.1"),
        ({"data_dir": "a/mine.npz", "dataset": "mnist"}, "mnist"),
    ],
)
def test_dataset_name(given, name):
    assert SearchSettings(**given).dataset_name == name
