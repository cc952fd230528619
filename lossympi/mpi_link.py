"""A link between MPI ranks that loses nothing: every vector is one MPI message (``WIRE.md``).

Waiting never spins: there may be more ranks than cores. No rank waits in MPI itself, which would
neither end at a deadline nor hear of Ctrl-C.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import time
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
from mpi4py import MPI

from lossympi.backoff import Backoff
from lossympi.checked_link import CheckedWorkerLink
from lossympi.credit import Credit
from lossympi.doorbell import Doorbell
from lossympi.link import Arrival, LinkError, Model, aligned_zeros
from lossympi.lossless_link import Desk, LosslessServerLink, OpenRound
from lossympi.options import Options
from lossympi.topology import Topology

_LIBC = ctypes.CDLL(None)
_MODEL, _BYE = 0, 1  # tags, from the server
_HEADER = 16  # floats before the parameters: int64 round, then nothing up to a multiple of 64 bytes
_SILENCE_S, _HURRY_S = 0.05, 0.02
_LAST_ANSWER_S = 0.3  # for workers to take one, when the link is closed
_MOST_AT_ONCE = 16  # messages a worker, before it is seen whether the round can be closed
_MOST_DROPPED = 16  # of a worker, under way


class MpiServer(LosslessServerLink):
    """The server's end; ``connect`` makes it.

    MPI writes a gradient into its row. One that is still on its way when its round closes, because
    its worker stopped meanwhile, cannot be called back: it keeps the stack, and what has arrived is
    copied to a new one. That costs a copy of the stack in such a round. The memory of the other
    rows goes back to the system, so that each worker can keep a row, 4 d bytes, and what is sent to
    it, as much again. Messages that are not wanted are received into nothing; a worker with 16 such
    that do not end is not listened to until one does.
    """

    def __init__(
        self, comm: Any, topology: Topology, dim: int, options: Options, bell: Doorbell
    ) -> None:
        """Takes over a communicator that nobody else uses, whose only server it is, and a bell."""
        super().__init__(topology.workers, dim, options)
        self._topology = topology
        self._comm = comm
        self._bell = bell
        self._vector = MPI.FLOAT.Create_contiguous(dim).Commit()
        self._parcel = MPI.FLOAT.Create_contiguous(_HEADER + dim).Commit()
        self._num_tags = _num_tags(comm)
        # By rank, receives of what is not wanted; they write nothing.
        self._dropped: dict[int, list[Any]] = {}
        self._turn = 0  # of the ranks, where not all are listened to
        # Receives that a close has overtaken, with the stack that they still write into.
        self._overtaken: dict[int, tuple[Any, np.ndarray]] = {}
        self._newest: _Parcel | None = None
        self._parcels: list[_Parcel] = []
        self._sending: dict[int, tuple[Any, _Parcel]] = {}
        self._behind: set[int] = set()  # rows that the newest parameters have not been sent to
        self._replies: dict[int, _Parcel] = {}  # for rows that have not taken the one before
        self._delivered_n = np.zeros(self.num_workers, bool)  # in the round collected last
        self._credit = Credit(self.num_workers)

    def _broadcast(self, round: int, params_d: np.ndarray) -> None:
        """Sends the parameters of `round`, float32 [d], to every live worker that has taken those
        sent to it before.

        A worker that has not is sent the newest as soon as it has, or is heard again, while a later
        round is collected. Those that have delivered their gradient are waited for until they have
        taken the parameters, but not much longer than most of them take; and for those that have
        cost too much overtime hardly any longer.

        Cost: a copy of the parameters, kept until all have taken it; at most n + 1 are kept, one
          more than workers have stopped while they took one.
        """
        self._end_sends()
        self._newest = self._free_parcel()
        self._newest.round[0] = round
        self._newest.params_d[:] = params_d
        live_n = np.array(self._waiting.live)
        self._behind = set(range(self.num_workers))
        self._send_newest(live_n)
        taking = set(np.flatnonzero(live_n & self._delivered_n).tolist())
        self._wait_for_sends(taking - self._behind, self._options.timeout_s)

    def _take(self, wait_s: float) -> Arrival | None:
        """Waits for a gradient without spinning; each worker's has its row of the stack."""
        desk = self._at_desk()
        until = time.monotonic() + wait_s
        backoff = Backoff(self._bell)
        while True:
            heard = self._take_messages(desk, self.num_workers)
            heard |= self._end_receives(desk)
            self._end_sends()
            arrival = self._next(self._stack_nd, desk.arrived_n)
            if arrival is not None:
                return arrival
            left_s = until - time.monotonic()
            if left_s <= 0:
                return None
            if heard:
                backoff.begin()
            backoff.pause(left_s, bool(desk.coming or self._dropped), bool(self._sending))

    def _reply(self, row: int, ticket: int, params_d: np.ndarray) -> None:
        """Copies the parameters and sends the copy, once the worker has taken the one before.

        An honest worker has, as it has sent again. Of one that has not, the newest waits: at most
        two copies a worker are kept.
        """
        self._at_desk().arrived_n[row] = False
        self._end_sends()
        parcel = self._free_parcel()
        parcel.round[0] = ticket
        parcel.params_d[:] = params_d
        waiting = self._replies.pop(row, None)
        if waiting is not None:
            waiting.users -= 1
        parcel.users += 1
        self._replies[row] = parcel
        self._send_replies()

    def _close(self) -> None:
        """Tells the workers that it leaves.

        Live workers have `timeout_s` to take the parameters that were sent to them, or 0.3 s to
        take the answer to a gradient that was taken by itself.
        """
        byes = [
            _send(self._comm, [None, 0, MPI.BYTE], rank, _BYE)
            for rank in self._topology.worker_ranks
        ]
        self._bell.ring(self._topology.worker_ranks)
        # Who takes no answer needs none any more, and the others shall hear of the end soon.
        longest_s = self._options.timeout_s if self._desk is None else _LAST_ANSWER_S
        self._wait_for_sends({row for row in self._sending if self._waiting.live[row]}, longest_s)
        self._bell.close()
        _keep_for_ever(byes, self._sending, self._overtaken, self._dropped)
        _keep_for_ever(self._desk, self._stack_nd)

    # Gradients.

    def _take_until_closed(self, opened: OpenRound) -> tuple[str, float]:
        try:
            return self._wait_for_gradients(opened), opened.elapsed_s()
        finally:
            self._leave_overtaken(opened)
            self._delivered_n = opened.arrived_n

    def _wait_for_gradients(self, opened: OpenRound) -> str:
        """Returns what closed the round."""
        backoff = Backoff(self._bell)
        while True:
            heard = self._take_messages(opened, _MOST_AT_ONCE * self.num_workers)
            heard |= self._end_receives(opened)
            self._end_sends()
            self._send_newest(opened.live_n | opened.heard_n)
            closed_by, left_s = opened.check(self._quorum)
            if closed_by is not None:
                return closed_by
            if heard:
                backoff.begin()
            else:
                backoff.pause(left_s, bool(opened.coming or self._dropped), bool(self._sending))

    def _take_messages(self, opened: OpenRound | Desk, most: int) -> bool:
        """Takes what has come, so many messages at most; returns whether anything had.

        Of a worker that sends one by one, no more once one of its messages was dropped: who floods
        shall not cost more than who does not.
        """
        status = MPI.Status()
        full: set[int] = set()
        for taken in range(most):
            try:
                message = self._probe(status, full)
            except MPI.Exception:  # a worker's process has ended
                message = None
            if message is None:
                return taken > 0
            if not self._accept(message, status, opened) and opened is self._desk:
                full.add(status.Get_source())
        return True

    def _probe(self, status: Any, full: Collection[int]) -> Any:
        """Returns a message that has come, None if there is none; of these ranks none."""
        drops = self._dropped.items()
        full = {*full, *(rank for rank, under_way in drops if len(under_way) >= _MOST_DROPPED)}
        if not full:
            return self._comm.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        ranks = [rank for rank in self._topology.worker_ranks if rank not in full]
        for _ in ranks:  # in turn, so that none crowds the others out
            self._turn += 1
            message = self._comm.Improbe(ranks[self._turn % len(ranks)], MPI.ANY_TAG, status)
            if message is not None:
                return message
        return None

    def _accept(self, message: Any, status: Any, opened: OpenRound | Desk) -> bool:
        """Starts to receive a message, into its worker's row if it belongs there; else False.

        A Byzantine worker chooses length, tag and time, so all is checked before anything is
        written.
        """
        rank = status.Get_source()
        if rank not in self._topology.worker_ranks:
            self._drop(message, rank)
            return False
        row = self._topology.row_of(rank)
        age = _age(status.Get_tag(), opened.round_of(row), self._num_tags)
        reason = ""
        if status.Get_count(self._vector) != 1:
            reason = "malformed"
        elif age:
            reason = "late" if age > 0 else "early"
        elif opened.arrived_n[row] or row in opened.coming or row in self._overtaken:
            reason = "duplicate"
        if reason:
            opened.count(row, reason)
            self._drop(message, rank)
            return False
        try:
            request = message.Irecv([self._stack_nd[row], 1, self._vector])
        except MPI.Exception:
            opened.count(row, "malformed")
            return False
        ended = _ended(request)
        if ended:
            opened.arrive(row)
        elif ended is None:
            opened.count(row, "malformed")
        else:
            opened.coming[row] = request
            self._bell.ring([rank])  # whose help it takes
        return True

    def _drop(self, message: Any, rank: int) -> None:
        """Receives nothing of a message, which sets its sender free."""
        try:
            request = message.Irecv([None, 0, MPI.BYTE])
        except MPI.Exception:
            return
        self._dropped.setdefault(rank, []).append(request)
        self._bell.ring([rank])

    def _end_receives(self, opened: OpenRound | Desk) -> bool:
        """Notes which receives have ended; returns whether any had."""
        before = len(opened.coming), len(self._overtaken)
        for row, request in list(opened.coming.items()):
            ended = _ended(request)
            if ended:
                del opened.coming[row]
                opened.arrive(row)
            elif ended is None:
                del opened.coming[row]
                opened.count(row, "malformed")
        for row, (request, _) in list(self._overtaken.items()):
            if _ended(request) is not False:
                del self._overtaken[row]
                opened.count(row, "late")
        for rank, drops in list(self._dropped.items()):
            drops[:] = [request for request in drops if _ended(request) is False]
            if not drops:
                del self._dropped[rank]
        return before != (len(opened.coming), len(self._overtaken))

    def _leave_overtaken(self, opened: OpenRound) -> None:
        """Leaves the stack to the receives that have not ended, and goes on with a new one."""
        if not opened.coming:
            return
        written_nd, self._stack_nd = self._stack_nd, aligned_zeros(self._stack_nd.shape)
        np.copyto(self._stack_nd, written_nd, where=opened.arrived_n[:, None])
        for row, request in opened.coming.items():
            self._overtaken[row] = request, written_nd
        _give_back(written_nd, set(opened.coming))

    # Parameters.

    def _send_newest(self, to_n: np.ndarray) -> None:
        """Sends the newest parameters to those of these rows that are behind and can take them."""
        parcel = self._newest
        if parcel is None or not self._behind:
            return
        sent = []
        for row in sorted(self._behind - self._sending.keys()):
            if not to_n[row]:
                continue
            self._behind.discard(row)
            rank = self._topology.rank_of(row)
            request = _send(self._comm, [parcel.floats, 1, self._parcel], rank, _MODEL)
            if request is not None:
                parcel.users += 1
                self._sending[row] = request, parcel
                sent.append(rank)
        self._bell.ring(sent)
        self._end_sends()  # a short message has left at once

    def _send_replies(self) -> None:
        """Sends those that wait to the rows that can take one."""
        sent = []
        for row in list(self._replies.keys() - self._sending.keys()):
            parcel = self._replies.pop(row)
            rank = self._topology.rank_of(row)
            request = _send(self._comm, [parcel.floats, 1, self._parcel], rank, _MODEL)
            if request is None:
                parcel.users -= 1
                continue
            self._sending[row] = request, parcel
            sent.append(rank)
        self._bell.ring(sent)

    def _end_sends(self) -> None:
        for row, (request, parcel) in list(self._sending.items()):
            if _ended(request) is not False:
                del self._sending[row]
                parcel.users -= 1
        if self._replies:
            self._send_replies()

    def _wait_for_sends(self, rows: set[int], longest_s: float) -> None:
        """Waits until these rows have taken what is sent, or most of them have and time is up."""
        now = time.monotonic()
        wait = BroadcastWait(rows, self._credit, longest_s, now)
        backoff = Backoff(self._bell)
        while (left_s := wait.left_s(self._sending.keys(), now)) > 0:
            backoff.pause(left_s, False, True)
            self._end_sends()
            now = time.monotonic()

    def _free_parcel(self) -> _Parcel:
        """Returns one that nothing is sent from, and gives back the memory of other such."""
        free = [parcel for parcel in self._parcels if not parcel.users][:1] or [_Parcel(self.dim)]
        self._parcels = free + [parcel for parcel in self._parcels if parcel.users]
        return free[0]


