"""The arrival rule that a setting names, with all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from aggregathor import ops
from aggregathor.protocols.aggregation import Aggregation
from aggregathor.protocols.arrivals import Need
from aggregathor.protocols.basgd import Basgd
from aggregathor.protocols.kardam import Kardam
from aggregathor.protocols.offers import ArrivalRule, Offer, Verdict
from aggregathor.protocols.plain import Plain
from aggregathor.protocols.registry import PROTOCOLS, num_buffers
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from aggregathor.protocols.validation import Validate, Validation
from aggregathor.protocols.vectors import NUMPY, Vectors
from aggregathor.protocols.zenopp import Zenopp


def arrival_rule(
    setting: Setting,
    dim: int,
    *,
    dtype: DTypeLike = np.float32,
    secret: int | None = None,
    learning_rate: Callable[[], float] | None = None,
    validation: Validation | None = None,
    validate: Validate | None = None,
) -> ArrivalRule:
    """Returns the rule of a setting that was checked, before its first arrival.

    Args:
      setting: names protocol and rule.
      dim: d.
      dtype: of gradients and parameters.
      secret: seed of the generators that BASGD's rule gets: see ``Aggregation``.
      learning_rate: gives the optimizer's in the next step; for Zeno++, unless it has a gamma, and
        for BASGD's rule.
      validation: what BASGD's rule may judge its buffers by; None where there is nothing.
      validate: for Zeno++.
    """
    given = _given(setting)
    n, f = setting.num_workers, setting.f
    vectors = vectors_for(dtype)
    if setting.protocol == "basgd":
        buffers = num_buffers(n=n, f=f, buffers=given["buffers"])
        # The rule gets as many rows as there are buffers.
        aggregation = Aggregation(
            replace(setting, num_workers=buffers),
            dim,
            dtype=dtype,
            secret=secret,
            learning_rate=learning_rate,
            validation=validation,
        )
        return BasgdWithRule(n, buffers, aggregation, given["reassign_s"], vectors)
    if setting.protocol == "zeno++":
        return _zenopp(given, learning_rate, validate, vectors)
    if setting.protocol == "kardam":
        return Kardam(n, f, **given, vectors=vectors)
    return Plain(vectors)


def vectors_for(dtype: DTypeLike) -> Vectors:
    """Returns what computes on gradients of a dtype: kernels for float32, where there are any."""
    if np.dtype(dtype) != np.float32 or not ops.has_arrays():
        return NUMPY
    arrays = ops.arrays
    return Vectors(
        arrays.squares, arrays.products, arrays.sq_distance, arrays.move_mean, arrays.scale
    )


def need_of(setting: Setting) -> Need:
    """Returns what a protocol needs to go on."""
    n, f = setting.num_workers, setting.f
    if setting.protocol == "basgd":
        buffers = num_buffers(n=n, f=f, buffers=_given(setting)["buffers"])
        return Need(buffers, f"basgd has {buffers} buffers, and goes on while as many workers live")
    if setting.protocol == "kardam":
        return Need(n - f, f"kardam goes on while n - f = {n - f} workers live")
    return Need(1, f"{setting.protocol} goes on while one worker's gradients are accepted")


def _given(setting: Setting) -> dict[str, Any]:
    """Returns the protocol's parameters, with defaults."""
    return {**PROTOCOLS[setting.protocol].parameters, **setting.protocol_args}


class BasgdWithRule:
    """BASGD and the rule that aggregates its buffers, whose state it keeps."""

    def __init__(
        self,
        num_workers: int,
        buffers: int,
        aggregation: Aggregation,
        reassign_s: float,
        vectors: Vectors = NUMPY,
    ) -> None:
        """Begins with empty buffers; the aggregation is of that many rows."""
        self._aggregation = aggregation
        self._basgd = Basgd(num_workers, buffers, self._aggregate, reassign_s, vectors)
        self._steps = 0
        self._params_d: np.ndarray  # of the offer at hand

    def offer(self, offer: Offer) -> Verdict:
        """Writes a gradient into its worker's buffer.

        Raises:
          RuleError: the rule cannot be applied to the buffers.
        """
        self._params_d = offer.params_d
        return self._basgd.offer(offer)

    def _aggregate(self, stack_bd: np.ndarray) -> np.ndarray:
        context = self._aggregation.context(self._steps, lambda: self._params_d)
        self._steps += 1
        nobody = np.empty(0, np.int64)
        return np.asarray(self._aggregation.aggregate(stack_bd, nobody, context).grad_d)

    def state(self) -> dict[str, np.ndarray]:
        """Returns buffers, and the rule's state."""
        return {
            **prefixed("buffers", self._basgd.state()),
            **prefixed("aggregation", self._aggregation.state()),
            "steps": np.array(self._steps),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Goes on from what ``state`` gave."""
        self._basgd.restore(under("buffers", state))
        self._aggregation.restore(under("aggregation", state))
        self._steps = int(state["steps"])


def _zenopp(
    given: Mapping[str, Any],
    learning_rate: Callable[[], float] | None,
    validate: Validate | None,
    vectors: Vectors,
) -> Zenopp:
    assert validate is not None
    gamma, batch = given["gamma"], given["batch"]
    rate = learning_rate if gamma is None else lambda: float(gamma)
    assert rate is not None
    return Zenopp(
        lambda params_d, number: validate(params_d, number, batch),
        rate,
        **{name: given[name] for name in ("rho", "epsilon", "refresh")},
        vectors=vectors,
    )
