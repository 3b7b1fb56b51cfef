"""`--dry-run`: what a search would do, and nothing of it."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from processes import flags

from jaxmnist import SearchSettings
from jaxmnist.commands.parser import run_command
from jaxmnist.commands.search import main
from jaxmnist.engine.local import Engine, measure, relative
from jaxmnist.models.interface import DataSpec
from jaxmnist.models.network import STUDY
from jaxmnist.models.space import Space
from jaxmnist.report.sentences import describe_preview
from jaxmnist.search.beginning import Preview, preview

NETWORK = """
import flax.linen as nn


class Network(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(self.width)(x.reshape(x.shape[0], -1))))


def build_model(hp):
    hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
    return Network(hp.Int("width", 2, 4))
"""


def files(folder: Path) -> dict[str, str]:
    """Each file below a folder, with the SHA-256 of its content and the time of its change."""
    return {
        str(path): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def found(options: dict) -> Preview:
    """Four draws of the study's space with its usual widths, at the small digits."""
    given = {**options, "filters": "8:64:8", "batch_size": 32}
    ranges = {name: given.pop(name) for name in ("filters", "conv_layers", "dense_layers", "units")}
    return preview(SearchSettings(**given, ranges=ranges, jobs=2), STUDY)


def test_the_command_writes_nothing(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, [*flags({**options, "quiet": False}), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for part in (
        "Data: small, 300 training, 100 validation and 200 test images of 28×28×1, 10 classes\n",
        "Space: 8 configurations\n  filters       4:8:4  2 values\n",
        "\nDraws: 4 trials of 8, seed 0; ",
        "This is an estimate: ",
        "Nothing was written: without --dry-run the search is in runs/small.\n",
    ):
        assert part in said
    drawn = [str(draw) for draw in Space(STUDY.definition, ranges_of(options)).draws(0)]
    shown = re.findall(r"^ +\d  .*  (filters=.*)$", said, re.MULTILINE)
    assert [row.split() for row in shown] == [
        [word for word in each.split() if not word.startswith(("units", "kernel", "dropout"))]
        for each in drawn[:4]
    ]


def ranges_of(options: dict) -> dict:
    names = ("filters", "conv_layers", "dense_layers", "units")
    return {name: options[name] for name in names}


def test_a_run_that_exists_stays_as_it_is(finished, options, capsys):
    """Even with --overwrite; what has ended isn't counted, and another search is refused."""
    place = finished.store.path
    before = files(place.parent)
    line = [*flags(options), "--directory", str(place.parent), "--dry-run"]
    assert run_command(main, line) == 0
    assert "All 4 trials have ended already: " in capsys.readouterr().out
    assert run_command(main, [*line, "--max-trials", "6"]) == 0
    assert "; 4 of 6 trials have ended already." in capsys.readouterr().out
    assert run_command(main, [*line, "--overwrite"]) == 0
    assert "ended already" not in capsys.readouterr().out
    assert run_command(main, [*line, "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "holds another search: " in said
    assert "; seed was 0, not 1 (" in said
    assert files(place.parent) == before


@pytest.mark.slow
def test_a_network_of_one_s_own(options, tmp_path, monkeypatch, capsys):
    """By a file of settings; its space may be infinite."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net_of_dry_run.py").write_text(NETWORK)
    (tmp_path / "a.toml").write_text(
        f"model = 'net_of_dry_run.py'\ndata-dir = '{options['data_dir']}'\nmax-trials = 30\n"
        "epochs = 2\nwidth = [2, 3]\nfinalists = 2\nreruns = 3\nrefit = true\nsvm = false\n"
        "max-seconds = 90\n"
    )
    before = files(tmp_path)
    assert run_command(main, ["--config", "a.toml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "Space: infinite configurations\n" in said
    assert re.search(r"^  learning_rate +0\.0001:0\.01:log +continuous$", said, re.MULTILINE)
    assert re.search(r"^  width +2,3 +2 values$", said, re.MULTILINE)
    assert "… and 20 more trials\n" in said
    assert "all trials, 6 reruns of finalists, the refit" in said
    assert "No trial starts after 1 min 30 s (--max-seconds)." in said
    # 784 · width + width + width · 10 + 10 parameters, by hand.
    for parameters, width in re.findall(r"^ +\d+ +([\d,]+) .* width=(\d)", said, re.MULTILINE):
        assert int(parameters.replace(",", "")) == 795 * int(width) + 10
    assert {path for path in files(tmp_path) if "__pycache__" not in path} == set(before)


FAILING = """
import flax.linen as nn
def build_model(hp):
    width = hp.Int("width", 1, 4)
    if width in {those}:
        raise ValueError("too narrow\\n")
    return nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(width), nn.Dense(10)])
"""


def test_networks_that_can_not_be_built(options, tmp_path, monkeypatch, capsys):
    """One has its trial fail, as in a search; if all are so, a line says why."""
    monkeypatch.chdir(tmp_path)
    line = ["--data-dir", options["data_dir"], "--no-svm", "--dry-run", "--model"]
    for name, those in (
        ("some_fail_in_dry_run.py", (2,)),
        ("all_fail_in_dry_run.py", (1, 2, 3, 4)),
    ):
        (tmp_path / name).write_text(FAILING.replace("{those}", repr(those)))
    assert run_command(main, [*line, "some_fail_in_dry_run.py"]) == 0
    said = capsys.readouterr().out
    assert len(re.findall(r": would fail: some_fail.*, line \d+, .*: too narrow", said)) == 1
    assert len(re.findall(r"^ +\d .* width=\d$", said, re.MULTILINE)) == 3
    assert run_command(main, [*line, "all_fail_in_dry_run.py"]) == 2
    said = capsys.readouterr().err
    assert "ValueError: too narrow" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("given", [["--epochs", "0"], ["--data-dir", "nowhere"], ["--keep", "x"]])
def test_a_mistake_is_one_line(given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command(main, ["--dry-run", *given]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


# --- the estimate ---------------------------------------------------------------------------------


def test_parameters_and_memory(found):
    """Compared with the arrays themselves."""
    data = DataSpec.of(found.dataset, found.settings.training)
    for draw in found.draws:
        weights = STUDY.bind(draw.hyperparameters, data).initial_weights(
            seed=0, index=draw.key.index
        )
        counted = sum(array.size for array in jax.tree.leaves(weights))
        assert draw.parameters == counted
        # Weights, gradients, Adam's two moments and float64 initial weights, and some outputs.
        assert 24 * counted < draw.memory < 24 * counted + 32 * 8 * 10**6


def test_more_work_takes_more_time(found):
    """An estimate for each draw, in the order of its work, and one for all that are left."""
    engine = Engine(STUDY, found.dataset, found.settings.training, 0)
    work = [relative(engine, draw.hyperparameters) for draw in found.draws]
    times = [draw.seconds for draw in found.draws]
    ordered = sorted(range(len(work)), key=work.__getitem__)
    assert [times[i] for i in ordered] == sorted(times)
    pace = found.pace
    assert (pace.together, pace.steps > 0, pace.step > 0) == (2, True, True)
    middle = ordered[len(work) // 2]
    assert pace.hyperparameters == found.draws[middle].hyperparameters
    # 300 images in batches of 32, 3 epochs, and 100 validation images, a third of the work each.
    batches = 3 * (300 + 100 / 3) / 32
    assert times[middle] == pytest.approx(batches * pace.step + pace.compiling)
    for i, each in enumerate(times):
        step = pace.step * work[i] / work[middle]
        assert each == pytest.approx(batches * step + pace.compiling)
    assert found.seconds == pytest.approx(max(max(times), sum(times) / 2))


def test_the_text_says_where_the_estimate_comes_from(found):
    said = "\n".join(describe_preview(found))
    pace = found.pace
    assert f"{pace.steps} steps of one configuration" in said
    assert str(found.space.shown(pace.hyperparameters)) in said
    assert f"{1000 * pace.step:.1f} ms each" in said
    ended = replace(found, done=found.trials)
    assert "This is an estimate" not in "\n".join(describe_preview(ended))


@pytest.mark.slow
def test_measuring_changes_nothing(found):
    """The same weights begin, and nothing is kept, so that the numbers are of time alone."""
    engine = Engine(STUDY, found.dataset, found.settings.training, 0)
    compiled = engine.compiled
    pace = measure(engine, found.draws[0].hyperparameters, 1)
    assert pace.together == 1
    assert pace.steps % min(16, 10) == 0  # whole blocks of an epoch of 10 batches
    assert engine.compiled == compiled


@pytest.mark.slow
def test_a_configuration_beside_it_that_cant_be_compiled_is_left_alone(found, monkeypatch):
    engine = Engine(STUDY, found.dataset, found.settings.training, 0)
    own, other = (draw.hyperparameters for draw in found.draws[:2])
    compilers = engine.compilers

    def some(group):
        if group.widest == other:
            raise MemoryError
        return compilers(group)

    monkeypatch.setattr(engine, "compilers", some)
    assert measure(engine, own, 2, [other]).hyperparameters == own
    with pytest.raises(MemoryError):
        measure(engine, other, 2, [own])
