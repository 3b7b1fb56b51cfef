"""`--config`: settings from a TOML file, or from a run's search.json."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
from processes import command, facts, flags

from jaxmnist import Run, random_search
from jaxmnist.commands import search
from jaxmnist.commands.parser import run_command
from jaxmnist.files import read_json, write_json
from jaxmnist.settings import SearchSettings

NETWORK = """
import flax.linen as nn
def build_model(hp):
    width = hp.Int("width", 2, 4)
    hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    return nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(width), nn.Dense(10)])
"""


@pytest.fixture
def settings_of(tmp_path, monkeypatch):
    """The settings with which the command, in an empty folder, would search, for its arguments."""
    monkeypatch.chdir(tmp_path)
    found = []
    monkeypatch.setattr(search, "run_search", lambda settings, *_, **__: found.append(settings))

    def read(text: str, *more: str) -> SearchSettings:
        (tmp_path / "search.toml").write_text(text)
        assert run_command(search.main, ["--config", "search.toml", *more]) == 0
        return found.pop()

    return read


def test_the_words_of_the_flags_and_values_as_in_python(settings_of):
    given = settings_of(
        "# a comment\n"
        "max-trials = 3\nlearning_rate = [1e-3, 3e-3]\nbatch-size = '64,128'\n"
        "filters = '8:64:log'\n"
        "units = [32, 64]\nconv_layers = 2\nsvm = false\nquiet = true\nseed = 0\n"
        "data_dir = 'a folder'\ntolerance = 0.01\noptimizer = ['adam', 'lion']\n"
    )
    ranges = {"learning_rate": [1e-3, 3e-3], "batch_size": "64,128", "filters": "8:64:log"}
    ranges |= {"units": [32, 64], "conv_layers": 2, "optimizer": ["adam", "lion"]}
    others = {"max_trials": 3, "svm": False, "quiet": True, "data_dir": "a folder"}
    assert given == SearchSettings(ranges=ranges, tolerance=0.01, **others)


def test_flags_win(settings_of):
    text = "max-trials = 3\nquiet = true\nsvm = false\nfilters = '8:16'\nepochs = 'no number'\n"
    more = ["--max-trials", "5", "--no-quiet", "--svm", "--filters", "4", "--epochs", "2"]
    assert settings_of(text, *more) == SearchSettings(
        max_trials=5, epochs=2, ranges={"filters": "4"}
    )
    assert settings_of("") == SearchSettings()


def test_the_examples_of_the_documentation(settings_of):
    root = Path(__file__).parents[2]
    pages = [root / "README.md", *sorted((root / "docs").glob("**/*.md"))]
    found = [re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL) for page in pages]
    assert any(found)
    for text in itertools.chain(*found):
        assert settings_of(text) != SearchSettings()


@pytest.mark.parametrize("by_flag", [False, True])
def test_a_network_that_the_file_names(settings_of, tmp_path, by_flag):
    """Its hyperparameters are keys; the flag names another one."""
    name = f"net_of_config_{by_flag}.py"
    (tmp_path / name).write_text(NETWORK)
    text = f"model = '{'nowhere.py' if by_flag else name}'\n"
    more = ["--model", name] if by_flag else []
    found = settings_of(f"{text}width = [2, 3]\nlearning-rate = 0.01\n", *more)
    assert found.space.model == name
    assert found.ranges == {"width": [2, 3], "learning_rate": 0.01}


WRONG = {
    "misspelt": (
        "max_trails = 3",
        "search.toml: unknown key 'max_trails'; did you mean 'max_trials'?",
    ),
    "with dashes": ("max-trails = 3", "unknown key 'max-trails'; did you mean 'max-trials'?"),
    "nothing like it": ("zzzz = 3", "unknown key 'zzzz': the keys are the flags of --help"),
    "a negated flag": ("no-svm = true", "unknown key 'no-svm'; write svm = false"),
    "itself": ("config = 'a.toml'", "unknown key 'config'"),
    "ranges": ("ranges = 3", "unknown key 'ranges'"),
    "twice": ("max_trials = 3\nmax-trials = 4", "max_trials and max-trials are the same key"),
    "a table": ("[training]\nepochs = 3", "'training' is a table: keys stand at the top"),
    "text": ("epochs = '5'", "search.toml: epochs must be a whole number of at least 1, not '5'"),
    "a fraction": ("max-trials = 5.0", "search.toml: max-trials must be a whole number"),
    "no boolean": ("svm = 'no'", "search.toml: svm must be true or false, not 'no'"),
    "a range": ("filters = '64:8'", "search.toml: filters "),
    "no range": ("filters = 'many'", "search.toml: filters must be a whole number, a range"),
    "a date": ("filters = 2020-01-01", "search.toml: filters a date is not text, a number"),
    "infinite": ("learning_rate = inf", "search.toml: learning_rate must be a number above 0"),
    "a list": ("dataset = ['mnist']", "search.toml: dataset must be a name or a path"),
    "a network": ("model = 3", "search.toml: model must be a name or a path, not 3"),
    "no network": ("model = 'nowhere.py'", "search.toml: model nowhere.py: there is no such file"),
    "data": ("data-dir = 'nowhere'", "search.toml: data-dir "),
    "of two, one a flag": ("reruns = 2", "search.toml: reruns needs --finalists"),
    "always anew": ("overwrite = true", "search.toml: overwrite deletes a run each time"),
    "no TOML": (
        "epochs == 3",
        "search.toml: is not valid TOML: Invalid value (at line 1, column 9)",
    ),
    "cut off": ("epochs = [", "search.toml: is not valid TOML"),
    "deep": ("a = " + "[" * 5000, "search.toml: is not valid TOML"),
    "a long number": ("epochs = " + "9" * 5000, "search.toml: "),
    "an escape": ("'\\u001b[2J' = 3", "search.toml: "),
    "JSON": ("{}", "--config takes a TOML file, or search.json as a search wrote it"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_one_line(name, tmp_path, monkeypatch, capsys):
    text, says = WRONG[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.toml").write_text(text)
    assert run_command(search.main, ["--config", "search.toml"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("jaxmnist: search.toml: ")
    assert says in said.err
    assert said.err.count("\n") == 1
    assert said.err.removesuffix("\n").isprintable()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["search.toml"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere.toml", "--config nowhere.toml: there is no such file"),
        ("folder", "--config folder: is a folder; the settings of a run are in its search.json"),
        ("latin", "latin: is not text in UTF-8"),
        ("/dev/zero", "has more than"),
        ("s3://bucket/a.toml", "looks like a URL"),
        ("", "--config : there is no such file"),
    ],
)
def test_files_that_are_none(name, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").write_bytes(b"dataset = '\xe9'")
    assert run_command(search.main, ["--config", name]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_pipe_is_a_file(options, tmp_path):
    """As a shell's `--config <(…)`: read once, from its beginning."""
    reader, writer = os.pipe()
    os.write(writer, b"epochs = 0\n")
    os.close(writer)
    done = command("search", "--config", f"/dev/fd/{reader}", cwd=tmp_path)
    os.close(reader)
    assert done.stderr == (
        f"jaxmnist: /dev/fd/{reader}: epochs must be a whole number of at least 1, not 0\n"
    )


