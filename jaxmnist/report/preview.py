"""What a search would do, as text: the space, the first draws, the time."""

from __future__ import annotations

from jaxmnist.errors import printable
from jaxmnist.models.space import SHOWN_VALUES, SpaceDescription
from jaxmnist.report.words import count, duration
from jaxmnist.search.preview import Preview

MOST_DRAWS = 10


def describe(found: Preview) -> str:
    """The space with each hyperparameter's range, the first draws, and the estimated time."""
    data = found.dataset
    shape = "×".join(map(str, data.image_shape))
    return "\n".join(
        [
            f"Data: {printable(data.name)}, {len(data.y_train):,} training,"
            f" {len(data.y_validation):,} validation and {len(data.y_test):,} test images of"
            f" {shape}, {data.classes} classes",
            "",
            *_space(found.space),
            "",
            *_draws(found),
            "",
            _time(found),
            "",
            f"Nothing was written: without --dry-run the search is in"
            f" {printable(str(found.directory))}.",
        ]
    )


def _space(space: SpaceDescription) -> list[str]:
    """The size of the space, and a line for each hyperparameter."""
    rows, ranges = [], space.ranges()
    for name, distributions in space.parameters.items():
        known = len(space.some_values(name))
        size = count(known, "value") + (" or more" if known == SHOWN_VALUES else "")
        if any(each.values is None for each in distributions):
            size = "continuous"
        rows.append((name, ranges[name], size))
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f"  {name:{widths[0]}}  {values:{widths[1]}}  {size}" for name, values, size in rows]
    noun = "configuration" if space.size == 1 else "configurations"
    return [f"Space: {space.size_text} {noun}", *lines]


def _draws(found: Preview) -> list[str]:
    """The first trials as a table."""
    shown = found.draws[:MOST_DRAWS]
    lines = [f"{'trial':>5}  {'parameters':>10}  {'memory':>9}  {'time':>11}  hyperparameters"]
    for draw in shown:
        said = printable(str(found.space.shown(draw.hyperparameters)))
        cells = f"{draw.parameters:,}", f"{draw.memory / 2**20:,.0f} MB", duration(draw.seconds)
        if draw.problem is not None:
            cells, said = ("–", "–", "–"), f"{said}: would fail: {printable(draw.problem)}"
        numbers = f"{draw.index!s:>5}  {cells[0]:>10}  {cells[1]:>9}  {cells[2]:>11}"
        lines.append(f"{numbers}  {said}")
    if len(shown) < found.trials:
        lines.append(f"… and {found.trials - len(shown):,} more trials")
    head = f"{count(found.trials, 'trial')} of {found.space.size_text}"
    return [
        f"Draws: {head}, seed {found.settings.seed}; memory is at least what training takes beside"
        " the images",
        *lines,
    ]


def _time(found: Preview) -> str:
    """The estimated time of all trials, and how the estimate was made."""
    settings, pace = found.settings, found.pace
    done = f"; {found.done} of {found.trials} trials have ended already" if found.done else ""
    if found.done == found.trials:
        return f"All {found.trials} trials have ended already: only what follows them is done."
    again = (settings.finalists or 0) * (settings.reruns or 0)
    further = f", {again} reruns of finalists" * bool(again) + ", the refit" * settings.refit
    limit = ""
    if settings.max_seconds is not None:
        limit = f" No trial starts after {duration(settings.max_seconds)} (--max-seconds)."
    if settings.ray is not None:
        limit += " That is for this machine alone: the nodes of --ray were not asked."
    at_once = f", {pace.together} at once" if pace.together > 1 else ""
    return (
        f"Time: about {duration(found.seconds)} for training all trials{further}{at_once}{done}."
        f"{limit} This is an estimate: {pace.steps} steps of one configuration"
        f" ({printable(str(found.space.shown(pace.hyperparameters)))}) were timed just now,"
        f" {1000 * pace.step:.1f} ms each, and scaled to the others by their multiplications and"
        " outputs; compiling is counted as it took just now, for as many at once. The test and"
        " the SVM come after that."
    )
