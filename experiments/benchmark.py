"""jaxmnist compared with its peers on this machine.

`step` compares training speed, `search` whole searches. Each measurement runs in its own
processes; rounds alternate among the peers, and each result is the median of the rounds with
the lowest and the highest. Every peer trains the same networks on the same images in memory
with the same batch size and epochs, in float32, accumulating loss and accuracy during the epoch;
each runs as one process on all cores and as one process per core.

    python experiments/benchmark.py step --rounds 5 --json step.json
    python experiments/benchmark.py search --rounds 3 --json search.json

A peer that isn't installed is left out, and a line says how to install it. Peers may have their
own environment: `--python PATH` runs everything but jaxmnist and the plain Flax loop there.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import searches
import steps
from measure import matrix_product_peak, present

from jaxmnist.machine import machine


def positive(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="comparison", required=True)
    step = commands.add_parser("step", help="steady images a second, beside peers")
    names = list(steps.CONFIGURATIONS)
    step.add_argument("--configurations", nargs="+", default=names, choices=names)
    step.add_argument("--images", type=positive, help="of an epoch (default: by configuration)")
    search = commands.add_parser("search", help="the time of whole searches, beside KerasTuner")
    search.add_argument("--trials", type=positive, default=10)
    search.add_argument("--epochs", type=positive, default=2)
    search.add_argument("--images", type=positive, default=12_000, help="training images")
    for command, peers, rounds in (
        (step, list(steps.STEP_PEERS), 5),
        (search, list(searches.SEARCH_PEERS), 3),
    ):
        command.add_argument("--peers", nargs="+", default=peers, choices=peers)
        command.add_argument("--rounds", type=positive, default=rounds)
        command.add_argument("--json", type=Path, help="write everything to this file as well")
        command.add_argument(
            "--python", default=sys.executable, help="of the peers (default: this one)"
        )
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, and print the table."""
    given = parse(sys.argv[1:])
    peers = steps.STEP_PEERS if given.comparison == "step" else searches.SEARCH_PEERS
    names, left_out = present(peers, given.peers, given.python)
    peaks = [matrix_product_peak()]
    if given.comparison == "step":
        rows, failed = steps.compare(
            given.configurations, names, given.rounds, given.images, given.python
        )
    else:
        search = searches.define(given.trials, given.epochs, given.images)
        rows, failed = searches.compare(search, names, given.rounds, given.python)
    peaks.append(matrix_product_peak())
    content: dict[str, Any] = {
        "comparison": given.comparison,
        "machine": machine(),
        "peak_gflops": peaks,
        "rounds": given.rounds,
        "left_out": left_out + failed,
        "rows": rows,
    }
    if given.comparison == "step":
        steps.add_ratios(rows, sum(peaks) / len(peaks))
        content["summary"] = steps.summarise(rows)
    host = content["machine"]
    print(f"{host['processor']}, {host['cores']} cores, {host['system']}, Python {host['python']}")
    ends = f"{peaks[0]:.0f} GFLOP/s at the beginning, {peaks[1]:.0f} at the end"
    print(f"float32 matrix product: {ends}; rounds: {given.rounds}\n")
    table = steps.lines(rows) if given.comparison == "step" else searches.lines(rows)
    for line in [*table, *content["left_out"]]:
        print(line)
    if given.json:
        given.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
