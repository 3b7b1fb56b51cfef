"""How often a test set was evaluated, and for what, in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from jaxmnist.runs.directory import RunDirectory
from jaxmnist.runs.ledger import Looks, ledger_path

MOST_NAMED = 5  # runs that a sentence names, unless more are shown


def looks_of(runs: Mapping[str, RunDirectory], test_sha256: str) -> Looks:
    """All evaluations on test images that these runs know: theirs, and those of their folders.

    A ledger counts once, and so does an evaluation that several runs know. Raises like
    `RunDirectory.read_looks`.

    Args:
      runs: by the names that their evaluations get; those of other runs have the ledger's names.
      test_sha256: the fingerprint of the test images.
    """
    damaged, known = {}, []
    for name, run in runs.items():
        looks = run.read_looks(test_sha256)
        damaged[ledger_path(run.path).resolve()] = looks.damaged
        for look in looks.found:
            # Both may mislead: a copy has the identity of its original, a moved run another name.
            foreign = (look.identity_sha256 != run.identity_sha256, look.run != run.name)
            known.append((foreign, look if all(foreign) else replace(look, run=name)))
    known.sort(key=lambda each: each[0])  # of equal evaluations the first one's name stays
    return Looks.of((look for _, look in known), sum(damaged.values()))


def times(count: int) -> str:
    """'once', '2 times'."""
    return "once" if count == 1 else f"{count} times"


def describe_looks(looks: Looks, *own: str) -> str:
    """The number of evaluations of a test set, and which they were, by run and purpose.

    Args:
      looks: of the test set; see `RunDirectory.read_looks` and `looks_of`.
      own: the names of the runs that are shown, which are named first.
    """
    if not looks.count:
        return "The test set has not been evaluated."
    purposes: dict[str, Counter[str]] = {}
    for look in looks.found:
        purposes.setdefault(look.run, Counter())[look.purpose] += 1
    names = [*filter(purposes.__contains__, own), *(name for name in purposes if name not in own)]
    most = max(MOST_NAMED, len(own))
    parts = [f"{_listed(purposes[name])} of {name}" for name in names[:most]]
    if others := names[most:]:
        more = sum(purposes[name].total() for name in others)
        parts.append(f"{more} more of {len(others)} other {'run' if len(others) == 1 else 'runs'}")
    if looks.damaged:
        lines = "a line of the ledger is" if looks.damaged == 1 else "lines of the ledger are"
        parts.append(f"{looks.damaged} unknown ({lines} damaged or missing)")
    return f"Test set evaluated {times(looks.count)}: {'; '.join(parts)}."


def _listed(purposes: Counter[str]) -> str:
    """'winner', 'winner and 2 × SVM', 'winner, SVM and evaluation'."""
    named = {("SVM" if name == "svm" else name): count for name, count in purposes.items()}
    words = [f"{count} × {name}" if count > 1 else name for name, count in named.items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
