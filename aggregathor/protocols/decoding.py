"""A decoder in the place of a rule: the server's part of DRACO.

It takes a round's stack as a rule does, so the fill, the rounds, the attackers that ask what the
server would do, and the monitor go by it as by any rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from aggregathor import gars, ops
from aggregathor.conditions import remedy_of
from aggregathor.errors import UserError
from aggregathor.gars import Aggregated, Context, State
from aggregathor.protocols import draco, linear
from aggregathor.protocols.cyclic import MOST_IN_FLOAT32, PAPER, REAL, Cyclic
from aggregathor.protocols.decoded import Decoded
from aggregathor.protocols.repetition import Repetition
from aggregathor.protocols.setting import Setting
from lossympi.link import FLOATS_PER_DATAGRAM

Code = Repetition | Cyclic


def code_of(setting: Setting, dtype: DTypeLike = np.float32) -> Code | None:
    """Returns the code by which workers encode; None where the protocol has none.

    Args:
      setting: is taken as checked.
      dtype: of what travels.

    Raises:
      UserError: float32 cannot carry the paper's code of so many workers.
    """
    if setting.protocol != "draco":
        return None
    told = {**draco.PARAMETERS, **setting.protocol_args}
    n, r = setting.num_workers, draco.redundancy_of(setting.f, told["redundancy"])
    tools = linear.Tools(_project, _weighted_sum)
    if told["code"] == draco.REPETITION:
        return Repetition(n, r, _median, tools)
    is_paper = told["code"] == draco.CYCLIC_PAPER
    if is_paper and n > MOST_IN_FLOAT32 and np.dtype(dtype) == np.float32:
        raise UserError(
            f"float32 carries the code {draco.CYCLIC_PAPER} of at most {MOST_IN_FLOAT32} workers, "
            f"got n={n}: take code={draco.CYCLIC}, or train in float64."
        )
    form = PAPER if is_paper else REAL
    return Cyclic(n, (r - 1) // 2, form, delta=told["delta"], tools=tools)


class Decoder:
    """What ``Aggregation`` needs of a rule, by a code.

    Attributes:
      name: of the code.
      condition: as text.
      width: values on the wire for each coordinate.
      unverified: of the last stack, the share of coordinates without a verified mean, 0..1.
      warning: of the last stack, why; "" where all are verified.
      block: values of a datagram, which is lost as a whole.
    """

    has_state = False
    coordinate_wise = False

    def __init__(self, code: Code) -> None:
        """Decodes by a code."""
        kind = "repetition" if isinstance(code, Repetition) else "cyclic"
        self.name = f"draco ({kind}, r={code.redundancy})"
        self.condition = draco.CONDITION
        self.width = code.width
        self.unverified = 0.0
        self.warning = ""
        self.block = FLOATS_PER_DATAGRAM
        self._code = code

    def by_columns(self) -> bool:
        """Returns False: rows are judged by all their columns."""
        return False

    def init(self, n: int, d: int) -> State:
        """Returns no state."""
        return {}

    def check(self, *, n: int, f: int) -> None:
        """Raises ``UserError`` where n rows are too few to decode any column."""
        least = self._code.num_workers - self._code.most_lost
        if n < least:
            raise UserError(
                f"{self.name} needs {least} of n={self._code.num_workers} gradients, got {n}. "
                f"{remedy_of(least - n, None)}, or take a larger redundancy."
            )

    def apply(
        self, stack_nd: np.ndarray, state: State, context: Context, *, f: int, usage: bool = True
    ) -> tuple[Aggregated, State]:
        """Returns the mean over all batches, and how much of each row it was decoded from.

        Raises:
          UndecodableError: no coordinate's mean can be decoded.
        """
        decoded = self._code.decode(stack_nd, context.rng("draco"), self.block)
        self.unverified = decoded.unverified
        self.warning = self._warning(decoded) if decoded.unverified else ""
        if self.unverified == 1 and not decoded.mean_d.any():
            raise UndecodableError(
                f"{self.name} can verify no sum: it decodes where 2 wrong + lost < "
                f"{self._code.redundancy}. Either more workers are wrong or lost, or honest copies "
                "of a gradient differ: declare a larger f, or the difference as delta."
            )
        return Aggregated(decoded.mean_d, decoded.usage_n), state

    def _warning(self, decoded: Decoded) -> str:
        if not decoded.divided:
            return (
                f"the sum of {100 * decoded.unverified:.2g}% of the coordinates cannot be "
                "verified: too many workers are lost or wrong there"
            )
        r = self._code.redundancy
        groups = ", ".join(f"workers {r * g} to {r * g + r - 1}" for g in decoded.divided)
        return (
            f"the gradients of {groups} differ, which should be copies: more of them are wrong "
            "than f, or their script draws from a generator of its own, from the time, or reads "
            "files in another order on each"
        )


class UndecodableError(UserError):
    """More rows are lost or wrong than the code allows."""


def _median(copies_rd: np.ndarray) -> np.ndarray:
    """Returns the coordinate-wise median, by the rule's kernel."""
    median = gars.GARS["median"]
    return np.asarray(median.apply(copies_rd, {}, Context(), f=0, usage=False)[0].grad_d)


def _project(stack_nd: np.ndarray, table_bm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``linear.project``, by the kernel where there is one."""
    if _has_kernel(stack_nd) and table_bm.shape[1] % 4 == 0:
        return ops.arrays.project(stack_nd, table_bm)
    return linear.project(stack_nd, table_bm)


def _weighted_sum(
    rows: Sequence[np.ndarray], weights: np.ndarray, ranges_k2: np.ndarray, out_d: np.ndarray
) -> None:
    """``linear.weighted_sum``, by the kernel where there is one."""
    if weights.dtype == np.float64 and _has_kernel(out_d, *rows):
        ops.arrays.weighted_sum(rows, weights, ranges_k2, out_d)
    else:
        linear.weighted_sum(rows, weights, ranges_k2, out_d)


def _has_kernel(*arrays: np.ndarray) -> bool:
    return ops.has_arrays() and all(
        array.dtype == np.float32 and array.flags.c_contiguous for array in arrays
    )
