"""The collectives' way through MPI: messages to rank 0 and back, none pickled, each with a limit.

MPI's own collectives wait for ever for a rank that does not come, and hand a value on through other
ranks, which may change it. Here the server receives each worker's message from that worker.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lossympi import mpi
from lossympi.messages import (
    MOST_BYTES,
    MessageError,
    Receiver,
    decode,
    encode,
    printable,
    read,
    wait_for,
)
from lossympi.topology import ROOT

_POLL_S = 1e-3
_TAKE_S = 5.0  # for who does not take what all are told
_ASK_S = 1.0  # for an answer of who waits for the same duplicate
_ASK = 32767  # a tag that every MPI has, on a communicator of the user's, after a failure only
_QUESTION, _YES = b"?", b"y"
_cached_under: int | None = None  # MPI's key of a communicator's attribute


class MpiCommunicator:
    """Gathers plain values of all ranks of a communicator on all of them.

    Attributes:
      rank: of this process.
      size: how many ranks there are.
      broken: whether a rank was missing: what it sends later would be taken for something else.
    """

    def __init__(
        self,
        comm: Any,
        limit_s: float,
        error: type[Exception],
        *,
        tags: tuple[int, int] = (0, 1),
        numbers: Iterator[int] | None = None,
    ) -> None:
        """Takes over two tags of a communicator.

        Args:
          comm: an mpi4py communicator, on which nobody else uses the tags.
          limit_s: how much later than the server a rank may come.
          error: what is raised, on every rank that is there.
          tags: of messages to rank 0, and of its answers.
          numbers: of the calls, from 1; of who had the tags before, if somebody had.
        """
        self.rank: int = comm.rank
        self.size: int = comm.size
        self.broken = False
        self._comm = comm
        self._limit_s = limit_s
        self._error = error
        self._up, self._down = tags
        self._numbers = numbers or itertools.count(1)
        self._receivers = {
            rank: Receiver(comm, rank, self._up, MOST_BYTES) for rank in range(1, self.size)
        }
        self._answers = Receiver(comm, ROOT, self._down, None)
        self._sending: list[tuple[int, Any, bytes]] = []

    @classmethod
    def of(cls, comm: Any, limit_s: float, error: type[Exception]) -> MpiCommunicator:
        """Returns the one of a communicator of the user's, a duplicate made once; collective.

        Raises:
          the error: another rank does not come.
        """
        global _cached_under
        if _cached_under is None:
            _cached_under = mpi.import_mpi().Comm.Create_keyval()
        cached = comm.Get_attr(_cached_under)
        if cached is None or cached.broken:
            cached = cls(duplicate(comm, limit_s, error), limit_s, error)
            comm.Set_attr(_cached_under, cached)
        cached._limit_s, cached._error = limit_s, error
        return cached

    def allgather(self, value: Any) -> list[Any]:
        """Returns every rank's value, as JSON has it; collective.

        Raises:
          the error of this object: a rank cannot come, or sends what is no such message.
        """
        number = next(self._numbers)
        if self.rank == ROOT:
            values, failure = self._collect(number, value)
            for rank in range(1, self.size):
                self._send(encode([number, values, failure]), rank, self._down)
            self._flush()
        else:
            message = encode([number, value, None])
            if len(message) > MOST_BYTES:
                words = f"a value of {len(message)} bytes does not travel, {MOST_BYTES} do"
                message = encode([number, None, words])
            self._send(message, ROOT, self._up)
            values, failure = self._answer(number)
        if failure is not None:
            self.broken = True
            raise self._error(failure)
        return values

    def Dup(self) -> Any:
        """Returns a duplicate of the communicator; collective.

        Raises:
          the error of this object: a rank cannot come. One that says it has come, and does not
            call what MPI makes duplicates by, is not named: MPI does not tell.
        """
        self.allgather(None)
        made, request = self._comm.Idup()
        try:
            is_made = wait_for(request.Test, self._limit_s)
        except mpi.import_mpi().Exception:
            is_made = False
        waiting = [
            rank for rank, has_it in enumerate(self.allgather(is_made)) if has_it is not True
        ]
        if waiting:
            self.broken = True
            raise self._error(
                f"rank {listed(waiting)} waited {self._limit_s:g} s for a duplicate of the "
                "communicator, which some rank does not help to make: MPI does not tell which"
            )
        return made

    # What those who know more of the ranks say.

    def _why_gone(self, rank: int) -> str | None:
        """Server: returns why a rank will not come any more, where that is known.

        Raises:
          MPI.Exception: it has died.
        """
        return None

    def _words_of_gone(self, rank: int, how: str) -> str:
        """Returns what to say of a rank that "has died" or the like."""
        return f"rank {rank} {how}: its own output says why"

    def _watch(self) -> Callable[[list[int]], None]:
        """Server: returns what is called, while it waits, with the ranks that are missing."""
        return lambda missing: None

    def _await_answer(self, poll: Callable[[], bytearray | None]) -> bytearray:
        """Worker: returns what a call gives that gives None at first.

        Raises:
          the error of this object: the server has gone, or says nothing.
        """
        limit_s = 2 * self._limit_s + _TAKE_S  # the server may come late, and wait for others
        until = time.monotonic() + limit_s
        while True:
            try:
                message = poll()
            except mpi.import_mpi().Exception:
                raise self._error(self._words_of_gone(ROOT, "has died")) from None
            if message is not None:
                return message
            if time.monotonic() > until:
                raise self._error(f"rank {ROOT} has not come within {limit_s:g} s")
            time.sleep(_POLL_S)

    # How.

    def _collect(self, number: int, own: Any) -> tuple[list[Any], str | None]:
        """Returns every rank's value, or why there are none."""
        values: dict[int, Any] = {ROOT: decode(encode(own))}
        until = time.monotonic() + self._limit_s
        look = self._watch()
        while True:
            missing = [rank for rank in range(self.size) if rank not in values]
            if not missing:
                return [values[rank] for rank in range(self.size)], None
            for rank in missing:
                try:
                    message = self._receivers[rank].poll()
                    if message is None:
                        why = self._why_gone(rank)
                        if why is not None:
                            return [], self._words_of_gone(rank, why)
                        continue
                    of, value, words = read(tuple[int, Any, str | None], decode(message), "it")
                except MessageError as error:
                    return [], f"what rank {rank} sends is not taken: {error}"
                except mpi.import_mpi().Exception:
                    return [], self._words_of_gone(rank, "has died")
                if words is not None:
                    return [], f"rank {rank}: {words}"
                if of > number:
                    return [], f"rank {rank} is at call {of} of those made together, not {number}"
                if of == number:  # else of a call that was over before it came
                    values[rank] = value
            if time.monotonic() > until:
                return [], self._words_of_late(missing)
            look(missing)
            time.sleep(_POLL_S)

    def _words_of_late(self, missing: list[int]) -> str:
        words = (
            f"rank {listed(missing)} has not come as far as the others within "
            f"{self._limit_s:g} s: if its script does the same, raise start_s"
        )
        for rank in missing:
            if coming := self._receivers[rank].coming:
                words += f". Of rank {rank} a message of {coming} bytes has begun, and never ended"
        return words

    def _answer(self, number: int) -> tuple[list[Any], str | None]:
        """Returns what the server says at a call; what is of one before is passed over."""
        while True:
            message = self._await_answer(self._answers.poll)
            of, values, failure = decode(message)
            if of >= number:
                return values, failure

    def _send(self, message: bytes, rank: int, tag: int) -> None:
        self._sending = [sent for sent in self._sending if not is_done(sent[1])]
        with contextlib.suppress(mpi.import_mpi().Exception):  # it has died
            self._sending.append((rank, self._comm.Isend(message, rank, tag), message))

    def _flush(self) -> None:
        """Waits until each rank has taken what it was sent, or 5 s, and that once for a rank.

        MPI sends while it is called, which links of UDP and shared memory never do.
        """
        to = [rank for rank, _, _ in self._sending]
        # Who has not taken what came before was waited for then.
        awaited = {rank for rank in to if to.count(rank) == 1}

        def are_taken() -> bool:
            self._sending = [sent for sent in self._sending if not is_done(sent[1])]
            return not any(rank in awaited for rank, _, _ in self._sending)

        wait_for(are_taken, _TAKE_S)


