"""README and the pages of docs/: what they print is run, and what they name exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import PACKAGED
from PIL import Image
from processes import command
from sessions import PAGES, ROOT, blocks

from jaxmnist import Run
from jaxmnist.__main__ import COMMANDS
from jaxmnist.data.array_files import read_idx_folder
from jaxmnist.settings import RANGED, RECIPES

# A network of one's own, as the page about them has it.
PAGE = (ROOT / "docs" / "own_network.md").read_text("utf-8")
NETWORK = re.search(r"```python\n((?:(?!```).)*?)\nown = ", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: a run of MNIST, pictures, arrays, data, a network."""
    folder = tmp_path_factory.mktemp("pages")
    mnist = read_idx_folder(PACKAGED)
    pictures = [Image.fromarray(image[..., 0]) for image in mnist.x_train[:200]]
    (folder / "folder").mkdir()
    pictures[0].save(folder / "digit.png")
    pictures[1].save(folder / "photo.jpg")
    pictures[2].save(folder / "folder" / "another.png")
    np.save(folder / "digits.npy", mnist.x_train[:3])
    for number, (picture, label) in enumerate(zip(pictures, mnist.y_train, strict=False)):
        into = folder / "path" / "to" / "data" / ("even" if label % 2 == 0 else "odd")
        into.mkdir(parents=True, exist_ok=True)
        picture.save(into / f"{number}.png")
    assert NETWORK is not None
    (folder / "my_network.py").write_text(NETWORK[1])
    small = ["--max-trials", 1, "--epochs", 1, "--train-limit", 2000, "--filters", 16]
    small += ["--conv-layers", 1, "--dense-layers", 0]
    done = command("search", *small, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def session(place: Path, tmp_path: Path):
    """Runs a page in a folder of its own, which has a copy of what the page names."""

    def run(page: Path) -> str:
        code = "".join(block.code for block in blocks(page) if block.reason is None)
        for path in place.iterdir():
            used = "runs/mnist" if path.name == "runs" else path.name
            if used in code:
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, tmp_path / path.name)
        line = [sys.executable, str(ROOT / "tests" / "sessions.py"), str(page)]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def numbers(output: str) -> list[float]:
    """The lines that are a number from 0 to 2."""
    return [float(line) for line in output.splitlines() if re.fullmatch(r"[01]\.\d+", line)]


@pytest.mark.slow
def test_the_tutorial(session, tmp_path):
    output = session(ROOT / "docs" / "tutorial.md")
    assert re.search(r"^photo.jpg: 7 with probability", output, re.MULTILINE)
    assert output.splitlines()[-1] == "[7]"
    run = Run(tmp_path / "runs" / "digits")
    assert len(run.trials) == 3
    assert run.store.search.data.test == pytest.approx(150, abs=10)
    assert "Test set" in (tmp_path / "runs" / "digits" / "report.html").read_text("utf-8")


@pytest.mark.slow
def test_svm(session):
    assert numbers(session(ROOT / "docs" / "svm.md"))[-1] > 0.85


def test_the_recipes_are_those_of_the_page():
    """Each row of the table of settings has what the recipes say; a dash has no effect."""
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    rows = re.findall(r"^\| `--([a-z-]+)` \| .* \| (\S+) \| (\S+) \|$", page, re.MULTILINE)
    assert {name.replace("-", "_") for name, *_ in rows} == set(RANGED)
    for name, *told in rows:
        for recipe, value in zip(("fast", "study"), told, strict=True):
            said = getattr(RECIPES[recipe], name.replace("-", "_"))
            assert value in (f"{said:g}" if isinstance(said, int | float) else said, "–")


@pytest.mark.slow
def test_training(session, tmp_path):
    session(ROOT / "docs" / "training.md")
    study, shifted = (Run(tmp_path / "runs" / name) for name in ("study", "shifted"))
    assert study.settings.training == replace(RECIPES["study"], epochs=1)
    assert shifted.settings.training == replace(RECIPES["fast"], epochs=1)
    assert "random_shift" not in study.trials[0].hyperparameters
    assert shifted.trials[0].hyperparameters["random_shift"] in (0, 1, 2)


