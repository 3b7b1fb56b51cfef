"""The Colab notebook, executed as on Colab's TPU runtime with a small budget."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import ExecutionResult, InteractiveShell
from sessions import ROOT

import jaxmnist
from jaxmnist import Run

NOTEBOOK = ROOT / "experiments" / "jaxmnist_colab.ipynb"
# Of Colab's own package, what the notebook and JAX use; and Colab's TPU runtime as it starts.
PACKAGE = """
from types import SimpleNamespace
drive = SimpleNamespace(mount=lambda path: print("mounted", path))
output = None
"""
STARTUP = """
import importlib.util
import sys
import google.colab
if importlib.util.find_spec("tensorboard"):
    sys.modules["tensorboard"] = None  # as if it were not installed
"""


@pytest.fixture
def colab(tmp_path: Path) -> dict[str, str]:
    """The environment of a kernel that starts as on Colab's TPU runtime."""
    for name, text in {
        "packages/google/colab.py": PACKAGE,  # beside other packages of the namespace `google`
        "ipython/profile_default/startup/colab.py": STARTUP,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / "packages"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PLATFORM_DIRS": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }


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


def parameters(notebook, **values: object) -> str:
    """The cell of the parameters, and below it other values, as papermill sets them."""
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assert all(f"\n{name} = " in f"\n{cell.source}" for name in values)
    given = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    place = notebook.cells.index(cell) + 1
    notebook.cells.insert(place, nbformat.v4.new_code_cell(given))
    return f"{cell.source}\n{given}"


def test_no_outputs_are_kept():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(
        not c.outputs and c.execution_count is None for c in notebook.cells if "outputs" in c
    )
    assert notebook.metadata.accelerator == "TPU"


@pytest.mark.slow
def test_the_notebook(options, colab, tmp_path: Path):
    """All cells, to the last one. Where jaxmnist isn't installed, they install this checkout."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    small = {**options, "quiet": False, "report": True, "max_trials": 2, "epochs": 2}
    small |= {"tensorboard": True, "directory": str(tmp_path / "runs")}
    parameters(notebook, SOURCE=str(ROOT), OPTIONS=small)
    nbformat.write(notebook, tmp_path / "notebook.ipynb")
    # In a separate process, as warnings of the kernel's libraries are not ours.
    line = [sys.executable, "-m", "jupyter", "execute", "--inplace", "notebook.ipynb"]
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, timeout=200, env=colab
    )
    assert done.returncode == 0, done.stderr
    executed = nbformat.read(tmp_path / "notebook.ipynb", as_version=4)
    installed = f"jaxmnist {jaxmnist.__version__} on jax {version('jax')}\n"
    assert installed in outputs(cell_with(executed, "-m pip"))
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
    assert "TensorBoard is not installed here" in outputs(cell_with(executed, "%tensorboard"))
    assert "support vectors" in outputs(cell_with(executed, "svm.json"))
    assert "drawn.png: " in outputs(cell_with(executed, "predict(["))


KERNEL = """
import json, os, sys
for cell in json.loads(sys.argv[1]):
    exec(cell.replace("/content/drive/MyDrive", os.path.abspath("drive")))
print("trials", [trial.status for trial in run.trials])
"""


@pytest.mark.slow
def test_a_disconnected_search_goes_on_from_the_drive(options, colab, tmp_path: Path):
    """The kernel is killed in the middle; the same cells, in a new one, end the search."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    small = {**options, "max_trials": 3, "epochs": 2, "svm": False, "report": False, "jobs": 1}
    first = parameters(notebook, KEEP_ON_DRIVE=True, OPTIONS=small)
    colab["PYTHONPATH"] += f"{os.pathsep}{Path(jaxmnist.__file__).parents[1]}"
    cells = json.dumps([first, cell_with(notebook, "random_search(").source])
    line = [sys.executable, "-c", KERNEL, cells]
    record = tmp_path / "drive" / "jaxmnist" / "small" / "trials" / "0000" / "trial.json"
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.DEVNULL, env=colab) as kernel:
        while kernel.poll() is None:
            if record.exists() and b'"status": "completed"' in record.read_bytes():
                break
            time.sleep(0.05)
        kernel.kill()
    assert kernel.returncode == -signal.SIGKILL
    before = record.read_bytes()
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, timeout=200, env=colab
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mounted /content/drive\n")
    assert done.stdout.endswith("trials ['completed', 'completed', 'completed']\n")
    assert record.read_bytes() == before  # not trained again


