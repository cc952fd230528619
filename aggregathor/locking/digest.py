"""A keyed digest of a worker's replica, from the server's model to the next gradient.

It detects writes that no scan of graphs can: by native code, other threads, eager assignments,
code that XLA has compiled, restored checkpoints. The digests of the server's values are recorded as
they arrive, and compared with the variables when the next gradient is there, before they are
written again. By then the gradient was computed at other parameters, which is for the rule to
judge; the server's next values replace the changed ones.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import tensorflow as tf

from aggregathor import ops

_logger = logging.getLogger(__name__)
_MOST_NAMED = 3


class Digest:
    """Digests of the variables of this process that optimizers of the job train.

    Several optimizers may train the same variable: its digest is of what the server sent last.

    Attributes:
      changed: how often each variable, by name, differed from what the server had sent.
    """

    def __init__(self, who: str, every: int) -> None:
        """Begins without variables.

        Args:
          who: who holds the replica, such as "rank 2".
          every: k: every k-th round of an optimizer is checked.
        """
        self.changed: Counter[str] = Counter()
        self._who = who
        self._names: list[str] = []  # by place
        self._places: dict[Hashable, int] = {}
        self._reported = 0
        self._store = ops.kernels().digest_store(every, self._report)

    def add(self, key: Hashable, name: str) -> None:
        """Adds a variable, identified by its key; adding it again changes nothing."""
        if key not in self._places:
            self._places[key] = len(self._names)
            self._names.append(name)

    def knows(self, key: Hashable) -> bool:
        """Whether a variable was added."""
        return key in self._places

    def note(self, keys: Sequence[Hashable], values: Sequence[Any]) -> Any:
        """Records the server's values of variables; in a graph, returns an op to depend on."""
        return self._store.record(list(values), [self._places[key] for key in keys])

    def compare(self, keys: Sequence[Hashable], variables: Sequence[Any]) -> Any:
        """Compares variables, or all their replicas, with what was recorded of them last."""
        places, values = [], []
        for key, variable in zip(keys, variables, strict=True):
            for replica in getattr(variable, "values", [variable]):
                places.append(self._places[key])
                values.append(_read(replica))
        return self._store.compare(values, places)

    def forget(self) -> None:
        """Call this before somebody who may writes the variables in another way."""
        self._store.forget()

    def close(self) -> None:
        """Stops comparing; logs how often a variable was changed."""
        self._store.close()
        if total := sum(self.changed.values()):
            _logger.warning(
                "%s: %s a shared variable was not what the server had sent",
                self._who,
                _times(total),
            )

    def _report(self, places: Sequence[int]) -> None:
        names = [self._names[place] for place in places]
        self.changed.update(names)
        self._reported += 1
        if self._reported & (self._reported - 1):  # only the 1st, 2nd, 4th, 8th, ... are logged
            return
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        _logger.warning(
            "%s: %s%s was not what the server had sent when a gradient was made: something else "
            "has written it. The server's next values take its place. (Seen %s.)",
            self._who,
            ", ".join(names[:_MOST_NAMED]),
            more,
            _times(self._reported),
        )


def _read(variable: Any) -> tf.Tensor:
    """Reads the variable itself, not a cached copy of it."""
    if hasattr(variable, "read_value"):
        return variable.read_value()
    return tf.identity(variable)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
