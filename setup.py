"""The package page: README with addresses in place of paths; all else is in pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent
RELATIVE = r"(?![a-z]+:|#)"  # neither an address nor a place in the page itself
LINK = re.compile(rf"\[([^\]]+)\]\({RELATIVE}([^)\s]+)\)")
PICTURE = re.compile(r"<picture>.*?</picture>\n*", re.DOTALL)
SOURCE = re.compile(rf'(src|srcset)="{RELATIVE}([^"]+)"')


def package_page(readme: str, repository: str | None, version: str) -> str:
    """README as it stands on a package page, where there are no files beside it.

    Args:
      readme: README.md.
      repository: the address of the repository, under whose `blob` and `raw` the files of each tag
        are, as on GitHub, GitLab and Gitea; None if none is known: then links become their text,
        and pictures are left out, as they would be broken.
      version: of the package; its tag is v and the version.
    """
    if repository is None:
        return LINK.sub(r"\1", PICTURE.sub("", readme))
    base, tag = repository.rstrip("/"), f"v{version}"
    readme = LINK.sub(rf"[\1]({base}/blob/{tag}/\2)", readme)
    return SOURCE.sub(rf'\1="{base}/raw/{tag}/\2"', readme)


if __name__ == "__main__":
    from setuptools import setup

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    stated = (ROOT / "jaxmnist" / "__init__.py").read_text("utf-8")
    (version,) = re.findall(r'^__version__ = "(.+)"$', stated, re.MULTILINE)
    setup(
        long_description=package_page(
            (ROOT / "README.md").read_text("utf-8"),
            project.get("urls", {}).get("Repository"),
            version,
        ),
        long_description_content_type="text/markdown",
    )
