"""Drives an arrival rule by hand: versions, staleness and models as a server keeps them."""

import numpy as np

from aggregathor.protocols.offers import Offer


class Toy:
    """A server of one vector, and what each worker holds.

    Attributes:
      params_d: the model.
      version: how many updates it has had.
      held: by row, the version and the model that the worker has.
      events: by arrival, (row, staleness, verdict).
    """

    def __init__(self, rule, num_workers, params_d, gamma=0.1):
        self.rule = rule
        self.gamma = gamma
        self.params_d = np.asarray(params_d)
        self.version = 0
        self.held = [(0, self.params_d)] * num_workers
        self.events = []

    def offer(self, row, grad_d, now_s=0.0):
        """Offers a gradient, applies the step if there is one, and answers the worker."""
        version, model_d = self.held[row]
        grad_d = np.asarray(grad_d, self.params_d.dtype)
        offer = Offer(
            row, version, self.version - version, model_d, self.params_d, grad_d.copy(), now_s
        )
        verdict = self.rule.offer(offer)
        if verdict.step_d is not None:  # it may be the gradient's memory
            verdict = verdict._replace(step_d=verdict.step_d.copy())
        if verdict.step_d is not None:
            assert verdict.step_d.dtype == self.params_d.dtype
            assert verdict.step_d.shape == self.params_d.shape
            with np.errstate(over="ignore", invalid="ignore"):  # hostile steps
                self.params_d = (
                    self.params_d - self.params_d.dtype.type(self.gamma) * verdict.step_d
                )
            self.version += 1
        offer.grad_d.fill(np.nan)  # as a link that receives the next one
        self.held[row] = self.version, self.params_d
        self.events.append((row, offer.staleness, verdict))
        return verdict

    def is_step(self):
        """Which arrivals were steps."""
        return [verdict.step_d is not None for _, _, verdict in self.events]


def equal_states(a, b):
    """Raises unless two states are the same to the last bit."""
    assert a.keys() == b.keys()
    for name, array in a.items():
        assert array.dtype == b[name].dtype, name
        np.testing.assert_array_equal(array, b[name], err_msg=name)
