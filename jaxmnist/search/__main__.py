"""`python -m jaxmnist.search`: the search command under its original name."""

from __future__ import annotations

import sys

from jaxmnist.commands.parser import run_command
from jaxmnist.commands.search import advice, main

if __name__ == "__main__":
    sys.exit(run_command(main, advice=advice(sys.argv)))
