"""The kernels behind the rules: the native library, or its stand-in in plain TensorFlow.

``kernels()`` returns the module in use; both have the same functions. Rules call these functions
and nothing else of this package:

====================  ==========================================  =============================
function              inputs                                      result
====================  ==========================================  =============================
mean                  stack [n, d], skip_missing                  [d]
window_mean           stack [n, d], window, f, with_share         [d], share [n] or [0]
sq_distances          stack [n, d], scaled (true)                 float64 [n, n]
krum_select           sq_dist [n, n], f, m, rule                  int64 [m], best first
bulyan_select         sq_dist [n, n], f, variant                  int64 [theta, m], -1 pads
brute_select          sq_dist [n, n], f                           int64 [n - f]
mean_of_rows          stack [n, d], rows [m]                      [d]
bulyan_tail           stack [n, d], groups [theta, m], f          [d]
geometric_median      stack [n, d], f, nu, tol, max_iter          [d], weights [n]
channel               a function of arrays [d], d, dtype          a ``Channel``, for transports
digest_store          every, a function                           a ``DigestStore``
====================  ==========================================  =============================

The native kernels keep subnormal numbers on every thread (`kernels/float_mode.h`); the stand-in
takes them for 0, as TensorFlow's own ops do. Distances that are ``scaled`` may all be multiplied by
one power of 2, so that squares of float64 neither overflow nor underflow (`kernels/kernels.h`).

Stacks are float32 or float64 tensors; checks of n against f are the rules' business. Of an array
``kernels_for`` gives the module `arrays`, which has the rules' of these, for float32, if
``has_arrays()``; its means also take ``Columns`` of an array. It alone has ``project`` and
``weighted_sum``, for codes.
"""

from aggregathor.ops.arrays import Columns
from aggregathor.ops.loader import (
    INSTRUCTION_SETS,
    KERNELS_VARIABLE,
    REBUILD,
    has_arrays,
    kernels,
    kernels_for,
    state,
    using,
)

__all__ = [
    "INSTRUCTION_SETS",
    "KERNELS_VARIABLE",
    "REBUILD",
    "Columns",
    "has_arrays",
    "kernels",
    "kernels_for",
    "state",
    "using",
]
