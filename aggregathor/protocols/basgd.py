"""BASGD: gradients are averaged in B buffers, and the buffers aggregated once none is empty."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from aggregathor.protocols.offers import NOT_FINITE, Offer, Verdict
from aggregathor.protocols.vectors import NUMPY, Vectors, is_finite

REASSIGNED = "reassigned"


class Basgd:
    r"""The arrival rule of Buffered Asynchronous SGD.

    Worker s writes into buffer :math:`b = \beta_s \bmod B` and into no other, with
    :math:`\beta_s = s` at first:

    .. math:: N_b \leftarrow N_b + 1, \quad h_b \leftarrow h_b + (g - h_b) / N_b

    Once no buffer is empty the step is :math:`\mathrm{Aggr}(h_1, \dots, h_B)`, and all are emptied.
    An arrival more than Delta seconds after that, while a buffer is still empty, reassigns the
    workers: those that were heard come first, in ascending order, then the others, and
    :math:`\beta_s` is a worker's place. All buffers are emptied then, so that f workers never have
    their gradients in more than f buffers.

    The means have the gradients' dtype. Each gradient adds at most two roundings to its buffer's
    mean, which those that follow shrink: after N the error is at most N times half a unit in the
    last place of the largest value. That is far below what gradients of a batch differ by, and the
    rule takes float32 anyway; float64 would cost twice the memory traffic of an arrival.

    Resilience: that of the rule with n = B. At least B workers must live: with fewer some buffer
      stays empty for ever.
    Cost: O(d) an arrival, the rule's a step; B d values.
    Source: Yang and Li, BASGD: Buffered Asynchronous SGD for Byzantine Learning, ICML 2021. That
      the buffers are emptied at a reassignment is ours.
    """

    def __init__(
        self,
        num_workers: int,
        buffers: int,
        aggregate: Callable[[np.ndarray], np.ndarray],
        reassign_s: float,
        vectors: Vectors = NUMPY,
    ) -> None:
        """Begins with empty buffers, at 0 s.

        Args:
          num_workers: m.
          buffers: B, 1..m.
          aggregate: the rule: [B, d] of the gradients' dtype to [d].
          reassign_s: Delta, above 0.
          vectors: what computes on gradients.
        """
        self._vectors = vectors
        self._aggregate = aggregate
        self._reassign_s = reassign_s
        self._place_n = np.arange(num_workers)  # beta
        self._active_n = np.zeros(num_workers, bool)
        self._opened_s = 0.0
        self._counts_b = np.zeros(buffers, np.int64)  # N
        self._means_bd: np.ndarray | None = None  # h; of empty buffers anything

    @property
    def buffers(self) -> np.ndarray:
        """Which buffer each worker writes into, int64 [m]."""
        return self._place_n % len(self._counts_b)

    def offer(self, offer: Offer) -> Verdict:
        """Writes a gradient into its worker's buffer."""
        buffer = self.buffers[offer.row]
        if self._means_bd is None:
            shape = len(self._counts_b), len(offer.grad_d)
            self._means_bd = np.zeros(shape, offer.grad_d.dtype)
        if not self._take(offer.grad_d, self._means_bd[buffer], int(self._counts_b[buffer])):
            return Verdict(None, NOT_FINITE)
        self._counts_b[buffer] += 1
        self._active_n[offer.row] = True
        if self._counts_b.all():
            self._empty(offer.now_s)
            return Verdict(self._aggregate(self._means_bd))
        if offer.now_s - self._opened_s > self._reassign_s:
            self._reassign(offer.now_s)
            return Verdict(None, REASSIGNED)
        return Verdict(None)

    def _take(self, grad_d: np.ndarray, mean_d: np.ndarray, count: int) -> bool:
        """Makes the mean of so many gradients that of one more; False, and no more, if not finite.

        What an empty buffer holds does not count, so there the gradient is copied as it is checked.
        """
        square = self._vectors.squares(grad_d, None if count else mean_d)
        if not is_finite(grad_d, square):
            return False
        if count:
            self._vectors.move_mean(mean_d, grad_d, count + 1)
        return True

    def _reassign(self, now_s: float) -> None:
        order_n = np.argsort(~self._active_n, kind="stable")  # the active first, both ascending
        self._place_n[order_n] = np.arange(len(order_n))
        self._empty(now_s)

    def _empty(self, now_s: float) -> None:
        self._counts_b.fill(0)
        self._active_n.fill(False)
        self._opened_s = now_s

    def state(self) -> dict[str, np.ndarray]:
        """Returns places, buffers and the timer."""
        state = {
            "place": self._place_n.copy(),
            "active": self._active_n.copy(),
            "opened_s": np.array(self._opened_s),
            "counts": self._counts_b.copy(),
        }
        if self._means_bd is not None:
            state["means"] = np.where(self._counts_b[:, None] > 0, self._means_bd, 0)
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state`` gave."""
        self._place_n = np.array(state["place"])
        self._active_n = np.array(state["active"])
        self._opened_s = float(state["opened_s"])
        self._counts_b = np.array(state["counts"])
        self._means_bd = np.array(state["means"]) if "means" in state else None
