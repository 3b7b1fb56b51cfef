"""Damage a run's files one by one, and check that nothing is lost and nothing silently wrong.

Claim: whatever happens to a file of a run (cut, emptied, bits flipped, replaced by something else,
deleted, made by a later version), reading the run and resuming its search either give the results
of the undisturbed run, bit for bit, or end with one clear line. A file that can't be trusted is set
aside with a message, and no other file is touched.

It makes two small runs with their ledgers, one with finalists and a refit, one with finalists and
an ensemble; and both interrupted in their third trial, with a checkpoint. Then it applies each
damage to a copy of one of them, all in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tiny import ENSEMBLE, REFITTED, facts, search_options

import jaxmnist
from jaxmnist import JaxmnistError, Run, SvmPipeline
from jaxmnist.errors import Stopped
from jaxmnist.files import write_json
from jaxmnist.results import evaluation

SHARE_INTERRUPTED = 0.3  # fraction of the damages that are applied to the interrupted run
OUTCOMES = ("as it was", "recovered", "refused", "BROKEN")


# --- Kinds of damage ----------------------------------------------------------------------------


def truncate(path: Path, rng: np.random.Generator) -> None:
    """Cut somewhere."""
    os.truncate(path, int(rng.integers(0, path.stat().st_size)))


def empty(path: Path, rng: np.random.Generator) -> None:
    """Nothing is left in it."""
    os.truncate(path, 0)


def flip(path: Path, rng: np.random.Generator) -> None:
    """One to four bits, half of the time near the start, where headers are."""
    content = bytearray(path.read_bytes())
    end = len(content) if rng.random() < 0.5 else min(len(content), 300)
    for position in rng.integers(0, end, rng.integers(1, 5)):
        content[position] ^= 1 << int(rng.integers(0, 8))
    path.write_bytes(content)


def replace(path: Path, rng: np.random.Generator) -> None:
    """Something else in its place: a folder, a pipe, a link, another file."""
    size = path.stat().st_size
    others = sorted(p for p in root_of(path).rglob("*") if p.is_file() and p != path)
    kind = int(rng.integers(0, 9))
    other = others[int(rng.integers(0, len(others)))].read_bytes()
    path.unlink()
    if kind == 0:
        path.mkdir()
        (path / "inside").write_text("something")
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(root_of(path).parent / "outside")
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.write_bytes(rng.bytes(size))
    elif kind == 5:
        texts = ["[]", "{}", "null", "1e999", '"\\ud800"', "[" * 10**5, '{"sha256": 3}', "\x1b[2J"]
        path.write_text(texts[int(rng.integers(0, len(texts)))])
    elif kind == 6:
        np.savez(path.with_name("object.npz"), x=np.array([print], dtype=object))
        path.with_name("object.npz").rename(path)
    elif kind == 7:
        path.touch()
        os.truncate(path, 2**40)  # a sparse file of a terabyte
    else:
        path.write_bytes(other)


def delete(path: Path, rng: np.random.Generator) -> None:
    """It is gone."""
    path.unlink()


def advance(path: Path, rng: np.random.Generator) -> None:
    """What a later version may write: keys added, gone, or of another type; a larger format."""
    if path.suffix != ".json":
        path.write_bytes(b"JAXMNIST 2\n" + path.read_bytes())
        return
    content = json.loads(path.read_bytes())
    del content["sha256"]
    place = content
    while True:
        key = list(place)[int(rng.integers(0, len(place)))]
        if not isinstance(place[key], dict) or not place[key] or rng.random() < 0.5:
            break
        place = place[key]
    kind = int(rng.integers(0, 4))
    if kind == 0:
        place["added"] = {"by": "a later version"}
    elif kind == 1:
        del place[key]
    elif kind == 2:
        others = [None, {}, [], "\x1b[31mred", 10**400]
        others = [other for other in others if type(other) is not type(place[key])]
        place[key] = others[int(rng.integers(0, len(others)))]
    else:
        content["format"] = 99
    write_json(path, content)


LATER = "of a later version"
LOCKS = ("lock", "ledger.lock")
DAMAGES: dict[str, Callable[[Path, np.random.Generator], None]] = {
    "truncated": truncate,
    "emptied": empty,
    "bits flipped": flip,
    "replaced": replace,
    "deleted": delete,
    LATER: advance,
}


def damage_folder(path: Path, rng: np.random.Generator) -> None:
    """A whole folder is deleted, or a file, or a link, stands in its place."""
    kind = int(rng.integers(0, 3))
    if kind == 2:
        shutil.move(path, root_of(path).parent / "moved")
        path.symlink_to(root_of(path).parent / "moved")
        return
    shutil.rmtree(path)
    if kind == 1:
        path.write_text("a file")


# --- Guarantees ----------------------------------------------------------------------------------


def root_of(path: Path) -> Path:
    """The folder of all runs, with the ledger, that a path is in."""
    return next(p for p in path.parents if p.name == "runs")


def tree(folder: Path) -> dict[str, str]:
    """What is where: the SHA-256 of files, and what else there is by kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        elif not path.is_file() or path.stat().st_size > 2**30:
            found[name] = "special"
        elif path.name not in LOCKS:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_added(value: Any) -> Any:
    """JSON without what `advance` added."""
    if isinstance(value, dict):
        kept = {key: part for key, part in value.items() if key not in ("added", "format")}
        return {key: without_added(part) for key, part in kept.items()}
    return value


