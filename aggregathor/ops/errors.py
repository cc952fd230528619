"""What a selection says when too few rows can be compared."""

from __future__ import annotations

import tensorflow as tf


class TooFewError(tf.errors.InvalidArgumentError, ValueError):
    """What the native ops raise. In a graph, TensorFlow makes that of a ValueError only."""


def too_few(rule: str, n: int, f: int) -> TooFewError:
    """Returns the error of a rule that receives n gradients; `distance_op.cc` says the same."""
    return TooFewError(
        None,
        None,
        f"{rule}: more than f={f} of the n={n} gradients are lost, not finite or too far to "
        "compare, so too few are left to choose from. Declare a larger f or find out which workers "
        "send them.",
    )
