"""The rules under test, with the parameters that make a rule another one."""

import numpy as np

from aggregathor.gars import GARS
from tests import reference

# id: (name in GARS, parameters, oracle)
CASES = {
    "average": ("average", {}, reference.average),
    "average-nan": ("average-nan", {}, reference.average_nan),
    "median": ("median", {}, reference.median),
    "median-aggregathor": ("median", {"compat": "aggregathor"}, reference.median),
    "median-torch": ("median", {"compat": "torch"}, reference.median),
    "trimmed-mean": ("trimmed-mean", {}, reference.trimmed_mean),
    "meamed": ("meamed", {}, reference.meamed),
    "phocas": ("phocas", {}, reference.phocas),
    "krum": ("krum", {}, reference.krum),
    "multi-krum": ("multi-krum", {}, reference.multi_krum),
    "multi-krum-1": ("multi-krum", {"m": 1}, reference.multi_krum),
    "multi-krum-2": ("multi-krum", {"m": 2}, reference.multi_krum),
    "bulyan": ("bulyan", {}, reference.bulyan),
    "bulyan-paper": ("bulyan", {"variant": "paper"}, reference.bulyan),
    "brute": ("brute", {}, reference.brute),
    "geometric-median": ("geometric-median", {}, reference.geometric_median),
}
COORDINATE_WISE = [
    *("average-nan", "median", "median-aggregathor", "median-torch"),
    *("trimmed-mean", "meamed", "phocas"),
]
SELECTING = ["krum", "multi-krum", "multi-krum-1", "bulyan", "bulyan-paper", "brute"]
# Rules that judge gradients by what these hold. Zeno judges them by a loss, which nobody lends it
# here: test_zeno.py does, and tries the contract on it.
ALONE = [name for name, rule in GARS.items() if not rule.needs_validation]
ROBUST = [name for name in ALONE if GARS[name].robust]


def stack_of(kind, n, f, d, dtype, rng):
    """A stack whose values are "complete", or with some "missing", "infinite" or full of "ties"."""
    if kind == "ties":
        return rng.integers(-2, 3, (n, d)).astype(dtype)
    stack_nd = rng.standard_normal((n, d)).astype(dtype)
    if kind == "missing":
        # In a short row one value is more than half of it, so no more than f rows may lose any.
        losing = n if d >= 64 else f
        stack_nd[:losing][rng.random((losing, d)) < 0.1] = np.nan
    if kind == "infinite":
        rows = rng.choice(n, f, replace=False)
        stack_nd[rows, rng.integers(d, size=f)] = rng.choice([np.inf, -np.inf], f)
    return stack_nd
