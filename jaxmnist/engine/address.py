"""The address of a Ray cluster, checked before anything else is loaded."""

from __future__ import annotations

from importlib.util import find_spec

from jaxmnist.errors import UsageError


def check_ray(address: str) -> None:
    """Raise `UsageError` if Ray isn't installed, or if the address can't be that of a cluster."""
    if find_spec("ray") is None:
        raise UsageError(
            "--ray needs Ray, which isn't installed here: python -m pip install 'ray>=2.60'"
        )
    if "://" in address:
        raise UsageError(
            f"--ray {address}: give the address of the cluster's head as host:port, on a machine"
            " that is a node of the cluster"
        )
    host, _, port = address.rpartition(":")
    possible = host and port.isdecimal() and 0 < int(port) < 65536
    if address != "auto" and not possible:
        raise UsageError(f"--ray must be auto or the head's host:port, not {address!r}")
