"""Prints, as JSON, a digest of what every rule gives. Argument: how many threads it may use.

A program, because threads and instruction set are chosen once in a process.
"""

import hashlib
import json
import os
import sys

import numpy as np
import tensorflow as tf

from aggregathor import ops
from aggregathor.gars import GARS
from tests.gars.cases import CASES

N, F = 13, 2
D = 20_001  # 20 blocks of 1024 columns, shared out among the threads


def digests():
    rng = np.random.default_rng(0)
    complete_nd = rng.standard_normal((N, D))
    hurt_nd = complete_nd.copy()
    hurt_nd[rng.random(hurt_nd.shape) < 0.1] = np.nan
    hurt_nd[3] = 1e20
    hurt_nd[5, 100] = -np.inf
    found = {}
    for case, (name, parameters, _) in CASES.items():
        for dtype in ("float32", "float64"):
            least = np.finfo(dtype).smallest_subnormal.astype(np.float64)
            subnormal_nd = 1000 * least * complete_nd
            stacks = {"complete": complete_nd, "hurt": hurt_nd, "subnormal": subnormal_nd}
            for kind, stack_nd in stacks.items():
                kinds = {"tensor": tf.constant, "array": np.asarray}
                for what, given in kinds.items():
                    aggregated = GARS[name].aggregate(
                        given(stack_nd.astype(dtype)), f=F, **parameters
                    )
                    bits = b"".join(np.asarray(part).tobytes() for part in aggregated)
                    found[f"{case} {dtype} {kind} {what}"] = hashlib.sha256(bits).hexdigest()
    return found


if __name__ == "__main__":
    threads = int(sys.argv[1])
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # The rules on arrays use all cores that there are.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    print(json.dumps({"in_use": ops.state().in_use, "digests": digests()}))  # noqa: T201