# --- search.json of a run -------------------------------------------------------------------------


def test_the_settings_of_a_run(finished, settings_of):
    """They are those of the run, but for what belongs to its session; flags win."""
    path = str(finished.store.path / "search.json")
    found = settings_of("", "--config", path)
    assert found.to_json() == {**finished.settings.to_json(), "quiet": False}
    assert found.identity() == finished.settings.identity()
    changed = settings_of("", "--config", path, "--seed", "7", "--filters", "4", "--ensemble", "4")
    assert (changed.space.seed, changed.selection.ensemble, changed.output.keep) == (7, 4, 4)
    assert changed.ranges == {**finished.settings.ranges, "filters": "4"}


@pytest.mark.parametrize("more", [{"recipe": "fast"}, {"recipe": "fast", "optimizer": "adam"}])
def test_the_recipe_of_a_run(finished, tmp_path, more, settings_of):
    """What the recipe says of training counts, and what was said besides."""
    settings = SearchSettings(**more, directory=finished.settings.output.directory)
    search = read_json(finished.store.path / "search.json")
    path = tmp_path / "search.json"
    write_json(path, {**search, "settings": settings.to_json(), "given": dict(settings.given)})
    found = settings_of("", "--config", str(path))
    assert found.to_json() == settings.to_json()


def test_a_run_s_settings_are_never_to_overwrite(options, tmp_path):
    """A run that began with --overwrite goes on: nothing is trained, or deleted."""
    given = {**options, "max_trials": 1, "epochs": 1, "svm": False, "directory": str(tmp_path)}
    run = random_search(**given, overwrite=True)
    path = run.store.path / "search.json"
    assert read_json(path)["settings"]["overwrite"]
    done = command("search", "--config", path)
    assert done.returncode == 0, done.stderr
    assert "1 trials are already finished" in done.stdout
    assert "compiling" not in done.stdout
    assert facts(Run(run.store.path)) == facts(run)