def readers(folder: Path, images: np.ndarray) -> list[Callable[[], Any]]:
    """Everything that reads a run without writing; folder: of the run."""
    svm = folder / "svm" / "data" / "pipeline.safetensors"
    return [
        lambda: Run(folder).results_summary() + Run(folder).ranking.why(),
        lambda: [m.predict(images) for m in Run(folder).get_best_models(2)],
        lambda: Run(folder).best_model.predict_proba(images),
        lambda: winner_report(Run(folder)),
        lambda: SvmPipeline.load(svm).project(np.zeros((1, 1), np.float32)),
        lambda: looks_at(Run(folder)),
        lambda: Run(folder).reruns,
        lambda: Run(folder).ensemble.predict(images),
    ]


def winner_report(run: Run) -> str | None:
    """The winner's test report as text; None if it is another's."""
    kept = evaluation.kept_look(run)
    return None if kept is None else "\n".join(evaluation.describe_evaluation(run, kept))


def looks_at(run: Run) -> int:
    """How often the run's test set was evaluated."""
    return run.store.read_looks(run.store.test_sha256).count


def one_line(error: Exception) -> bool:
    """Whether an error says something, in one line that can't command a terminal."""
    return str(error).isprintable() and len(str(error)) > 10


class Broken(Exception):
    """A guarantee that did not hold."""


def must(holds: bool, guarantee: str) -> None:
    """Raise `Broken` unless the guarantee holds."""
    if not holds:
        raise Broken(guarantee)


def ended_trials(folder: Path) -> set[str]:
    """The names of the records of trials, reruns and refits that have ended."""
    records = folder.glob("run/trials/**/trial.json")
    return {
        str(path.relative_to(folder))
        for path in records
        if json.loads(path.read_bytes())["status"] != "running"
    }


def names_no_weights(record: Path) -> bool:
    """Whether a trial's record says, as a valid one may, that its weights are not kept."""
    content = json.loads(record.read_bytes())
    return content.get("weights_sha256", "") is None


class Source(NamedTuple):
    """A run with its ledger; its `tree`, and its `ended_trials`."""

    folder: Path
    before: dict[str, str]
    ended: set[str]


def outcome(
    folder: Path,
    kind: str,
    options: dict,
    whole: dict,
    source: Source,
    images: np.ndarray,
) -> str:
    """How a damaged run in `folder` ends; raises where a guarantee is broken.

    Args:
      folder: of the run and the ledger.
      kind: of damage.
      options: of its search.
      whole: `facts` of the undisturbed run.
      source: what `folder` is a damaged copy of.
      images: to predict.
    """
    damaged, before, ended = tree(folder), source.before, source.ended
    unnamed = {name for name in ended if kind == LATER and names_no_weights(folder / name)}
    for read in readers(folder / "run", images):
        try:
            read()
        except JaxmnistError as error:
            must(one_line(error), "one clear line")
    must(tree(folder) == damaged, "reading changes nothing")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run = jaxmnist.random_search(**options)
    except JaxmnistError as error:
        must(one_line(error), "one clear line")
        after = tree(folder)
        lost = set(damaged.values()) - set(after.values()) - {"folder"}
        must(not lost, "a refusal loses nothing")
        return "refused"
    must(without_added(facts(run, images)) == whole, "the undisturbed run's results")
    must(looks_at(run) >= 2, "no look is forgotten")
    after = tree(folder)
    aside = {name: what for name, what in after.items() if name.startswith("run/damaged/")}
    # An undamaged record of an ended trial is still there, byte for byte.
    for name in ended:
        # A completed trial whose validation.npy was damaged is trained again.
        beside = name.replace("trial.json", "validation.npy")
        if damaged.get(name) == before[name] and damaged.get(beside) == before.get(beside):
            must(after[name] == before[name], f"{name} was good")
    for name, what in damaged.items():
        bad = before.get(name) != what
        if bad and what != "folder" and not name.endswith(("/inside", "ledger.jsonl")):
            kept = what in aside.values() or after.get(name) == what
            # What a later version wrote there may be valid, and is rewritten in any case.
            rewritten = ("search.json", "best/config.json", "best/comparisons.json")
            derived = name.removeprefix("run/") in rewritten and kind == LATER
            # So is the record of a trial that is resumed, or trained again for its weights.
            resumed = name not in ended or name in unnamed
            derived |= name.endswith("trial.json") and resumed and kind == LATER
            # Weights that are no longer among the best are deleted, damaged or not.
            derived |= name.endswith("model.safetensors") and name not in after
            must(kept or derived, f"{name} is set aside")
    must(not aside or "moved to" in said.getvalue(), "what is set aside is said")
    looks = looks_at(run)
    with contextlib.redirect_stdout(said):
        again = jaxmnist.random_search(**options)
    must(looks_at(again) == looks, "once mended, it stays so")
    return "as it was" if damaged == before else "recovered"


