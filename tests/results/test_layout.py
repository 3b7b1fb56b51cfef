from __future__ import annotations

import itertools

import pytest

from jaxmnist.report.console import fitted, wrapped
from jaxmnist.results.confusion import right, short_names, shortened


@pytest.mark.parametrize(
    ("text", "cells", "short"),
    [
        ("shirt", 5, "shirt"),
        ("shirts", 5, "shir…"),
        ("數字二", 6, "數字二"),
        ("數字二", 5, "數字…"),
        ("數字二", 4, "數…"),  # half a character would not do
        ("e\u0301cole", 5, "e\u0301cole"),
        ("a b", 3, "a b"),
        ("a bcd", 3, "a…"),
    ],
)
def test_shortened(text, cells, short):
    assert shortened(text, cells) == short


def test_right_counts_wide_characters_twice():
    assert [right(text, 4) for text in ("ab", "數", "數字", "e\u0301")] == [
        "  ab",
        "  數",
        "數字",
        "   e\u0301",
    ]


def test_names_that_begin_alike_keep_their_ends():
    names = ["class 001", "class 002", "another one", "b"]
    assert short_names(names, 7) == ["cl…001", "cl…002", "anothe…", "b"]
    many = short_names([f"a category of drawings {k:03}" for k in range(345)], 12)
    assert len(set(many)) == 345
    assert max(map(len, many)) <= 12


TABLE = "trial  val_accuracy  hyperparameters\n    0        0.9900  filters=112 conv_layers=2"
SENTENCE = "These images don't tell 2 of the other 3 trials from the winner (McNemar's test): 1, 3."


@pytest.mark.parametrize("width", [8, 20, 40, 79])
def test_sentences_are_broken_between_words_and_tables_are_not(width):
    text = f"{SENTENCE}\n{TABLE}\n\n{SENTENCE}"
    before, table, after = wrapped(text, width).partition(TABLE)
    assert table
    for part in (before, after):
        assert part.split() == SENTENCE.split()
        assert all(len(line) <= max(width, len("indistinguish")) for line in part.splitlines())
        # No line could take the first word of the next one.
        lines = [line for line in part.splitlines() if line]
        for line, following in itertools.pairwise(lines):
            assert len(line) + 1 + len(following.split()[0]) > width


def test_what_fits_stays_as_it_is():
    text = f"  {SENTENCE}\n\n\n{TABLE}\n a  b \n"
    assert wrapped(text, 200) == text


def test_wide_characters_count_twice():
    assert wrapped("数字 数字 数字", 9) == "数字 数字\n数字"


def test_a_line_that_goes_on_is_indented():
    assert wrapped("  one two three", 9) == "  one two\n  three"


def test_a_pipe_gets_long_lines(capsys):
    assert fitted(SENTENCE * 5) == SENTENCE * 5
