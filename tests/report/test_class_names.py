"""Names of classes, and many classes, wherever a label is shown."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import check

from jaxmnist import Run, random_search
from jaxmnist.commands import predict
from jaxmnist.files import read_json, write_json
from jaxmnist.report.figures import scatter
from jaxmnist.report.page import make_page
from jaxmnist.runs.records import ModelReport

NAMES = ["T-shirt/top", "<script>alert(1)</script>", "$\\frac{1}{0}$", "数字", "a name " * 14]
NAMES += ["accuracy", "\x1b[2Jclear", "Sneaker", "Bag & purse", "Ankle boot"]
MANY = 120


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> tuple[Run, str]:
    """A run with 120 classes of six images of 8×8 pixels, and what the search printed."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2, (MANY, 4, 4)).repeat(2, 1).repeat(2, 2) * 200
    names = np.array([f"{NAMES[k % 10]} {k}"[-100:] for k in range(MANY)])
    parts = {}
    for part, count in (("train", 6), ("test", 2)):
        y = np.repeat(np.arange(MANY), count)
        noise = rng.integers(0, 55, (len(y), 8, 8))
        parts |= {f"x_{part}": (drawn[y] + noise).astype(np.uint8), f"y_{part}": names[y]}
    np.savez(folder / "many.npz", **parts)
    given = {"filters": 4, "conv_layers": 1, "dense_layers": 0, "max_trials": 1, "epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text="", **_: lines.append(str(text)))
        run = random_search(
            data_dir=str(folder / "many.npz"),
            directory=str(folder),
            batch_size=32,
            verbose=True,
            **given,
        )
    return run, "\n".join(lines)


def test_what_many_classes_print_is_bounded_and_safe(many):
    run, text = many
    lines = text.splitlines()
    assert len(lines) < 130
    assert max(map(len, lines)) < 400
    assert all(line.isprintable() for line in lines)
    assert "most frequent confusions of 120 classes (best/test.json has the whole matrix)" in text
    assert text.count("Classification report of the 20 worst of 120 classes (") == 2
    assert any(f" {name} " in text for name in run.store.search.data.class_names)
    assert str(run.store.search.data.class_names) not in text


def test_the_files_of_many_classes_are_bounded(many):
    run, _ = many
    path = run.store.path
    size = {file.relative_to(path).as_posix(): file.stat().st_size for file in path.rglob("*.*")}
    assert size["report.html"] < 250_000  # of which 60 kB are images
    assert size["best/test.json"] < 11 * MANY**2
    assert size["svm/many/svm.json"] < 11 * MANY**2
    assert size["search.json"] < 30_000
    assert sum(n for name, n in size.items() if name.startswith("tensorboard")) < 250_000
    test = run.result("best/test.json", ModelReport)
    assert len(test.classification_report) == MANY + 3
    names = list(run.store.search.data.class_names)
    assert list(test.class_names) == list(run.winner().class_names) == names
    assert list(run.best_model.class_names) == names == list(run.load_dataset().class_names)


def test_the_page_of_many_classes(many):
    run, _ = many
    page = check((run.store.path / "report.html").read_text("utf-8"))
    figures = {attributes["id"] for attributes in page.all("figure")}
    assert {"figure-confusion", "figure-svm-confusion"} <= figures
    tables = [attributes.get("id") for attributes in page.all("table")]
    assert {"confused", "network-report", "svm-report"} <= set(tables)
    assert "confusion" not in tables  # 14,400 numbers
    text = " ".join(page.text["test"].split())
    assert "Confusion matrix of the network: 120 classes" in text
    assert "the 20 classes of the lowest f1-scores of 120 (best/test.json has all)" in text
    assert "(120 in all)" in page.text["record"]
    matrix = np.array(run.result("best/test.json", ModelReport).confusion_matrix)
    assert f"{matrix.sum() - np.trace(matrix)} of 240 images are misclassified" in text


def test_predict_names_the_class(many, capsys, tmp_path):
    run, _ = many
    data = run.load_dataset()
    image = data.x_test[np.flatnonzero(data.y_test == data.class_names.index("Sneaker 7"))[:1]]
    np.save(tmp_path / "one.npy", image)
    assert predict.main([str(run.store.path), str(tmp_path / "one.npy")]) == 0
    best, second = np.argsort(-run.best_model.predict_proba(image)[0], kind="stable")[:2]
    said = capsys.readouterr().out
    assert f": {data.class_names[best]} with probability" in said
    assert f"(then {data.class_names[second]}, " in said
    assert run.best_model.predict(image)[0] == data.labels[best]  # labels stay whole numbers


@pytest.fixture
def named(finished, tmp_path) -> Path:
    """The finished run on digits, whose classes now have names."""
    path = tmp_path / "small"
    shutil.copytree(finished.store.path, path)
    for file in ("best/test.json", "svm/small/svm.json"):
        content = read_json(path / file)
        write_json(path / file, {**content, "class_names": NAMES})
    return path


def test_the_page_of_ten_named_classes(named, finished):
    data = replace(finished.load_dataset(), class_names=tuple(NAMES))
    text = make_page(Run(named), data)
    page = check(text)
    assert text.count("<script") == 1  # the page's own
    assert "\x1b" not in text
    for section in ("test", "mistakes", "features"):
        assert "Ankle boot" in page.text[section] or "Ankle b…" in page.text[section]
        assert "<script>" in page.text[section] or "<script…" in page.text[section]
    assert page.text["test"].count("accuracy (5)") >= 6  # two axes of two matrices, two reports
    # The digits' own page has no trace of names.
    usual = (named / "report.html").read_text("utf-8")
    assert 'class="matrix"' in usual
    assert 'class="matrix named"' in text


def test_a_run_whose_names_say_nothing_has_its_numbers(finished):
    names = [str(k) for k in range(10)]
    assert list(finished.result("best/test.json", ModelReport).class_names) == names
    assert list(finished.result("best/test.json", ModelReport).classification_report)[:10] == names


def test_labels_in_the_figure_of_features_are_few_and_apart():
    rng = np.random.default_rng(0)
    points, classes = rng.normal(size=(900, 2)), np.arange(900) % 300
    svg = scatter(points, classes, [f"category {k}" for k in range(300)], [0.2, 0.1]).svg
    assert svg.count("cat…") == 20
    assert len(svg) < 300_000
