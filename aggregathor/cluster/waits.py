"""What goes on while a round waits: who keeps it waiting is said, who has gone is given up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aggregathor.cluster.ranks import AGAIN, Ranks, SlowWaitWarning, TrainingEnded
from aggregathor.internals.tensorflow import eager_mode
from aggregathor.protocols.aggregation import RuleError
from aggregathor.protocols.server import ServerHalf
from lossympi import LinkError

_log = logging.getLogger(__name__)
_LOOK_S = 1.0  # between two looks of the server's thread
_PLACE_AFTER_S = 2.0  # of a wait, after which the server says where it is


class ServerWaits:
    """The context in which a server's half waits; its thread looks at the workers' processes."""

    def __init__(self, ranks: Ranks, tell_place: Callable[[], None] = lambda: None) -> None:
        """Takes what knows whether the workers' processes have ended.

        Args:
          ranks: the processes.
          tell_place: tells the workers in whose rounds it waits; from any thread.
        """
        self._ranks = ranks
        self._tell_place = tell_place
        self._begun_s = 0.0
        self._said: set[int] = set()
        self._server: ServerHalf | None = None
        self._warning: SlowWaitWarning | None = None
        self._closed = threading.Event()

    def begin(self, server: ServerHalf) -> None:
        """Starts the thread."""
        self._server = server
        threading.Thread(target=self._run, name="aggregathor-watch", daemon=True).start()

    @contextmanager
    def context(self) -> Iterator[None]:
        """Collects and aggregates within: eagerly, also in scripts of v1, which switch that off."""
        self._begun_s = time.monotonic()
        self._warning = SlowWaitWarning(self._ranks.rank, self._whom)
        try:
            with eager_mode():
                yield
        except RuleError:
            self._ranks.tell((0, AGAIN, {}))  # of no `fit` in particular
            raise
        finally:
            self._warning = None

    def close(self) -> None:
        """Ends the thread."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(timeout=_LOOK_S):
            warning = self._warning
            if warning is not None:
                self._forget_who_has_gone()
                warning.look()
                if time.monotonic() > self._begun_s + _PLACE_AFTER_S:
                    self._tell_place()

    def _forget_who_has_gone(self) -> None:
        assert self._server is not None
        topology = self._ranks.topology
        for row in sorted(set(self._ranks.gone()) - self._said):
            self._said.add(row)
            _log.warning(
                "%s, before round %d; %d of %d workers are left",
                self._ranks.describe_end(topology.rank_of(row)),
                self._server.round,
                topology.workers - len(self._said),
                topology.workers,
            )
            self._server.forget(row)

    def _whom(self) -> str:
        assert self._server is not None
        whom = self._ranks.topology.describe_rows(self._server.waiting_for())
        return f"{whom} in round {self._server.round}"


class WorkerWaits:
    """The ``Watch`` of a worker's half: a round ends when the training does, or after too long."""

    def __init__(
        self,
        ranks: Ranks,
        give_up_s: float,
        compare_places: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """Takes what the server is heard by beside the link.

        Args:
          ranks: the processes.
          give_up_s: how long a round may wait.
          compare_places: raises ``UserError`` if the server waits elsewhere; True where it has
            begun something else instead.
        """
        self._ranks = ranks
        self._give_up_s = give_up_s
        self._compare_places = compare_places
        self._wait: tuple[bool, int] | None = None  # which wait was looked at last, and
        self._waited_s = 0.0  # how long it had been
        self._is_over = False
        self._leaving = False
        self._warning: SlowWaitWarning

    def leave(self) -> None:
        """Lets a round that another thread is in end soon."""
        self._leaving = True

    def look(self, sending: bool, round: int, waited_s: float) -> None:
        """Decides whether a wait goes on.

        Raises:
          TrainingEnded: the server goes no further.
          UserError: it is at another place, and waits for this rank there.
          LinkError: it has been too long.
        """
        ranks = self._ranks
        verb = "take a gradient" if sending else "send a model"
        whom = f"the server to {verb} of round {round}"
        if self._wait != (sending, round) or waited_s < self._waited_s:
            self._wait, self._is_over = (sending, round), False
            self._warning = SlowWaitWarning(ranks.rank, lambda: whom)
        self._waited_s = waited_s
        if self._is_over or self._leaving:
            if not self._leaving and not ranks.ended():
                self._compare_places(True)
            raise TrainingEnded(ranks.end_reason)
        # What was sent before the end may be there, though it was not when last looked for.
        self._is_over = ranks.ended() or ranks.state_is_there()
        self._compare_places(False)
        self._warning.look()
        if waited_s > self._give_up_s:
            raise LinkError(
                f"rank {ranks.rank} has waited {self._give_up_s:g} s for {whom}. If it may take "
                "longer, raise give_up_s in link_args; else see whether it still runs."
            )

    def ended(self, error: LinkError) -> Exception:
        """Returns what it means that the link has failed: the end, if the server has said so."""
        ranks = self._ranks
        return TrainingEnded(ranks.end_reason) if ranks.ended_soon() else error
