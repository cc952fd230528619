import logging
import os

# Before TensorFlow is imported: quiet, and no more threads than a small machine has.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "2")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "2")

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def messages_are_lines(monkeypatch):
    """As the entry points do: messages are lines on standard error."""
    from aggregathor import log

    # What the first message of a library adds would hold on to one test's standard error.
    monkeypatch.setattr(logging.root, "handlers", [])
    log.install()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["native", "tensorflow"])
def each_kernel(request):
    """Runs the test with the native kernels and with their stand-in."""
    from aggregathor import ops

    with ops.using(request.param):
        yield request.param
