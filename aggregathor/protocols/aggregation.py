"""The server's half of a step: the holes are filled, the rule is applied, its refusals are told."""

from __future__ import annotations

import re

import numpy as np
import tensorflow as tf

from aggregathor import gars
from aggregathor.errors import UserError
from aggregathor.protocols.overlap import AheadOfClose
from aggregathor.protocols.setting import Setting
from lossympi import Collected, fill

# Which row a coordinate's value came from takes a coordinate-wise rule some 10 times as long as the
# value: of more coordinates, so many tell how much of a row was used, to 1% of the whole.
SAMPLED = 1 << 14
_RUN = 64  # of them lie side by side, as memory is read


class RuleError(UserError):
    """The gradients of a step are too few for the rule: more than f are lost or not finite."""


class Aggregator:
    """Fills and aggregates as a ``Setting`` says.

    Attributes:
      previous_nd: float32 [n, d], what the fill "previous" puts into holes; [0, 0] with any other.
    """

    def __init__(self, setting: Setting, dim: int) -> None:
        """Takes a checked setting, and d."""
        self.setting = setting
        self._dim = dim
        self._gar = gars.GARS[setting.gar]
        self._parameters = {"f": setting.f, **setting.gar_parameters}
        keeps = setting.fill == "previous"
        rows = (setting.num_workers, dim) if keeps else (0, 0)
        self._sample = _sample(dim) if self._gar.coordinate_wise and dim > SAMPLED else None
        self.previous_nd = tf.Variable(tf.zeros(rows, tf.float32), trainable=False)

    def fill(self, collected: Collected) -> None:
        """Replaces, in place, what did not arrive."""
        keeps = self.setting.fill == "previous"
        fill(
            collected.stack_nd,
            collected.arrived_nc,
            self.setting.fill,
            seed=self.setting.seed,
            round=collected.round,
            previous_nd=self.previous_nd.numpy() if keeps else None,
            floats_per_datagram=collected.floats_per_datagram,
        )
        if keeps:
            self.previous_nd.assign(collected.stack_nd)

    def ahead(self) -> AheadOfClose | None:
        """Returns what aggregates columns of a round before all is there, if the rule allows it.

        Not where there are so few that it gains nothing.
        """
        if self._dim <= SAMPLED or not self._gar.by_columns():
            return None
        return AheadOfClose(self._gar, self._parameters, self._dim)

    def explain(self, stack_nd: np.ndarray, ahead: AheadOfClose | None = None) -> gars.Explained:
        """Applies the rule; returns arrays. Rows may be fewer than n where workers are gone.

        Of a coordinate-wise rule ``share_n`` is that of 16384 coordinates, spread evenly.

        Args:
          stack_nd: float32 [n, d].
          ahead: of this round; the columns that it has made are not made again.
        Raises:
          RuleError: more rows than the rule can bear lack values.
        """
        parameters = self._parameters
        try:
            if ahead is not None and ahead.has_begun():
                explained = ahead.finish(stack_nd)
            else:
                with_share = self._sample is None
                explained = self._gar.explain_array(stack_nd, with_share=with_share, **parameters)
            if self._sample is not None:
                shown = self._gar.explain_array(stack_nd[:, self._sample], **parameters)
                explained = explained._replace(share_n=shown.share_n)
        except tf.errors.InvalidArgumentError as error:  # more bad rows than the rule can bear
            raise RuleError(re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", error.message)) from None
        if np.may_share_memory(explained.grad_d, stack_nd):  # the link will write there
            explained = explained._replace(grad_d=np.array(explained.grad_d))
        return explained


def _sample(dim: int) -> np.ndarray:
    """Returns which coordinates tell of all, int64 [SAMPLED]."""
    runs = SAMPLED // _RUN
    firsts = np.linspace(0, dim - _RUN, runs).astype(np.int64)
    return (firsts[:, None] + np.arange(_RUN)).ravel()