class BroadcastWait:
    """For how long a broadcast waits for those who take it: a rule without a clock (``WIRE.md``).

    Once most have taken it, t after the start, the others have until 4 t + 50 ms, and those in debt
    until t + max(t, 20 ms), after which what others take is charged to them.
    """

    def __init__(self, rows: set[int], credit: Credit, timeout_s: float, now: float) -> None:
        """Begins to wait for these rows, `timeout_s` at most."""
        credit.refill(_SILENCE_S, now)
        self._credit = credit
        self._num_rows = len(rows)
        self._left = set(rows)
        self._begun = now
        self._leave_at = now + timeout_s
        self._hurry_at = math.inf
        self._patient = {row for row in rows if not credit.in_debt(row)}

    def left_s(self, sending: Collection[int], now: float) -> float:
        """Returns how long to wait still, 0 for no longer; call it again then, or before.

        Args:
          sending: rows that have not taken it.
          now: the time.
        """
        self._charge(self._left.difference(sending), now)
        self._left.intersection_update(sending)
        if math.isinf(self._hurry_at) and 2 * len(self._left) < self._num_rows:
            t = now - self._begun
            self._hurry_at = now + max(t, _HURRY_S)
            self._leave_at = min(self._leave_at, max(now + 3 * t + _SILENCE_S, self._hurry_at))
        if now >= self._leave_at:
            self._charge(self._left, now)
            self._left.clear()
        waits_for = self._left if now < self._hurry_at else self._left & self._patient
        if not waits_for:
            return 0.0
        until = self._leave_at if waits_for & self._patient else self._hurry_at
        return min(until, self._leave_at) - now

    def _charge(self, rows: set[int], now: float) -> None:
        for row in rows & self._patient:
            self._credit.charge(row, max(0.0, now - self._hurry_at))


