import numpy as np
import pytest

from aggregathor import attacks


def keep_all(stack_nd):
    return stack_nd.mean(axis=0), np.ones(len(stack_nd))


@pytest.fixture
def make_view():
    """Builds a view of random rows, read-only so that a write to an input is an error."""

    def make(h=8, b=3, d=50, *, dtype=np.float64, data_seed=1, seed=0, **fields):
        data = np.random.default_rng(data_seed)
        defaults = {
            "honest_hd": (0.5 + data.standard_normal((h, d))).astype(dtype),
            "own_bd": (0.5 + data.standard_normal((b, d))).astype(dtype),
            "f": b,
            "rng": np.random.default_rng(seed),
            "aggregate": keep_all,
        }
        view = attacks.View(**defaults | fields)
        view.honest_hd.setflags(write=False)
        view.own_bd.setflags(write=False)
        return view

    return make
