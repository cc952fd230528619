"""Byzantine workers for experiments: the last ranks, fed with what an attack may see.

An omniscient attacker sees the gradients of the honest workers before it sends its own. They come
over a communicator of their own: every worker sends its gradient, and the round it is for, to every
Byzantine one, which then makes all Byzantine rows, with the same seed, and sends its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike

from aggregathor.attacks import ATTACKS, View
from aggregathor.cluster.ranks import Ranks
from aggregathor.gars import State
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from lossympi import mpi
from lossympi.rng import generator

_FIRST_TAG = 16  # above those of `Ranks`
_NONE = -1  # before the first round
_DEAD = np.iinfo(np.int64).max  # later than any


class Attacker:
    """What a worker does to its gradient, and shows the attackers, before it sends it."""

    def __init__(
        self,
        ranks: Ranks,
        setting: Setting,
        dim: int,
        read: Callable[[], np.ndarray],
        optimizer: int = 0,
        dtype: DTypeLike = np.float32,
    ) -> None:
        """Begins before the first round.

        Args:
          ranks: the processes.
          setting: which of them attack, and how.
          dim: d.
          read: gives the worker's parameters as they are, [d], for rules that need them.
          optimizer: the number of the optimizer whose gradients these are.
          dtype: of the gradients.
        """
        self._ranks = ranks
        self._setting = setting
        self._read = read
        self._tags = _FIRST_TAG + 2 * optimizer, _FIRST_TAG + 2 * optimizer + 1
        self._attack = ATTACKS[setting.attack]
        self._honest = setting.num_workers - setting.byzantine
        self._row = ranks.row
        # Where attackers move, all are shown everything in each round: who has skipped the rounds
        # that another one attacks in would wait for what was never sent.
        n = setting.num_workers
        self._shown = range(0 if setting.byzantine_moves else self._honest, n)
        self._sees = self._row in self._shown
        self._rows_nd = np.zeros((n, dim), dtype) if self._sees else None
        # The round that each row is of: that of a worker which has skipped rounds is ahead of ours.
        self._round_n = np.full(setting.num_workers, _NONE, np.int64)
        # The rule as the server has it, for attacks that ask what it would do.
        self._rule = Aggregation(setting, dim, dtype=dtype) if self._sees else None
        self._memory: np.ndarray | None = None
        self._sending: list[Any] = []

    def __call__(self, round: int, grad_d: np.ndarray) -> np.ndarray:
        """Returns what is sent in a round instead of the gradient; an honest one is as it was."""
        self._show(round, grad_d)
        rule = self._rule
        if self._rows_nd is None or rule is None:
            return grad_d
        self._see(round, grad_d)
        order = self._setting.honest_first(round)
        place = int(np.flatnonzero(order == self._row)[0]) - self._honest
        if place < 0:
            return grad_d
        context = rule.context(round, self._read)
        view = View(
            honest_hd=self._rows_nd[order[: self._honest]],
            own_bd=self._rows_nd[order[self._honest :]],
            f=self._setting.f,
            rng=generator("attack", self._setting.seed, round),
            # What the server alone knows they cannot ask for.
            aggregate=None
            if self._setting.rule.needs_validation
            else lambda stack_nd: rule.ask(stack_nd, context, order),
            state=self._memory,
        )
        try:
            sent_bd = self._attack(view, **self._setting.attack_args)
            rule.follow(np.concatenate([view.honest_hd, sent_bd]), context)
        except (RuleError, tf.errors.InvalidArgumentError):
            # The rule, which some attacks ask, cannot be applied to what they would make of these
            # rows. The server, whose rows are no better, reports why.
            return grad_d
        if self._attack.update is not None:
            self._memory = self._attack.update(view)
        return sent_bd[place]

    def state(self) -> State:
        """Returns what the next rounds depend on: the attack's memory, and the rule's state."""
        if self._rule is None:
            return {}
        state = prefixed("rule", self._rule.rule_state)
        if self._memory is not None:
            state["memory"] = self._memory
        return state

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave, here or on another Byzantine worker."""
        self._round_n.fill(_NONE)
        if self._rule is None:
            return
        self._rule.rule_state = under("rule", state) or self._rule.rule_state
        self._memory = state.get("memory")

    def _show(self, round: int, grad_d: np.ndarray) -> None:
        """Sends the gradient to the attackers; waits until the last one has left."""
        self._ranks.wait(
            lambda: all([_has_ended(pair) for pair in self._sending]),
            "the Byzantine workers, to take a gradient",
        )
        self._sent = np.array([round], np.int64), np.array(grad_d)
        self._sending = [self._send(row) for row in self._shown if row != self._row]

    def _see(self, round: int, grad_d: np.ndarray) -> None:
        """Receives a gradient of this round, or a later one, from each worker.

        What is of an earlier round comes from a worker that the server has left behind: its next
        gradient is awaited. One of a later round stands for those that its worker has skipped, and
        the last one of a worker that has died for all later ones.
        """
        rows_nd = self._rows_nd
        assert rows_nd is not None
        rows_nd[self._row], self._round_n[self._row] = grad_d, round
        behind = [int(row) for row in np.flatnonzero(self._round_n < round)]
        requests = {row: self._receive(row) for row in behind}

        def are_all_there() -> bool:
            for row, pair in list(requests.items()):
                try:
                    if not _have_come(pair):
                        continue
                except mpi.import_mpi().Exception:  # it has died
                    self._round_n[row] = _DEAD
                if self._round_n[row] < round:
                    requests[row] = self._receive(row)
                else:
                    del requests[row]
            return not requests

        self._ranks.wait(are_all_there, "the other workers' gradients")

    def _send(self, row: int) -> list[Any]:
        """Returns the requests; none if the worker has died."""
        rank, requests = self._ranks.topology.rank_of(row), []
        with contextlib.suppress(mpi.import_mpi().Exception):
            for sent, tag in zip(self._sent, self._tags, strict=True):
                requests.append(self._ranks.comm.Isend(sent, dest=rank, tag=tag))
        return requests

    def _receive(self, row: int) -> list[Any]:
        """Returns the requests; none if the worker has died."""
        assert self._rows_nd is not None
        source = self._ranks.topology.rank_of(row)
        into = self._round_n[row : row + 1], self._rows_nd[row]
        try:
            return [
                self._ranks.comm.Irecv(buffer, source=source, tag=tag)
                for buffer, tag in zip(into, self._tags, strict=True)
            ]
        except mpi.import_mpi().Exception:
            self._round_n[row] = _DEAD
            return []


def _have_come(pair: list[Any]) -> bool:
    return all([request.Test() for request in pair])


def _has_ended(pair: list[Any]) -> bool:
    """Whether it has left, or will never."""
    try:
        return _have_come(pair)
    except mpi.import_mpi().Exception:  # the worker has died
        return True


def attacker_of(
    ranks: Ranks,
    setting: Setting,
    dim: int,
    read: Callable[[], np.ndarray],
    optimizer: int = 0,
    dtype: DTypeLike = np.float32,
) -> Attacker | None:
    """Returns what a worker needs where some attack by what they send; None where none does."""
    if not setting.attack or ATTACKS[setting.attack].form not in ("omniscient", "local"):
        return None
    return Attacker(ranks, setting, dim, read, optimizer, dtype)