def duplicate(comm: Any, limit_s: float, error: type[Exception]) -> Any:
    """Returns a duplicate of a user's communicator; collective.

    MPI does not tell who does not come. So after the limit rank 0 asks all ranks, by messages on
    the communicator itself, and names those that do not say that they wait for the same. A rank
    that lies is not named.

    Raises:
      the error: a rank does not come within the limit; where rank 0 is there, all that wait raise
        it in its words.
    """
    MPI = mpi.import_mpi()
    made, request = comm.Idup()
    asked = Receiver(comm, ROOT, _ASK, None)
    begun = time.monotonic()
    failed = False
    while not failed:
        try:
            if request.Test():
                return made
            question = None if comm.rank == ROOT else asked.poll()
        except (MPI.Exception, MessageError):
            failed = True  # a rank has died
            break
        if question is not None:
            comm.Isend(_YES, ROOT, _ASK)
            break
        failed = time.monotonic() - begun > limit_s
        time.sleep(_POLL_S)
    words = (
        f"rank {comm.rank} has waited {time.monotonic() - begun:.0f} s for all ranks to come here, "
        "and MPI does not tell which one is missing"
    )
    said = _name_missing(comm) if comm.rank == ROOT else _hear(comm, asked)
    raise error(said or words)


def _name_missing(comm: Any) -> str:
    """Rank 0: asks who waits too; returns who does not, and tells those that do."""
    MPI = mpi.import_mpi()
    answers = {rank: Receiver(comm, rank, _ASK, 1) for rank in range(1, comm.size)}
    sent = []
    for rank in answers:
        with contextlib.suppress(MPI.Exception):
            sent.append(comm.Isend(_QUESTION, rank, _ASK))
    waiting: set[int] = set()

    def all_have_answered() -> bool:
        for rank in answers.keys() - waiting:
            with contextlib.suppress(MPI.Exception, MessageError):
                if answers[rank].poll() is not None:
                    waiting.add(rank)
        return len(waiting) == len(answers)

    if wait_for(all_have_answered, _ASK_S):
        return ""
    missing = listed(sorted(answers.keys() - waiting))
    words = f"rank {missing} has not come as far as the others: it has died, or does something else"
    message = words.encode()
    for rank in waiting:
        with contextlib.suppress(MPI.Exception):
            sent.append(comm.Isend(message, rank, _ASK))
    wait_for(lambda: all(is_done(each) for each in sent), _ASK_S)
    return words


def _hear(comm: Any, asked: Receiver) -> str:
    """Worker: returns what rank 0 says of who is missing, "" if it says nothing."""
    heard: list[bytes] = []

    def has_heard() -> bool:
        with contextlib.suppress(mpi.import_mpi().Exception, MessageError):
            message = asked.poll()
            if message == _QUESTION:  # this rank's limit came first
                comm.Isend(_YES, ROOT, _ASK)
            elif message is not None:
                heard.append(bytes(message))
        return bool(heard)

    wait_for(has_heard, 3 * _ASK_S)
    return printable(heard[0].decode("utf-8", "replace")) if heard else ""


def listed(ranks: Iterable[int]) -> str:
    """Returns such as "1, 3"."""
    return ", ".join(map(str, ranks))


def is_done(request: Any) -> bool:
    """Returns whether a message has left, or its receiver is gone."""
    try:
        return bool(request.Test())
    except mpi.import_mpi().Exception:  # the rank is gone
        return True
