"""What stands in for the coordinates that did not arrive."""

import numpy as np

from lossympi.link import FLOATS_PER_DATAGRAM, check_array, in_datagrams, num_datagrams
from lossympi.rng import generator

FILLS = ("nan", "zero", "random", "previous")


def fill(
    stack_nd: np.ndarray,
    arrived_nc: np.ndarray,
    policy: str,
    *,
    seed: int = 0,
    round: int = 0,
    previous_nd: np.ndarray | None = None,
    floats_per_datagram: int = FLOATS_PER_DATAGRAM,
) -> None:
    r"""Replaces, in place, every coordinate whose datagram did not arrive, and no other.

    What a hole holds is never read: only the bitmap says what is missing, so a NaN that a worker
    sent stays as sent, and bytes left by an earlier round never pass for its gradient.

    - `nan`: NaN, for rules that skip what is missing.
    - `zero`: 0.
    - `random`: Gaussian, of the magnitude of what did arrive. With A_i the finite coordinates that
      arrived from worker i, and 0 for an empty A_i:

      .. math:: \mathcal{N}(0, s_i^2), \quad s_i^2 = \frac{1}{|A_i|} \sum_{k \in A_i} x_{ik}^2

      A worker's own row alone sets its scale, so none can reach the holes of another.

    - `previous`: what this coordinate of this worker held in `previous_nd`; 0 in the first round.

    Args:
      stack_nd: float32 or float64 [n, d], written in place; row i is the gradient of worker i.
      arrived_nc: bool [n, c], which datagrams of each worker arrived.
      policy: one of `FILLS`.
      seed: `random` only; what is drawn depends on (seed, round, worker), not on the call order.
      round: `random` only.
      previous_nd: `previous` only; [n, d] of that dtype, a copy of the last round's stack as
        filled, or None in the first round.
      floats_per_datagram: that of `Collected`.
    Raises:
      ValueError: the policy is unknown, an array has another dtype or shape, or `previous_nd`
        overlaps `stack_nd`.
    Cost: O(n d), nothing for a row that lost nothing.
    Source: `random` is the policy of Damaskinos et al., AggregaThor, SysML 2019, which replaces
      missing values by random ones; the scale s_i is ours.
    """
    if policy not in FILLS:
        raise ValueError(f"a fill policy is one of {', '.join(FILLS)}; got {policy!r}.")
    _check_arrays(stack_nd, arrived_nc, previous_nd, floats_per_datagram)
    lost_nc = ~arrived_nc
    if not lost_nc.any():
        return
    blocks_ncf, short_nr = in_datagrams(stack_nd, floats_per_datagram)
    whole = blocks_ncf.shape[1]
    lost_blocks_nc, lost_short_n = lost_nc[:, :whole], np.any(lost_nc[:, whole:], axis=1)
    if policy == "random":
        for worker in map(int, np.flatnonzero(lost_nc.any(axis=1))):
            _fill_randomly(
                blocks_ncf[worker],
                short_nr[worker],
                lost_blocks_nc[worker],
                bool(lost_short_n[worker]),
                generator("fill", seed, round, worker),
            )
    elif policy == "previous" and previous_nd is not None:
        previous_ncf, previous_short_nr = in_datagrams(previous_nd, floats_per_datagram)
        blocks_ncf[lost_blocks_nc] = previous_ncf[lost_blocks_nc]
        short_nr[lost_short_n] = previous_short_nr[lost_short_n]
    else:  # previous is zero in the first round
        value = np.nan if policy == "nan" else 0
        blocks_ncf[lost_blocks_nc] = value
        short_nr[lost_short_n] = value


def _fill_randomly(
    blocks_cf: np.ndarray,
    short_r: np.ndarray,
    lost_blocks_c: np.ndarray,
    lost_short: bool,
    random: np.random.Generator,
) -> None:
    """Fills a worker's row: what is lost of its whole datagrams, and of a short last one."""
    arrived = blocks_cf[~lost_blocks_c].ravel()
    if not lost_short:
        arrived = np.concatenate([arrived, short_r])
    size = np.count_nonzero(lost_blocks_c) * blocks_cf.shape[1]
    drawn = _gaussian(random, _rms(arrived), size + lost_short * len(short_r), blocks_cf.dtype)
    blocks_cf[lost_blocks_c] = drawn[:size].reshape(-1, blocks_cf.shape[1])
    if lost_short:
        short_r[:] = drawn[size:]


def _rms(values: np.ndarray) -> float:
    """Returns the root mean square of the finite values, 0 if there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0
    # A worker may send 1e30, whose square is beyond float32; no float32's is beyond float64. Those
    # of float64 are squared as shares of the largest.
    unit = 1.0
    if values.dtype == np.float64:
        unit = float(np.max(np.abs(finite))) or 1.0
        finite = finite / unit
    return unit * float(np.sqrt(np.mean(np.square(finite, dtype=np.float64))))


def _gaussian(random: np.random.Generator, scale: float, size: int, dtype: np.dtype) -> np.ndarray:
    """Returns finite values [size] drawn from N(0, scale^2), clipped to what the dtype holds."""
    largest = np.finfo(dtype).max
    with np.errstate(over="ignore"):
        values = scale * random.standard_normal(size)
    return np.clip(values, -largest, largest).astype(dtype)


def _check_arrays(
    stack_nd: np.ndarray, arrived_nc: np.ndarray, previous_nd: np.ndarray | None, floats: int
) -> None:
    if np.ndim(stack_nd) != 2:
        raise ValueError(
            f"stack_nd must be [n, d], one row a worker; got {np.ndim(stack_nd)} dimensions. "
            "Stack the gradients first."
        )
    dtype = np.float64 if getattr(stack_nd, "dtype", None) == np.float64 else np.float32
    check_array("stack_nd", stack_nd, dtype, np.shape(stack_nd))
    n, d = stack_nd.shape
    check_array("arrived_nc", arrived_nc, np.bool_, (n, num_datagrams(d, floats)))
    if previous_nd is None:
        return
    check_array("previous_nd", previous_nd, dtype, (n, d))
    if np.may_share_memory(stack_nd, previous_nd):
        raise ValueError(
            "previous_nd must outlive the round it was filled in; got memory of stack_nd, which "
            "this round has overwritten. Pass a copy."
        )
