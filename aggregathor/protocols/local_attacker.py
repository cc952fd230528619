"""A Byzantine worker that sees its own gradient alone: what it sends instead."""

from __future__ import annotations

import numpy as np

from aggregathor.attacks import ATTACKS, View
from aggregathor.gars import State
from aggregathor.protocols.setting import Setting
from lossympi.rng import generator


class LocalAttacker:
    """The ``Attacker`` of one worker of an asynchronous protocol.

    What it draws depends on (seed, ticket, row) alone, so that a simulation does the same.
    """

    def __init__(self, setting: Setting, row: int) -> None:
        """Takes whose attack it is; that of a setting that was checked is local."""
        self._setting = setting
        self._row = row
        self._attack = ATTACKS[setting.attack]

    def __call__(self, round: int, grad_d: np.ndarray) -> np.ndarray:
        """Returns what is sent with a ticket instead of the gradient."""
        view = View(
            honest_hd=grad_d[np.newaxis],  # it sees nobody else's
            own_bd=grad_d[np.newaxis],
            f=self._setting.f,
            rng=generator("attack", self._setting.seed, round, self._row),
        )
        return self._attack(view, **self._setting.attack_args)[0]

    def state(self) -> State:
        """Returns nothing: a local attack remembers nothing."""
        return {}

    def restore(self, state: State) -> None:
        """Goes on."""


def local_attacker_of(setting: Setting, row: int) -> LocalAttacker | None:
    """Returns what a worker needs that attacks by what it sends; None for any other."""
    if not setting.attack or row < setting.num_workers - setting.byzantine:
        return None
    return LocalAttacker(setting, row) if ATTACKS[setting.attack].form == "local" else None
