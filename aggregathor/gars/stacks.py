"""What may be given as a stack of gradients, and what is refused by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.errors import UserError

_TAKEN = ("float32", "float64", "float16", "bfloat16")


def plain(name: str, stack_nd: Any) -> Any:
    """Returns a stack that is its values alone: arrays of NumPy's own class, or what it was.

    Masked values become NaN, which is how a rule knows what is missing, also where rows are masked
    arrays in a list. An array of another byte order is copied into this machine's.

    Args:
      name: of the rule, for errors.
      stack_nd: anything that somebody gives.

    Raises:
      UserError: it is sparse or ragged, or masked rows differ in length.
      TypeError: an array of a dtype that the rules do not compute in.
    """
    if type(stack_nd) is np.ndarray and stack_nd.dtype == np.float32 and stack_nd.dtype.isnative:
        return stack_nd
    dense = _how_to_make_dense(stack_nd)
    if dense:
        raise UserError(
            f"{name} takes dense gradients, got a {type(stack_nd).__name__}: {dense}. What it does "
            "not store is then 0, a value like any other; make it NaN where it is missing"
        )
    if isinstance(stack_nd, (list, tuple)) and any(
        isinstance(row, np.ma.MaskedArray) for row in stack_nd
    ):
        try:
            stack_nd = np.ma.stack(stack_nd)
        except ValueError as error:
            raise UserError(f"{name} takes gradients stacked as [n, d]: {error}") from None
    if not isinstance(stack_nd, np.ndarray):
        return stack_nd
    check_dtype(name, stack_nd.dtype.name, _TAKEN)
    if isinstance(stack_nd, np.ma.MaskedArray):
        masked = np.ma.getmaskarray(stack_nd)
        stack_nd = np.array(np.ma.getdata(stack_nd))
        stack_nd[masked] = np.nan
    stack_nd = np.asarray(stack_nd)  # of a subclass: the same memory
    return stack_nd if stack_nd.dtype.isnative else stack_nd.astype(stack_nd.dtype.newbyteorder())


def check_dtype(name: str, dtype: str, taken: Iterable[str]) -> None:
    """Raises ``TypeError`` for a dtype that is not among those taken, with the remedy."""
    if dtype in taken:
        return
    if dtype.startswith("complex"):
        remedy = "give real and imaginary parts as coordinates of their own, or as two stacks"
    elif dtype == "object":
        remedy = "np.array(rows, dtype='float32') makes NaN, which is missing, of None"
    else:
        remedy = "cast it, as with .astype('float32')"
    raise TypeError(f"{name} takes {', '.join(taken)}; got a stack of {dtype}: {remedy}")


def _how_to_make_dense(stack_nd: Any) -> str:
    """Returns "" for what is dense."""
    if isinstance(stack_nd, (tf.SparseTensor, tf.compat.v1.SparseTensorValue)):
        return "tf.sparse.to_dense(stack_nd) makes it dense"
    if isinstance(stack_nd, tf.RaggedTensor):
        return "stack_nd.to_tensor(default_value=float('nan')) makes it dense"
    if type(stack_nd).__module__.partition(".")[0] == "scipy" and hasattr(stack_nd, "toarray"):
        return "stack_nd.toarray() makes it dense"
    return ""
