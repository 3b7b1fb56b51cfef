"""What `--help` says, and what is said of a word that is spelt wrong."""

from __future__ import annotations

import re
import shlex

import pytest

from jaxmnist import __main__ as commands
from jaxmnist.commands.parser import run_command
from jaxmnist.commands.search import EXAMPLES, as_typed, main, parser_of
from jaxmnist.models.space import Space
from jaxmnist.models.study import DEFINITION
from jaxmnist.settings import PARTS, SETTINGS, flag


@pytest.fixture(scope="module")
def parser():
    return parser_of(DEFINITION, Space(DEFINITION), "jaxmnist search")


def test_the_help_of_a_search(capsys):
    assert run_command(main, ["--help"]) == 0
    said = capsys.readouterr().out
    heads = [line.removesuffix(":") for line in said.splitlines() if re.fullmatch(r"\S.*:", line)]
    assert heads == ["options", *(part.title for part in PARTS.values()), "examples"]
    assert max(map(len, said.partition("examples:")[0].splitlines())) <= 80
    assert "default default" not in said
    assert re.search(r"^  --data-dir PATH\b", said, re.MULTILINE)
    for name in [*SETTINGS, *Space(DEFINITION).parameters, "config", "dry_run"]:
        assert len(re.findall(rf"^  .*{flag(name)}(?![\w-])", said, re.MULTILINE)) >= 1
    # A hyperparameter stands with the space, and a default stands there as it would be typed.
    space = said[said.index("\nspace:") : said.index("\ntraining:")]
    assert "--filters RANGE" in space
    assert "(default 0.004; study: 0.001)" in " ".join(said.split())
    assert "--no-quiet" not in said


def test_the_examples_are_commands(parser):
    assert len(EXAMPLES) == 2
    for given, _ in EXAMPLES:
        parser.parse_args(shlex.split(given))
        assert f"jaxmnist search {given}\n" in parser.format_help()


@pytest.mark.parametrize("name", ["evaluate", "svm", "predict", "report", "export"])
def test_the_other_commands_have_two_examples(name, capsys):
    assert run_command(commands.main, [name, "--help"]) == 0
    said, _, examples = capsys.readouterr().out.partition("examples:")
    assert max(map(len, said.splitlines())) <= 80
    assert len(re.findall(rf"^  jaxmnist {name} runs/", examples, re.MULTILINE)) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["serch"], "unknown command 'serch'; did you mean 'search'?"),
        (["zzz"], "unknown command 'zzz'; the commands are search, evaluate, svm"),
        (["predict", "r", "f", "--jsn"], "unknown option --jsn; did you mean --json?"),
        (
            ["svm", "runs/a", "--data_dir", "x"],
            "unknown option --data_dir; did you mean --data-dir",
        ),
        (["evaluate", "a", "b"], "unexpected argument 'b' (--help lists the flags)"),
        (["evaluate", "a", "--\x1b[2J"], r"unknown option --\x1b[2J (--help lists the flags)"),
        (["search", "--dry-runs"], "unknown option --dry-runs; did you mean --dry-run?"),
    ],
)
def test_what_is_spelt_wrong(line, says, capsys):
    assert run_command(commands.main, line) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"jaxmnist: {says}")
    assert said.count("\n") == 1


def test_memory_that_is_exhausted_is_a_line(capsys):
    def exhausted(arguments):
        raise MemoryError

    assert run_command(exhausted, []) == 1
    assert capsys.readouterr().err == "jaxmnist: memory is exhausted\n"


def test_the_last_of_two_flags_counts(parser):
    given = parser.parse_args(["--quiet", "--no-quiet", "--no-svm", "--svm"])
    assert vars(given) == {"quiet": False, "svm": True, "config": None, "dry_run": False}


@pytest.mark.parametrize(
    ("arguments", "original", "typed"),
    [
        (["/x/search/__main__.py"], ["python", "-m", "jaxmnist.search"], "python -m jaxmnist"),
        (["/x/__main__.py"], ["py 3", "-X", "dev", "-m", "jaxmnist"], "'py 3' -X dev -m jaxmnist"),
        (["/x/bin/jaxmnist"], ["python", "/x/bin/jaxmnist", "search"], "jaxmnist"),
        (["-c"], ["python", "-c", "…"], "jaxmnist"),
    ],
)
def test_how_the_command_was_typed(arguments, original, typed):
    assert as_typed(arguments, original) == typed
