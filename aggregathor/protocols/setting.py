"""Who takes part in a training, how they misbehave, and what stands against it."""

from __future__ import annotations

import functools
import math
from dataclasses import MISSING, dataclass
from typing import Any

import numpy as np

from aggregathor import gars, settings
from aggregathor.errors import UserError
from aggregathor.protocols import draco
from aggregathor.protocols.checks import check_training
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.settings import setting
from lossympi import Topology
from lossympi.rng import generator

MOST_WORKERS = 10_000


@settings.documented
@dataclass(frozen=True, kw_only=True)
class Setting(settings.Simulation):
    """Who takes part, how they misbehave, and what stands against it."""

    num_workers: int = setting(
        MISSING, "n; the last ``byzantine`` of them are Byzantine.", kind=int
    )
    worker_momentum: float = setting(
        0.0, "beta of m <- beta m + g, which a worker sends in place of its gradient g."
    )
    quorum: int | None = setting(
        None, "how many gradients may close a round; None for all of them.", kind=int
    )

    @property
    def topology(self) -> Topology:
        """Which rank has which role, and which row."""
        return Topology(servers=1, workers=self.num_workers)

    @functools.cached_property
    def rule(self) -> gars.Rule:
        """The rule with its parameters.

        Raises:
          UserError: it cannot be read, or a name is unknown.
        """
        return gars.compose(self.gar, self.gar_args)

    @property
    def robust(self) -> bool:
        """Whether f Byzantine workers leave the aggregate near the honest gradients."""
        return not PROTOCOLS[self.protocol].has_rule or self.rule.robust

    @property
    def method(self) -> str:
        """How it is aggregated, in a word or two: the rule, or the protocol that has none."""
        return self.rule.name if PROTOCOLS[self.protocol].has_rule else self.protocol

    @property
    def needs_validation(self) -> bool:
        """Whether the server judges gradients by data that it alone has."""
        protocol = PROTOCOLS[self.protocol]
        return protocol.needs_validation or (protocol.has_rule and self.rule.needs_validation)

    @property
    def group(self) -> int:
        """How many workers, side by side, compute the same: r of a repetition code, else 1."""
        parameters = self.protocol_parameters
        if self.protocol != "draco" or parameters["code"] != draco.REPETITION:
            return 1
        return draco.redundancy_of(self.f, parameters["redundancy"])

    @property
    def protocol_parameters(self) -> dict[str, Any]:
        """The protocol's parameters, the defaults among them."""
        return {**PROTOCOLS[self.protocol].parameters, **self.protocol_args}

    def attackers(self, round: int) -> np.ndarray:
        """Returns the rows that are Byzantine in a round, in increasing order."""
        n, b = self.num_workers, self.byzantine
        if not self.byzantine_moves:
            return np.arange(n - b, n)
        return np.sort(generator("moving", self.seed, round).choice(n, b, replace=False))

    def honest_first(self, round: int) -> np.ndarray:
        """Returns all rows, those that are honest in a round before those that are Byzantine."""
        attackers = self.attackers(round)
        return np.concatenate([np.setdiff1d(np.arange(self.num_workers), attackers), attackers])

    def check(self) -> None:
        """Raises ``UserError`` for what cannot work, before anything is loaded."""
        if self.num_workers > MOST_WORKERS:
            raise UserError(
                f"one process simulates at most {MOST_WORKERS} workers, got {self.num_workers}"
            )
        check_training(self, self.num_workers, self._check_rule)
        settings.check_choices(self)
        if self.byzantine_moves and self.rule.has_state:
            raise UserError(
                f"{self.gar} keeps a state, which attackers that move cannot follow: leave "
                "byzantine_moves out"
            )
        if self.protocol == "draco":
            self._check_draco()
        protocol = PROTOCOLS[self.protocol]
        if protocol.takes and self.quorum is not None:
            raise UserError(f"a quorum closes rounds, and --protocol={protocol.name} has none")
        if not 0 <= self.loss <= 1:
            raise UserError(f"the loss is a share of the datagrams in 0..1, got {self.loss}")
        if not 0 <= self.worker_momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.worker_momentum}")
        for name in ("l1", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"the {name} penalty must be >= 0, got {getattr(self, name)}")

    def _check_draco(self) -> None:
        if self.worker_momentum:
            raise UserError(
                "with draco workers send encodings of gradients, which momentum would mix over the "
                "steps: keep it at the server"
            )
        r = draco.redundancy_of(self.f, self.protocol_parameters["redundancy"])
        if self.quorum is not None and self.num_workers - self.quorum + 2 * self.f >= r:
            least = self.num_workers + 2 * self.f - r + 1
            raise UserError(
                f"draco decodes where 2 wrong + lost < r={r}, and quorum={self.quorum} of "
                f"n={self.num_workers} gradients loses {self.num_workers - self.quorum}: leave the "
                f"quorum out, or pass quorum={least} or more"
            )

    def _check_rule(self, n: int, f: int) -> None:
        self.rule.check(n=n, f=f)
        check_quorum(self.rule, self.quorum, f)


def check_quorum(rule: gars.Rule, quorum: int | None, f: int) -> None:
    """Raises ``UserError`` unless the rule tolerates f of the gradients that may close a round.

    The f Byzantine workers can be among those that are fastest: the rule then works on ``quorum``
    gradients, of which f lie.
    """
    if quorum is None:
        return
    try:
        rule.check(n=quorum, f=f)
    except UserError as error:
        least = rule.least_n(f, quorum, unsafe=rule.unsafe)
        remedy = "leave the quorum out" if least is None else f"pass quorum={least} or more"
        largest = rule.largest_f(quorum)
        remedy += "" if largest is None or largest >= f else f", or declare f={largest}"
        reason = str(error).partition(". ")[0]
        raise UserError(
            f"quorum={quorum} lets {quorum} gradients close a round, and f={f} of them may be "
            f"Byzantine: {rule.name} needs {rule.condition} ({reason}). Change the quorum: "
            f"{remedy}."
        ) from None
