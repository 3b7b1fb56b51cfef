"""Pages as HTML text: the templates with one style and one script, which are part of each page."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxmnist.hyperparameters import text
from jaxmnist.report.words import accuracy, duration
from jaxmnist.results.layout import shortened
from jaxmnist.results.statistics import p_value, signed

MARK = b'<meta name="generator" content="jaxmnist">'  # in the head of every page


def render(template: str, **variables: Any) -> str:
    """The page of a template in `templates/` as HTML text.

    Text in `variables` is escaped. The page's security policy permits its own script alone, by its
    SHA-256, and no request.
    """
    environment = Environment(
        loader=PackageLoader("jaxmnist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["accuracy"] = accuracy
    environment.filters["duration"] = duration
    environment.filters["p_value"] = p_value
    environment.filters["signed"] = signed
    environment.filters["text"] = text
    environment.filters["shortened"] = shortened
    script = _file("page.js")
    return environment.get_template(template).render(
        style=_file("page.css"),
        script=script,
        script_hash=script_hash(script),
        **variables,
    )


def script_hash(script: str) -> str:
    """The SHA-256 of a script, as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _file(name: str) -> str:
    return (resources.files("jaxmnist.report") / "templates" / name).read_text("utf-8")
