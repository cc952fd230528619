"""A keyed digest of a worker's replica, from the server's model to the next gradient.

It finds what no look at graphs can: native code, other threads, eager assignments, what XLA has
compiled, restored checkpoints. What the server sent is noted as it arrives; what the variables are
once the next gradient is there, before they are written again, is compared with it. By then the
gradient is one of other parameters, which the rule sees; the next model takes the changed one's
place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import tensorflow as tf

from aggregathor import ops
from aggregathor.log import say

_MOST_NAMED = 3


class Digest:
    """Of the variables of this process that optimizers of the job train.

    Several optimizers may train the same: what is noted of one is what the server sent last.

    Attributes:
      changed: how often each variable, by name, was not what the server had sent.
    """

    def __init__(self, who: str, every: int) -> None:
        """Begins without variables.

        Args:
          who: holds the replica, such as "rank 2".
          every: of how many rounds of an optimizer one is looked at.
        """
        self.changed: Counter[str] = Counter()
        self._who = who
        self._names: list[str] = []  # by place
        self._places: dict[Hashable, int] = {}
        self._told = 0
        self._notes = ops.kernels().notes(every, self._tell)

    def add(self, key: Hashable, name: str) -> None:
        """Takes in a variable, by what tells it from others; once more does no harm."""
        if key not in self._places:
            self._places[key] = len(self._names)
            self._names.append(name)

    def knows(self, key: Hashable) -> bool:
        """Whether a variable was taken in."""
        return key in self._places

    def note(self, keys: Sequence[Hashable], values: Sequence[Any]) -> Any:
        """Notes the server's values of variables; gives, in a graph, something to wait for."""
        return self._notes.note(list(values), [self._places[key] for key in keys])

    def compare(self, keys: Sequence[Hashable], variables: Sequence[Any]) -> Any:
        """Compares variables, or all their replicas, with what was noted of them last."""
        places, values = [], []
        for key, variable in zip(keys, variables, strict=True):
            for replica in getattr(variable, "values", [variable]):
                places.append(self._places[key])
                values.append(_read(replica))
        return self._notes.compare(values, places)

    def forget(self) -> None:
        """Is called where somebody who may writes the variables in another way."""
        self._notes.forget()

    def close(self) -> None:
        """Looks no more; says how often something was changed."""
        self._notes.close()
        if total := sum(self.changed.values()):
            say(f"{self._who}: {_times(total)} a shared variable was not what the server had sent")

    def _tell(self, places: Sequence[int]) -> None:
        names = [self._names[place] for place in places]
        self.changed.update(names)
        self._told += 1
        if self._told & (self._told - 1):  # the first, and where that many have come again
            return
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        say(
            f"{self._who}: {', '.join(names[:_MOST_NAMED])}{more} was not what the server had sent "
            "when a gradient was made: something else has written it. The server's next values "
            f"take its place. (Seen {_times(self._told)}.)"
        )


def _read(variable: Any) -> tf.Tensor:
    """Reads what is in a variable; not a copy that is kept of it."""
    if hasattr(variable, "read_value"):
        return variable.read_value()
    return tf.identity(variable)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
