"""The exchange op: tensors of a graph reach a transport, and come back."""

from aggregathor.ops.exchange.exchange_op import (
    DTYPES,
    LEAST_PART,
    Channel,
    Function,
    NativeChannel,
    PythonChannel,
    num_op_threads,
)

__all__ = [
    "DTYPES",
    "LEAST_PART",
    "Channel",
    "Function",
    "NativeChannel",
    "PythonChannel",
    "num_op_threads",
]
