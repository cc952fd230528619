"""Byzantine workers for experiments: the last ranks, fed with what an attack may see.

An omniscient attacker sees the gradients of the honest workers before it sends its own. They come
over a communicator of their own: every worker sends its gradient to every Byzantine one, which then
makes all Byzantine rows, with the same seed, and sends its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.attacks import ATTACKS, View
from aggregathor.cluster.ranks import Ranks
from aggregathor.gars import State
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from lossympi.rng import generator

_TAG = 3


class Attacker:
    """What a worker does to its gradient, and shows the attackers, before it sends it."""

    def __init__(self, ranks: Ranks, setting: Setting, dim: int) -> None:
        """Joins the workers; collective over all ranks but the server."""
        self._ranks = ranks
        self._setting = setting
        self._attack = ATTACKS[setting.attack]
        self._honest = setting.num_workers - setting.num_byzantine
        self._row = ranks.row
        self._attacks = self._row >= self._honest
        self._rows_nd = np.zeros((setting.num_workers, dim), np.float32) if self._attacks else None
        # The rule as the server has it, for attacks that ask what it would do.
        self._rule = Aggregation(setting, dim) if self._attacks else None
        self._memory: np.ndarray | None = None
        self._sending: list[Any] = []

    def __call__(self, round: int, grad_d: np.ndarray) -> np.ndarray:
        """Returns what is sent in a round instead of the gradient; an honest one is as it was."""
        self._tell(grad_d)
        rule = self._rule
        if self._rows_nd is None or rule is None:
            return grad_d
        self._hear(grad_d)
        context = rule.context(round)
        view = View(
            honest_hd=self._rows_nd[: self._honest],
            own_bd=self._rows_nd[self._honest :],
            f=self._setting.f,
            rng=generator("attack", self._setting.seed, round),
            aggregate=lambda stack_nd: rule.ask(stack_nd, context),
            state=self._memory,
        )
        try:
            sent_bd = self._attack(view, **self._setting.attack_parameters)
            rule.follow(np.concatenate([view.honest_hd, sent_bd]), context)
        except (RuleError, tf.errors.InvalidArgumentError):
            # The rule, which some attacks ask, cannot be applied to what they would make of these
            # rows. The server, whose rows are no better, reports why.
            return grad_d
        if self._attack.update is not None:
            self._memory = self._attack.update(view)
        return sent_bd[self._row - self._honest]

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
        if self._rule is None:
            return
        self._rule.rule_state = under("rule", state) or self._rule.rule_state
        self._memory = state.get("memory")

    def _tell(self, grad_d: np.ndarray) -> None:
        """Sends the gradient to the attackers; waits until the last one has left."""
        for request in self._sending:
            request.Wait()
        copy_d = np.array(grad_d)
        self._sending = [
            self._ranks.comm.Isend(copy_d, dest=self._ranks.topology.rank_of(row), tag=_TAG)
            for row in range(self._honest, self._setting.num_workers)
            if row != self._row
        ]
        self._copy_d = copy_d

    def _hear(self, grad_d: np.ndarray) -> None:
        rows_nd = self._rows_nd
        assert rows_nd is not None
        rows_nd[self._row] = grad_d
        requests = [
            self._ranks.comm.Irecv(rows_nd[row], source=self._ranks.topology.rank_of(row), tag=_TAG)
            for row in range(self._setting.num_workers)
            if row != self._row
        ]
        self._ranks.wait(
            lambda: all([request.Test() for request in requests]), "the other workers' gradients"
        )


def attacker_of(ranks: Ranks, setting: Setting, dim: int) -> Attacker | None:
    """Returns what a worker needs where some attack by what they send; None where none does."""
    if not setting.attack or ATTACKS[setting.attack].form not in ("omniscient", "local"):
        return None
    return Attacker(ranks, setting, dim)
