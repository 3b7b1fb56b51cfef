"""The choice of padding, as a function of the trials, the costs and the host's cores."""

from __future__ import annotations

import functools

import pytest
from conftest import numbered

from jaxmnist.engine.lanes import Group, Stacking, group_trials
from jaxmnist.engine.programs import COSTS, Costs, cheapest, paddings, pays, seconds
from jaxmnist.models.network import DataSpec
from jaxmnist.models.space import Space
from jaxmnist.models.study import STUDY
from jaxmnist.models.study_space import DEFINITION, configuration
from jaxmnist.runs.trial import Key, Layer

MNIST = DataSpec((28, 28, 1), 10)
STEPS = 5 * 422


@functools.cache
def layers_of(h):
    return STUDY.layers(h, MNIST)


def grouped(trials, stacking):
    return group_trials(numbered(trials), stacking, 1)


def programs(stacking, trials):
    return len({group.program for group in grouped(trials, stacking)})


def chosen(trials, cores, costs=COSTS["tpu"]):
    """The cheapest stacking, its number of programs, and its seconds."""
    trials = list(trials)

    def seconds_of(stacking):
        groups = grouped(trials, stacking)
        return seconds(groups, costs[stacking.way], layers_of, lambda group: STEPS, 128, cores)

    choices = [Stacking(way, 1, padding) for way in costs for padding in paddings(STUDY.multiples)]
    stacking = cheapest(choices, seconds_of)
    return stacking, programs(stacking, trials), seconds_of(stacking)


def test_seconds_by_hand():
    layers = {
        4: (Layer("conv", "Conv", (6, 6, 4), 40), Layer("flatten", "Flatten", (144,), 0)),
        8: (Layer("conv", "Conv", (6, 6, 8), 80),),
    }
    costs = Costs(step=1e-3, value=1e-6, multiplication=1e-8, compiling=3.0, compiling_more=1e-3)
    small, large = configuration(4, 1, 0), configuration(8, 1, 0)
    groups = [Group(small, ((Key(0), small),), 1), Group(large, ((Key(1), large),), 1)] * 2
    training, compiling = seconds(
        groups, costs, lambda h: layers[h["filters"]], lambda group: 10, 32, cores=1
    )
    narrow = 1e-3 + 32 * (288 * 1e-6 + 36 * 40 * 1e-8)
    wide = 1e-3 + 32 * (288 * 1e-6 + 36 * 80 * 1e-8)
    assert training == pytest.approx(2 * 10 * (narrow + wide))
    first, second = 3 + 36 * 40 * 1e-3, 3 + 36 * 80 * 1e-3
    assert compiling == pytest.approx(first + second)  # each once
    found = seconds(groups, costs, lambda h: layers[h["filters"]], lambda g: 0, 32, 99)
    assert found == pytest.approx((0, second))  # the longest, as all are compiled at once


def test_every_combination_of_multiples():
    assert paddings({"b": (4, 1), "a": (2,)}) == [{"a": 2, "b": 1}, {"a": 2, "b": 4}]
    assert paddings({}) == [{}]
    assert len(paddings(STUDY.multiples)) == 16


def test_a_few_trials_and_the_whole_space_get_different_answers():
    space = list(Space(DEFINITION).draws(0))
    few, many = chosen(space[:10], 2), chosen(space, 2)
    assert few[0] != many[0]
    assert few[1] <= 10
    assert many[1] < 357
    # The more cores compile, the narrower programs may be; and the shorter it takes.
    found = [chosen(space, cores) for cores in (1, 2, 8, 96)]
    assert [each[1] for each in found] == sorted(each[1] for each in found)
    assert found[0][1] < found[-1][1]
    totals = [sum(each[2]) for each in found]
    assert totals == sorted(totals, reverse=True)


def test_what_costs_nothing_to_compile_is_not_padded():
    trials = list(Space(DEFINITION).draws(0))[:40]
    free = {"alone": Costs(step=1e-4, value=1e-9, multiplication=1e-12, compiling=0.0)}
    assert chosen(trials, 1, free)[1] == 40
    dear = {"alone": Costs(step=1e-4, value=1e-9, multiplication=1e-12, compiling=1e6)}
    widest = Stacking("alone", 1, {"filters": 128, "units": 256})
    assert chosen(trials, 1, dear)[1] == programs(widest, trials)


def test_what_trains_faster_is_worth_compiling_longer_in_a_long_search_only():
    space = list(Space(DEFINITION).draws(0))
    slow = Costs(step=1e-4, value=1e-11, multiplication=1e-13, compiling=2.0)
    fast = Costs(step=5e-5, value=5e-12, multiplication=5e-14, compiling=4.0)
    costs = {"alone": slow, "corners": fast}
    assert chosen(space[:10], 2, costs)[0].way == "alone"
    assert chosen(space, 2, costs)[0].way == "corners"


def test_measuring_pays_in_a_long_search_only():
    """Three ways, where compiling one takes as long as two trials."""
    assert not pays(training=10.0, compiling=2.0, ways=3)
    assert pays(training=357.0, compiling=2.0, ways=3)
