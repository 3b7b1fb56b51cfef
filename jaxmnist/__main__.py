"""`python -m jaxmnist`."""

from __future__ import annotations

import sys

from jaxmnist.commands.main import start

if __name__ == "__main__":
    sys.exit(start())
