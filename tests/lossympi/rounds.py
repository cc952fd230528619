"""Calls a worker's rounds as an op does, by the addresses of their functions."""

import ctypes

import numpy as np

_OF = ctypes.c_void_p
_EXCHANGE = ctypes.CFUNCTYPE(ctypes.c_int, _OF, _OF, _OF, ctypes.c_char_p)
_INT64 = ctypes.c_int64
_FILL = ctypes.CFUNCTYPE(ctypes.c_int, _OF, _OF, _INT64, _INT64, _INT64, ctypes.c_char_p)
_OUTGOING = ctypes.CFUNCTYPE(_OF, _OF)
_IS_INTACT = ctypes.CFUNCTYPE(ctypes.c_int, _OF)


def array_at(address, dim):
    """Returns [d] floats that C has."""
    return np.ctypeslib.as_array((ctypes.c_float * dim).from_address(address))


def outgoing(native, dim):
    """Returns where C may write what leaves next."""
    return array_at(_OUTGOING(native.outgoing)(native.context), dim)


class Caller:
    """A worker's rounds; what is no round is the code that was returned, and ``message``."""

    def __init__(self, worker, idle=lambda *_: None):
        self.native = worker.native(idle)
        self.message = ctypes.create_string_buffer(1024)
        self._dim = worker.dim

    def exchange(self, sent_d):
        received = ctypes.c_void_p()
        sent = None if sent_d is None else sent_d.ctypes.data
        code = _EXCHANGE(self.native.exchange)(
            self.native.context, sent, ctypes.addressof(received), self.message
        )
        return code or array_at(received.value, self._dim)

    def fill(self, sent_d, first, count, step=0):
        return _FILL(self.native.fill)(
            self.native.context, sent_d.ctypes.data, step, first, count, self.message
        )

    def is_intact(self):
        return bool(_IS_INTACT(self.native.is_intact)(self.native.context))
