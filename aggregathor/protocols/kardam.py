"""Kardam: a gradient is a step if it changes no faster than others' and its worker is not heard
too often; the staler it is, the shorter the step.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from aggregathor.protocols.offers import NOT_FINITE, Offer, Verdict
from aggregathor.protocols.vectors import NUMPY, Vectors, is_finite, wide_distance

LIPSCHITZ, FREQUENCY, NO_COEFFICIENT = "lipschitz", "frequency", "no coefficient"
DAMPENINGS = ("inverse", "exponential", "none")
FREQUENCIES = ("strict", "weak")
_EXPIRES = 4  # arrivals a worker, after which a coefficient is too old to say anything


class _Sent(NamedTuple):
    """A gradient that a worker has sent, and the model that it is of."""

    version: int
    model_d: np.ndarray
    grad_d: np.ndarray


class Kardam:
    r"""The arrival rule of Kardam.

    The server computes each worker's empirical Lipschitz coefficient from its last gradient and
    from its last one at another model, and keeps it whether the gradient is accepted or not:

    .. math:: k_i = \lVert g_i - g_i' \rVert_2 / \lVert x_i - x_i' \rVert_2

    A gradient passes if :math:`k_i` is at most the (n-f)-th smallest of the n coefficients, an
    unknown one being infinite, and if i is none of the workers of the last 2f accepted gradients
    (``frequency="strict"``). Exactly then, of any 2f+1 accepted in a row f+1 are honest, whichever
    f workers are Byzantine. ("weak": of 2f+1 in a row f+1 are different workers', as the paper has
    it.) The step is

    .. math:: \Lambda(\tau) g, \quad \Lambda(\tau) = \frac{1}{1 + \tau}, \; e^{-\alpha \tau}
              \text{ or } 1

    The paper leaves three things open. As long as fewer than n-f coefficients are known, the newest
    gradient of each worker is kept, and the coordinate-wise median of those of n-f workers is a
    step. A coefficient that is 4n arrivals old is unknown: old ones of workers that have fallen
    silent, or send nothing usable, would stop the others for ever. And one that is not finite is
    unknown, as is one of models that are equal.

    Resilience: n >= 3f + 1, against gradients that are wrong at random. As published, it lets pass
      who sends the negative of its gradient, whose coefficient is an honest one's, and who sends a
      constant of any size, whose coefficient is 0.
    Cost: O(d) an arrival, O(nd) for a step of the beginning; 5 n d values at most, of
      which 2 n d are of models that others may hold too.
    Source: Damaskinos et al., Asynchronous Byzantine Machine Learning (the case of SGD), ICML 2018.
    """

    def __init__(
        self,
        num_workers: int,
        f: int,
        *,
        dampening: str = "inverse",
        alpha: float = 0.2,
        frequency: str = "strict",
        vectors: Vectors = NUMPY,
    ) -> None:
        """Begins without any coefficient.

        Args:
          num_workers: n, at least 3f + 1.
          f: how many may be Byzantine.
          dampening: one of ``DAMPENINGS``.
          alpha: of "exponential".
          frequency: one of ``FREQUENCIES``.
          vectors: what computes on gradients and models.
        """
        self._vectors = vectors
        self._n, self._f = num_workers, f
        self._dampening, self._alpha = dampening, alpha
        self._frequency = frequency
        self._last: list[_Sent | None] = [None] * num_workers
        self._previous: list[_Sent | None] = [None] * num_workers  # of another model than the last
        self._moved_n = np.zeros(num_workers)  # distance of the models of the two
        self._k_n = np.full(num_workers, np.nan)  # NaN: unknown
        self._known_at_n = np.zeros(num_workers, np.int64)  # the arrival that gave each
        self._accepted: deque[int] = deque(maxlen=2 * f)  # the rows of the last ones
        self._first: dict[int, np.ndarray] = {}  # of the beginning: the newest of each worker
        self._arrivals = 0
        self._spare: list[np.ndarray] = []  # memory of gradients that are not kept any more

    @property
    def coefficients(self) -> np.ndarray:
        """Every worker's coefficient, float64 [n]; NaN where it is unknown."""
        return self._k_n.copy()

    def offer(self, offer: Offer) -> Verdict:
        """Filters a gradient, and dampens what passes."""
        self._arrivals += 1
        self._k_n[self._arrivals - self._known_at_n > _EXPIRES * self._n] = np.nan
        begins = np.count_nonzero(~np.isnan(self._k_n)) < self._n - self._f
        if not self._take(offer):
            return Verdict(None, NOT_FINITE)
        if begins:
            return self._begin(offer)
        self._first.clear()
        row, k = offer.row, self._k_n[offer.row]
        if np.isnan(k):
            return Verdict(None, NO_COEFFICIENT)
        known_n = np.where(np.isnan(self._k_n), np.inf, self._k_n)
        if k > np.sort(known_n)[self._n - self._f - 1]:
            return Verdict(None, LIPSCHITZ)
        if self._is_too_frequent(row):
            return Verdict(None, FREQUENCY)
        self._accepted.append(row)
        return Verdict(self._dampened(offer.grad_d, self._share(offer.staleness)))

    def _take(self, offer: Offer) -> bool:
        """Keeps a gradient, and with one of another model computes the coefficient.

        Returns False, and keeps nothing, if the gradient is not finite.
        """
        row = offer.row
        last, previous, moved = self._last[row], self._previous[row], self._moved_n[row]
        if last is not None and last.version != offer.version:
            square = self._vectors.sq_distance(offer.model_d, last.model_d, None)
            between = self._root(square, offer.model_d, last.model_d)
            if between > 0:
                previous, moved = last, between
        sent = _Sent(offer.version, offer.model_d, self._memory_like(offer.grad_d))
        if previous is None:
            square = self._vectors.squares(offer.grad_d, sent.grad_d)
        else:
            square = self._vectors.sq_distance(offer.grad_d, previous.grad_d, sent.grad_d)
        if not is_finite(offer.grad_d, square):
            self._spare.append(sent.grad_d)
            return False
        dropped = self._previous[row] if previous is last else last
        if dropped is not None:
            self._spare.append(dropped.grad_d)
        self._last[row], self._previous[row], self._moved_n[row] = sent, previous, moved
        if previous is not None:
            k = self._root(square, sent.grad_d, previous.grad_d) / float(moved)
            self._k_n[row] = k if math.isfinite(k) else math.nan
            self._known_at_n[row] = self._arrivals
        return True

    def _root(self, square: float, a_d: np.ndarray, b_d: np.ndarray) -> float:
        """Returns the distance of which this is the square, if it has the range of the dtype."""
        return math.sqrt(square) if math.isfinite(square) else wide_distance(a_d, b_d)

    def _memory_like(self, grad_d: np.ndarray) -> np.ndarray:
        """Returns memory for a gradient: fresh memory costs as much as all that is computed."""
        while self._spare:
            spare_d = self._spare.pop()
            if spare_d.dtype == grad_d.dtype:
                return spare_d
        return np.empty_like(grad_d)

    def _dampened(self, grad_d: np.ndarray, share: float) -> np.ndarray:
        if share == 1:
            return grad_d
        # In its own memory, which is in cache, where that may be written to.
        step_d = grad_d if grad_d.flags.writeable else self._memory_like(grad_d)
        self._vectors.scale(grad_d, share, step_d)
        return step_d

    def _begin(self, offer: Offer) -> Verdict:
        """Makes a robust step of one gradient each of n-f workers, once there are so many."""
        sent = self._last[offer.row]
        assert sent is not None
        self._first[offer.row] = sent.grad_d
        if len(self._first) < self._n - self._f:
            return Verdict(None)
        rows = [self._first[row] for row in sorted(self._first)]
        self._first.clear()
        with np.errstate(over="ignore"):
            return Verdict(np.median(rows, axis=0).astype(offer.grad_d.dtype))

    def _is_too_frequent(self, row: int) -> bool:
        if self._frequency == "strict":
            return row in self._accepted
        full = len(self._accepted) == 2 * self._f
        return full and len({*self._accepted, row}) < self._f + 1

    def _share(self, staleness: int) -> float:
        if self._dampening == "inverse":
            return 1 / (1 + staleness)
        return math.exp(-self._alpha * staleness) if self._dampening == "exponential" else 1.0

    def state(self) -> dict[str, np.ndarray]:
        """Returns what was sent, and the coefficients."""
        first = sorted(self._first)
        return {
            **_packed("last", self._last),
            **_packed("previous", self._previous),
            "moved": self._moved_n.copy(),
            "k": self._k_n.copy(),
            "known_at": self._known_at_n.copy(),
            "accepted": np.array(self._accepted, np.int64),
            "first": np.array(first, np.int64),
            "arrivals": np.array(self._arrivals),
            **{f"first/{row}": self._first[row].copy() for row in first},
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state`` gave."""
        self._last = _unpacked("last", state)
        self._previous = _unpacked("previous", state)
        self._moved_n = np.array(state["moved"])
        self._k_n = np.array(state["k"])
        self._known_at_n = np.array(state["known_at"])
        self._accepted = deque(state["accepted"].tolist(), maxlen=2 * self._f)
        self._first = {row: np.array(state[f"first/{row}"]) for row in state["first"].tolist()}
        self._arrivals = int(state["arrivals"])


def _packed(name: str, sent: list[_Sent | None]) -> dict[str, np.ndarray]:
    packed = {
        f"{name}/versions": np.array([-1 if s is None else s.version for s in sent], np.int64)
    }
    for row, each in enumerate(sent):
        if each is not None:
            packed[f"{name}/model/{row}"] = each.model_d
            packed[f"{name}/gradient/{row}"] = each.grad_d.copy()  # whose memory is used again
    return packed


def _unpacked(name: str, state: Mapping[str, np.ndarray]) -> list[_Sent | None]:
    sent: list[_Sent | None] = []
    for row, version in enumerate(state[f"{name}/versions"].tolist()):
        arrays = (np.array(state.get(f"{name}/{kind}/{row}")) for kind in ("model", "gradient"))
        sent.append(None if version < 0 else _Sent(version, *arrays))
    return sent
