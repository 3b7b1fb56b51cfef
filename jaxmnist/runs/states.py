"""The state of a trial according to its record."""

from __future__ import annotations

from enum import Enum

from jaxmnist.runs.trial import Trial

# A process that dies leaves its trials marked as running. It is unknown which trial caused it, so a
# trial counts as failed only after it was running in this many deaths plus the number of retries.
DEATHS = 5


class State(Enum):
    """The state of a trial according to its record, and how the search treats it."""

    FRESH = "has no record: it is trained first"
    INTERRUPTED = "was running when a process died: it is resumed together with the fresh ones"
    RETRY = "was ended by an exception: it is trained again after the fresh and interrupted ones"
    SUSPECT = "was running when several processes died: it is trained last, alone"
    GIVEN_UP = "was running when too many processes died: it has failed"
    FAILED = "diverged, or was ended by exceptions too often: it has failed"
    COMPLETED = "is done"


# The states whose trials are trained together, in order; those of the last set one at a time.
QUEUE = ({State.FRESH, State.INTERRUPTED}, {State.RETRY}, {State.SUSPECT})
DONE = {State.GIVEN_UP, State.FAILED, State.COMPLETED}


def state_of(trial: Trial | None, max_retries: int) -> State:
    """The state of a trial according to its record; the first matching row applies.

    | record                                              | state       |
    | --------------------------------------------------- | ----------- |
    | none                                                | FRESH       |
    | completed                                           | COMPLETED   |
    | deaths of at least DEATHS + max_retries             | GIVEN_UP    |
    | deaths above max_retries                            | SUSPECT     |
    | failures from 1 to max_retries                      | RETRY       |
    | running, failures above max_retries (lowered since) | RETRY       |
    | running, or some deaths (max_retries raised since)  | INTERRUPTED |
    | failed                                              | FAILED      |
    """
    if trial is None:
        return State.FRESH
    if trial.status == "completed":
        return State.COMPLETED
    if trial.deaths >= DEATHS + max_retries:
        return State.GIVEN_UP
    if trial.deaths > max_retries:
        return State.SUSPECT
    if 0 < trial.failures <= max_retries or (trial.failures and trial.status == "running"):
        return State.RETRY
    if trial.status == "running" or trial.deaths:
        return State.INTERRUPTED
    return State.FAILED
