"""AggregaThor: distributed training that goes on learning while up to f of n workers send anything.

The sub-packages load when they are first used, so that ``aggregathor doctor`` can tell what is
wrong where TensorFlow itself does not import:

- ``aggregathor.gars``: gradient aggregation rules.
- ``aggregathor.attacks``: what Byzantine workers send.
- ``aggregathor.trainer.simulation``: n logical workers and a server in one process.
- ``aggregathor.testing``: tries any rule against the contract of a rule.

For training scripts, started by ``aggregathor run`` or ``mpirun``:

- ``init`` joins the process to the others; ``DistributedOptimizer`` lets an optimizer take part,
  ``apply`` an update rule of your own.
- ``shard`` gives each worker its own part of the data; ``lock`` keeps workers from writing
  variables before, or beside, what optimizers train; ``validation`` gives the server a loss to
  judge gradients by.
- ``rank``, ``num_workers``, ``is_server``, ``last_round`` tell who and how, the latter by a
  ``RoundReport`` or an ``ArrivalReport``.
"""

from __future__ import annotations

import importlib
from typing import Any

from aggregathor.version import __version__

_SUBMODULES = {
    "attacks": "aggregathor.attacks",
    "gars": "aggregathor.gars",
    "simulation": "aggregathor.trainer.simulation",
    "testing": "aggregathor.testing",
}
_OF_THE_API = (
    "DistributedOptimizer",
    "apply",
    "init",
    "is_server",
    "last_round",
    "lock",
    "num_workers",
    "rank",
    "shard",
    "validation",
)
_HOMES = {
    **dict.fromkeys(_OF_THE_API, "aggregathor.api"),
    "RoundReport": "aggregathor.protocols.report",
    "ArrivalReport": "aggregathor.protocols.arrivals",
    "locked_server": "aggregathor.locking.server",
}

__all__ = ["__version__", *_SUBMODULES, *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(_SUBMODULES[name])
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'aggregathor' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
