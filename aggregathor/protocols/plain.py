"""Plain asynchronous SGD: every gradient is a step at once, whatever model it is of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from aggregathor.protocols.offers import NOT_FINITE, Offer, Verdict
from aggregathor.protocols.vectors import NUMPY, Vectors, is_finite


class Plain:
    r"""The arrival rule of plain asynchronous SGD, which tolerates no Byzantine worker.

    .. math:: x \leftarrow x - \gamma g

    Only what is not finite is rejected. Cost: O(d) an arrival, no memory.
    Source: Recht et al., Hogwild!, NeurIPS 2011; Dean et al., Large Scale Distributed Deep
      Networks, NeurIPS 2012.
    """

    def __init__(self, vectors: Vectors = NUMPY) -> None:
        """Takes what computes on vectors."""
        self._vectors = vectors

    def offer(self, offer: Offer) -> Verdict:
        """Returns the gradient as the step."""
        grad_d = offer.grad_d
        if not is_finite(grad_d, self._vectors.squares(grad_d, None)):
            return Verdict(None, NOT_FINITE)
        return Verdict(grad_d)

    def state(self) -> dict[str, np.ndarray]:
        """Returns nothing: it keeps nothing."""
        return {}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on."""
