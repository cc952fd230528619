"""Gradients over a network that may lose datagrams, parameters over one that may not.

A link moves NumPy buffers between one server and its workers: ``connect`` joins the ranks of an MPI
communicator over UDP, or over MPI without losses (``WIRE.md``), ``memory.connect`` joins ends in
one process, with ``Network`` deciding which datagrams arrive, and when. What did not arrive is
known from the bitmap in ``Collected`` and from nothing else, and ``fill`` replaces it in place.
"""

try:
    from lossympi import memory
    from lossympi.connection import ConnectError, connect
    from lossympi.fill import FILLS, fill
    from lossympi.link import (
        FLOATS_PER_DATAGRAM,
        Arrival,
        Collected,
        LinkError,
        Model,
        RoundStats,
        ServerLink,
        WorkerLink,
        WorkerStats,
        num_datagrams,
    )
    from lossympi.network import Network
    from lossympi.options import Options
    from lossympi.topology import Topology
except ModuleNotFoundError as error:
    if error.name != "numpy":
        raise
    # `python -m lossympi.doctor` says so, and what to do.

__all__ = [
    "FILLS",
    "FLOATS_PER_DATAGRAM",
    "Arrival",
    "Collected",
    "ConnectError",
    "LinkError",
    "Model",
    "Network",
    "Options",
    "RoundStats",
    "ServerLink",
    "Topology",
    "WorkerLink",
    "WorkerStats",
    "connect",
    "fill",
    "memory",
    "num_datagrams",
]