@pytest.mark.slow
def test_own_network(session, tmp_path):
    assert 0.1 < numbers(session(ROOT / "docs" / "own_network.md"))[-1] <= 1
    assert (tmp_path / "runs" / "own" / "best" / "test.json").is_file()


@pytest.mark.slow
def test_export(session, tmp_path):
    assert session(ROOT / "docs" / "export.md").splitlines()[-1] == "True"
    assert (tmp_path / "digits.stablehlo.json").is_file()


@pytest.mark.slow
def test_pictures(session, tmp_path):
    session(ROOT / "docs" / "pictures.md")
    table = (tmp_path / "predictions.csv").read_text().splitlines()
    assert table[0] == "image,label,probability"
    assert table[1].startswith("folder/another.png,")


@pytest.mark.slow
def test_own_data(session, tmp_path):
    assert "('bar', 'column')" in session(ROOT / "docs" / "own_data.md")
    test = json.loads((tmp_path / "runs" / "mine" / "best" / "test.json").read_text())
    assert test["class_names"] == ["even", "odd"]


@pytest.mark.slow
def test_from_keras_tuner(session, tmp_path):
    session(ROOT / "docs" / "from_keras_tuner.md")
    assert len(Run(tmp_path / "runs" / "mnist").trials) == 1


OWN = {"tutorial", "svm", "own_network", "export", "pictures", "own_data", "from_keras_tuner"}
OTHERS = [
    page
    for page in PAGES
    if page.stem not in OWN and any(block.reason is None for block in blocks(page))
]


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS, ids=[page.stem for page in OTHERS])
def test_other_pages(page, session):
    session(page)


def test_every_flag_exists():
    helps = [command(name, "--help").stdout for name in COMMANDS]
    # Those of pip, pytest, TensorBoard and Ray, and of the network that is an example.
    others = {"--editable", "--format", "--dist", "--logdir", "--help", "--width"}
    others |= {"--head", "--port", "--address", "--num-cpus", "--autoscaling-config"}
    for page in PAGES:
        text = page.read_text("utf-8")
        for flag in set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text)) - others:
            found = any(re.search(rf"{flag}(?![\w-])", shown) for shown in helps)
            assert found, f"{page.name} names {flag}"


def test_every_named_file_exists():
    for page in (*PAGES, ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"):
        text = page.read_text("utf-8")
        links = re.findall(r"\]\(([^)#:\s]+)[^)\s:]*\)", text)
        named = re.findall(r"`((?:tests|experiments)/[\w./]+)`", text)
        assert all((page.parent / link).exists() for link in links), page.name
        assert all((ROOT / name).exists() for name in named), page.name


def fields(page: str, name: str) -> tuple[set[str], set[str]]:
    """The fields that the table below a heading lists: all of them, and those in italics."""
    section = re.split(r"^## ", page, flags=re.MULTILINE)
    (table,) = (part for part in section if part.startswith(f"{name}\n"))
    cells = " ".join(row.split(" | ")[0] for row in table.splitlines() if row.startswith("| "))
    return set(re.findall(r"`([a-z_A-Z0-9]+)`", cells)), set(re.findall(r"\*`(\w+)`\*", cells))


def test_the_run_directory_is_as_its_page_says(finished):
    page = (ROOT / "docs" / "run_directory.md").read_text("utf-8")
    path = finished.store.path
    svm = f"svm/{finished.settings.data.dataset_name}/svm.json"
    places = {"search.json": "search.json", "trial.json": "trials/0000/trial.json", "svm.json": svm}
    places |= {name: name for name in ("best/config.json", "best/test.json")}
    for name, place in places.items():
        listed, sometimes = fields(page, name)
        found = set(json.loads((path / place).read_text()))
        assert found <= listed, name
        assert listed - sometimes <= found, name
    for name in (name for name in path.rglob("*") if name.parent.name not in ("tensorboard",)):
        known = name.name in page or name.name.isdigit() or "tfevents" in name.name
        assert known or name.parent.name == "svm", name
    ledger = json.loads((path.parent / "ledger.jsonl").read_text().splitlines()[0])
    (section,) = (part for part in page.split("\n## ") if part.startswith("The ledger"))
    assert set(ledger) <= set(re.findall(r"`(\w+)`", section))
