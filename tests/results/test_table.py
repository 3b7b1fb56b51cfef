from __future__ import annotations

import io
import itertools
import json
import sys
from dataclasses import replace

import pandas
import pytest

from jaxmnist import UsageError
from jaxmnist.hyperparameters import Hyperparameters
from jaxmnist.report.console import fitted, wrapped
from jaxmnist.results.confusion import right, short_names, shortened
from jaxmnist.results.table import Column, Laid, Table, shown_configurations, trials_table


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
    assert wrapped(Laid(TABLE), width) == TABLE
    for part in wrapped(f"{SENTENCE}\n\n{SENTENCE}", width).split("\n\n"):
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


def records(run) -> list[dict]:
    """The records of trials as they lie on disk, by index."""
    return [
        json.loads(path.read_text()) for path in sorted(run.store.path.glob("trials/*/trial.json"))
    ]


def test_a_data_frame_has_what_the_records_have(eight):
    frame = eight.to_pandas()
    by_index = {record["index"]: record for record in records(eight)}
    assert sorted(frame["trial"]) == sorted(by_index)
    assert list(frame["rank"]) == list(range(1, 9))
    assert frame["trial"][0] == eight.best_trial.index
    for row in frame.to_dict("records"):
        record = by_index[row["trial"]]
        assert row["status"] == record["status"] == "completed"
        assert row["score"] == row["val_accuracy"] == record["history"]["val_accuracy"][-1]
        assert row["loss"] == record["history"]["loss"][-1]
        assert (row["parameters"], row["seconds"]) == (record["parameters"], record["seconds"])
        for name, value in record["hyperparameters"].items():
            assert row[name] == value
    pandas.testing.assert_frame_equal(
        pandas.read_csv(io.StringIO(eight.table.as_csv())).dropna(axis=1),
        frame.dropna(axis=1),
        check_dtype=False,
    )


def test_the_history_has_a_row_for_each_epoch(eight):
    frame = eight.history()
    epochs = eight.settings.training.epochs
    assert list(frame.columns) == ["trial", "epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert len(frame) == 8 * epochs
    for record in records(eight):
        own = frame[frame["trial"] == record["index"]]
        assert list(own["epoch"]) == list(range(1, epochs + 1))
        for name, values in record["history"].items():
            assert list(own[name]) == values


def test_a_hyperparameter_may_have_the_name_of_a_column(eight):
    names = ["loss", "hp.loss", "Time", "trial", "test", "width"]
    trials = [
        replace(trial, hyperparameters=Hyperparameters(dict.fromkeys(names, place)))
        for place, trial in enumerate(eight.trials)
    ]
    ranking = replace(eight.ranking, trials=trials)
    space = replace(eight.space, parameters=dict.fromkeys(names, ()))
    columns = trials_table(ranking, space).columns
    order = columns["trial"].values
    for name in ("hp.loss", "hp.hp.loss", "hp.Time", "hp.trial", "hp.test", "width"):
        assert columns[name].values == order
    assert columns["loss"].values == eight.table.columns["loss"].values


def test_without_pandas(eight, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for ask in (eight.to_pandas, eight.history):
        with pytest.raises(UsageError, match="needs pandas: python -m pip install pandas"):
            ask()


def test_columns_are_as_wide_as_their_widest_text():
    table = Table({"class": Column.of(["數字", "a", None]), "images": Column.of([5, None, 12_000])})
    assert str(table).splitlines() == [
        "class  images",
        "數字        5",
        "a           –",
        "–       12000",
    ]
    assert table.first(1).rows == [("數字", 5)]
    assert table.only({"images": "n"}).cells == [[("5", 5)], [("–", None)], [("12000", 12000)]]


def test_a_value_of_none_is_not_a_missing_one():
    given = [Hyperparameters(norm=None), Hyperparameters(other=1), None]
    column = Column.asked("norm", given)
    assert column == Column((None, None, None), ("none", "–", "–"))


def test_text_of_a_record_commands_no_terminal():
    table = Table({"a\x1b[2J": Column.of(["b\x1b[31mred\nline"])})
    assert str(table).replace("\n", "").isprintable()
    assert len(str(table).splitlines()) == 2
    assert table.texts[0][0].isprintable()


@pytest.mark.parametrize("running", [None, True, False])
def test_a_running_trial(eight, running):
    """It is interrupted where the search is known not to run; data keep the record's word."""
    trials = [
        replace(trial, status="running", error=None) if trial.index == 0 else trial
        for trial in eight.trials
    ]
    table = trials_table(replace(eight.ranking, trials=trials), eight.space, running)
    place = table.columns["trial"].values.index(0)
    assert place == 7
    assert table.columns["status"].values[place] == "running"
    shown = "interrupted" if running is False else "running"
    assert table.columns["score"].texts[place] == shown
    assert shown_configurations(trials, eight.space).texts[0].count("running") == 0


def test_whole_numbers_stay_whole_where_some_are_missing():
    frame = Table({"units": Column.of([16, None])}).to_pandas()
    assert frame["units"][0] == 16
    assert str(frame["units"].dtype) == "Int64"