def test_a_run_of_another_network(finished, tmp_path, settings_of, capsys):
    """Of data in memory or a network of one's own, one line says what to name."""
    path = tmp_path / "search.json"
    content = read_json(finished.store.path / "search.json")
    for section, value, says in (
        ("data", {"in_memory": True}, "its data were arrays in memory: name data by --data-dir"),
        (
            "identity",
            {"network": "mine"},
            "its network is Python code, which search.json may not run: name",
        ),
    ):
        write_json(path, {**content, section: {**content[section], **value}})
        assert run_command(search.main, ["--config", str(path)]) == 2
        assert says in capsys.readouterr().err
    write_json(path, {**content, "data": {**content["data"], "in_memory": True}})
    assert settings_of("", "--config", str(path), "--dataset", "mnist").data.dataset == "mnist"


@pytest.mark.parametrize("dry", [False, True])
def test_a_search_json_names_no_code(finished, tmp_path, dry):
    """Neither a network's file, nor a folder of compiled programs, nor a cluster."""
    (tmp_path / "theirs.py").write_text(f"open('ran', 'w').close()\n{NETWORK}")
    (tmp_path / "ours.py").write_text(NETWORK)
    content = read_json(finished.store.path / "search.json")
    for section, changes in (
        ("settings", {"model": str(tmp_path / "theirs.py"), "ranges": {}}),
        ("identity", {"network": "build_model"}),
    ):
        content = {**content, section: {**content[section], **changes}}
    given = {**content["given"], "cache": "theirs", "ray": "127.0.0.1:1"}
    given |= {"model": str(tmp_path / "theirs.py"), "directory": "runs", "max_trials": 1}
    given |= {"epochs": 1, "svm": False, "report": False, "tensorboard": False}
    write_json(tmp_path / "search.json", {**content, "given": given})
    line = ["--config", tmp_path / "search.json", *(["--dry-run"] if dry else [])]
    done = command("search", *line, "--width", 3, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"jaxmnist: {tmp_path / 'search.json'}: its network is Python code ({tmp_path}"
    )
    assert done.stderr.endswith(
        "theirs.py), which search.json may not run: name the file with --model\n"
    )
    assert done.stderr.count("\n") == 1
    done = command("search", *line, "--width", 3, "--model", "ours.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    note = f"note: --ray and --cache of {tmp_path / 'search.json'} are not taken over; give them"
    assert done.stdout.replace("\n", " ").count(note) == 1
    more = ["--width", 3, "--model", "ours.py", "--cache", "off"]
    done = command("search", *line, *more, "--dry-run", cwd=tmp_path)
    assert "note: --ray of " in done.stdout
    assert "--cache" not in done.stdout
    assert not {path.name for path in tmp_path.iterdir()} & {"ran", "theirs"}
    assert (tmp_path / "runs").exists() != dry


def test_a_search_json_names_no_code_as_a_range(finished, tmp_path):
    """Ranges have any names, also those of settings."""
    (tmp_path / "theirs.py").write_text(f"open('ran', 'w').close()\n{NETWORK}")
    content = read_json(finished.store.path / "search.json")
    settings = {**content["settings"], "ranges": {"model": "theirs.py", "cache": "theirs"}}
    write_json(tmp_path / "search.json", {**content, "settings": settings})
    done = command("search", "--config", "search.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("jaxmnist: search.json: its network is Python code (theirs.py)")
    assert {path.name for path in tmp_path.iterdir()} == {"theirs.py", "search.json"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace('"seed": 0', '"seed": 1', 1), "does not match its SHA-256"),
        (lambda text: text[: len(text) // 2], "is not a JSON object"),
    ],
)
def test_a_changed_search_json(finished, tmp_path, change, says, capsys):
    path = tmp_path / "search.json"
    path.write_text(change((finished.store.path / "search.json").read_text()))
    assert run_command(search.main, ["--config", str(path)]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("value", [3, {"a": {}}, {"filters": None}, {"filters": [[]]}, [1]])
def test_a_search_json_that_says_something_else(finished, tmp_path, value, capsys):
    path = tmp_path / "search.json"
    content = read_json(finished.store.path / "search.json")
    for changed in (
        {"settings": {**content["settings"], "ranges": value}},
        {"given": {**content["given"], "keep": value, "ensemble": value}},
        {"given": {**content["given"], "model": value}},
        {"given": {**content["given"], "a_later_setting": value}},
        {"given": value},
    ):
        write_json(path, json.loads(json.dumps({**content, **changed})))
        status = run_command(search.main, ["--config", str(path), "--data-dir", "/nowhere/x.npz"])
        assert status == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert said.startswith("jaxmnist: ")


def test_the_same_search_by_a_file_and_by_flags(options, settings_of):
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in options.items())
    found, by_flags = settings_of(text), settings_of("", *flags(options))
    assert found.identity() == by_flags.identity()
    assert {name: str(given) for name, given in found.ranges.items()} == by_flags.ranges
    assert found.replace(ranges={}) == by_flags.replace(ranges={})
