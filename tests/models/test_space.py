"""The search space of a network: its values, its size, its draws."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections import Counter

import numpy as np
import pytest

from jaxmnist.errors import UsageError
from jaxmnist.files import as_json, from_json
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.models.questions import (
    Choice,
    Definition,
    Distribution,
    Float,
    Int,
    Questions,
)
from jaxmnist.models.space import Space, SpaceDescription
from jaxmnist.models.study import DEFINITION, configuration, most_conv_layers


def space_of(ask, **options):
    return Space(Definition("mine", ask), **options)


def first(ask, **options):
    """The first configuration that a builder asks for."""
    return space_of(ask, **options).configuration(lambda name, d: (d.values or [d.min])[0])


# --- The study's space ----------------------------------------------------------------------------


def test_size_and_members():
    space = Space(DEFINITION)
    members = space.members()
    assert space.size == len(members) == len(set(members)) == 357
    assert space.describe().size_text == "357"
    by_hand = {
        configuration(f, c, d, u)
        for f, c, d, u in itertools.product(
            range(32, 129, 16), (1, 2, 3), (0, 1, 2), range(32, 257, 32)
        )
    }
    assert set(members) == by_hand


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_draws_are_the_whole_space_once(seed):
    space = Space(DEFINITION)
    assert sorted(map(str, space.draws(seed))) == sorted(map(str, space.members()))


def test_draws_of_seeds_differ_and_repeat():
    drawn = [list(itertools.islice(Space(DEFINITION).draws(seed), 10)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_first_draw_is_uniform_in_each_hyperparameter():
    space = Space(DEFINITION)
    draws = [next(space.draws(seed)) for seed in range(3000)]
    for name, values in (("filters", 7), ("conv_layers", 3), ("dense_layers", 3)):
        counts = Counter(draw[name] for draw in draws)
        assert len(counts) == values
        # Chi-squared with at most 6 degrees of freedom exceeds 25 once in 3,000 times.
        expected = len(draws) / values
        assert sum((count - expected) ** 2 / expected for count in counts.values()) < 25


def test_known_draws():
    """The draws of a seed never change: other programs and finished runs rely on them."""
    known = [
        (112, 2, 1, 96),
        (80, 3, 2, 160),
        (128, 1, 0),
        (80, 3, 2, 224),
        (80, 3, 1, 64),
        (96, 2, 2, 160),
        (80, 2, 1, 64),
        (112, 1, 0),
        (64, 3, 2, 224),
        (48, 2, 0),
    ]
    drawn = itertools.islice(Space(DEFINITION).draws(0), 10)
    assert list(drawn) == [configuration(*values) for values in known]


def test_what_is_opened_is_drawn_last():
    """The other hyperparameters of a draw stay what they are."""
    given = {"kernel_size": "3,5", "dropout": "0:0.5"}
    draws = list(itertools.islice(Space(DEFINITION, given).draws(0), 10))
    for draw, before in zip(draws, Space(DEFINITION).draws(0), strict=False):
        fixed = {"dropout": 0.0} | ({"kernel_size": 3} if "kernel_size" in before else {})
        assert draw.replace(**fixed) == before
        assert 0 <= draw["dropout"] <= 0.5
        assert draw.get("kernel_size", 3) in (3, 5)
    assert len({draw["dropout"] for draw in draws}) == 10
    assert {draw.get("kernel_size") for draw in draws} == {None, 3, 5}


def test_a_range_of_a_setting_of_training():
    space = Space(DEFINITION, {"learning_rate": "1e-4:1e-2:log", "batch_size": "64,128"})
    (draw,) = itertools.islice(space.draws(0), 1)
    assert draw["batch_size"] in (64, 128)
    assert 1e-4 <= draw["learning_rate"] <= 1e-2


@pytest.mark.parametrize(
    ("side", "most"), [(5, 0), (6, 1), (7, 1), (8, 2), (11, 2), (12, 3), (13, 3), (28, 4)]
)
def test_most_conv_layers_by_walking(side, most):
    walked, left = 0, side - 4
    while left >= 2:
        left //= 2
        walked += 1
    assert most_conv_layers(side, 100) == most_conv_layers(100, side) == walked == most


def test_default_ranges_narrow_to_the_images():
    assert Space(DEFINITION, {}, (8, 8, 1), 10).describe().ranges()["conv_layers"] == "1:2"


def test_given_ranges_are_refused():
    with pytest.raises(UsageError, match=r"^conv_layers 3 is too many for images of 8×8 pixels"):
        Space(DEFINITION, {"conv_layers": "1:3"}, (8, 8, 1), 10)
    with pytest.raises(UsageError, match=r"^kernel_size 13 is larger than the images of 9×12"):
        Space(DEFINITION, {"kernel_size": "3,13"}, (9, 12, 1), 10)
    assert Space(DEFINITION, {"kernel_size": "12"}, (9, 12, 1), 10).size == 7 * 2 * 17
    with pytest.raises(UsageError, match="too small"):
        Space(DEFINITION, {}, (28, 5, 1), 10)
    # Before the images are loaded, their shape is unknown.
    assert Space(DEFINITION, {"conv_layers": "1:6"}).size == 7 * 6 * 17


# --- Hyperparameters ------------------------------------------------------------------------------


def test_a_configuration_is_an_immutable_mapping():
    h = Hyperparameters(width=3, rate=0.5, name="relu", flag=True, none=None, pair=[1, 2])
    assert dict(h) == h.to_json() == {**h}
    assert list(h) == ["width", "rate", "name", "flag", "none", "pair"]
    assert h["pair"] == (1, 2)
    assert str(h) == "width=3 rate=0.5 name=relu flag=true none=none pair=[1, 2]"
    assert h == pickle.loads(pickle.dumps(h)) == Hyperparameters(json.loads(json.dumps(dict(h))))
    assert hash(h) == hash(h.replace())
    assert h.replace(width=4) != h
    with pytest.raises(AttributeError, match="can't be changed"):
        h.width = 4
    with pytest.raises(TypeError):
        h["width"] = 4


def test_equal_numbers_of_other_types_are_other_values():
    ones = [Hyperparameters(x=value) for value in (1, 1.0, True, "1")]
    assert len(set(ones)) == 4
    assert Hyperparameters(a=1, b=2) == Hyperparameters(b=2, a=1)
    assert Hyperparameters(x=np.int64(1)) == ones[0]


# --- Distributions, compared with KerasTuner's ----------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (Int(6, 13, step=3), [6, 9, 12]),
        (Int(2, 32, step=2, sampling="log"), [2, 4, 8, 16, 32]),
        (Int(2, 32, step=2, sampling="reverse_log"), [2, 18, 26, 30, 32]),
        (Int(1, 4, sampling="log"), [1, 2, 3, 4]),
        (Int(5, 5), [5]),
        (Float(0, 0.5, step=0.1), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]),
        (Float(0.05, 0.2, step=0.1), [0.05, 0.15]),
        (Float(1e-4, 1e-1, step=10, sampling="LOG"), [0.0001, 0.001, 0.01, 0.1]),
        (Float(0.5, 0.5), [0.5]),
        (Choice([True, False]), [True, False]),
        (Choice(["relu", None, 3, 0.5, [1, 2]]), ["relu", None, 3, 0.5, (1, 2)]),
    ],
)
def test_values(distribution, values):
    assert list(distribution.values) == values
    assert [type(a) for a in distribution.values] == [type(b) for b in values]
    generator = np.random.default_rng(0)
    assert {distribution.draw(generator) for _ in range(300)} == set(values)
    again = from_json(Distribution, json.loads(json.dumps(as_json(distribution))))
    assert again == distribution
    assert list(again.values) == values


def test_logarithms_are_floored_and_uniform():
    """Int(1, 8, sampling="log"): the value k has the probability log((k + 1) / k) / log(9)."""
    generator, n = np.random.default_rng(0), 20_000
    counts = Counter(Int(1, 8, sampling="log").draw(generator) for _ in range(n))
    for k in range(1, 9):
        p = math.log((k + 1) / k) / math.log(9)
        assert abs(counts[k] - n * p) < 4.5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize("sampling", ["linear", "log", "reverse_log"])
def test_floats_without_a_step(sampling):
    low, high = 1e-4, 1e-1
    distribution = Float(low, high, sampling=sampling)
    assert distribution.values is None
    generator = np.random.default_rng(0)
    drawn = np.array([distribution.draw(generator) for _ in range(4000)])
    assert low <= drawn.min() < drawn.max() <= high
    assert all(float(f"{x:.6g}") == x for x in drawn.tolist())  # six significant digits
    middle = {"linear": (low + high) / 2, "log": math.sqrt(low * high)}
    middle["reverse_log"] = high + low - middle["log"]
    assert abs((drawn < middle[sampling]).mean() - 0.5) < 0.035  # 4.4 standard errors


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda hp: hp.Int("x", 5, 3), "is empty: its last number 3 is below its first, 5"),
        (lambda hp: hp.Int("x", 1, 3, step=0), "must have a step above 0, not 0"),
        (lambda hp: hp.Float("x", 0, 1, step=-0.1), "must have a step above 0"),
        (lambda hp: hp.Int("x", 0, 8, sampling="log"), "must start above 0 with sampling log"),
        (lambda hp: hp.Int("x", 32, 512, step=32, sampling="log"), "the step is a factor, and 32"),
        (lambda hp: hp.Int("x", 1, 8, step=1, sampling="log"), "must have a step above 1, as a"),
        (lambda hp: hp.Int("x", 1, 8, sampling="cubic"), "must have one of the samplings linear"),
        (lambda hp: hp.Int("x", 1.5, 8), "must be a whole number, not 1.5"),
        (lambda hp: hp.Int("x", True, 8), "must be a whole number, not True"),
        (lambda hp: hp.Int("x", 1, 10**12), "must lie between"),
        (lambda hp: hp.Float("x", "0", 1), "must be a number, not '0'"),
        (lambda hp: hp.Float("x", 0, math.inf), "must be a finite number, not inf"),
        (lambda hp: hp.Float("x", 0, 1, step=1e-9), "has more than 100,000 values"),
        (lambda hp: hp.Choice("x", "relu"), "must have a list of choices, not 'relu'"),
        (lambda hp: hp.Choice("x", []), "has an empty list of choices"),
        (lambda hp: hp.Choice("x", [1, 1, 2]), "lists the value 1 twice"),
        (lambda hp: hp.Choice("x", [max, min]), "max is a callable: use its name as text"),
        (lambda hp: hp.Choice("x y", [1]), "a name must start with a letter"),
        (lambda hp: hp.Choice("9x", [1]), "a name must start with a letter"),
        (lambda hp: hp.Int("epochs", 1, 3), "an option of the search has this name"),
        (lambda hp: hp.get("x"), r"has not asked for x yet"),
    ],
)
def test_questions_that_make_no_space(ask, line):
    with pytest.raises(UsageError, match=line) as caught:
        space_of(ask)
    assert "\n" not in str(caught.value)
    assert "x" in str(caught.value) or "epochs" in str(caught.value)


def test_numpy_numbers_become_pythons():
    def ask(hp):
        hp.Int("a", np.int64(1), np.int32(3))
        hp.Float("b", np.float32(0.5), np.float64(1), step=np.float64(0.5))
        hp.Choice("c", [np.int64(1), np.bool_(True)])

    for member in space_of(ask).members():
        assert all(type(value) in (int, float, bool) for value in member.values())


# --- Asking ---------------------------------------------------------------------------------------


def test_the_same_name_again():
    def same(hp):
        assert hp.Int("x", 1, 3) == hp.Int("x", 1, 3)

    assert space_of(same).size == 3

    def other(hp):
        hp.Int("x", 1, 3)
        hp.Int("x", 1, 4)

    with pytest.raises(UsageError, match=r"'x' is asked for twice, as 1:3 and as 1:4"):
        space_of(other)


def test_one_name_on_two_paths():
    """Each path has its own distribution; both are searched, and shown."""

    def ask(hp):
        if hp.Boolean("deep"):
            hp.Int("width", 1, 2)
        else:
            hp.Int("width", 10, 30, step=10)

    space = space_of(ask)
    assert space.size == 5
    assert space.describe().ranges() == {"deep": "false,true", "width": "10:30:10 or 1:2"}
    for draw in space.draws(0):
        assert (draw["width"] < 10) == draw["deep"]


def test_what_is_not_asked_for_is_not_there():
    """An optimizer whose momentum exists in one branch makes no duplicates of the other."""

    def ask(hp):
        if hp.Choice("method", ["adam", "sgd"]) == "sgd":
            hp.Choice("momentum", [0.0, 0.9])

    members = list(map(dict, space_of(ask).members()))
    assert members == [
        {"method": "adam"},
        {"method": "sgd", "momentum": 0.0},
        {"method": "sgd", "momentum": 0.9},
    ]
    assert sorted(map(str, space_of(ask).draws(3))) == sorted(map(str, space_of(ask).members()))


def test_a_range_that_depends_on_another_value():
    def ask(hp):
        hp.Int("b", 1, hp.Int("a", 1, 3))

    assert [(m["a"], m["b"]) for m in space_of(ask).members()] == [
        (a, b) for a in (1, 2, 3) for b in range(1, a + 1)
    ]


def test_name_scopes():
    def ask(hp):
        hp.Int("units", 1, 1)
        for block in ("stem", "head"):
            with hp.name_scope(block):
                kind = hp.Choice("kind", ["wide", "deep"])
                with hp.conditional_scope("kind", "wide"), hp.name_scope("inner"):
                    hp.Int("units", 2, 2)
                assert ("kind" in hp, hp.get("kind")) == (True, kind)
        assert "kind" not in hp

    assert [dict(member) for member in space_of(ask).members()][:2] == [
        {"units": 1, "stem_kind": "wide", "stem_inner_units": 2}
        | {"head_kind": "wide", "head_inner_units": 2},
        {"units": 1, "stem_kind": "wide", "stem_inner_units": 2, "head_kind": "deep"},
    ]

    def unnamed(hp):
        with hp.name_scope(3):
            hp.Int("units", 1, 2)

    with pytest.raises(UsageError, match="'3_units': a name must start with a letter"):
        space_of(unnamed)


def test_conditional_scopes_and_parents():
    def ask(hp):
        hp.Choice("kind", ["a", "b", "c"])
        with hp.conditional_scope("kind", ["b", "c"]):
            assert hp.Int("n", 1, 2, default=2) in (1, 2)
            with hp.conditional_scope("n", 2):
                hp.Boolean("deep")
        hp.Float("rate", 0, 0.5, step=0.5, parent_name="kind", parent_values=["a"])

    found = [dict(member) for member in space_of(ask).members()]
    assert found == [
        {"kind": "a", "rate": 0.0},
        {"kind": "a", "rate": 0.5},
        *(
            {"kind": kind, "n": n, **deep}
            for kind in "bc"
            for n, deep in ((1, {}), (2, {"deep": False}), (2, {"deep": True}))
        ),
    ]


def test_a_parent_is_found_from_its_scope_outwards():
    def ask(hp):
        hp.Choice("kind", ["wide", "deep"])
        hp.Choice("size", [1, 2])
        with hp.name_scope("head"):
            hp.Choice("size", [3])
            with hp.conditional_scope("kind", "deep"), hp.name_scope("inner"):
                hp.Choice("layers", [7], parent_name="size", parent_values=3)
            hp.Choice("rate", [0.5], parent_name="kind", parent_values="wide")
            # A parent whose own condition does not hold, as `layers` where kind is 'wide'.
            hp.Choice("last", [9], parent_name="inner_layers", parent_values=7)

    deep, wide = {"head_inner_layers": 7, "head_last": 9}, {"head_rate": 0.5}
    assert [dict(member) for member in space_of(ask).members()] == [
        {"kind": kind, "size": size, "head_size": 3, **(deep if kind == "deep" else wide)}
        for kind in ("wide", "deep")
        for size in (1, 2)
    ]


def test_a_parent_that_was_not_asked_for():
    def by_name(hp):
        hp.Choice("kind", ["a", "b"])
        with hp.name_scope("head"):
            hp.Int("units", 1, 2, parent_name="knid", parent_values="a")

    def by_scope(hp):
        with hp.name_scope("head"):
            hp.Choice("kind", ["a", "b"])
        with hp.conditional_scope("kind", "a"):  # outside its scope it is head_kind
            hp.Int("units", 1, 2)

    with pytest.raises(UsageError, match="'head_units': its parent 'knid' has not been asked for"):
        space_of(by_name)
    with pytest.raises(UsageError, match=r"_scope\('kind'\): its parent 'kind' has not been asked"):
        space_of(by_scope)


def test_what_else_hp_knows():
    def ask(hp):
        hp.Fixed("size", 3)
        assert "size" in hp
        assert "other" not in hp
        assert hp.get("size") == 3
        assert dict(hp.values) == {"size": 3}
        assert (hp.classes, hp.image_shape) == (7, (5, 6, 2))

    space = space_of(ask, image_shape=(5, 6, 2), classes=7)
    assert space.size == 1
    assert space.describe().varied == []
    hp = Questions(lambda name, d: d.values[0])
    assert (hp.classes, hp.image_shape) == (10, (28, 28, 1))


def test_three_collisions_are_no_end():
    """All of a finite space is reached, also where one member has a thousandth of the draws."""

    def ask(hp):
        if hp.Int("n", 1, 1000, sampling="log") < 1000:
            hp.Fixed("m", 0)

    space = space_of(ask)
    assert len(list(space.draws(0))) == space.size == 1000


def test_sizes_that_are_not_known(monkeypatch):
    endless = space_of(lambda hp: (hp.Float("rate", 0, 1), hp.Boolean("flag")))
    assert (endless.size, endless.describe().size_text) == (None, "infinite")
    assert endless.describe().varied == ["rate", "flag"]
    drawn = list(itertools.islice(endless.draws(0), 100))
    assert len(set(drawn)) == 100
    with pytest.raises(UsageError, match="unknown size"):
        endless.members()

    large = space_of(lambda hp: [hp.Int(f"units_{i}", 1, 9) for i in range(6)])
    assert large.size is None
    assert large.describe().size_text == "more than 1,000"
    assert list(large.parameters) == [f"units_{i}" for i in range(6)]


def test_the_size_is_found_up_to_the_number_of_trials():
    """By as many calls; the description, and so a run's identity, doesn't depend on it."""

    def ask(hp):
        hp.Int("a", 1, 40)
        hp.Int("b", 1, 40)

    known, unknown = (Space(Definition("mine", ask), most=most) for most in (1600, 1599))
    assert (known.size, unknown.size) == (1600, None)
    assert unknown.describe().size_text == "more than 1,599"
    assert known.describe().ranges() == unknown.describe().ranges()


def nested(hp):
    """Branches in branches: each name is asked for by few of 50 million configurations."""
    for i in range(hp.Int("layers", 1, 5)):
        hp.Int(f"units_{i}", 32, 512, step=32)
        if hp.Choice(f"kind_{i}", ["plain", "norm", "drop"]) == "drop":
            hp.Float(f"rate_{i}", 0, 0.5, step=0.1)
    hp.Choice("learning_rate", [1e-2, 1e-3, 1e-4])


def test_a_large_space_is_explored_in_few_calls():
    """All names are found, and the function is called about a thousand times at most."""
    calls = []

    def ask(hp):
        calls.append(hp)
        nested(hp)

    space = Space(Definition("mine", ask))
    names = {f"{name}_{i}" for name in ("units", "kind", "rate") for i in range(5)}
    assert set(space.explored) == {"layers", "learning_rate", *names}
    assert len(calls) <= 250
    assert space.describe().size_text == "more than 1,000"
    assert len(calls) <= 1250


def test_an_endless_space_of_few_values_ends():
    """A draw can't say that it has no end of values, and give the same for ever."""
    space = space_of(lambda hp: hp.Float("x", 1.0, 1.000001))
    assert 1 <= len(list(space.draws(0))) <= 3


