"""A new training setting is two changes, its declaration and its effect; the rest follows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxmnist
from jaxmnist.files import read_json

ROOT = Path(__file__).parents[2]
DECLARATION = """    gradient_clip: float = of_training(
        0.0,
        "largest norm of a step's gradient, or a range of it; 0 for any",
        "NORM",
        check=at_least_0,
        range=(0, 10),
        shares_program="above 0",
        recipes={"study": 2.5},
    )

"""
EFFECT = """    if settings.gradient_clip > 0:
        found = optax.chain(optax.clip_by_global_norm(constants["gradient_clip"]), found)
"""
CHANGES = {
    "jaxmnist/settings.py": ("    def for_trial(self", DECLARATION),
    "jaxmnist/engine/training.py": ("    if settings.ema_momentum > 0:\n        return", EFFECT),
}
ASKED = """
import contextlib, inspect, io, json, sys
from pathlib import Path
from types import ModuleType

mkdocs = ModuleType("mkdocs.structure.files")
mkdocs.File = mkdocs.Files = object
sys.modules["mkdocs"] = sys.modules["mkdocs.structure"] = ModuleType("mkdocs")
sys.modules["mkdocs.structure.files"] = mkdocs
sys.path.insert(0, "docs")
import hooks
import jaxmnist
from jaxmnist.commands import search
from jaxmnist.commands.parser import run_command
from jaxmnist.report import facts

found = {"package": jaxmnist.__file__, "doc": jaxmnist.random_search.__doc__}
found["keyword"] = str(inspect.signature(jaxmnist.random_search).parameters["gradient_clip"])
with contextlib.redirect_stdout(io.StringIO()) as said:
    run_command(search.main, ["--help"])
found["help"] = said.getvalue()
kept = []
search.run_search = lambda settings, *_, **__: kept.append(settings)
Path("a.toml").write_text("gradient-clip = 0.5")
for line in (["--config", "a.toml"], ["--recipe", "study"], ["--gradient-clip", "0.1:1:log"]):
    assert run_command(search.main, line) == 0
toml, study, searched = kept
found["toml"] = toml.training.gradient_clip
found["identity"] = [toml.identity()["gradient_clip"], study.identity()["gradient_clip"]]
found["repeated"] = [facts.search_command(toml), facts.python_session(toml)]
found["range"] = dict(searched.ranges)
found["commands"], found["reference"] = hooks.commands(), hooks.settings()
with contextlib.redirect_stderr(io.StringIO()) as said:
    run_command(search.main, ["--gradient-clip", "-1"])
found["error"] = said.getvalue()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the package, without its images, in which two files are changed."""
    place = tmp_path_factory.mktemp("changed")
    ignored = shutil.ignore_patterns("__pycache__", "mnist")
    shutil.copytree(Path(jaxmnist.__file__).parent, place / "jaxmnist", ignore=ignored)
    (place / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "hooks.py", place / "docs")
    for name, (before, added) in CHANGES.items():
        text = (place / name).read_text("utf-8")
        assert text.count(before) == 1
        (place / name).write_text(text.replace(before, added + before), "utf-8")

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(place)}
        line = [sys.executable, *map(str, arguments)]
        options = {"cwd": place, "env": environment, "text": True}
        return subprocess.run(line, **options, check=True, stdout=subprocess.PIPE).stdout

    return python


def test_a_declared_setting_is_everywhere(changed):
    found = json.loads(changed("-c", ASKED))
    assert Path(found["package"]).parts[-3].startswith("changed")
    says = "largest norm of a step's gradient, or a range of it; 0 for any (default 0; study: 2.5)"
    for place in ("doc", "help", "commands", "reference"):
        assert says.replace("'", "") in " ".join(found[place].replace("'", "").split()), place
    assert "--gradient-clip NORM" in found["help"]
    assert "`gradient_clip` | float" in found["reference"].replace("\\", "")
    assert found["keyword"] == "gradient_clip: 'float | Range | None' = None"
    assert found["toml"] == 0.5
    assert found["identity"] == [0.5, 2.5]
    assert found["repeated"][0].endswith("jaxmnist.search --gradient-clip 0.5")
    assert found["repeated"][1] == "jaxmnist.random_search(gradient_clip=0.5)"
    assert found["range"] == {"gradient_clip": "0.1:1:log"}
    assert found["error"] == (
        "jaxmnist: --gradient-clip must be a number of at least 0, not -1.0\n"
    )


@pytest.mark.slow
def test_it_has_its_effect(changed, small, tmp_path):
    """A gradient that is clipped to nearly nothing trains nothing; a range of it is searched."""
    line = ["-m", "jaxmnist.search", "--data-dir", small, "--directory", tmp_path, "--filters", 4]
    line += ["--conv-layers", 1, "--dense-layers", 0, "--epochs", 1, "--no-svm"]
    line += ["--optimizer", "sgd", "--learning-rate", 0.1, "--batch-size", 32, "--no-tensorboard"]
    for name, clip in {"any": 0, "low": 1e-6, "searched": "1e-6,2e-6"}.items():
        trials = 2 if name == "searched" else 1
        changed(*line, "--project-name", name, "--max-trials", trials, "--gradient-clip", clip)
    runs = {name: jaxmnist.Run(tmp_path / name) for name in ("any", "low", "searched")}
    losses = {name: run.trials[0].history[0].val_loss for name, run in runs.items()}
    assert losses["any"] < losses["low"] - 0.1
    assert losses["searched"] == pytest.approx(losses["low"], abs=1e-3)
    values = {trial.hyperparameters["gradient_clip"] for trial in runs["searched"].trials}
    assert values == {1e-6, 2e-6}
    assert read_json(tmp_path / "low" / "search.json")["identity"]["gradient_clip"] == 1e-6
    assert "--gradient-clip 1e-06" in (tmp_path / "low" / "report.html").read_text("utf-8")
