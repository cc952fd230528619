"""Rules that another process can import, for the clause on threads; and what Zeno needs."""

import numpy as np
import tensorflow as tf

from aggregathor import gars
from aggregathor.testing.stacks import truth


def median(stack_nd, f):
    return gars.median(stack_nd, f=f)


def counts_threads(stack_nd, f):
    tiny = 1e-3 * tf.config.threading.get_intra_op_parallelism_threads()
    return gars.median(stack_nd, f=f) * tf.cast(1 + tiny, stack_nd.dtype)


def fails_elsewhere(stack_nd, f):
    if tf.config.threading.get_intra_op_parallelism_threads() == 4:
        raise RuntimeError("no 4")
    return gars.median(stack_nd, f=f)


GAMMA = 0.5


def half_square(x_d):
    with np.errstate(over="ignore", invalid="ignore"):
        return 0.5 * np.sum(np.asarray(x_d, np.float64) ** 2)


def context_of(x_d, loss=half_square, rate=GAMMA, seen=None):
    """Lends the losses at x, computed in float64, and notes what is asked for."""

    def losses(stack_nd, rows, gamma, n_r):
        if seen is not None:
            seen.append((stack_nd, list(rows), gamma, n_r))
        rows_nd = stack_nd[rows].astype(np.float64)
        rows_nd[np.isnan(rows_nd)] = 0
        return np.array([loss(x_d), *(loss(x_d - gamma * u_d) for u_d in rows_nd)])

    return gars.Context(losses=losses, learning_rate=None if rate is None else lambda: rate)


def zeno_towards_the_truth(stack_nd, *, f):
    """Zeno with a loss that is least after a step along the truth, in NumPy."""
    d = int(np.shape(stack_nd)[1])
    context = context_of(np.zeros(d), lambda v_d: half_square(v_d + GAMMA * truth(d)))
    return np.asarray(gars.GARS["zeno"].apply(stack_nd, {}, context, f=f)[0].grad_d)
