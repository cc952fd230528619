"""Byzantine workers for experiments: the last ranks, fed with what an attack may see.

An omniscient attacker sees the gradients of the honest workers before it sends its own. They come
over a communicator of their own: every worker sends its gradient to every Byzantine one, which then
makes all Byzantine rows, with the same seed, and sends its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.attacks import ATTACKS, View
from aggregathor.cluster.ranks import Ranks
from aggregathor.gars import GARS
from aggregathor.protocols.setting import Setting
from lossympi.rng import generator

_TAG = 3


class Attacker:
    """What a worker does to its gradient, and tells the attackers, before it sends it.

    Attributes:
      state: what a stateful attack remembers; None before its first round, and on honest workers.
    """

    def __init__(self, ranks: Ranks, setting: Setting, dim: int) -> None:
        """Joins the workers; collective over all ranks but the server."""
        self._ranks = ranks
        self._setting = setting
        self._attack = ATTACKS[setting.attack]
        self._honest = setting.num_workers - setting.num_byzantine
        self._row = ranks.rank - 1
        self._rows_nd = np.zeros((setting.num_workers, dim), np.float32) if self.attacks else None
        self.state: np.ndarray | None = None
        self._sending: list[Any] = []

    @property
    def attacks(self) -> bool:
        """Whether this worker is Byzantine."""
        return self._row >= self._honest

    def make(self, round: int, grad_d: np.ndarray) -> np.ndarray:
        """Returns what is sent in a round instead of the gradient; an honest one is as it was."""
        self._tell(grad_d)
        if self._rows_nd is None:
            return grad_d
        self._hear(grad_d)
        view = View(
            honest_hd=self._rows_nd[: self._honest],
            own_bd=self._rows_nd[self._honest :],
            f=self._setting.f,
            rng=generator("attack", self._setting.seed, round),
            explain=self._explain(),
            state=self.state,
        )
        try:
            sent_bd = self._attack(view, **self._setting.attack_parameters)
        except tf.errors.InvalidArgumentError:
            # The rule, which some attacks ask, cannot be applied to what they would make of these
            # rows. The server, whose rows are no better, tells why.
            return grad_d
        if self._attack.update is not None:
            self.state = self._attack.update(view)
        return sent_bd[self._row - self._honest]

    def _tell(self, grad_d: np.ndarray) -> None:
        """Sends the gradient to the attackers; waits until the last one has left."""
        for request in self._sending:
            request.Wait()
        copy_d = np.array(grad_d)
        self._sending = [
            self._ranks.comm.Isend(copy_d, dest=row + 1, tag=_TAG)
            for row in range(self._honest, self._setting.num_workers)
            if row != self._row
        ]
        self._copy_d = copy_d

    def _hear(self, grad_d: np.ndarray) -> None:
        rows_nd = self._rows_nd
        assert rows_nd is not None
        rows_nd[self._row] = grad_d
        requests = [
            self._ranks.comm.Irecv(rows_nd[row], source=row + 1, tag=_TAG)
            for row in range(self._setting.num_workers)
            if row != self._row
        ]
        self._ranks.wait(
            lambda: all([request.Test() for request in requests]), "the other workers' gradients"
        )

    def _explain(self) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
        rule, setting = GARS[self._setting.gar], self._setting

        def explain(stack_nd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return rule.explain_array(stack_nd, f=setting.f, **setting.gar_parameters)

        return explain


def attacker_of(ranks: Ranks, setting: Setting, dim: int) -> Attacker | None:
    """Returns what a worker needs where some attack by what they send; None where none does."""
    if not setting.attack or ATTACKS[setting.attack].form not in ("omniscient", "local"):
        return None
    return Attacker(ranks, setting, dim)
