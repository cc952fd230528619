"""What `lossympi/native_round.h` looks like from Python, for tests that call it or stand in for it.

A structure of six words of 8 bytes: context, d, run, send_part, outgoing, is_intact.
"""

import ctypes

import numpy as np

OF, INT64 = ctypes.c_void_p, ctypes.c_int64
RUN = ctypes.CFUNCTYPE(ctypes.c_int, OF, OF, OF, OF)
SEND_PART = ctypes.CFUNCTYPE(ctypes.c_int, OF, OF, INT64, INT64, INT64, OF)
OUTGOING = ctypes.CFUNCTYPE(OF, OF)
IS_INTACT = ctypes.CFUNCTYPE(ctypes.c_int, OF)
TYPES = {"run": RUN, "send_part": SEND_PART, "outgoing": OUTGOING, "is_intact": IS_INTACT}


def array_at(address, dim):
    """Returns [d] floats that C has."""
    return np.ctypeslib.as_array((ctypes.c_float * dim).from_address(address))


class Reader:
    """Calls a native round by its address.

    Attributes:
      d: floats in a vector.
      run: and the others: the function, called without the context; None where there is none.
    """

    def __init__(self, native):
        context, self.d, *functions = (ctypes.c_uint64 * 6).from_address(native.address)
        self.native = native  # its memory
        for (name, kind), address in zip(TYPES.items(), functions, strict=True):
            setattr(self, name, self._bound(kind(address), context) if address else None)

    @staticmethod
    def _bound(function, context):
        return lambda *of: function(context, *of)

    def outgoing_d(self):
        """Returns where C may write what leaves next, float32 [d]."""
        return array_at(self.outgoing(), self.d)


class Writer:
    """A native round whose functions are Python's, by name; what is not named is NULL.

    Attributes:
      address: what ``NativeChannel`` wants.
    """

    def __init__(self, context, d, **functions):
        self._kept = [kind(functions.get(name, 0)) for name, kind in TYPES.items()]
        addresses = [ctypes.cast(each, OF).value or 0 for each in self._kept]
        self._words = (ctypes.c_uint64 * 6)(context, d, *addresses)
        self.address = ctypes.addressof(self._words)