@pytest.fixture
def execute(monkeypatch, capsys):
    """Executes a cell by IPython; gives its error, if any, and what it printed."""
    monkeypatch.setattr(HistoryManager, "enabled", False)
    notebook, shell = nbformat.read(NOTEBOOK, as_version=4), InteractiveShell()

    def run(text: str, **names: object) -> tuple[BaseException | None, str]:
        capsys.readouterr()
        shell.push(names)
        done: ExecutionResult = shell.run_cell(cell_with(notebook, text).source)
        return done.error_in_exec, capsys.readouterr().out

    run.shell = shell
    return run


def test_the_installed_jax_is_kept(execute, monkeypatch, tmp_path):
    """The constraints are the installed versions; the installation itself is a stand-in here."""
    lines: list[str] = []
    shell = execute.shell
    shell.system = lambda line: lines.append(shell.var_expand(line))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error, _ = execute("-m pip", SOURCE=str(tmp_path))
    assert str(error) == "jaxmnist was not installed: pip says why above."
    pipeline = [part.strip() for part in lines[0].split(" | ")]
    assert pipeline[-1] == f'"{sys.executable}" -m pip install --quiet -c /dev/stdin "{tmp_path}"'
    kept = subprocess.run(
        " | ".join(pipeline[:-1]), shell=True, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {f"{name}=={version(name)}" for name in ("jax", "jaxlib", "numpy")} <= set(kept)
    assert not any(line.startswith(("flax", "scikit")) for line in kept)
    execute("-m pip", SOURCE="https://host.example/name")
    assert lines[-1].endswith('"git+https://host.example/name"')
    error, _ = execute("-m pip", SOURCE="ADDRESS-OF-THIS-REPOSITORY")
    assert str(error) == "Put the address of jaxmnist's repository into SOURCE above."
    assert len(lines) == 2


def test_the_page_about_colab_has_the_same_cells():
    page = (ROOT / "docs" / "gpu_tpu.md").read_text("utf-8")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert cell_with(notebook, "-m pip").source in page
    assert cell_with(notebook, "SOURCE = ").source.splitlines()[0].partition("  #")[0] in page


def test_tensorboard_where_it_is_installed(execute, monkeypatch, tmp_path):
    """On Colab its own magics start it, here but for the server; elsewhere its command is shown."""
    tensorboard = pytest.importorskip("tensorboard.notebook")
    started: list[str] = []
    monkeypatch.setattr(tensorboard, "start", started.append)
    run = SimpleNamespace(store=SimpleNamespace(path=tmp_path / "my runs" / "mnist"))
    names = {"run": run, "sys": sys, "find_spec": importlib.util.find_spec}
    logs = f"--logdir '{tmp_path}/my runs/mnist/tensorboard'"
    assert execute("%tensorboard", **names) == (None, f"tensorboard {logs}\n")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert execute("%tensorboard", **names) == (None, "")
    assert started == [logs]


@pytest.mark.parametrize("sections", [(), ("curves",)])
def test_show_keeps_styles_apart(finished, sections):
    from jaxmnist.report.page import show

    text = show(finished, *sections)._repr_html_()
    assert text.startswith('<iframe sandbox="" srcdoc="')  # no script in a run's page runs
    assert "<style>" not in text  # all of the page is in the attribute, escaped
    assert ("section:not(" in text) == bool(sections)


def test_show_makes_the_page_anew(finished, tmp_path):
    """Whatever stands in the file: it may be old, damaged, or of a search that was running."""
    from jaxmnist.report.page import show

    shutil.copytree(finished.store.path, tmp_path / "small")
    (tmp_path / "small" / "report.html").write_text("<p>as it was written</p>")
    shown = show(Run(tmp_path / "small"))._repr_html_()
    assert "as it was written" not in shown
    assert "Confident mistakes" in shown
