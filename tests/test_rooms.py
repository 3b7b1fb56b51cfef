"""What each room may know: `models/study/` alone the study's hyperparameters, `models/` Flax."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "jaxmnist"
# Two names are common words: they count where they stand as a hyperparameter's name.
STUDY = re.compile(
    r"conv_layers|dense_layers|conv-layers|dense-layers"
    r"|[\"'](filters|units)[\"']|(?<!environment)\.(filters|units)\b|--(filters|units)\b|\b(filters|units)=\d"
)


def sources(above: Path) -> list[Path]:
    """Every file of text below a folder."""
    found = [*above.rglob("*.py"), *above.rglob("*.html"), *above.rglob("*.css")]
    assert found
    return found


def test_only_the_study_knows_its_hyperparameters():
    knowing = {
        str(path.relative_to(PACKAGE))
        for path in sources(PACKAGE)
        if STUDY.search(path.read_text("utf-8"))
    }
    assert knowing == {f"models/study/{name}.py" for name in ("space", "network", "padding")}


def test_only_models_know_flax():
    knowing = {
        path.relative_to(PACKAGE).parts[0]
        for path in sources(PACKAGE)
        if re.search(r"^\s*(import|from) flax\b", path.read_text("utf-8"), re.MULTILINE)
    }
    assert knowing == {"models"}
