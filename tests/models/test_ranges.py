"""Every range, list, tuple and name that a user can give for a hyperparameter."""

from __future__ import annotations

import inspect

import pytest

from jaxmnist import UsageError, random_search
from jaxmnist.models.questions import Choice, Definition, Float, Int
from jaxmnist.models.space import Space
from jaxmnist.settings import SETTINGS, SearchSettings

WIDTH = Int(32, 128, step=16)
RATE = Float(1e-4, 1e-2, sampling="log")


def ask(hp):
    hp.Int("width", 32, 128, step=16)
    hp.Int("depth", 1, 3)
    hp.Float("rate", 1e-4, 1e-2, sampling="log")
    hp.Float("dropout", 0, 0.5, step=0.1)
    hp.Choice("activation", ["relu", "gelu", "none,really", "a:b"])
    hp.Choice("momentum", [0.9, 0.99])
    if hp.Boolean("deep"):
        hp.Fixed("size", 3)


def space(**given):
    return Space(Definition("mine", ask), SearchSettings(ranges=given).ranges)


def read(name, given):
    (found,) = space(**{name: given}).parameters[name]
    return found


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("width", "8:64:8", Int(8, 64, step=8)),
        ("width", (8, 64, 8), Int(8, 64, step=8)),
        ("width", "8:24", Int(8, 24, step=16)),  # the declared step
        ("width", (8, 24), Int(8, 24, step=16)),
        ("width", "8:24:1", Int(8, 24, step=1)),
        ("width", "8:64:log", Int(8, 64, sampling="log")),
        ("width", (8, 64, "log"), Int(8, 64, sampling="log")),
        ("width", "112", Choice((112,))),
        ("width", 112, Choice((112,))),
        ("width", (112,), Choice((112,))),
        ("width", [112], Choice((112,))),
        ("width", "64,32,128", Choice((32, 64, 128))),
        ("width", [64, 32], Choice((32, 64))),
        ("width", "300", Choice((300,))),  # numbers may leave the declared range
        ("depth", "1:6", Int(1, 6)),  # declared without a step, which is 1
        ("rate", "1e-3:1e-2", Float(1e-3, 1e-2, sampling="log")),
        ("rate", (1e-3, 1e-2), Float(1e-3, 1e-2, sampling="log")),
        ("rate", "0.1:0.3:0.1", Float(0.1, 0.3, step=0.1)),
        ("rate", "1e-5:1:log", Float(1e-5, 1, sampling="log")),
        ("rate", (1e-5, 1, "log"), Float(1e-5, 1, sampling="log")),
        ("rate", "1e-3", Choice((0.001,))),
        ("rate", 1, Choice((1.0,))),
        ("rate", "0.1,1e-2", Choice((0.01, 0.1))),
        ("rate", [0.1, 0.01], Choice((0.01, 0.1))),
        ("dropout", "0:0.2", Float(0, 0.2, step=0.1)),
        ("activation", "gelu", Choice(("gelu",))),
        ("activation", "relu,gelu", Choice(("relu", "gelu"))),
        ("activation", ["gelu", "relu"], Choice(("gelu", "relu"))),
        ("activation", "none,really", Choice(("none,really",))),
        ("activation", ["none,really", "a:b"], Choice(("none,really", "a:b"))),
        ("momentum", "9e-1", Choice((0.9,))),
        ("momentum", 0.99, Choice((0.99,))),
        ("deep", "true", Choice((True,))),
        ("deep", "false,true", Choice((False, True))),
        ("deep", False, Choice((False,))),
        ("size", "5,3", Choice((3, 5))),
    ],
)
def test_what_works(name, given, found):
    assert read(name, given) == found


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("width", "128:32", "is empty: its last number 32 is below its first, 128"),
        ("width", (128, 32), "is empty"),
        ("width", "32:64:0", "must have a step above 0, not 0"),
        ("width", "32:64:-8", "must have a step above 0, not -8"),
        ("width", "0:64:log", "must start above 0"),
        ("width", "a:b", "must be a whole number"),
        ("width", "", "must be a whole number"),
        ("width", ":", "must be a whole number"),
        ("width", "1:", "must be a whole number"),
        ("width", "1,", "must be a whole number"),
        ("width", "1:2:3:4", "must be a whole number"),
        ("width", "1:log", "must be a whole number"),
        ("width", "1:2:3:log", "must be a whole number"),
        ("width", "log:1:2", "must be a whole number"),
        ("width", "1,2:3", "must be a whole number"),
        ("width", "1_000", "must be a whole number"),
        ("width", "3.5", "must be a whole number"),
        ("width", 3.5, "must be a whole number"),
        ("width", True, "must be a whole number"),
        ("width", [1, 2.5], "must be a whole number"),
        ("width", [True, 2], "must be a whole number"),
        ("width", ["1:3", "5"], "must be a whole number"),
        ("width", [8, 8], "lists the value 8 twice"),
        ("width", "8,16,8", "lists the value 8 twice"),
        ("width", "8,99999999999999999999", "must lie between"),
        ("width", "1:99999999999999999999", "must lie between"),
        pytest.param("width", 10**5000, "must lie between", id="more digits than Python writes"),
        ("rate", "nan", "must"),
        ("rate", "0:inf", "must"),
        ("rate", "fast", "must be a number"),
        ("rate", "1e-4:1e-2:cubic", "must be a number"),
        ("activation", "tanh", "must be one of relu, gelu"),
        ("activation", "relu,tanh", "must be one of relu, gelu"),
        ("activation", "1:3", "must be one of relu, gelu"),
        ("activation", 3, "must be one of relu, gelu"),
        ("deep", "yes", "must be one of false, true, not 'yes'"),
        ("deep", 1, "must be one of false, true, not '1'"),
        ("momentum", "0.5", "must be one of 0.9, 0.99, not '0.5'"),
        ("units", "3", "no configuration has a hyperparameter 'units'; the hyperparameters are"),
    ],
)
def test_what_does_not(name, given, reason):
    with pytest.raises(UsageError, match=f"^{name}:? {reason}") as caught:
        read(name, given)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("size", (3, 7, 2), Int(3, 7, step=2)),
        ("size", 5, Choice((5,))),
        ("rate", "0:0.5", Float(0, 0.5)),
        ("rate", "0:0.5:0.1", Float(0, 0.5, step=0.1)),
        ("rate", [0, 0.3], Choice((0.0, 0.3))),
        ("size", "3.5", "must be a whole number"),
        ("kind", "fancy", "must be one of plain, not 'fancy'"),
        ("flag", "false", "must be one of true, not 'false'"),
        ("large", "1", "must be one of 10000000000, not '1'"),
    ],
)
def test_what_is_fixed_is_opened_by_numbers(name, given, found):
    values = {"size": 3, "rate": 0.0, "kind": "plain", "flag": True, "large": 10**10}
    definition = Definition("mine", lambda hp: [hp.Fixed(*item) for item in values.items()])
    assert dict(Space(definition).members()[0]) == values
    if isinstance(found, str):
        with pytest.raises(UsageError, match=f"^{name} {found}"):
            Space(definition, {name: given})
        return
    ranges = SearchSettings(ranges={name: given}).ranges
    assert Space(definition, ranges).parameters[name] == (found,)