def test_a_description_survives_json():
    def ask(hp):
        hp.Choice("kind", ["a", None, True])
        hp.Int("n", 1, 8, sampling="log")
        hp.Float("rate", 1e-4, 1e-2, sampling="log")
        hp.Fixed("size", 3)

    described = space_of(ask).describe()
    again = from_json(SpaceDescription, json.loads(json.dumps(as_json(described))))
    assert again == described
    assert again.varied == ["kind", "n", "rate"]
    assert again.ranges() == {
        "kind": "a,none,true",
        "n": "1:8:log",
        "rate": "0.0001:0.01:log",
        "size": "3",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": True},
        {"size": "3"},
        {"parameters": {"x": [{"kind": "normal"}]}},
        {"parameters": {"x": [3]}},
        {"parameters": {"x": [{"kind": "int", "min": 3, "max": 1}]}},
        {"parameters": {"x": [{"kind": "int", "low": 3}]}},
    ],
)
def test_what_is_no_description(change):
    content = {"size": 1, "size_text": "1", "parameters": {}}
    with pytest.raises(ValueError):  # noqa: PT011
        from_json(SpaceDescription, {**content, **change})


@pytest.mark.parametrize("sampling", ["log", "reverse_log"])
def test_a_factor_that_leads_to_many_or_equal_numbers(sampling):
    with pytest.raises(ValueError, match="more than 100,000 values"):
        Float(1e-4, 1e-2, 1.0000001, sampling)
    values = Float(0.12345649, 0.1236, 1.0000005, sampling).values
    assert len(set(values)) == len(values)
    assert min(values) >= 0.12345649
    assert max(values) <= 0.1236
    with pytest.raises(ValueError, match="too wide"):
        Float(1e-300, 1e38, sampling=sampling)


def test_whole_numbers_by_a_factor_stay_below_the_last():
    assert Int(1, 999_999_999, 10, "log").values[-1] == 10**8


def test_a_float_that_plays_no_part_is_a_number():
    def ask(hp):
        hp.Int("a", 0, 1)
        1 - hp.Float("drop", 0, 0.5, parent_name="a", parent_values=[2])

    assert Space(Definition("mine", ask)).size == 2


def test_a_parent_that_is_true_is_not_one():
    def ask(hp):
        hp.Boolean("a")
        hp.Int("b", 1, 2, parent_name="a", parent_values=[1])

    assert Space(Definition("mine", ask)).size == 2
