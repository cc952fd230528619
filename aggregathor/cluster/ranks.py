"""The ranks of the job and what the server sends the workers beside the models: state, and the end.

The server is trusted by all. Workers tell it nothing here: what a worker sends is a gradient, over
its link. Only experiments let a worker hand over what it keeps from round to round.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import logging
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from aggregathor import notes
from aggregathor.cluster import stopping
from aggregathor.cluster.processes import Process, identify_all, listen, now_s
from aggregathor.errors import UserError
from lossympi import LinkError, Topology, mpi
from lossympi.collectives import Collectives
from lossympi.messages import (
    MessageError,
    Receiver,
    decode,
    encode,
    pack_arrays,
    read,
    unpack_arrays,
    wait_for,
)
from lossympi.mpi_collectives import duplicate, is_done, listed

_log = logging.getLogger(__name__)
_SERVER = 0  # the rank of the one that there is
_STATE, _END, _GOODBYE, _LAST, _WORKER_STATE = 1, 2, 3, 4, 5  # tags; 6 and 7 are a meeting's
_NEWS, _PLACE, _WRITTEN = 8, 9, 11
AGAIN = "again"  # what the server tells where a round has to be repeated
_REASON_BYTES = 4096
_GOODBYE_BYTES = 2048  # of a worker's last words
_NOTES_BYTES = 1 << 18  # of these with its notes
_POLL_S = 0.01
_FIRST_POLL_S = 1e-4  # of a wait that may be short, as of an epoch's end
_FLUSH_S = 5.0
# How long the server waits for workers to end, which may still evaluate; and for those that the
# kernel has stopped, or for all once the user has asked for the end.
_GOODBYE_S, _STOPPED_S = 600.0, 5.0
SAY_AFTER_S = 10.0  # of waiting
START_S = 300.0  # how much later than another a rank may come
_PR_SET_PDEATHSIG = 1


class Goodbye(NamedTuple):
    """How a worker's script has ended, in its own words.

    Attributes:
      cut: whether the server's end has ended it.
      words: of the error that has ended it, with the line of the script; "" for none.
      notes: what it has found out about the script, where that is checked.
    """

    cut: bool
    words: str
    notes: dict[str, list[str]] = {}  # noqa: RUF012 - nobody changes it


class TrainingEnded(RuntimeError):
    """The server has ended this part of the training, or all of it; this worker goes no further."""


class CheckDone(Exception):
    """The rounds of a check are made: see ``Config.check_rounds``."""


class Ranks:
    """The processes that ``mpirun`` has started.

    Attributes:
      comm: an MPI communicator of our own, for the links to be made of.
      rank: of this process.
      topology: which rank has which role.
      numbers: of what all do together by a meeting.
      goodbye: a worker's last words, by which the server explains that it is gone.
      sends_notes: whether workers' notes come with them.
    """

    def __init__(self, comm: Any, limit_s: float = START_S) -> None:
        """Duplicates the communicator; collective.

        Raises:
          UserError: a rank does not come within the limit.
        """
        self.comm = duplicate(comm, limit_s, UserError)
        self.rank: int = comm.rank
        self.topology = Topology.of_size(comm.size)
        self.numbers = itertools.count(1)
        # Server: a worker's process, or why it is not known.
        self._processes: dict[int, Process | str] = {}
        self._states: dict[tuple[int, int], Receiver] = {}
        self.goodbye = Goodbye(False, "")
        self.sends_notes = False
        self._goodbyes: dict[int, Goodbye] = {}
        self._sending: list[_Sent] = []
        self._places: list[_Sent] = []  # of another thread
        self._reason: str | None = None
        self._reason_bytes = bytearray(_REASON_BYTES)
        # Beside what it is for, it fails at once when the server dies.
        self._end = None if self.is_server else self.comm.Irecv(self._reason_bytes, _SERVER, _END)

    @property
    def is_server(self) -> bool:
        """Whether this process is a server."""
        return self.topology.is_server(self.rank)

    @property
    def row(self) -> int:
        """Worker: its row of every stack, 0..n-1."""
        return self.topology.row_of(self.rank)

    def identify(self, together: Collectives) -> None:
        """Lets the server know which workers are processes of its host; collective.

        It can then tell those that have ended or were stopped, and kill the latter at the end. Of
        others MPI alone knows, and none of them is killed.
        """
        begun_s = now_s()
        token = together.bcast(secrets.token_hex(16), str)
        listening = None if self.is_server else listen(token, self.rank)
        together.allgather(None)
        if self.is_server:
            self._processes = identify_all(token, list(self.topology.worker_ranks), begun_s)
        together.allgather(None)
        if listening is not None:
            listening.close()

    def is_there(self, rank: int, tag: int) -> bool:
        """Whether a message has come from the server.

        Raises:
          LinkError: it has died.
        """
        try:
            return self.comm.Iprobe(rank, tag)
        except _mpi().Exception:
            raise self.lost() from None

    def says_goodbye(self, rank: int) -> bool:
        """Server: whether a worker has ended its script.

        Raises:
          MPI.Exception: it has died.
        """
        if rank not in self._goodbyes:
            try:
                most_bytes = _NOTES_BYTES if self.sends_notes else _GOODBYE_BYTES
                message = self._receiver(rank, _GOODBYE, most_bytes).poll()
                if message is None:
                    return False
                self._goodbyes[rank] = read(Goodbye, decode(message), "what it says at the end")
            except MessageError:  # it is a goodbye, whatever it says
                self._goodbyes[rank] = Goodbye(False, "")
        return True

    def causes(self) -> str:
        """Server: returns the errors that have ended workers' scripts, equal ones once; or ""."""
        ranks: dict[str, list[int]] = {}
        for rank, goodbye in sorted(self._goodbyes.items()):
            if goodbye.words:
                ranks.setdefault(goodbye.words, []).append(rank)
        return "; ".join(
            f"the script failed on rank {', '.join(map(str, of))}: {words}"
            for words, of in ranks.items()
        )

    def notes(self) -> dict[int, notes.Notes]:
        """Server: returns what workers have found out about the script, by rank."""
        return {rank: notes.checked(said.notes) for rank, said in sorted(self._goodbyes.items())}

    def describe_end(self, rank: int) -> str:
        """Server: returns how a worker that is gone has ended."""
        goodbye = self._goodbyes.get(rank)
        if goodbye is None:
            return f"rank {rank}'s process has died"
        return f"rank {rank}'s script {'failed: ' if goodbye.words else 'ended'}{goodbye.words}"

    def gone(self) -> list[int]:
        """Server: returns the rows of workers that have ended; from any thread.

        Of those on other hosts MPI knows, if it may be asked by several threads.
        """
        may_ask = _may_be_asked()
        return [
            self.topology.row_of(rank)
            for rank in self.topology.worker_ranks
            if self._process_state(rank) in ("Z", "X", "") or (may_ask and self._has_left(rank))
        ]

    def _may_take(self, rank: int) -> bool:
        """Whether a rank is neither stopped nor dead, nor has ended its script."""
        return self._process_state(rank) not in "TZX" and not self._has_left(rank)

    def _has_left(self, rank: int) -> bool:
        try:
            return self.says_goodbye(rank)
        except _mpi().Exception:  # it has died
            return True

    def send_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Server: sends arrays to every worker, and waits until they have them, but not long."""
        self._send_all(pack_arrays(arrays), _STATE)
        self._flush()

    def receive_state(self, look: Callable[[], None] = lambda: None) -> dict[str, np.ndarray]:
        """Worker: returns the next arrays that the server sends.

        Args:
          look: called now and then while it waits.
        Raises:
          TrainingEnded: it ends instead; or what ``look`` raises.
        """
        states = self._receiver(_SERVER, _STATE, None)
        whole: bytearray | None = None

        def has_begun() -> bool:
            nonlocal whole
            try:
                whole = states.poll()
            except (MessageError, _mpi().Exception):
                raise self.lost() from None
            return whole is not None or states.coming > 0

        self.wait(has_begun, "the server, to send the parameters", look)
        while whole is None:  # what has begun comes, be it that the training has ended since
            time.sleep(_POLL_S / 10)
            has_begun()
        return unpack_arrays(whole)

    def tell(self, news: Any) -> None:
        """Server: sends plain data to every worker, and waits for none of them."""
        self._sending = [sent for sent in self._sending if not is_done(sent.request)]
        self._send_all(encode(news), _NEWS)

    def tell_place(self, place: Sequence[int]) -> None:
        """Server: tells every worker where it waits; from any thread, if MPI allows that."""
        if _may_be_asked():
            self._places = [sent for sent in self._places if not is_done(sent.request)]
            self._send(encode(list(place)), self.topology.worker_ranks, _PLACE, self._places)

    def server_places(self) -> list[list[int]]:
        """Worker: returns where the server has waited since the last call.

        Raises:
          LinkError: the server has died.
        """
        return [decode(bytes(message)) for message in self._all_of(_PLACE)]

    def heard(self) -> Any:
        """Worker: returns the next of what the server tells; None if nothing has come.

        Raises:
          LinkError: the server has died.
        """
        try:
            message = self._receiver(_SERVER, _NEWS, None).poll()
        except (MessageError, _mpi().Exception):
            raise self.lost() from None
        return None if message is None else decode(message)

    def send_worker_state(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Worker: sends arrays to the server, and waits until it has taken them.

        Raises:
          TrainingEnded: it ends instead.
        """
        message = pack_arrays(arrays)
        request = self.comm.Isend(message, dest=_SERVER, tag=_WORKER_STATE)
        self.wait(lambda: self._has_come(request), "the server, to take what it keeps")

    def receive_worker_state(
        self, row: int, wait_s: float, most_bytes: int
    ) -> dict[str, np.ndarray] | None:
        """Server: returns the next arrays of a worker; None if none come within the time.

        Args:
          row: the worker's.
          wait_s: how long to wait for all of them.
          most_bytes: that they may have, names included. More, or what are no arrays, is dropped
            with a warning, and counts as none.
        """
        rank = self.topology.rank_of(row)
        states = self._receiver(rank, _WORKER_STATE, most_bytes)
        until = time.monotonic() + wait_s
        try:
            while (message := states.poll()) is None:
                if time.monotonic() >= until:
                    return None
                time.sleep(_POLL_S)
            return unpack_arrays(message)
        except MessageError as error:
            _log.warning("what rank %d keeps is not taken: %s", rank, error)
            return None
        except _mpi().Exception:  # it has died
            return None

    def tell_written(self, path: str) -> None:
        """Server: tells every worker that a file is written."""
        self._send_all(os.fsencode(path), _WRITTEN)

    def written(self) -> list[str]:
        """Worker: returns the files that the server has told of since the last call.

        Raises:
          LinkError: the server has died.
        """
        return [os.fsdecode(bytes(message)) for message in self._all_of(_WRITTEN)]

    def state_is_there(self) -> bool:
        """Worker: whether the server has sent arrays that have not been received yet.

        Raises:
          LinkError: the server has died.
        """
        return self.is_there(_SERVER, _STATE)

    def ended(self) -> bool:
        """Worker: whether the server has said that the training is over.

        Raises:
          LinkError: the server has died.
        """
        if self._reason is None and self._has_come(self._end):
            self._reason = self._reason_bytes.rstrip(b"\0").decode()
        return self._reason is not None

    def ended_soon(self) -> bool:
        """Worker: the same of the next second, for when the link to the server has broken."""
        return wait_for(self.ended, 1.0)

    @property
    def end_reason(self) -> str:
        """Worker: why; "" if all is well."""
        return self._reason or ""

    def shutdown(self, reason: str) -> None:
        """Shuts down; finalizes MPI if every rank is alive.

        The server announces the end to the workers and gives them time to end. It kills those on
        its own host that do not end, or that were stopped: mpirun would wait for them for ever.
        A worker waits until the server ends too.

        Args:
          reason: the server's, for ending early; "" if all is well.
        """
        whole = self._shut_down_workers(reason) if self.is_server else self._shut_down_with_server()
        if whole:
            _mpi().Finalize()

    def _shut_down_workers(self, reason: str) -> bool:
        """Returns whether all of them have said goodbye."""
        message = reason.encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0")
        self._send_all(message, _END)
        waiting = set(self.topology.worker_ranks)
        whole = True
        begun = time.monotonic()
        warning = SlowWaitWarning(self.rank, lambda: f"rank {listed(sorted(waiting))} to end")
        while waiting:
            limit_s = _STOPPED_S if stopping.asked() else _GOODBYE_S
            if time.monotonic() > begun + limit_s:
                break
            warning.look()
            for rank in list(waiting):
                if time.monotonic() > begun + _STOPPED_S and self._process_state(rank) == "T":
                    whole = False
                    waiting.remove(rank)
                    self._kill(rank)
                    continue
                try:
                    if self.says_goodbye(rank):
                        waiting.remove(rank)
                except _mpi().Exception:  # it has died
                    whole = False
                    waiting.remove(rank)
            time.sleep(_POLL_S)
        cut = [str(rank) for rank, goodbye in sorted(self._goodbyes.items()) if goodbye.cut]
        if cut and not reason and not stopping.asked():
            _log.info(
                "the server's script ended first, and with it the rounds of rank %s", ", ".join(cut)
            )
        whole = whole and not waiting
        for rank in waiting:
            self._kill(rank)
        self._send_all(b"\1" if whole else b"\0", _LAST)
        self._flush()
        return whole

    def _shut_down_with_server(self) -> bool:
        """Returns whether it has said that all are there."""
        last = bytearray(1)
        try:
            answer = self.comm.Irecv(last, _SERVER, _LAST)
            words = self.goodbye.words[: _GOODBYE_BYTES // 8]  # of a character up to 6 bytes
            found = notes.kept() if self.sends_notes else {}
            message = encode(self.goodbye._replace(words=words, notes=found))
            self.comm.Isend(message, _SERVER, _GOODBYE)
            warning = SlowWaitWarning(self.rank, lambda: "the server, to end its script")
            while not self._has_come(answer):
                warning.look()
                time.sleep(_POLL_S)
        except (LinkError, _mpi().Exception):  # it has died
            return False
        return last == b"\1"

    def _process_state(self, rank: int) -> str:
        """Returns a letter of ``proc(5)``, "" for a process that has ended, "?" for an unknown."""
        process = self._processes.get(rank)
        return process.state() if isinstance(process, Process) else "?"

    def _kill(self, rank: int) -> None:
        process = self._processes.get(rank, "it was not looked for")
        if isinstance(process, Process):
            _log.warning("rank %d does not end, so it is killed", rank)
            process.kill()
        else:
            _log.warning("rank %d does not end, and it is not killed, as %s", rank, process)

    def _has_come(self, request: Any) -> bool:
        try:
            return request.Test()
        except _mpi().Exception:
            raise self.lost() from None

    def lost(self) -> LinkError:
        """Returns what a worker raises whose server has died."""
        server = self.topology.describe(_SERVER)
        return LinkError(
            f"rank {self.rank} has lost {server}, whose process has ended. Its own output says "
            "why; where there is a checkpoint, the same command goes on from it."
        )

    def wait(
        self, until: Callable[[], bool], whom: str, look: Callable[[], None] = lambda: None
    ) -> None:
        """Waits, and says for whom if it takes long; looks now and then.

        Raises:
          TrainingEnded: the server has ended the training.
        """
        warning = SlowWaitWarning(self.rank, lambda: whom)
        poll_s = _FIRST_POLL_S
        while not until():
            # What was sent before the end has come before it.
            if not self.is_server and self.ended() and not until():
                raise TrainingEnded(self.end_reason)
            warning.look()
            look()
            time.sleep(poll_s)
            poll_s = min(_POLL_S, 1.1 * poll_s)

    def _send_all(self, message: bytes, tag: int) -> None:
        self._send(message, self.topology.worker_ranks, tag, self._sending)

    def _send(self, message: bytes, ranks: Iterable[int], tag: int, sending: list[_Sent]) -> None:
        for rank in ranks:
            with contextlib.suppress(_mpi().Exception):  # it has died
                sending.append(_Sent(self.comm.Isend(message, rank, tag), message, rank))

    def _all_of(self, tag: int) -> list[bytearray]:
        """Worker: returns the messages of the server's that have come."""
        receiver = self._receiver(_SERVER, tag, None)
        messages = []
        try:
            while (message := receiver.poll()) is not None:
                messages.append(message)
        except (MessageError, _mpi().Exception):
            raise self.lost() from None
        return messages

    def _receiver(self, rank: int, tag: int, most_bytes: int | None) -> Receiver:
        """Returns the one of a rank and tag: a message may have begun that was not waited for."""
        found = self._states.setdefault((rank, tag), Receiver(self.comm, rank, tag, most_bytes))
        found.most_bytes = most_bytes
        return found

    def _flush(self) -> None:
        """Waits until what was sent has left, but not for ever, nor for who takes nothing any more.

        MPI sends while it is called, which the links of UDP and shared memory never do.
        """
        until = time.monotonic() + _FLUSH_S
        while True:
            self._sending = [sent for sent in self._sending if not is_done(sent.request)]
            awaited = [sent for sent in self._sending if self._may_take(sent.rank)]
            if not awaited or time.monotonic() > until:
                return
            time.sleep(_POLL_S / 10)


class _Sent(NamedTuple):
    """A message that may not have left, whose memory must stay."""

    request: Any
    message: bytes
    rank: int


class SlowWaitWarning:
    """Says, once a wait is long and then ever more rarely, for whom a rank waits."""

    def __init__(self, rank: int, whom: Callable[[], str]) -> None:
        """Begins to wait; ``whom`` is asked when there is something to say."""
        self._rank = rank
        self._whom = whom
        self._begun = time.monotonic()
        self._next_s = SAY_AFTER_S

    def look(self) -> None:
        """Says it if it is time to."""
        waited_s = time.monotonic() - self._begun
        if waited_s >= self._next_s:
            self._next_s *= 2
            _log.warning("rank %d has waited %.0f s for %s", self._rank, waited_s, self._whom())


def start_ranks(limit_s: float = START_S) -> Ranks | None:
    """Joins the ranks of the job; None if this process was started alone.

    Raises:
      UserError: an mpirun started several, and MPI knows of one only; or a rank does not come
        within the limit.
    """
    launch = mpi.launch_of(os.environ)
    if launch is None or launch.size < 2:
        return None
    # An mpirun that is killed leaves its processes behind; these shall not go on without it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # it would wait for ranks that are dead: see `Ranks.shutdown`
        module = mpi.import_mpi()
    except (ImportError, LinkError) as error:
        raise UserError(str(error)) from None
    if module.COMM_WORLD.size < 2:
        raise UserError(mpi.why_alone(os.environ, mpi.loaded_library()))
    if module.Query_thread() < module.THREAD_SERIALIZED:
        raise UserError(
            "MPI was started for one thread only, and TensorFlow calls from several. Remove "
            "mpi4py.rc.thread_level from the script, or set it to 'multiple'."
        )
    return Ranks(module.COMM_WORLD, limit_s)


def _may_be_asked() -> bool:
    """Whether MPI may be called by several threads at once."""
    return _mpi().Query_thread() == _mpi().THREAD_MULTIPLE


def _mpi() -> Any:
    return mpi.import_mpi()
