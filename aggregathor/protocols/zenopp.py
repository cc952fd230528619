"""Zeno++: a gradient is a step if it points where the server's validation data point."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from aggregathor.protocols.offers import NOT_FINITE, Offer, Verdict
from aggregathor.protocols.vectors import NUMPY, Vectors, is_finite, norm

ZERO, SCORE = "zero", "score"


class Zenopp:
    r"""The arrival rule of Zeno++, which asks neither who sent a gradient nor how stale it is.

    With v the gradient of validation data that the server alone has, a gradient u is rescaled to
    its length, and it is a step if its score is high enough:

    .. math:: u' = \frac{\lVert v \rVert}{\lVert u \rVert} u, \qquad
              \gamma \langle v, u' \rangle - \rho \lVert u' \rVert^2 \ge - \gamma \epsilon

    As :math:`\lVert u' \rVert = \lVert v \rVert`, this is a condition on the angle between v and u:
    :math:`\cos(v, u) \ge \rho / \gamma - \epsilon / \lVert v \rVert^2`. epsilon has the unit of a
    squared gradient norm; where :math:`\lVert v \rVert^2 \le \epsilon / (1 + \rho / \gamma)`
    everything is accepted. After every k arrivals, accepted or not, v is made anew, at the model of
    then and of other data: counting accepted ones, a bad v that rejects all would stay.

    Resilience: any number of Byzantine workers, if the validation data are like the others'.
    Cost: O(d) an arrival, and a gradient of the validation data every k; 4 d bytes of float32.
    Source: Xie et al., Zeno++: Robust Fully Asynchronous SGD, ICML 2020.
    """

    def __init__(
        self,
        validate: Callable[[np.ndarray, int], np.ndarray],
        gamma: Callable[[], float],
        *,
        rho: float,
        epsilon: float,
        refresh: int,
        vectors: Vectors = NUMPY,
    ) -> None:
        """Begins without v, which is made at the first arrival.

        Args:
          validate: ``validate(params_d, number)`` gives the gradient [d] at a model on validation
            batch 0, 1, 2, ..., the same one for the same number.
          gamma: gives the learning rate of the next step.
          rho: at least 0.
          epsilon: at least 0.
          refresh: k, at least 1.
          vectors: what computes on gradients.
        """
        self._vectors = vectors
        self._validate = validate
        self._gamma = gamma
        self._rho, self._epsilon = rho, epsilon
        self._refresh = refresh
        self._v_d: np.ndarray | None = None
        self._v_norm = 0.0
        self._arrivals = 0  # since v was made
        self._made = 0  # how many v

    def offer(self, offer: Offer) -> Verdict:
        """Scores a gradient; what becomes a step is the rescaled one."""
        if self._v_d is None or self._arrivals >= self._refresh:
            self._take(np.array(self._validate(offer.params_d, self._made)))
            self._made += 1
            self._arrivals = 0
        self._arrivals += 1
        grad_d = offer.grad_d
        assert self._v_d is not None
        square, product = self._vectors.products(grad_d, self._v_d)
        if not is_finite(grad_d, square):
            return Verdict(None, NOT_FINITE)
        length = norm(grad_d, square)
        if length == 0:
            return Verdict(None, ZERO)
        gamma, v_norm = self._gamma(), self._v_norm
        # <v, u'> = |v| <v, u / |u|>
        if not (0 < square < np.inf and np.isfinite(product)):  # they have left float64
            with np.errstate(over="ignore", invalid="ignore"):
                _, product = self._vectors.products(grad_d / length, self._v_d)
        else:
            product /= length
        with np.errstate(over="ignore", invalid="ignore"):
            score = gamma * product * v_norm - self._rho * v_norm * v_norm
        if not score >= -gamma * self._epsilon:  # also where v is not finite
            return Verdict(None, SCORE)
        return Verdict(self._rescaled(grad_d, length))

    def _rescaled(self, grad_d: np.ndarray, length: float) -> np.ndarray:
        """Returns a gradient of this length, above 0, with the length of v."""
        # In its own memory, which is in cache, where that may be written to.
        step_d = grad_d if grad_d.flags.writeable else np.empty_like(grad_d)
        factor = self._v_norm / length
        if 1e-30 < factor < 1e30 and length > 1e-30:
            self._vectors.scale(grad_d, factor, step_d)
        else:  # float32 has not its range, nor all digits
            with np.errstate(over="ignore", invalid="ignore"):
                step_d[:] = grad_d.astype(np.float64) / length * self._v_norm
        return step_d

    def _take(self, v_d: np.ndarray) -> None:
        self._v_d = v_d
        self._v_norm = norm(v_d, self._vectors.squares(v_d, None)) if is_finite(v_d) else np.nan

    def state(self) -> dict[str, np.ndarray]:
        """Returns v and what is counted."""
        state = {"arrivals": np.array(self._arrivals), "made": np.array(self._made)}
        if self._v_d is not None:
            state["v"] = self._v_d
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state`` gave."""
        self._arrivals, self._made = int(state["arrivals"]), int(state["made"])
        self._v_d, self._v_norm = None, 0.0
        if "v" in state:
            self._take(np.array(state["v"]))
