"""Compiled programs: compiled concurrently if there are threads, shared, and dropped when done."""

from __future__ import annotations

import threading

import pytest

from jaxmnist.engine.lanes import Group
from jaxmnist.engine.programs import Programs
from jaxmnist.models.study import configuration
from jaxmnist.runs.trial import Key

GROUPS = [Group(configuration(4, depth, 0), ((Key(depth), None),), 1) for depth in (1, 2, 2, 3)]


def test_all_programs_are_compiled_at_once():
    """Each waits until all six are being compiled: those of training and those of evaluation."""
    together = threading.Barrier(6)

    def build(group):
        def compiler(name):
            def compile_it():
                together.wait(timeout=60)
                return name, group.program

            return compile_it

        return compiler("train"), compiler("evaluate")

    programs = Programs(build, GROUPS, ahead=6)
    for group in GROUPS:
        pair = programs.get(group)
        assert (pair.train, pair.evaluate) == (
            ("train", group.program),
            ("evaluate", group.program),
        )
    programs.close()
    assert programs.compiled == 3


@pytest.mark.parametrize("ahead", [1, 2, 6])
def test_the_first_trial_waits_for_its_own_two_programs_only(ahead):
    others, ended = threading.Event(), []

    def build(group):
        def compiler(name):
            def compile_it():
                assert group is GROUPS[0] or others.wait(timeout=60)
                ended.append((group.program, name))

            return compile_it

        return compiler("train"), compiler("evaluate")

    programs = Programs(build, GROUPS, ahead)
    programs.get(GROUPS[0])
    assert set(ended) == {(GROUPS[0].program, name) for name in ("train", "evaluate")}
    others.set()
    programs.get(GROUPS[3])
    programs.close()
    assert len(set(ended)) == 6


@pytest.mark.parametrize("ahead", [0, 2])
def test_what_fails_to_compile_fails_for_who_asks(ahead):
    def build(group):
        if group is GROUPS[0]:
            raise RuntimeError("no such program")
        return (lambda: "train"), (lambda: "evaluate")

    programs = Programs(build, GROUPS, ahead)
    with pytest.raises(RuntimeError, match="no such program"):
        programs.get(GROUPS[0])
    assert programs.get(GROUPS[1]).evaluate == "evaluate"
    programs.close()