class MpiWorker(CheckedWorkerLink):
    """A worker's end; ``connect`` makes it."""

    def __init__(
        self, comm: Any, topology: Topology, dim: int, options: Options, bell: Doorbell
    ) -> None:
        """Takes over a communicator with one server, and a bell; nobody else has them."""
        super().__init__(topology.row_of(comm.rank), dim, options.give_up_s)
        [self._server] = topology.server_ranks
        self._comm = comm
        self._options = options
        self._bell = bell
        self._vector = MPI.FLOAT.Create_contiguous(dim).Commit()
        self._parcel = MPI.FLOAT.Create_contiguous(_HEADER + dim).Commit()
        self._num_tags = _num_tags(comm)
        self._grad_d = aligned_zeros((dim,))
        self._sending: Any = None
        self._held_in, self._next_in = _Parcel(dim), _Parcel(dim)
        self._receiving: Any = None  # into the latter
        self._next_is_whole = False
        self._left = False

    def _send(self, round: int, grad_d: np.ndarray, wait_s: float) -> bool | None:
        """Copies the gradient and sends the copy, once the one before has left.

        Returns:
          True, even if the server may have closed the round; None if `wait_s` has passed first.
        """
        begun = time.monotonic()
        has_left = self._wait(lambda: self._sending is None, wait_s)
        if not has_left or self._left:
            self._check_server(f"take the gradient before that of round {round}", begun)
            return None
        self._grad_d[:] = grad_d
        self._sending = self._comm.Isend(
            [self._grad_d, 1, self._vector], self._server, round % self._num_tags
        )
        self._bell.ring([self._server])
        self._progress()
        return True

    def _receive(self, round: int, wait_s: float) -> Model | None:
        """Returns the newest parameters in the memory that they came into."""

        def is_there() -> bool:
            return self._next_is_whole and self._next_in.round[0] >= round

        return self._turn() if self._wait(is_there, wait_s) else None

    def _server_left(self) -> bool:
        return self._left

    def _close(self) -> None:
        """Gives the server `timeout_s` to take the last gradient."""
        begun = time.monotonic()
        backoff = Backoff(self._bell)
        while self._sending is not None and not self._left:
            left_s = self._options.timeout_s - (time.monotonic() - begun)
            if left_s <= 0:
                break
            backoff.pause(left_s, bool(self._receiving), True)
            self._progress()
        self._bell.close()
        _keep_for_ever(self._sending, self._grad_d, self._receiving, self._next_in)

    def _wait(self, is_so: Callable[[], bool], wait_s: float) -> bool:
        """Waits until `is_so()`; False if `wait_s` has passed first, or the server has left."""
        begun = time.monotonic()
        backoff = Backoff(self._bell)
        while True:
            self._progress()
            if is_so():
                return True
            left_s = wait_s - (time.monotonic() - begun)
            if self._left or left_s <= 0:
                return False
            backoff.pause(left_s, bool(self._receiving), bool(self._sending))

    def _progress(self) -> None:
        """Takes what has come from the server, of parameters the newest, and sees what has left."""
        try:
            if self._sending is not None and self._sending.Test():
                self._sending = None
            starts = False
            while not self._left:
                if self._receiving is not None:
                    is_whole = self._receiving.Test()
                    if is_whole or starts:  # the server waits for the one, and is needed after
                        self._bell.ring([self._server])
                    starts = False
                    if not is_whole:
                        return
                    self._receiving = None
                    self._next_is_whole = True
                status = MPI.Status()
                message = self._comm.Improbe(self._server, MPI.ANY_TAG, status)
                if message is None:
                    return
                if status.Get_tag() == _BYE:
                    message.Recv([None, 0, MPI.BYTE])
                    self._left = True
                else:
                    self._next_is_whole = False
                    self._receiving = message.Irecv([self._next_in.floats, 1, self._parcel])
                    starts = True
        except MPI.Exception as error:
            raise LinkError(
                f"worker {self.rank} cannot reach the server any more: {error}. See whether it "
                "still runs."
            ) from error

    def _turn(self) -> Model:
        """Returns what has come; the memory of what was returned before is the next one's."""
        self._held_in, self._next_in = self._next_in, self._held_in
        self._next_is_whole = False
        params_d = self._held_in.params_d.view()
        params_d.setflags(write=False)
        return Model(int(self._held_in.round[0]), params_d)


