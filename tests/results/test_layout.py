from __future__ import annotations

import pytest

from jaxmnist.results.layout import right, short_names, shortened


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
