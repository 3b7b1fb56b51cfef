"""The seeds of a rerun: numbers drawn on the host, so that they don't depend on its placement."""

from __future__ import annotations

import numpy as np

from jaxmnist.runs.keys import Rerun, TrialKey


def weights_seed(seed: int, key: TrialKey) -> int:
    """Return the seed of a training's initial weights and of all that is random in its steps.

    It is the search's for a trial, and depends on (seed, index, number) for a rerun: an int from 0
    to 2³² − 1.
    """
    return _drawn(seed, key.index, key.number, 4) if isinstance(key, Rerun) else seed


def order_seed(seed: int, key: TrialKey) -> int:
    """Return the seed of the order of images: the search's, or that of (seed, number) for a rerun.

    Reruns of one number have the same orders, whichever trial they repeat: they share programs.
    """
    return _drawn(seed, key.number, 5) if isinstance(key, Rerun) else seed


def _drawn(*numbers: int) -> int:
    # The last number differs from those of other draws and isn't 0, which would change nothing.
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