class _Parcel:
    """Memory of parameters and their round, as they travel.

    Attributes:
      floats: all of it, float32 [16 + d].
      round: int64 [1], a view.
      params_d: float32 [d], a view that begins at a multiple of 64 bytes.
      users: how many sends read it.
    """

    def __init__(self, dim: int) -> None:
        self.floats = aligned_zeros((_HEADER + dim,))
        self.round = self.floats[:2].view(np.int64)
        self.params_d = self.floats[_HEADER:]
        self.users = 0


def _give_back(stack_nd: np.ndarray, kept: set[int]) -> None:
    """Gives the system the memory of all rows but those that are kept; the others become 0.

    Memory that is locked stays.
    """
    row_bytes = stack_nd.strides[0]
    borders = sorted({-1, *kept, len(stack_nd)})
    for before, after in itertools.pairwise(borders):
        begin = stack_nd.ctypes.data + (before + 1) * row_bytes
        end = stack_nd.ctypes.data + after * row_bytes
        begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # what shares a page with others stays
        end = end // mmap.PAGESIZE * mmap.PAGESIZE
        if begin < end:
            _LIBC.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)


def _num_tags(comm: Any) -> int:
    """Returns a power of 2: a gradient's tag is its round modulo that, 2^31 with Open MPI."""
    return 1 << (int(comm.Get_attr(MPI.TAG_UB)) + 1).bit_length() - 1


def _age(tag: int, round: int, num_tags: int) -> int:
    """Returns by how many rounds what has this tag is older than `round`; below 0 if it is newer.

    >>> _age(3, 5, 8), _age(5, 5, 8), _age(6, 5, 8), _age(7, 8, 8)
    (2, 0, -1, 1)
    """
    age = (round - tag) % num_tags
    return age if age < num_tags // 2 else age - num_tags


def _send(comm: Any, what: list[Any], rank: int, tag: int) -> Any:
    """Returns the request, None where MPI refuses: that worker's process has ended."""
    try:
        return comm.Isend(what, rank, tag)
    except MPI.Exception:
        return None


def _ended(request: Any) -> bool | None:
    """Returns whether a request has ended, None if with an error."""
    try:
        return bool(request.Test())
    except MPI.Exception:
        return None


def _keep_for_ever(*things: Any) -> None:
    """Keeps memory that MPI may still use until the process ends; a module's would go earlier."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(things))
