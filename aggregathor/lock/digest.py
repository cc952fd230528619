"""A keyed digest of a worker's replica, from the server's model to the next gradient.

It finds what no look at graphs can: native code, other threads, eager assignments, what XLA has
compiled, restored checkpoints. What the server sent is noted as it arrives; what the variables are
once the next gradient is there, before they are written again, is compared with it. By then the
gradient is one of other parameters, which the rule sees; the next model takes the changed one's
place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from aggregathor import ops
from aggregathor.cluster.terminal import say

_MOST_NAMED = 3


class Digest:
    """Of the variables of one exchange.

    Attributes:
      changed: how often each variable, by name, was not what the server had sent.
    """

    def __init__(
        self, who: str, names: Sequence[str], every: int, round_now: Callable[[], int]
    ) -> None:
        """Begins with nothing noted.

        Args:
          who: holds the replica, such as "rank 2".
          names: of the variables.
          every: how many rounds lie between two that are looked at, plus one.
          round_now: tells the round that is being made.
        """
        self.changed: Counter[str] = Counter()
        self._who = who
        self._names = list(names)
        self._round_now = round_now
        self._told = 0
        self._notes = ops.kernels().notes(len(self._names), every, self._tell)

    def note(self, values: Sequence[tf.Tensor]) -> Any:
        """Notes the server's values; gives, in a graph, something to wait for."""
        return self._notes.note(values)

    def compare(self, variables: Sequence[tf.Variable]) -> Any:
        """Compares variables, or all their replicas, with what was noted last."""
        replicas = [list(getattr(v, "values", [v])) for v in variables]
        places = [place for place, each in enumerate(replicas) for _ in each]
        values = [_read(variable) for each in replicas for variable in each]
        return self._notes.compare(values, places)

    def forget(self) -> None:
        """Is called where somebody who may writes the variables in another way."""
        self._notes.forget()

    def close(self, wait_s: float = 0.0) -> None:
        """Looks no more, and waits for nothing; says how often something was changed."""
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
            f"when the gradient of round {self._round_now()} was made: something else has written "
            f"it. The server's values of this round take its place. (Seen {_times(self._told)}.)"
        )


def _read(variable: Any) -> tf.Tensor:
    """Reads what is in a variable; not a copy that is kept of it."""
    if hasattr(variable, "read_value"):
        return variable.read_value()
    return tf.identity(variable)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
