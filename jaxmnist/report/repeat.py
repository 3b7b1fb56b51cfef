"""How to repeat a run: its settings, and the search as a command line and as a line of Python."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from typing import Any

from jaxmnist.checked import flag
from jaxmnist.hyperparameters import text
from jaxmnist.models.study.space import DEFINITION
from jaxmnist.settings import IN_MEMORY, SearchSettings, usual_settings

Setting = tuple[str, Any]
# Settings that don't belong to a repetition elsewhere, and ranges, which are added apart.
LEFT_OUT = ("overwrite", "quiet", "verbose", "directory", "cache", "ray", "ranges")


def command(settings: SearchSettings) -> str:
    """The command line of a search: the flags that differ from their defaults."""
    parts = ["python", "-m", "jaxmnist.search"]
    usual = usual_settings(settings.recipe)
    for name, value in settings.to_json().items():
        if name in LEFT_OUT or value == usual[name]:
            continue
        if isinstance(value, bool):
            parts.append(flag(name) if value else flag("no_" + name))
        else:
            parts += [flag(name), str(value)]
    for name, given in settings.ranges.items():
        members = given if isinstance(given, list) else [given]
        parts += [flag(name), ",".join(map(text, members))]
    return shlex.join(parts)


def in_python_only(search: dict[str, Any]) -> list[str]:
    """What a run was given that no command line can name, from its search.json."""
    named = search["settings"].get("model") is not None
    own = search["identity"]["network"] != DEFINITION.name and not named
    return ["build_model"] * own + ["data"] * search["data"]["in_memory"]


def session(settings: SearchSettings, objects: Collection[str] = ()) -> str:
    """The same search as a line of Python.

    Args:
      settings: of the search.
      objects: see `in_python_only`.
    """
    usual = usual_settings(settings.recipe)
    given = ["build_model"] if "build_model" in objects else []
    given += ["data=data"] if "data" in objects else []
    unnamed = "data" in objects and settings.dataset == IN_MEMORY
    given += [
        f"{name}={value!r}"
        for name, value in settings.to_json().items()
        if name not in LEFT_OUT and value != usual[name] and not (name == "dataset" and unnamed)
    ]
    given += [f"{name}={value!r}" for name, value in settings.ranges.items()]
    return f"jaxmnist.random_search({', '.join(given)})"


def settings_rows(search: dict[str, Any]) -> tuple[list[Setting], list[Setting]]:
    """The settings of search.json with the ranges that were searched, as rows of two tables.

    Returns those that differ from their defaults, and those that don't.
    """
    identity, settings = search["identity"], dict(search["settings"])
    ranges = settings.pop("ranges", None) or {}
    rows = {**settings, "network": identity["network"], "optimizer": identity["optimizer"]}
    rows |= identity["space"]
    usual = {**usual_settings(settings.get("recipe")), "network": DEFINITION.name}
    changed: list[Setting] = []
    defaults: list[Setting] = []
    for name, value in rows.items():
        shown = (name, "default" if value is None else value)
        own = name in identity["space"]  # a hyperparameter: its range was given, or is the default
        same = name not in ranges if own else name in usual and value == usual[name]
        (defaults if same else changed).append(shown)
    return changed, defaults
