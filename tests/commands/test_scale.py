"""Images on other scales than 0 to 255: whatever uses them divides them by the same number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from processes import command

from jaxmnist import Run, UsageError, random_search
from jaxmnist.data.arrays import Arrays, check_arrays, check_images, scale_of
from jaxmnist.data.dataset import load_arrays, load_dataset, split
from jaxmnist.results.run import locked_run
from jaxmnist.results.svm import fit_on_run
from jaxmnist.runs.records import ModelReport, SvmReport

LABELS = np.arange(40) % 2


def images(values, dtype) -> np.ndarray:
    """40 different images of 8×8 pixels that have these values."""
    return np.random.default_rng(0).choice(np.asarray(values, dtype), (40, 8, 8))


@pytest.mark.parametrize(
    ("values", "dtype", "kept", "scale"),
    [
        ([0, 255], np.uint8, np.uint8, 255),
        ([0, 128], np.uint8, np.uint8, 255),
        ([0, 127], np.uint8, np.uint8, 127),
        ([0, 1], np.uint8, np.uint8, 1),
        ([False, True], bool, np.uint8, 1),
        ([0, 1], np.float64, np.uint8, 1),
        ([0, 16], np.int64, np.uint8, 16),
        ([0, 100], np.float32, np.uint8, 100),
        ([0, 200], np.int64, np.uint8, 255),
        ([0, 4095], np.uint16, np.float32, 4095),
        ([0, 65535], ">u2", np.float32, 65535),
        ([0, 0.25, 0.5], np.float64, np.float32, 0.5),
        ([0, 0.51, 0.97], np.float64, np.float32, 1),
        ([0, 254.5], np.float16, np.float32, 255),
        ([0, 1e-40], np.float64, np.float32, np.float32(1e-40)),
    ],
)
def test_what_pixels_are_divided_by(values, dtype, kept, scale):
    arrays = check_arrays("here", images(values, dtype), LABELS, images(values, dtype), LABELS)
    assert arrays.x_train.dtype == arrays.x_test.dtype == kept
    assert np.array_equal(arrays.x_train[..., 0], images(values, dtype).astype(kept))
    assert scale_of("here", arrays.x_train) == scale
    data = split("here", arrays, validation_split=0.25, seed=0)
    assert data.scale == scale
    fractions = kept == np.float32 and scale == 1
    assert (data.scale_note is None) == (scale == 255 or fractions)


def test_the_scale_is_that_of_all_training_images():
    x = images([0, 1], np.uint8)
    x[30:] *= 255
    arrays = Arrays(x[..., None], LABELS, x[..., None], LABELS)
    limited = split("here", arrays, validation_split=0.25, seed=0, train_limit=20)
    assert limited.x_train.max() == 1
    assert limited.scale == 255
    other = split("here", Arrays(x[:30, ..., None], LABELS[:30], *arrays[2:]), **SPLIT)
    assert (other.x_train == limited.x_train).all()
    assert other.fingerprint != limited.fingerprint  # the same images, divided by another number


SPLIT = {"validation_split": 0.25, "seed": 0, "train_limit": 20}


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (images([-1, 1], np.float32), images([0, 1], np.float32), "negative pixels, down to -1"),
        (images([0, 1], np.float32), images([-5, 1], np.int16), "negative pixels, down to -5"),
        (images([0, np.nan], np.float32), images([0, 1], np.uint8), "not finite"),
        (images([0, np.inf], np.float32), images([0, 1], np.uint8), "not finite"),
        (images([0, 1e300], np.float64), images([0, 1], np.uint8), "not finite"),
        (images([0, 0], np.uint8), images([0, 1], np.uint8), "all pixels .* are 0"),
        (
            images([0, 1], np.uint8),
            images([0, 255], np.uint8),
            "x_test: its pixels reach 255, .* 1;",
        ),
        (images([0, 255], np.uint8), images([0, 0.5], np.float32), "reach 0.5, .* 255;"),
    ],
)
def test_refused(train, test, says):
    with pytest.raises(UsageError, match=says) as caught:
        check_arrays("here", train, LABELS, test, LABELS)
    assert "\n" not in str(caught.value)


def test_pixels_that_are_no_numbers():
    with pytest.raises(UsageError, match="pixels must be numbers, not complex64"):
        check_images("here", images([0, 1], np.complex64))


# The same black and white digits in several forms; in each, pixels are exactly k / scale.
FORMS = {
    "usual": lambda white: white.astype(np.uint8) * 255,
    "ones": lambda white: white.astype(np.uint8),
    "fractions": lambda white: white * 0.25,
    "bits12": lambda white: white.astype(np.uint16) * 4095,
}


@pytest.fixture(scope="module")
def runs(small, options, tmp_path_factory) -> dict[str, Run]:
    """The same search on each form of the digits."""
    folder, arrays = tmp_path_factory.mktemp("scales"), load_arrays(None, str(small))
    for name, form in FORMS.items():
        parts = {key: form(getattr(arrays, key) > 127) for key in ("x_train", "x_test")}
        labels = {key: getattr(arrays, key) for key in ("y_train", "y_test")}
        np.savez(folder / f"{name}.npz", **parts, **labels)
    given = {**options, "max_trials": 1, "filters": 8, "conv_layers": 1, "report": True}
    return {
        name: random_search(
            **{**given, "data_dir": str(folder / f"{name}.npz")}, directory=str(folder)
        )
        for name in FORMS
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMS if name != "usual"])
def test_every_scale_gives_the_same_run(runs, name):
    usual, run = runs["usual"], runs[name]
    assert run.best_trial.history == usual.best_trial.history
    assert run.store.search.data.scale == run.best_model.scale == run.load_dataset().scale
    assert run.store.search.data.class_names == tuple(map(str, run.store.search.data.labels))
    assert run.best_model.scale == {"ones": 1, "fractions": 0.25, "bits12": 4095}[name]
    for file, kind in (("best/test.json", ModelReport), (f"svm/{name}/svm.json", SvmReport)):
        other = usual.result(file.replace(name, "usual"), kind)
        assert run.result(file, kind).confusion_matrix == other.confusion_matrix
    x, other = run.load_dataset().x_test, usual.load_dataset().x_test
    assert np.array_equal(run.best_model.predict_proba(x), usual.best_model.predict_proba(other))
    assert np.array_equal(run.best_model.features(x), usual.best_model.features(other))
    # Images in the page are equally bright.
    page = (run.store.path / "report.html").read_text()
    drawn = [part.split('"')[0] for part in page.split("data:image/png;base64,")[1:]]
    page = (usual.store.path / "report.html").read_text()
    assert drawn == [part.split('"')[0] for part in page.split("data:image/png;base64,")[1:]]
    assert drawn


@pytest.mark.slow
def test_an_svm_on_images_of_another_scale(runs, options):
    """A network knows pixels from 0 to 1: another task's are divided by their own scale."""
    found = []
    for name in ("ones", "usual"):
        with locked_run(str(runs["fractions"].store.path)) as run:
            data = load_dataset(runs[name].settings.data, 0)
            content = fit_on_run(run, data, wanted="sklearn", draws=0, baselines=True)
            parts = [content, *content.baselines.values()]
            found.append([part.confusion_matrix for part in parts])
    assert found[0] == found[1]


def test_predict_prepares_pictures_for_the_scale(runs, mnist, tmp_path: Path):
    from PIL import Image

    Image.fromarray(np.kron(255 - mnist.x_test[0, ..., 0], np.ones((9, 9), np.uint8))).save(
        tmp_path / "seven.png"
    )
    answers = set()
    for name in ("usual", "ones", "fractions"):
        done = command("predict", runs[name].store.path, tmp_path / "seven.png")
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout.partition(";")[0])
        assert ("white is" in done.stdout) == (name != "usual")
    assert len(answers) == 1


def test_images_of_another_scale_are_refused(runs):
    model = runs["ones"].best_model
    with pytest.raises(UsageError, match="pixels reach 255, and those of the training images 1;"):
        model.predict(np.full((1, 28, 28), 255, np.uint8))
    with pytest.raises(UsageError, match="pixels reach 1, and those of the training images 255;"):
        runs["usual"].best_model.predict(np.linspace(0, 1, 784).reshape(1, 28, 28))
