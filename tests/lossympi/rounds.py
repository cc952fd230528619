"""Makes a worker's rounds as an op does, by their address, and notes what they do with a link."""

import ctypes

import numpy as np

from lossympi import LinkError, backend
from tests.native_rounds import Reader, array_at


class Caller:
    """A worker's rounds; what is no round is the code that was returned, and ``message``."""

    def __init__(self, worker, idle=lambda *_: None):
        self.native = worker.native(idle)
        self.message = ctypes.create_string_buffer(1024)
        self._c = Reader(self.native)

    def run(self, sent_d):
        received = ctypes.c_void_p()
        sent = None if sent_d is None else sent_d.ctypes.data
        message = ctypes.addressof(self.message)
        code = self._c.run(sent, ctypes.addressof(received), message)
        return code or array_at(received.value, self._c.d)

    def send_part(self, sent_d, first, count, step=0):
        message = ctypes.addressof(self.message)
        return self._c.send_part(sent_d.ctypes.data, step, first, count, message)

    def outgoing_d(self):
        return self._c.outgoing_d()

    def is_intact(self):
        return bool(self._c.is_intact())


def vector(number):
    """Returns a gradient or a model of a ``Recorder``."""
    return np.full(Recorder.dim, number, np.float32)


class Recorder:
    """A worker's end for native rounds, with given answers in the order of the calls.

    For tests that compare another worker's half with the native one: equal answers, equal calls.

    Attributes:
      calls: what was called, with vectors as their first values: the link's verbs, and ``idle``
        with what it was asked and not how long it had waited.
    """

    dim = 5

    def __init__(self, sends=(), models=(), left=(), stops_at=None, intact=()):
        """Takes what to answer.

        Args:
          sends: what `send` and `send_written` return, True after the last.
          models: what `receive` returns: a round, or None.
          left: what `server_left` returns, False after the last.
          stops_at: the number of the call of `idle` that raises.
          intact: what `is_intact` returns, True after the last.
        """
        self.calls = []
        self._sends, self._models, self._left = list(sends), list(models), list(left)
        self._intact = list(intact)
        self._stops_at = stops_at
        self._num_idle = 0

    def send(self, round, grad_d, wait_s):
        assert (grad_d.dtype, grad_d.shape) == (np.float32, (self.dim,))
        self.calls.append(("send", round, grad_d[0], wait_s))
        return self._sends.pop(0) if self._sends else True

    def receive(self, round, wait_s):
        self.calls.append(("receive", round, wait_s))
        found = self._models.pop(0)
        return None if found is None else (found, vector(found))

    def server_left(self):
        self.calls.append(("server_left",))
        return self._left.pop(0) if self._left else False

    def is_intact(self):
        self.calls.append(("is_intact",))
        return self._intact.pop(0) if self._intact else True

    def idle(self, is_sending, has_left, waited_s):
        assert 0 <= waited_s < 10
        self.calls.append(("idle", is_sending, has_left))
        self._num_idle += 1
        if self._num_idle == self._stops_at:
            raise LinkError("no more")

    def native(self, idle):
        return backend.native().WorkerRounds(self, 1.0, idle)

    def caller(self):
        return Caller(self, self.idle)


class InParts(Recorder):
    """One that takes parts of a gradient."""

    def written(self, first, count):
        self.calls.append(("written", first, count))

    def send_written(self, round, grad_d, wait_s):
        self.calls.append(("send_written", round, grad_d[0], wait_s))
        return self._sends.pop(0) if self._sends else True

    def clear_written(self):
        self.calls.append(("clear_written",))