def test_a_name_that_only_some_configurations_ask_for_is_fine():
    assert space(deep="true,false", size=3).parameters["size"] == (Choice((3,)),)
    with pytest.raises(UsageError, match="no configuration has a hyperparameter 'size'"):
        space(deep="false", size=3)


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"filter": 3}, "unknown option 'filter'; did you mean 'filters'"),
        ({"max_trails": 3}, "unknown option 'max_trails'; did you mean 'max_trials'"),
        ({"zzz": 3}, "unknown option 'zzz'$"),
        ({"ranges": {"filters": 3}}, "unknown option 'ranges'"),
        ({"filters": "0:8"}, "filters must be a whole number from 1 to 100000, not 0"),
        ({"dense_layers": "0:1000"}, "dense_layers must be a whole number from 0 to 100"),
        ({"units": (8,), "dense_layers": 0}, "units: no configuration has"),
        ({"kernel_size": 5, "conv_layers": 1}, "kernel_size: no configuration has"),
        ({"kernel_size": "0:3"}, "kernel_size must be a whole number from 1 to 100, not 0"),
        ({"kernel_size": 3.5}, "kernel_size must be a whole number, a range"),
        ({"dropout": 1}, "dropout must be a number of at least 0 and below 1, not 1.0"),
        ({"dropout": (0, 1)}, "dropout must be a number of at least 0 and below 1, not 1.0"),
        ({"dropout": [-0.1, 0.1]}, "dropout must be a number of at least 0 and below 1, not -0.1"),
        ({"dropout": "half"}, "dropout must be a number, a range"),
    ],
)
def test_options_in_python(option, line, tmp_path):
    with pytest.raises(UsageError, match=line):
        random_search(**option, directory=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_random_search_has_the_settings_as_keywords():
    """Names, types and defaults: what an editor shows is what the command line takes."""
    found = [
        (p.name, str(p.annotation), p.default)
        for p in inspect.signature(random_search).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in ("data", "listener")
    ]
    wanted = [
        (
            item.name,
            item.type if not item.range else f"{item.type} | Range | None",
            None if item.range else item.default,
        )
        for item in SETTINGS.values()
    ]
    assert found == wanted


def test_messages_in_python_name_keywords(tmp_path):
    with pytest.raises(UsageError, match=r"^max_trials must be a whole number of at least 1"):
        random_search(max_trials=0)
    with pytest.raises(UsageError, match=r"^conv_layers 9 is too many for images"):
        random_search(conv_layers=9, directory=str(tmp_path))