def interrupt(options: dict) -> None:
    """Run the search until its third trial begins, and stop it there: it leaves a checkpoint."""
    # Imported here: `main` sets XLA's log level before JAX is imported.
    from jaxmnist.engine.events import Event, TrialStarted
    from jaxmnist.runs.trial import Key
    from jaxmnist.search.schedule import Schedule

    record = Schedule.record

    def stop(schedule: Schedule, event: Event) -> None:
        record(schedule, event)
        if isinstance(event, TrialStarted) and event.key == Key(2):
            raise Stopped(signal.SIGTERM)

    Schedule.record = stop
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Stopped):
            jaxmnist.random_search(**options)
    finally:
        Schedule.record = record
    checkpoint = Path(options["directory"]) / "run/trials/0002/checkpoint.safetensors"
    must(checkpoint.exists(), "a search that is stopped keeps where it was")


def make(options: dict, place: Path, images: np.ndarray) -> tuple[dict, tuple[Source, Source]]:
    """Run a search, and interrupt it, in `place`: its facts, the finished and interrupted run."""
    folder = Path(options["directory"])
    with contextlib.redirect_stdout(io.StringIO()):
        whole = without_added(facts(jaxmnist.random_search(**options), images))
    place.mkdir()
    folder.rename(place / "finished")
    interrupt(options)
    folder.rename(place / "interrupted")
    found = [place / "finished", place / "interrupted"]
    finished, interrupted = (Source(each, tree(each), ended_trials(each)) for each in found)
    return whole, (finished, interrupted)


def main() -> int:
    """Damage a run as often as asked; 1 if a guarantee was broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # XLA warns about each compiled program that it reads from the cache.
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import jax

    rng = np.random.default_rng(arguments.seed)
    counts: Counter[tuple[str, str]] = Counter()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        # Retraining costs next to nothing if its program is already compiled.
        jax.config.update("jax_compilation_cache_dir", str(place / "cache"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        (place / "outside").write_text("not the run's")
        images = jaxmnist.load_arrays("mnist").x_test[:50]
        common = {**search_options(place), "directory": str(place / "runs")}
        searches = [{**common, **REFITTED}, {**common, **ENSEMBLE}]
        made = [make(options, place / str(i), images) for i, options in enumerate(searches)]
        for number in range(arguments.damages):
            folder = place / "runs"
            for leftover in (folder, place / "moved"):
                shutil.rmtree(leftover, ignore_errors=True)
            which = int(rng.integers(0, len(searches)))
            whole, sources = made[which]
            source = sources[int(rng.random() < SHARE_INTERRUPTED)]
            shutil.copytree(source.folder, folder)
            paths = sorted(p for p in folder.rglob("*") if p.name not in (*LOCKS, "run"))
            path = paths[int(rng.integers(0, len(paths)))]
            kind = list(DAMAGES)[int(rng.integers(0, len(DAMAGES)))]
            if path.is_dir():
                kind = "a folder"
                damage_folder(path, rng)
            else:
                DAMAGES[kind](path, rng)
            try:
                ended = outcome(folder, kind, searches[which], whole, source, images)
                must((place / "outside").read_text() == "not the run's", "nothing outside")
            except Exception:
                ended = "BROKEN"
                print(f"damage {number}: {path.relative_to(folder)}: {kind}")
                print(traceback.format_exc())
            counts[kind, ended] += 1
    print(f"{'damage':<20}" + "".join(f"{ended:>12}" for ended in OUTCOMES))
    for kind in [*DAMAGES, "a folder"]:
        print(f"{kind:<20}" + "".join(f"{counts[kind, ended]:>12}" for ended in OUTCOMES))
    broken = sum(count for (_, ended), count in counts.items() if ended == "BROKEN")
    seconds = time.perf_counter() - started
    print(f"{arguments.damages} damages, {broken} broken guarantees, {seconds:.0f} s")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
