"""In which loop a job's halves take part: in rounds of all workers, or by single arrivals.

All that a job or the drop-in asks of its protocol is answered here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aggregathor.attacks import ATTACKS, View
from aggregathor.cluster.attackers import attacker_of
from aggregathor.cluster.ranks import Ranks
from aggregathor.errors import UserError
from aggregathor.monitor.observer import Observer
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.arrival_rules import arrival_rule, need_of
from aggregathor.protocols.arrivals import ArrivalsServer
from aggregathor.protocols.local_attacker import local_attacker_of
from aggregathor.protocols.registry import PROTOCOLS, num_buffers
from aggregathor.protocols.rounds import RoundsServer
from aggregathor.protocols.server import ServerHalf
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.validation import Validate, Validation
from aggregathor.protocols.wide import wide_server
from aggregathor.protocols.worker import Attacker
from lossympi import Collected, ServerLink
from lossympi.rng import generator


@dataclass(frozen=True)
class Parts:
    """What a server's half is made of.

    Attributes:
      link: the server's end.
      width: values that travel for each coordinate.
      read: gives the values of the variables as they are, [d].
      secret: seed of what is random in rules.
      observer: sees all.
      waiting: gives a context in which the half waits.
      first_limit_s: how long the first update may take.
      limit_s: how long there may be no further one.
      learning_rate: gives the optimizer's in this step; None if unknown.
      validation: the losses that rules may judge gradients by; None where there are none.
      validate: the same for Zeno++: a gradient.
    """

    link: ServerLink
    width: int
    read: Callable[[], np.ndarray]
    secret: int
    observer: Observer
    waiting: Callable[[], AbstractContextManager[None]]
    first_limit_s: float
    limit_s: float
    learning_rate: Callable[[], float] | None = None
    validation: Validation | None = None
    validate: Validate | None = None


class Loop(Protocol):
    """How the ranks of a job take turns.

    Attributes:
      in_step: whether each rank makes each of the server's steps.
      tells_place: whether the server says in whose rounds it waits, which workers compare.
    """

    in_step: bool
    tells_place: bool

    def serve(self, parts: Parts) -> ServerHalf:
        """Returns the server's half of some variables."""

    def attacker(
        self, ranks: Ranks, dim: int, read: Callable[[], np.ndarray], number: int, dtype: np.dtype
    ) -> Attacker | None:
        """Returns what a worker does to the gradients of half ``number``; None for nothing."""

    def check_further(self, doings: Sequence[str], doing: str) -> None:
        """Raises ``UserError`` where a script may not train other variables too.

        Args:
          doings: in which ``fit`` each earlier half began; "" for a loop of the script's own.
          doing: where the new one begins.
        """

    def steps_of_fit(self) -> str:
        """Returns what a step of ``fit`` is, for the log; "" where nobody wonders."""


class Rounds:
    """All workers' gradients, one aggregate, one model: a ``Loop``."""

    in_step = True
    tells_place = True

    def __init__(self, setting: Setting) -> None:
        """Takes a setting that was checked."""
        self._setting = setting

    def serve(self, parts: Parts) -> ServerHalf:
        """Returns the server's half of some variables."""
        link = wide_server(parts.link, parts.width)
        with parts.waiting():
            aggregation = Aggregation(
                self._setting,
                link.dim,
                dtype=link.dtype,
                secret=parts.secret,
                learning_rate=parts.learning_rate,
                validation=parts.validation,
            )
        return RoundsServer(
            link,
            aggregation,
            parts.read,
            observer=parts.observer.of_rounds(),
            corrupt=corruption(self._setting),
            waiting=parts.waiting,
            first_limit_s=parts.first_limit_s,
            limit_s=parts.limit_s,
        )

    def attacker(
        self, ranks: Ranks, dim: int, read: Callable[[], np.ndarray], number: int, dtype: np.dtype
    ) -> Attacker | None:
        """Returns one that may know what the other workers send."""
        return attacker_of(ranks, self._setting, dim, read, number, dtype)

    def check_further(self, doings: Sequence[str], doing: str) -> None:
        """A script may train any variables in any order that is the same on all ranks."""

    def steps_of_fit(self) -> str:
        """Returns "": each step is one of all ranks."""
        return ""


class Arrivals:
    """Whoever comes: a ``Loop`` in which no worker waits for another."""

    in_step = False
    tells_place = False

    def __init__(self, setting: Setting) -> None:
        """Takes a setting that was checked."""
        self._setting = setting

    def serve(self, parts: Parts) -> ServerHalf:
        """Returns the server's half of some variables."""
        with parts.waiting():
            rule = arrival_rule(
                self._setting,
                parts.link.dim,
                dtype=parts.link.dtype,
                secret=parts.secret,
                learning_rate=parts.learning_rate,
                validation=parts.validation,
                validate=parts.validate,
            )
            return ArrivalsServer(
                parts.link,
                rule,
                parts.read,
                need=need_of(self._setting),
                fill=self._setting.fill,
                observer=parts.observer.of_arrivals(),
                waiting=parts.waiting,
                first_limit_s=parts.first_limit_s,
                limit_s=parts.limit_s,
            )

    def attacker(
        self, ranks: Ranks, dim: int, read: Callable[[], np.ndarray], number: int, dtype: np.dtype
    ) -> Attacker | None:
        """Returns one that knows its own gradient alone."""
        return local_attacker_of(self._setting, ranks.row)

    def check_further(self, doings: Sequence[str], doing: str) -> None:
        """Raises ``UserError`` for variables that are trained by turns with others.

        A worker that waits for the model of the ones could not send what the server waits for.
        """
        if doing in doings:
            raise UserError(
                f"with --protocol={self._setting.protocol} the server takes gradients of one list "
                "of variables at a time, and this script trains several by turns, whose workers "
                "and server would wait for each other. Apply all gradients by one optimizer, or "
                "train in rounds: --protocol=sync."
            )

    def steps_of_fit(self) -> str:
        """Returns how many gradients make a step."""
        setting = self._setting
        if setting.protocol != "basgd":
            return "each step is an update of the model by one worker's gradient"
        buffers = num_buffers(n=setting.num_workers, f=setting.f, **setting.protocol_parameters)
        return f"each step is an update of the model by {buffers} or more gradients"


def loop_of(setting: Setting) -> Loop:
    """Returns the one of a protocol."""
    return Arrivals(setting) if PROTOCOLS[setting.protocol].takes else Rounds(setting)


def corruption(setting: Setting) -> Callable[[Collected], None] | None:
    """Returns what the attacks do that hit rows of any worker, as faulty memory does."""
    if not setting.attack or ATTACKS[setting.attack].form != "coordinates":
        return None  # the others are the workers' business
    attack = ATTACKS[setting.attack]
    honest = setting.num_workers - setting.byzantine

    def corrupt(collected: Collected) -> None:
        view = View(
            honest_hd=collected.stack_nd[:honest],
            own_bd=collected.stack_nd[honest:],
            f=setting.f,
            rng=generator("attack", setting.seed, collected.round),
        )
        collected.stack_nd[:] = attack(view, **setting.attack_args)

    return corrupt
