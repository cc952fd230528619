"""What is still to be sent of one vector to one receiver. Knows neither socket nor clock."""

import math
from collections import deque
from collections.abc import Iterable

NUM_ENDS = 3
END_GAP_S = 0.0005
END_REPEAT_S = 0.002


class Outgoing:
    """DATA 0..c-1, then END three times; then what is asked for and END, or END now and then.

    Args:
      c: datagrams of the vector.
      repeats: whether END is repeated until somebody stops it; if not, three are the end of it.

    Attributes:
      num_ends: how many ENDs have left.
      asked_at: when the first END left since the receiver was heard, or infinity.
      all_left: whether every DATA has left once.
    """

    def __init__(self, c: int, repeats: bool) -> None:
        """Starts with all of the vector to be sent."""
        self.num_ends = 0
        self.asked_at = math.inf
        self.all_left = False
        self._repeats = repeats
        self._queue = deque(range(c))
        self._is_queued = bytearray(b"\1" * c)
        self._end_at = -math.inf

    def next_at(self) -> float:
        """Returns from when on something is to be sent, or infinity if nothing is any more."""
        if self._queue:
            return -math.inf
        if not self._repeats and self.num_ends >= NUM_ENDS:
            return math.inf
        return self._end_at

    def head(self) -> int | None:
        """Returns the index of the DATA that is next, or None for an END."""
        return self._queue[0] if self._queue else None

    def sent(self, index: int | None, now: float) -> None:
        """Notes that what `head` returned has left."""
        if index is None:
            self.num_ends += 1
            self.asked_at = min(self.asked_at, now)
            self._end_at = now + (END_GAP_S if self.num_ends < NUM_ENDS else END_REPEAT_S)
            return
        self._queue.popleft()
        self._is_queued[index] = False
        if not self._queue:
            self.all_left = True
            self._end_at = now

    def ask(self, indices: Iterable[int]) -> None:
        """Notes that the receiver misses these; ignored before an END, which alone is answered."""
        if self.num_ends == 0:
            return
        for index in indices:
            if not self._is_queued[index]:
                self._is_queued[index] = True
                self._queue.append(index)
