"""`jaxmnist search`: the random search, and `--config FILE`, its settings from a file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxmnist.api import dry_run, own_network, run_search, settings_of
from jaxmnist.commands.parser import Parser, add_ranges, add_settings, first_of
from jaxmnist.errors import Named, SettingError, UsageError, disk_error, local_path, one_line
from jaxmnist.hyperparameters import shown
from jaxmnist.models.questions import Definition
from jaxmnist.models.space import Space, ranges_of
from jaxmnist.models.study import DEFINITION
from jaxmnist.settings import SETTINGS, flag, nearest

# --- `--config FILE`: settings of a search from a TOML file, or from a run's search.json ---

LARGEST = 2**26  # bytes of a file


@dataclass(frozen=True)
class Config:
    """The settings that a file gives.

    path: of the file, as it was given.
    options: values by the names of settings and hyperparameters.
    keys: what the file calls them.
    needs: flags that the file can't stand for, with what to say if none of them is given.
    left_out: settings in the file that aren't taken over.
    """

    path: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    needs: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def without(self, names: Collection[str]) -> Config:
        """The same without the options that flags give."""
        return replace(
            self,
            options={name: value for name, value in self.options.items() if name not in names},
            needs={flags: say for flags, say in self.needs.items() if not {*flags} & {*names}},
            left_out=tuple(name for name in self.left_out if name not in names),
        )

    def notes(self) -> list[str]:
        """What the user should know of the file."""
        if not self.left_out:
            return []
        flags = " and ".join(map(flag, self.left_out))
        verb, them = ("is", "it") if len(self.left_out) == 1 else ("are", "them")
        return [f"note: {flags} of {self.path} {verb} not taken over; give {them} again if wanted"]

    def network(self) -> Any:
        """The file of the network as the file names it; `UsageError` if it must be given."""
        if say := self.needs.get(("model",)):
            raise UsageError(f"{self.path}: {say}")
        return self.options.get("model")

    def check(self, parameters: Iterable[str]) -> None:
        """Raise `UsageError` for a key that is no word of the command line, or what is missing.

        parameters: the names of the hyperparameters.
        """
        known = [*SETTINGS, *parameters]
        for name in self.options:
            if name not in known:
                raise UsageError(f"{self.path}: {self._unknown(name, known)}")
        for say in self.needs.values():
            raise UsageError(f"{self.path}: {say}")

    def _unknown(self, name: str, known: list[str]) -> str:
        key, value = self.keys[name], self.options[name]
        if name.removeprefix("no_") in known and isinstance(value, bool):
            negated = str(not value).lower()
            return f"unknown key {shown(key)}; write {name.removeprefix('no_')} = {negated}"
        near = nearest(name, known)
        if near is None:
            return f"unknown key {shown(key)}: the keys are the flags of --help, without the --"
        return f"unknown key {shown(key)}; did you mean {near.replace('_', _joint(key))!r}?"

    @contextmanager
    def named(self) -> Iterator[None]:
        """While in this context, errors about a value of the file name the file and the key."""
        try:
            yield
        except SettingError as problem:
            if not {*problem.names[:1]} & self.options.keys():
                raise
            line = problem.worded(
                lambda name: self.keys[name] if name in self.options else flag(name)
            )
            raise UsageError(f"{self.path}: {line}") from None


def read_config(given: str) -> Config:
    """The settings of a TOML file, or of a run's search.json.

    Keys are the words of the flags, with '-' or '_'; values are text, numbers, booleans and lists
    as `random_search` takes them.

    Raises `UsageError`, which names the file, if it can't be read.
    """
    path = local_path(given, Named("config"))
    content = _content(path)
    if content.lstrip()[:1] == b"{":  # which no TOML begins with
        return _of_run(path, content)
    # Imported here, as the command has a file only sometimes.
    import tomllib

    try:
        table = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not text in UTF-8, as TOML is") from None
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{path}: is not valid TOML: {one_line(problem)}") from None
    options: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in keys:
            raise UsageError(f"{path}: {keys[name]} and {key} are the same key: leave one out")
        if isinstance(value, dict):
            raise UsageError(
                f"{path}: {shown(key)} is a table: keys stand at the top of the file, and their"
                " values are text, numbers, true, false or lists of values"
            )
        options[name], keys[name] = value, key
    if "overwrite" in options:
        raise UsageError(
            f"{path}: {keys['overwrite']} deletes a run each time the command is repeated: give it"
            " as the flag --overwrite"
        )
    return Config(path, options, keys)


def _of_run(path: str, content: bytes) -> Config:
    """The settings that were given to the search of a search.json, with the ranges.

    Not those of a session, as `--overwrite`; and never code that is run: a network of one's own has
    to be given again. The search.json of somebody else must not have it run.
    """
    # Imported here: NumPy takes a tenth of a second, which --help shouldn't wait for.
    from jaxmnist.files import DamagedFile, json_content, record_of
    from jaxmnist.runs.records import Search

    try:
        search = record_of(Path(path), json_content(Path(path), content), Search)
    except DamagedFile as problem:
        raise UsageError(
            f"{problem}: --config takes a TOML file, or search.json as a search wrote it"
        ) from None
    ranges = search.settings.get("ranges")
    options, code = {**search.given, **(ranges if isinstance(ranges, dict) else {})}, {}
    for name, item in SETTINGS.items():
        if name in options and item.names_code:
            code[name] = options.pop(name)
        elif item.scope == "session":
            options.pop(name, None)
    needs: dict[tuple[str, ...], str] = {}
    if search.data.in_memory:
        say = "its data were arrays in memory: name data by --data-dir or --dataset"
        needs["data_dir", "dataset"] = say
    model = code.pop("model", None)
    if search.identity["network"] != DEFINITION.name or model is not None:
        file = f" ({model[:200]})" if isinstance(model, str) else ""
        needs["model",] = (
            f"its network is Python code{file}, which search.json may not run: name the file with"
            " --model"
        )
    return Config(path, options, {name: name for name in options}, needs, tuple(code))


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UsageError(f"--config {path}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(
            f"--config {path}: is a folder; the settings of a run are in its search.json"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError):  # a null character
            raise UsageError(f"--config {shown(path)}: is not the name of a file") from None
        raise disk_error(f"--config {path}: can't be read", error) from None
    if len(content) > LARGEST:
        raise UsageError(f"--config {path}: has more than {LARGEST} bytes")
    return content


def _joint(key: str) -> str:
    """What joins the words of a key: as in the file."""
    return "-" if "-" in key else "_"


# --- `jaxmnist search`: the random search ---

EXAMPLES = (
    ("--data-dir my/pictures --max-trials 20", "pictures of your own, in a folder for each class"),
    (
        "--learning-rate 3e-4:3e-3:log --optimizer adam,lion --dry-run",
        "what would be searched, and about how long it would take",
    ),
)


def main(arguments: list[str], program: str = "python -m jaxmnist.search") -> None:
    """Run the command."""
    # The network says which flags there are, so that its own flag is read first.
    path, model = first_of(arguments, "--config", "--model")
    config = Config() if path is None else read_config(path)
    config = config.without(() if model is None else ("model",))
    with config.named():
        network = own_network(config.network() if model is None else model)
        definition = network.definition if network else DEFINITION
        space = Space(definition)
    given = vars(parser_of(definition, space, program).parse_args(arguments))
    given.pop("config", None)
    dry = given.pop("dry_run", False)
    config = config.without(given)
    config.check(space.explored)
    notes = config.notes()
    with config.named():
        settings = settings_of({**config.options, **given}, space)
        if dry:
            print(dry_run(settings, network, notes))
        else:
            typed = as_typed(sys.argv, sys.orig_argv)
            run_search(settings, network, command=typed, notes=notes)


def parser_of(definition: Definition, space: Space, program: str) -> Parser:
    """The parser of the command for a network and its space."""
    parser = Parser(
        program,
        "Random search over small convolutional networks for images like MNIST's.",
        EXAMPLES,
        usage="[FLAG …]",
    )
    # What the network asks for itself is a hyperparameter, and no setting.
    add_settings(parser, without=space.explored)
    add_ranges(parser, ranges_of(space.explored), definition.help or {})
    running = parser.group("running")
    running.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of settings, whose keys are the words of these flags (flags win over it),"
        " or a run's search.json",
    )
    running.add_argument(
        "--dry-run",
        action="store_true",
        help="print the space, the first draws and about how long they would take; train and write"
        " nothing",
    )
    return parser


def as_typed(arguments: Sequence[str], original: Sequence[str]) -> str:
    """How a person who typed the command would type `jaxmnist`.

    Args:
      arguments: `sys.argv`.
      original: `sys.orig_argv`, in which `-m` still stands.

    >>> as_typed(["/x/__main__.py"], [".venv/bin/python", "-m", "jaxmnist.search"])
    '.venv/bin/python -m jaxmnist'
    """
    if Path(arguments[0]).name != "__main__.py" or "-m" not in original:
        return "jaxmnist"
    return f"{shlex.join(original[: original.index('-m') + 1])} jaxmnist"


def advice(arguments: list[str]) -> str:
    """Return a phrase that says how to resume a stopped search."""
    goes_on = "; the same command goes on from here"
    if "--overwrite" in arguments:
        goes_on += " (without --overwrite, once trials have begun)"
    return goes_on
