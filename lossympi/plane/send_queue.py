"""What is left to be sent of one vector, to whom, and when. Knows neither socket nor clock.

The twin of ``core/send_queue.h``, which says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

NUM_ENDS = 3
THIRD_AFTER_S, LONGEST_PAUSE_S = 0.0004, 0.010
HURRY_S = 0.020
NUM_REPORTS, SHORT = 4, 64

_NOT, _NOW, _LATER, _ON_ITS_WAY = range(4)

# ("send", row, datagrams), ("end", row, how many ENDs were sent, this one included, or 0 for a
# report), ("wait", until when) or ("finished",).
Action = tuple


class SendQueue:
    """A vector to each of some rows: DATA, END, and what NACK and DONE make of it.

    Rows take turns. With `until_done` what is NACKed is sent again until the row is done, or not
    heard for `silence_s` after an END. Once most rows are done, t after the start, the others have
    until 4 t + silence_s, and those that are to hurry until t + max(t, HURRY_S).
    """

    def __init__(
        self,
        rows: Iterable[int],
        c: int,
        most_at_once: int,
        until_done: bool,
        silence_s: float,
        now: float,
    ) -> None:
        """Starts with nothing that may leave yet.

        Args:
          rows: whom it is sent to.
          c: datagrams of the vector.
          most_at_once: of them in a "send".
          until_done: whether ENDs are repeated until somebody stops it; if not, three are the end.
          silence_s: how long a row may say nothing.
          now: the time.
        """
        self.most_at_once = most_at_once
        self._until_done = until_done
        self._silence_s = silence_s
        self._begun = now
        self._leave_at = math.inf  # when the rows that are not done are given up
        self._hurry_at = math.inf  # and those that are to hurry
        self._has_all = False
        self._stays = False
        self._flows = [_Flow(row, c, now) for row in rows]
        self._of_row = {flow.row: flow for flow in self._flows}
        self._num_done = 0
        self._turn = 0
        self._sent: tuple[_Flow, list[int]] | None = None  # by the last "send"

    def add(self, seqs: Iterable[int]) -> None:
        """Lets datagrams leave."""
        for flow in self._flows:
            for seq in seqs:
                flow.add(seq)

    def add_rest(self) -> None:
        """Lets all others leave, and then END."""
        self._has_all = True
        for flow in self._flows:
            for seq in range(flow.c):
                flow.add(seq)

    def hurry(self, row: int) -> None:
        """Has a row hurry; before the first `next`."""
        if row in self._of_row:
            self._of_row[row].hurries = True

    def stay(self) -> None:
        """Gives no row up for its silence: nothing is sent to it until it is heard."""
        self._stays = True

    def take_nack(self, row: int, num_bytes: int) -> bool:
        """Returns whether a NACK with a bitmap of so many bytes may be looked at.

        Not before an END, which alone is answered, not of a row that is finished, and no more than
        the ENDs allow, each of which asks for one bitmap of all.
        """
        flow = self._of_row.get(row)
        if flow is None or flow.finished or num_bytes > flow.nack_bytes:
            return False
        flow.nack_bytes -= num_bytes
        return True

    def nacked(self, row: int, seq: int) -> None:
        """Notes that a row misses a datagram.

        Ignored, too, before an END, and of what has left since the last END: it was on its way when
        that was answered.
        """
        flow = self._of_row.get(row)
        if flow is not None and flow.asked and flow.wanted[seq] == _NOT:
            flow.wanted[seq] = _NOW
            flow.num_wanted += 1

    def done(self, row: int, now: float) -> None:
        """Notes that a row has enough."""
        flow = self._of_row.get(row)
        if flow is not None:
            self._num_done += not flow.done
            flow.done = True
            flow.finish(now)

    def leave(self, row: int) -> None:
        """Notes that a row will not answer any more."""
        if row in self._of_row:
            self._of_row[row].finish(self._begun)  # nobody has waited for it

    def heard(self, row: int) -> None:
        """Notes that a row has said something."""
        if row in self._of_row:
            self._of_row[row].asked_at = math.inf

    def is_finished(self, row: int) -> bool:
        """Returns whether nothing more is sent to a row; True for one that is not served."""
        return row not in self._of_row or self._of_row[row].finished

    def is_done(self, row: int) -> bool:
        """Returns whether a row has said that it has enough."""
        return row in self._of_row and self._of_row[row].done

    def all_sent(self, row: int) -> bool:
        """Returns whether each datagram was sent to a row at least once."""
        return row in self._of_row and self._of_row[row].num_sent >= self._of_row[row].c

    def overtime(self, row: int, now: float) -> float:
        """Returns for how long until now a row was waited for, beyond what one that hurries has.

        0 for one that hurries.
        """
        flow = self._of_row.get(row)
        if flow is None or flow.hurries or math.isinf(self._hurry_at):
            return 0.0
        return max(0.0, min(flow.finished_at, now) - self._hurry_at)

    def has_wanted(self) -> bool:
        """Returns whether something is to be sent now, to whoever."""
        return any(not flow.finished and flow.num_wanted > 0 for flow in self._flows)

    def next(self, now: float) -> Action:
        """Returns what to do now; it is taken to be done.

        "wait": ask again then, or after a NACK or DONE. "finished" before `add_rest`: nothing is
        left of what was added.
        """
        if 2 * self._num_done > len(self._flows) and self._leave_at == math.inf:
            t = now - self._begun
            self._hurry_at = now + max(t, HURRY_S)
            self._leave_at = max(now + 3 * t + self._silence_s, self._hurry_at)
        if now >= self._leave_at:
            return ("finished",)
        wake_at, waits = self._leave_at, False
        for _ in self._flows:
            flow = self._flows[self._turn]
            self._turn = self._turn + 1 if self._turn + 1 < len(self._flows) else 0
            silent_at = flow.asked_at + self._silence_s if self._until_done else math.inf
            hurry_at = self._hurry_at if flow.hurries else math.inf
            is_silent = now >= silent_at
            if (is_silent and not self._stays) or now >= hurry_at:
                flow.finish(now)
            if flow.finished:
                continue
            if is_silent:
                waits = True
                continue
            if self._until_done and flow.report_at <= flow.num_sent < flow.c:
                flow.report_at += max(flow.c // NUM_REPORTS, SHORT)
                return self._ask(flow, 0, now)
            if flow.num_wanted > 0:
                seqs = flow.take_burst(self.most_at_once, now)
                self._sent = flow, seqs
                return ("send", flow.row, seqs)
            if not self._has_all:
                continue
            if now >= flow.end_at:
                if not self._until_done and flow.ends_now == NUM_ENDS:
                    flow.finish(now)
                    continue
                flow.ends_now += 1
                flow.end_at = now + self._pause_s(flow.ends_now)
                flow.num_ends += 1
                return self._ask(flow, flow.num_ends, now)
            waits = True
            wake_at = min(wake_at, flow.end_at, silent_at, hurry_at)
        return ("wait", wake_at) if waits else ("finished",)

    def take_back(self) -> None:
        """Undoes the last "send": it has not been sent."""
        assert self._sent is not None
        flow, seqs = self._sent
        for seq in seqs:
            flow.num_wanted += flow.wanted[seq] != _NOW  # it may have been NACKed since
            flow.wanted[seq] = _NOW
        flow.num_sent -= len(seqs)

    def _ask(self, flow: _Flow, num_ends: int, now: float) -> Action:
        flow.asked = True
        for seq in flow.on_their_way:
            if flow.wanted[seq] == _ON_ITS_WAY:
                flow.wanted[seq] = _NOT
        flow.on_their_way.clear()
        flow.asked_at = min(flow.asked_at, now)
        bitmap_bytes = (flow.c + 7) // 8
        flow.nack_bytes = min(flow.nack_bytes + bitmap_bytes, NUM_ENDS * bitmap_bytes)
        return ("end", flow.row, num_ends)

    def _pause_s(self, num_ends: int) -> float:
        """After this many ENDs since datagrams were sent last."""
        if num_ends < NUM_ENDS - 1 or (num_ends == NUM_ENDS and not self._until_done):
            return 0.0
        return min(THIRD_AFTER_S * 2.0 ** (num_ends - NUM_ENDS + 1), LONGEST_PAUSE_S)


class _Flow:
    """What is left to be sent to one row.

    Attributes:
      wanted: for each datagram whether it is to leave now, later or not, or has since the last END.
      on_their_way: what has left since the last END, and more perhaps.
      num_wanted: how many now.
      num_sent: datagrams, those that were sent again included.
      report_at: of `num_sent`.
      num_ends: in all.
      ends_now: since datagrams were sent last.
      end_at: when the next END is due.
      nack_bytes: of bitmaps that may be looked at.
      asked: whether an END was sent, for whatever reason.
      asked_at: when the first was since the row was heard, infinity for never.
      hurries: whether it is to.
      finished: nothing is sent any more.
      finished_at: since when, infinity if something is.
      done: because the row said so.
    """

    def __init__(self, row: int, c: int, now: float) -> None:
        self.row, self.c = row, c
        self.wanted = bytearray([_LATER]) * c
        self.on_their_way: list[int] = []
        self.num_wanted = self.num_sent = self.num_ends = self.ends_now = self.nack_bytes = 0
        self.report_at = max(c // NUM_REPORTS, SHORT)
        self.end_at, self.asked_at, self.finished_at = now, math.inf, math.inf
        self.asked = self.hurries = self.finished = self.done = False
        self._next = 0  # where the search for a wanted one goes on

    def finish(self, now: float) -> None:
        self.finished = True
        self.finished_at = min(self.finished_at, now)

    def add(self, seq: int) -> None:
        if self.wanted[seq] == _LATER:
            self.wanted[seq] = _NOW
            self.num_wanted += 1

    def take_burst(self, most: int, now: float) -> list[int]:
        """Returns datagrams, ascending; the last of all, which may be short, only at the end."""
        seqs: list[int] = []
        while len(seqs) < most and self.num_wanted > 0:
            seq = self._next
            self._next = seq + 1 if seq + 1 < self.c else 0
            if self.wanted[seq] == _NOW:
                self.wanted[seq] = _ON_ITS_WAY
                self.on_their_way.append(seq)
                self.num_wanted -= 1
                self.num_sent += 1
                seqs.append(seq)
            if seq + 1 == self.c and seqs:
                break
        if self.num_wanted == 0:
            self.ends_now = 0
            self.end_at = now
        return seqs
