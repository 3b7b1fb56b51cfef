"""The Colab notebook, executed on this checkout with a small budget."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from jaxmnist import Run

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "jaxmnist_colab.ipynb"


def outputs(cell) -> str:
    """All that a cell showed, as text."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        shown += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(shown)


def cell_with(notebook, text: str):
    """The first code cell that has this in its source."""
    return next(c for c in notebook.cells if c.cell_type == "code" and text in c.source)


def test_no_outputs_are_kept():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(
        not c.outputs and c.execution_count is None for c in notebook.cells if "outputs" in c
    )
    assert notebook.metadata.accelerator == "TPU"


@pytest.mark.slow
def test_the_notebook(options, tmp_path: Path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    small = {**options, "quiet": False, "report": True, "max_trials": 2, "epochs": 2}
    cell.source += f"\nOPTIONS = {small | {'directory': str(tmp_path / 'runs')}!r}"
    nbformat.write(notebook, tmp_path / "notebook.ipynb")
    # In a separate process, as warnings of the kernel's libraries are not ours.
    line = [sys.executable, "-m", "jupyter", "execute", "--inplace", "notebook.ipynb"]
    environment = {
        **os.environ,
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, timeout=200, env=environment
    )
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(tmp_path / "notebook.ipynb", as_version=4)
    assert "cpu" in outputs(cell_with(executed, "jax.devices()"))
    search = cell_with(executed, "random_search(")
    assert "wins with validation accuracy" in outputs(search)
    assert any(
        "application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in search.outputs
    )
    assert "val_accuracy" in outputs(cell_with(executed, "results_summary"))
    curves = outputs(cell_with(executed, 'show(run, "curves"'))
    assert '<iframe sandbox="" srcdoc=' in curves
    assert "section:not(section#curves)" in curves
    assert "Confident mistakes" in outputs(cell_with(executed, "show(run)"))
    assert "support vectors" in outputs(cell_with(executed, "svm.json"))
    assert "drawn.png: " in outputs(cell_with(executed, "predict(["))


KERNEL = """
import json, os, sys, types
import jax  # which looks for Colab, and would want more of it
cells = json.loads(sys.argv[1])
drive = types.SimpleNamespace(mount=lambda path: print("mounted", path))
sys.modules["google"] = types.ModuleType("google")
sys.modules["google.colab"] = types.SimpleNamespace(drive=drive)
for cell in cells:
    exec(cell.replace("/content/drive/MyDrive", os.path.abspath("drive")))
print("trials", [trial.status for trial in run.trials])
"""


@pytest.mark.slow
def test_a_disconnected_search_goes_on_from_the_drive(options, tmp_path: Path):
    """The kernel is killed in the middle; the same cells, in a new one, end the search."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    small = {**options, "max_trials": 3, "epochs": 2, "svm": False, "report": False, "jobs": 1}
    first = f"{cell.source}\nKEEP_ON_DRIVE, OPTIONS = True, {small!r}"
    cells = json.dumps([first, cell_with(notebook, "random_search(").source])
    line = [sys.executable, "-c", KERNEL, cells]
    record = tmp_path / "drive" / "jaxmnist" / "small" / "trials" / "0000" / "trial.json"
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL) as kernel:
        while kernel.poll() is None:
            if record.exists() and b'"status": "completed"' in record.read_bytes():
                break
            time.sleep(0.05)
        kernel.kill()
    assert kernel.returncode == -signal.SIGKILL
    before = record.read_bytes()
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mounted /content/drive\n")
    assert done.stdout.endswith("trials ['completed', 'completed', 'completed']\n")
    assert record.read_bytes() == before  # not trained again


def test_the_installed_jax_is_kept():
    """The notebook's own constraints, in an environment like this one."""
    source = cell_with(nbformat.read(NOTEBOOK, as_version=4), "def kept").source
    names: dict = {}
    exec(source[: source.index("if find_spec")], names)
    from importlib.metadata import version

    kept = names["kept"](["jax", "jaxlib", "no-such-package"])
    assert kept == [f"jax=={version('jax')}", f"jaxlib=={version('jaxlib')}"]
    assert "-c" in source


@pytest.mark.parametrize("sections", [(), ("curves",)])
def test_show_keeps_styles_apart(finished, sections):
    from jaxmnist.report.notebook import show

    text = show(finished, *sections)._repr_html_()
    assert text.startswith('<iframe sandbox="" srcdoc="')  # no script in a run's page runs
    assert "<style>" not in text  # all of the page is in the attribute, escaped
    assert ("section:not(" in text) == bool(sections)


def test_show_makes_the_page_anew(finished, tmp_path):
    """Whatever stands in the file: it may be old, damaged, or of a search that was running."""
    from jaxmnist.report.notebook import show

    shutil.copytree(finished.directory.path, tmp_path / "small")
    (tmp_path / "small" / "report.html").write_text("<p>as it was written</p>")
    shown = show(Run(tmp_path / "small"))._repr_html_()
    assert "as it was written" not in shown
    assert "Confident mistakes" in shown
