"""What rounds are held against: the rows that honest workers send, and a simulation."""

from __future__ import annotations

import numpy as np

from aggregathor.gars import State
from aggregathor.protocols.aggregation import Aggregation, RuleError
from aggregathor.protocols.report import RoundReport
from aggregathor.protocols.setting import Setting
from tests import reference
from tests.soak.plan import Terms, gradient

RATE = np.float32(0.1)
_ORACLES = {
    name: getattr(reference, name.replace("-", "_"))
    for name in ("median", "trimmed-mean", "meamed", "phocas")
}
_ORACLE_EVERY, _ORACLE_COLUMNS = 500, 64  # rounds, and coordinates in one


class Simulation:
    """The same training, from the rows that the server saw, in an aggregation of its own.

    Attributes:
      params_d: what the server should have, float32 [d].
      num_rows: honest rows that were compared, bit for bit.
    """

    def __init__(self, terms: Terms, setting: Setting, secret: int, params_d: np.ndarray) -> None:
        """Begins where the server begins."""
        self.params_d = params_d.copy()
        self.num_rows = 0
        self._terms = terms
        self._published_d = params_d.copy()  # what workers' gradients are of
        self._aggregation = Aggregation(setting, terms.dim, secret=secret)
        self._oracle = _ORACLES.get(setting.gar)
        self._f = setting.f

    def restore(self, state: State) -> None:
        """Goes on from the state of the server's half."""
        self._aggregation.restore(state)

    def check(self, round: int, report: RoundReport, refused: bool) -> None:
        """Looks at a round that was collected, and makes its step in the simulation.

        Raises:
          AssertionError: an honest row, or the aggregate, is not what it must be.
        """
        stack_nd = report.stack_nd.copy()
        self._check_rows(round, stack_nd, report.delivered_n)
        missing = np.flatnonzero(report.delivered_n == 0)
        context = self._aggregation.context(round, lambda: self.params_d)
        try:
            grad_d = np.asarray(self._aggregation.aggregate(stack_nd, missing, context).grad_d)
        except RuleError:
            assert refused, f"round {round}: the simulation refuses what the server aggregated"
            return
        assert not refused, f"round {round}: the simulation aggregates what the server refused"
        differ = np.flatnonzero(grad_d.view(np.uint32) != report.grad_d.view(np.uint32))
        assert not len(differ), f"round {round}: the aggregate differs in columns {differ[:5]}"
        np.testing.assert_array_equal(report.stack_nd, stack_nd, "the rule changed the stack")
        if self._oracle is not None and round % _ORACLE_EVERY == 0:
            columns = slice(None, None, max(1, len(grad_d) // _ORACLE_COLUMNS))
            with np.errstate(all="ignore"):
                expected = self._oracle(stack_nd[:, columns], self._f)
            np.testing.assert_allclose(grad_d[columns], expected, rtol=1e-3, atol=1e-4)
        self.params_d = self.params_d - RATE * grad_d

    def publishes(self, params_d: np.ndarray) -> None:
        """Notes what workers receive, which must be what the simulation has.

        Raises:
          AssertionError: it is not.
        """
        assert params_d.tobytes() == self.params_d.tobytes(), "the model is not the simulation's"
        self._published_d = params_d.copy()

    def _check_rows(self, round: int, stack_nd: np.ndarray, delivered_n: np.ndarray) -> None:
        for row in range(self._terms.hostile_row):
            if delivered_n[row] == 0:
                continue
            expected_d = gradient(self._terms, row, round, self._published_d)
            arrived_d = ~np.isnan(stack_nd[row])
            same_d = stack_nd[row].view(np.uint32) == expected_d.view(np.uint32)
            wrong = np.flatnonzero(arrived_d & ~same_d)
            assert not len(wrong), f"round {round}: row {row} differs in columns {wrong[:5]}"
            share = arrived_d.mean()
            assert np.isclose(share, delivered_n[row]), (round, row, share, delivered_n[row])
            self.num_rows += 1
