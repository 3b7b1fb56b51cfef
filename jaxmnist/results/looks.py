"""How often a test set was evaluated, and for what, in a sentence."""

from __future__ import annotations

from collections import Counter

from jaxmnist.runs.ledger import Looks

MOST_NAMED = 5  # runs that a sentence names


def times(count: int) -> str:
    """'once', '2 times'."""
    return "once" if count == 1 else f"{count} times"


def describe_looks(looks: Looks, own: str) -> str:
    """The number of evaluations of a test set, and which they were, by run and purpose.

    Args:
      looks: of the test set; see `RunDirectory.read_looks`.
      own: the name of the run that is shown, which is named first.
    """
    if not looks.count:
        return "The test set has not been evaluated."
    purposes: dict[str, Counter[str]] = {}
    for look in looks.found:
        purposes.setdefault(look.run, Counter())[look.purpose] += 1
    names = sorted(purposes, key=lambda name: name != own)
    parts = [f"{_listed(purposes[name])} of {name}" for name in names[:MOST_NAMED]]
    if others := names[MOST_NAMED:]:
        more = sum(purposes[name].total() for name in others)
        parts.append(f"{more} more of {len(others)} other runs")
    if looks.damaged:
        lines = "a line of the ledger is" if looks.damaged == 1 else "lines of the ledger are"
        parts.append(f"{looks.damaged} unknown ({lines} damaged or missing)")
    return f"Test set evaluated {times(looks.count)}: {'; '.join(parts)}."


def _listed(purposes: Counter[str]) -> str:
    """'winner', 'winner and 2 × SVM', 'winner, SVM and evaluation'."""
    named = {("SVM" if name == "svm" else name): count for name, count in purposes.items()}
    words = [f"{count} × {name}" if count > 1 else name for name, count in named.items()]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
