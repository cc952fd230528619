"""From what arrived in a round to the aggregate: holes are filled, the rule is applied.

Where workers send encodings, a decoder stands in the place of the rule.

Both keep something from round to round: the fill "previous" the last stack, a rule its state.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from numpy.typing import DTypeLike

from aggregathor.errors import UserError
from aggregathor.gars import Aggregated, Context, Rule, State
from aggregathor.protocols.decoding import Decoder, UndecodableError, code_of
from aggregathor.protocols.overlap import StreamingAggregate
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.state import prefixed, under
from aggregathor.protocols.validation import Validation
from lossympi import Collected, fill
from lossympi.rng import generator

_logger = logging.getLogger(__name__)
_BETWEEN_WARNINGS_S = 60.0

# Which row a coordinate's value came from takes a coordinate-wise rule some 10 times as long as the
# value. With more coordinates than this, usage is estimated from a sample, to 1% of the whole.
SAMPLED = 1 << 14
_RUN = 64  # of them lie side by side, as memory is read


class RuleError(UserError):
    """The gradients of a step are too few for the rule: more than f are lost or not finite."""


class Aggregation:
    """Fills and aggregates as a ``Setting`` says.

    Attributes:
      setting: the fill, the rule and f.
      rule_state: what the rule keeps from round to round.
      width: values that travel for each coordinate of the aggregate.
      unverified: of the last stack, the share of coordinates whose decoded mean is not verified,
        0..1; 0 of rules.
    """

    def __init__(
        self,
        setting: Setting,
        dim: int,
        *,
        dtype: DTypeLike = np.float32,
        secret: int | None = None,
        learning_rate: Callable[[], float] | None = None,
        validation: Validation | None = None,
    ) -> None:
        """Begins before the first round.

        Args:
          setting: is taken as checked.
          dim: values in a row of the stack: d, or ``width`` times d.
          dtype: of the stacks, float32 or float64.
          secret: seed of the generators that rules get, 0..2^63-1; by default the setting's, which
            workers know too.
          learning_rate: gives that of the server's optimizer in this step; None if unknown.
          validation: the losses that the rule may judge gradients by; None where there are none.

        Raises:
          UserError: see ``code_of``.
        """
        self.setting = setting
        self._dim = dim
        self._dtype = np.dtype(dtype)
        code = code_of(setting, dtype)
        self._decoder = None if code is None else Decoder(code)
        self._rule: Rule | Decoder = self._decoder or setting.rule
        self.width = 1 if code is None else code.width
        self.rule_state = self._rule.init(setting.num_workers, dim)
        self._secret = setting.seed if secret is None else secret
        self._learning_rate = learning_rate
        self._validation = validation
        self._previous_nd: np.ndarray | None = None
        sampled = self._rule.coordinate_wise and dim > SAMPLED
        self._sample = _sample(dim) if sampled else None
        self._fits: dict[int, bool] = {setting.num_workers: True}
        self._warned_s = self._warned_of_unverified_s = -math.inf

    @property
    def unverified(self) -> float:  # noqa: D102 - see the class
        return 0.0 if self._decoder is None else self._decoder.unverified

    def state(self) -> State:
        """Returns what the next rounds depend on."""
        state: dict[str, np.ndarray] = prefixed("rule", self.rule_state)
        state["secret"] = np.array(self._secret, np.uint64)
        if self._previous_nd is not None:
            state["previous"] = self._previous_nd.copy()
        return state

    def restore(self, state: State) -> None:
        """Goes on from what ``state`` gave."""
        self.rule_state = under("rule", state)
        self._secret = int(state["secret"])
        self._previous_nd = np.array(state["previous"]) if "previous" in state else None

    def context(self, round: int, params: Callable[[], np.ndarray] | None = None) -> Context:
        """Returns what a round lends to the rule; without parameters it lends no losses."""

        def rng(purpose: str) -> np.random.Generator:
            return generator(f"rule {purpose}", self._secret, round)

        return Context(
            round=round,
            params=params,
            learning_rate=self._learning_rate,
            losses=self._losses_at(params, rng),
            rng=rng,
        )

    def fill(self, collected: Collected) -> None:
        """Replaces, in place, what did not arrive."""
        if self._decoder is not None:
            self._decoder.block = collected.floats_per_datagram
        keeps = self.setting.fill == "previous"
        fill(
            collected.stack_nd,
            collected.arrived_nc,
            self.setting.fill,
            seed=self.setting.seed,
            round=collected.round,
            previous_nd=self._previous_nd,
            floats_per_datagram=collected.floats_per_datagram,
        )
        if keeps:
            if self._previous_nd is None:
                self._previous_nd = np.empty_like(collected.stack_nd)
            np.copyto(self._previous_nd, collected.stack_nd)

    def streaming(self) -> StreamingAggregate | None:
        """Returns what aggregates columns of a round before all is there, if the rule allows it.

        Not where there are too few columns to gain anything, nor in float64, for which there are no
        kernels on columns.
        """
        if self._dim <= SAMPLED or self._dtype != np.float32:
            return None
        rule = self._rule
        if isinstance(rule, Decoder) or not rule.by_columns():
            return None
        return StreamingAggregate(rule, self.setting.f, self._dim)

    def aggregate(
        self,
        stack_nd: np.ndarray,
        missing: np.ndarray,
        context: Context,
        streaming: StreamingAggregate | None = None,
    ) -> Aggregated:
        """Applies the rule to a round, and moves its state on.

        Where rows are missing, the rule is applied to those that are there, if its condition holds
        for them and f: any f of them may be Byzantine then, whoever is missing. Otherwise up to f
        missing ones count among the f, which a warning says, at most once a minute.

        Args:
          stack_nd: [n, d], filled.
          missing: the rows from which nothing arrived.
          context: of the round.
          streaming: of this round; the columns that it has made are not made again.

        Returns:
          Arrays that share no memory with the stack. Of a coordinate-wise rule ``usage_n`` is that
          of 16384 coordinates, spread evenly.
        Raises:
          RuleError: more rows than the rule can tolerate are missing, or lack values.
        Cost: that of the rule; where rows are missing, a copy of the others, unless they lie side
          by side.
        """
        if self._decoder is not None:
            return self._decode(stack_nd, missing, context)
        if not len(missing):
            aggregated, self.rule_state = self._apply(stack_nd, self.rule_state, context, streaming)
            return aggregated
        present = np.setdiff1d(np.arange(len(stack_nd)), missing)
        try:
            self.check(len(present))
            if not self._state_fits(len(present)):
                raise UserError(
                    f"{self._rule.name} keeps a state of {len(stack_nd)} rows, and "
                    f"{len(present)} came"
                )
        except UserError as error:
            whom = self.setting.topology.describe_rows(missing)
            if len(missing) > self.setting.f:
                raise RuleError(f"nothing came from {whom}, and {error}") from None
            self._warn(len(missing), whom, str(error))
            aggregated, self.rule_state = self._apply(stack_nd, self.rule_state, context)
            return aggregated
        try:
            rows_nd = _rows(stack_nd, present)
            aggregated, self.rule_state = self._apply(rows_nd, self.rule_state, context)
        except RuleError as error:
            whom = self.setting.topology.describe_rows(missing)
            raise RuleError(f"nothing came from {whom}, and {error}") from None
        usage_n = np.zeros(len(stack_nd))
        usage_n[present] = aggregated.usage_n
        return aggregated._replace(usage_n=usage_n)

    def _losses_at(
        self,
        params: Callable[[], np.ndarray] | None,
        rng: Callable[[str], np.random.Generator],
    ) -> Callable[..., np.ndarray] | None:
        validation = self._validation
        if params is None or validation is None:
            return None
        return lambda stack_nd, rows, gamma, n_r: validation(
            params(), stack_nd, rows, gamma, n_r, rng("validation")
        )

    def _decode(self, stack_nd: np.ndarray, missing: np.ndarray, context: Context) -> Aggregated:
        """Decodes a round: missing rows keep their places."""
        assert self._decoder is not None
        try:
            aggregated, _ = self._apply(stack_nd, {}, context)
        except RuleError as error:
            if not len(missing):
                raise
            whom = self.setting.topology.describe_rows(missing)
            raise RuleError(f"nothing came from {whom}, and {error}") from None
        now_s = time.monotonic()
        if self.unverified and now_s - self._warned_of_unverified_s >= _BETWEEN_WARNINGS_S:
            self._warned_of_unverified_s = now_s
            _logger.warning("round %d: %s", context.round, self._decoder.warning)
        return aggregated

    def _state_fits(self, n: int) -> bool:
        """Returns whether the rule's state is the same for n rows as for all."""
        if n not in self._fits:
            shapes = {name: np.shape(each) for name, each in self._rule.init(n, self._dim).items()}
            self._fits[n] = shapes == {name: np.shape(a) for name, a in self.rule_state.items()}
        return self._fits[n]

    def _warn(self, num_missing: int, whom: str, reason: str) -> None:
        now_s = time.monotonic()
        if now_s - self._warned_s < _BETWEEN_WARNINGS_S:
            return
        self._warned_s = now_s
        f = self.setting.f
        _logger.warning(
            "nothing came from %s: %d of the f=%d are used up, and the other gradients may have %d "
            "Byzantine ones among them (%s)",
            *(whom, num_missing, f, f - num_missing, reason.partition(". ")[0]),
        )

    def check(self, n: int) -> None:
        """Raises ``UserError`` where the rule cannot be applied to n gradients."""
        self._rule.check(n=n, f=self.setting.f)

    def ask(
        self, stack_nd: np.ndarray, context: Context, order: np.ndarray | None = None
    ) -> Aggregated:
        """Returns what the rule would make of a stack [n, d'], and changes nothing.

        Where d' is not d, the state of a rule does not fit: the rule is then as in its first round.

        Args:
          stack_nd: [n, d'].
          context: of the round.
          order: int [n], which worker's each row is; as they are if not given.
        """
        n, dim = stack_nd.shape
        state = self.rule_state if dim == self._dim else self._rule.init(n, dim)
        if order is None:
            return self._apply(stack_nd, state, context)[0]
        aggregated = self._apply(stack_nd[np.argsort(order)], state, context)[0]
        return aggregated._replace(usage_n=np.asarray(aggregated.usage_n)[order])

    def follow(self, stack_nd: np.ndarray, context: Context) -> None:
        """Moves the rule's state on as a round with this stack does, if the rule keeps any."""
        if self._rule.has_state:
            self.rule_state = self._apply(stack_nd, self.rule_state, context)[1]

    def _apply(
        self,
        stack_nd: np.ndarray,
        state: State,
        context: Context,
        streaming: StreamingAggregate | None = None,
    ) -> tuple[Aggregated, State]:
        rule, f = self._rule, self.setting.f
        sample = self._sample if stack_nd.shape[1] == self._dim else None
        try:
            if streaming is not None and streaming.has_begun():
                aggregated = streaming.finish(stack_nd)
            else:
                aggregated, state = rule.apply(stack_nd, state, context, f=f, usage=sample is None)
            if sample is not None:  # of a coordinate-wise rule, which has no state
                shown = rule.apply(stack_nd[:, sample], {}, context, f=f)[0]
                aggregated = aggregated._replace(usage_n=shown.usage_n)
        except UndecodableError as error:
            raise RuleError(str(error)) from None
        except tf.errors.InvalidArgumentError as error:  # more bad rows than the rule can tolerate
            raise RuleError(re.sub(r"^\{\{.*?\}\} | \[Op:.*$", "", error.message)) from None
        if np.may_share_memory(aggregated.grad_d, stack_nd):  # the link will write there
            aggregated = aggregated._replace(grad_d=np.array(aggregated.grad_d))
        return aggregated, state


def _rows(stack_nd: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns rows of the stack, in increasing order; a view if they lie side by side."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        return stack_nd[first : last + 1]
    return stack_nd[rows]


def _sample(dim: int) -> np.ndarray:
    """Returns which coordinates tell of all, int64 [SAMPLED]."""
    runs = SAMPLED // _RUN
    firsts = np.linspace(0, dim - _RUN, runs).astype(np.int64)
    return (firsts[:, None] + np.arange(_RUN)).ravel()
