"""An error about a setting names it as the place where it was given does: flag, keyword or key."""

from __future__ import annotations

import ast
import json
import pickle
import re
import shlex
from pathlib import Path

import pytest
from processes import command

import jaxmnist
from jaxmnist import UsageError, random_search
from jaxmnist.errors import JaxmnistError, Named, SettingError, wrong
from jaxmnist.report import facts
from jaxmnist.settings import SETTINGS, SearchSettings, Setting, flag

PACKAGE = Path(jaxmnist.__file__).parent


def wrong_value(item: Setting) -> str | int:
    """A value that a setting refuses, of the kind that a TOML file and a command line can hold."""
    if item.kind in ("int", "float") or item.choices:
        return "no such value"
    return {"bool": 3}.get(item.kind, "a\0b" if item.name == "project_name" else "a\x1bb")


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_value_of_each_setting(name, tmp_path):
    """Each edge names it in its own words, at the beginning of the line, and shows the value."""
    value = wrong_value(SETTINGS[name])
    with pytest.raises(UsageError, match=f"^{name} ") as caught:
        SearchSettings(**{name: value})
    rest = str(caught.value).removeprefix(name)
    assert repr(value) in rest
    with pytest.raises(UsageError, match=f"^{name} ") as caught:
        random_search(**{name: value})
    assert str(caught.value) == name + rest
    if name == "overwrite":  # which a file may not say
        return
    if SETTINGS[name].kind != "bool":  # a flag without a value
        done = command("search", f"{flag(name)}={value}")
        assert (done.returncode, done.stderr) == (2, f"jaxmnist: {flag(name)}{rest}\n")
    for key in {name, name.replace("_", "-")}:
        file = tmp_path / "search.toml"
        file.write_text(f"{key} = {json.dumps(value)}\n")
        done = command("search", "--config", file)
        assert (done.returncode, done.stderr) == (2, f"jaxmnist: {file}: {key}{rest}\n")


def test_an_error_about_two_settings(tmp_path):
    """Each is named as it was given: in the file, or as a flag."""
    says = "{ensemble} 11 needs as many trials, and {max_trials} is 10"
    with pytest.raises(UsageError, match=f"^{re.sub('[{}]', '', says)}$"):
        random_search(ensemble=11)
    done = command("search", "--ensemble", 11)
    assert done.stderr == "jaxmnist: --ensemble 11 needs as many trials, and --max-trials is 10\n"
    file = tmp_path / "search.toml"
    file.write_text("ensemble = 11\nmax-trials = 10\n")
    done = command("search", "--config", file)
    assert done.stderr.endswith(
        "search.toml: ensemble 11 needs as many trials, and max-trials is 10\n"
    )
    done = command("search", "--config", file, "--max-trials", 9)
    assert done.stderr.endswith(
        "search.toml: ensemble 11 needs as many trials, and --max-trials is 9\n"
    )
    done = command("search", "--config", file, "--ensemble", 12)
    assert done.stderr == "jaxmnist: --ensemble 12 needs as many trials, and --max-trials is 10\n"


def test_values_and_names_that_look_like_templates():
    """Neither a person's text in braces, nor a pickle's way through another process."""
    inner = wrong("a{b}", "is {c}")
    outer = SettingError("{path}: {problem}", path="{d}", problem=inner)
    for error in (outer, pickle.loads(pickle.dumps(outer))):
        assert str(error) == "{d}: a{b} is {c}"
        assert error.worded(str.upper) == "{d}: A{B} is {c}"
        assert isinstance(error, UsageError)
        assert isinstance(error, ValueError)
    assert SettingError("{one} and {two}", two=Named("three")).names == ["one", "three"]
    assert SettingError("{one}", one="\x1b[2J").worded(str) == r"\x1b[2J"
    assert JaxmnistError("a {b}").worded(str.upper) == "a {b}"


FLAGS = re.compile(rf"(?<!search )--(no-)?({'|'.join(flag(n)[2:] for n in SETTINGS)})\b(?!-)")


def raised(path: Path) -> list[tuple[int, str]]:
    """The texts of the errors that a module raises or makes, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        name = getattr(getattr(node, "func", None), "id", "")
        if isinstance(node, ast.Call) and (name.endswith(("Error", "Failure")) or name == "wrong"):
            parts = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            found.append((node.lineno, " ".join(map(str, parts))))
    return found


def test_no_error_is_written_in_the_command_line_s_words():
    """But of commands, which are only there, or with Python's words beside them."""
    paths = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "commands"]
    texts = [(path.name, *found) for path in paths for found in raised(path)]
    assert len(texts) > 200
    left = [text for text in texts if FLAGS.search(text[2]) and "in Python" not in text[2]]
    assert not left, "\n".join(map(str, left))


# --- what was given -------------------------------------------------------------------------------


def test_what_was_given_is_repeated_and_nothing_else():
    """Also a value that is the default; not what follows from it, nor what is of this machine."""
    given = {"epochs": 5, "ensemble": 4, "svm": False, "report": True, "max_seconds": None}
    settings = SearchSettings(**given, directory="x", quiet=True, ranges={"filters": [8, 16]})
    assert settings.given == {
        **{name: given[name] for name in ("epochs", "ensemble", "svm", "report")},
        **{"directory": "x", "quiet": True},
    }
    assert settings.output.keep == 4
    assert settings.replace(ensemble=6).output.keep == 6
    words = shlex.split(facts.search_command(settings))[3:]
    assert words == shlex.split("--epochs 5 --ensemble 4 --no-svm --report --filters 8,16")
    line = facts.python_session(settings)
    assert line == (
        "jaxmnist.random_search(epochs=5, ensemble=4, svm=False, report=True, filters=[8, 16])"
    )


def test_a_run_s_settings_stay_what_they_were():
    """Whatever another version's defaults are: all values are stored beside what was given."""
    settings = SearchSettings(recipe="study", finalists=2)
    stored = json.loads(json.dumps({**settings.to_json(), "max_trials": 7, "a_later_setting": 1}))
    again = SearchSettings.from_json(stored, json.loads(json.dumps(settings.given)))
    assert again == SearchSettings(recipe="study", finalists=2, max_trials=7)
    assert again.given == settings.given == {"recipe": "study", "finalists": 2}
