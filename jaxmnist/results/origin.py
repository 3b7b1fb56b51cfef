"""What a run says about a model that was loaded from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxmnist.errors import UsageError
from jaxmnist.runs.directory import RunDirectory
from jaxmnist.whole_files import DamagedFile, MissingFile, fits, read_json

DTYPES = {"uint8", "float32"}  # of a dataset's images
TESTED = {"model_sha256": str, "accuracy": float}  # fields of a report on test images


@dataclass(frozen=True)
class Origin:
    """The run that a model comes from.

    sha256: of the model's file.
    report: the report on test images that may be the model's; None for best/test.json.
    """

    directory: RunDirectory
    sha256: str
    report: Path | None = None

    @property
    def dtype(self) -> str | None:
        """The dtype of the run's images, 'uint8' or 'float32'; None if the run doesn't say it."""
        found = self._said("dtype")
        return found if fits(found, DTYPES) else None

    def class_names(self, classes: int) -> list[str] | None:
        """The names of the K classes; None if the run doesn't say them.

        Raises `DamagedFile` if it has other than K names.
        """
        names = self._said("class_names")
        if names is not None and (not fits(names, [str]) or len(names) != classes):
            path = self.directory.path / "search.json"
            raise DamagedFile(path, f"its class_names are not {classes} names")
        found: list[str] | None = names
        return found

    @property
    def preparation(self) -> Any:
        """How pictures are prepared for the run's networks, a JSON value; None if it isn't said."""
        return self._said("preparation")

    def test_accuracy(self) -> float | None:
        """The model's accuracy on the test images; None if it wasn't evaluated on them.

        Raises `UsageError` if the report on them is damaged.
        """
        try:
            report = read_json(self.report or self.directory.test_path, TESTED)
        except MissingFile:
            return None
        except DamagedFile as problem:
            mend = f"python -m jaxmnist evaluate {self.directory.path} makes it again"
            if self.report:
                mend = "repeat the search's command, which makes it again"
            raise UsageError(f"{problem}; {mend}") from None
        accuracy: float = report["accuracy"]
        return accuracy if report["model_sha256"] == self.sha256 else None

    def _said(self, name: str) -> Any:
        """What search.json says under `name`: about the data, or at its top."""
        search = self.directory.search
        return search["data"].get(name, search.get(name))


def facts(origin: Origin | None, labels: Sequence[int]) -> dict[str, Any]:
    """What is known about a model beyond its weights, for JSON.

    class_names: K names, in the order of `labels`; the labels as text where there are no others.
    test_accuracy: None if it isn't known. preparation: as the run says it, if it says it.
    """
    names = origin.class_names(len(labels)) if origin else None
    found: dict[str, Any] = {
        "class_names": names or [str(label) for label in labels],
        "test_accuracy": origin.test_accuracy() if origin else None,
    }
    if origin and origin.preparation is not None:
        found["preparation"] = origin.preparation
    return found
