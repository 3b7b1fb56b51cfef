"""What the site has beside the pages: other files, all commands, and the keywords of a search.

A hook of MkDocs. It needs jaxmnist's sources and none of its dependencies.
"""

from __future__ import annotations

import argparse
import html
import importlib
import re
import sys
from contextlib import suppress
from pathlib import Path
from posixpath import normpath
from typing import Any
from unittest.mock import patch

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from jaxmnist.__main__ import COMMANDS  # noqa: E402
from jaxmnist.settings import PARTS, SETTINGS  # noqa: E402

# Files of the repository that the site has under the same path; README is its first page.
PAGES = ("experiments/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
OTHERS = ("LICENSE", "jaxmnist/data/mnist/README.md", "experiments/jaxmnist_colab.ipynb")
PICTURES = ("experiments/screenshots/page-light.png", "experiments/screenshots/page-dark.png")
SETTINGS_HERE = "<!-- settings -->"  # of random_search, in the reference
COMMANDS_PAGE = "commands.md"  # what it has in the repository stands in for this page
MANY_MACHINES = "many_machines.md"
LINK = re.compile(r"\]\(([^)#:\s]+)((?:#[^)\s]*)?)\)")


def on_config(config: Any) -> Any:
    """Name the page about many machines where it exists."""
    how_to = next(entry["How to"] for entry in config.nav if "How to" in entry)
    if (ROOT / "docs" / MANY_MACHINES).is_file() and MANY_MACHINES not in how_to:
        how_to.append(MANY_MACHINES)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that lie outside docs/."""
    made = {"index.md": (ROOT / "README.md").read_text("utf-8")}
    made |= {name: (ROOT / name).read_text("utf-8") for name in PAGES}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for name in (*OTHERS, *PICTURES):
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    place = page.file.src_uri
    if place == COMMANDS_PAGE:
        return commands()
    markdown = markdown.replace(SETTINGS_HERE, settings())
    inside = place not in ("index.md", *PAGES)  # docs/ itself
    source = f"docs/{place}" if inside else {"index.md": "README.md"}.get(place, place)
    folder = source.rpartition("/")[0]

    def link(found: re.Match[str]) -> str:
        target = normpath(f"{folder}/{found[1]}").lstrip("/")
        target = {"README.md": "index.md"}.get(target, target.removeprefix("docs/"))
        back = "../" * place.count("/")
        return f"]({back}{target}{found[2]})"

    return LINK.sub(link, markdown)


def commands() -> str:
    """The page of all commands and flags, as their parsers have them."""
    lines = ["# Commands and flags", "", "| command | what it does |", "| --- | --- |"]
    lines += [f"| [`jaxmnist {name}`](#{name}) | {text(what)} |" for name, what in COMMANDS.items()]
    lines += ["", "`python -m jaxmnist.search` is `jaxmnist search`. Every command has `--help`."]
    for name in COMMANDS:
        parser = parser_of(name)
        lines += ["", f"## jaxmnist {name} {{ #{name} }}", "", text(parser.description or "")]
        lines += ["", "```", re.sub(r"^usage: ", "", usage(parser)), "```"]
        for group in parser._action_groups:
            lines += section(parser, group)
        if parser.epilog:
            lines += ["", "```", parser.epilog.strip("\n"), "```"]
    return "\n".join(lines) + "\n"


def settings() -> str:
    """The keywords of `random_search` as a table, in the order of `--help`."""
    lines = ["| keyword | type | what it says |", "| --- | --- | --- |"]
    for part, kind in PARTS.items():
        lines.append(f"| **{text(kind.title)}** | | |")
        lines += [
            f"| `{item.name}` | {text(item.type)} | {text(item.described)} |"
            for item in SETTINGS.values()
            if item.part == part
        ]
    return "\n".join(lines)


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of a command, as it is when it prints its help."""
    found: list[argparse.ArgumentParser] = []
    main = importlib.import_module(f"jaxmnist.commands.{name}").main

    def keep(parser: argparse.ArgumentParser, file: Any = None) -> None:
        found.append(parser)

    with patch.object(argparse.ArgumentParser, "print_help", keep), suppress(SystemExit):
        main(["--help"], f"jaxmnist {name}")
    return found[0]


def usage(parser: argparse.ArgumentParser) -> str:
    """One line: the arguments by name, and that there are flags."""
    words = [str(action.metavar or action.dest) for action in parser._get_positional_actions()]
    return " ".join([parser.prog, *words, "[--flag …]"])


def section(parser: argparse.ArgumentParser, group: Any) -> list[str]:
    """A group of flags as a table."""
    actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
    if not actions:
        return []
    formatter = parser._get_formatter()
    title = {"positional arguments": "arguments", "options": "flags"}.get(group.title, group.title)
    lines = ["", f"### {text(str(title).capitalize())}", "", text(group.description or ""), ""]
    lines += ["| flag | what it says |", "| --- | --- |"]
    for action in actions:
        words = action.option_strings or [str(action.metavar or action.dest)]
        value = f" {action.metavar}" if action.option_strings and action.metavar else ""
        names = "<br>".join(f"`{word}{value}`".replace("|", "\\|") for word in words)
        lines.append(f"| {names} | {text(formatter._expand_help(action))} |")
    return lines


def text(given: str) -> str:
    """Text of the parser as Markdown that shows it as it is."""
    escaped = html.escape(" ".join(given.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|$#])", r"\\\1", escaped)
