"""The most memory that a rule takes beyond its input.

As a program, ``python -m experiments.bench.memory RULE N F D`` prints it, in MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# The kernel keeps the peak of a process's memory in one file and starts anew on a 5 in the other.
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(name: str, n: int, f: int, d: int) -> float | None:
    """Measures a rule in a process of its own.

    In one that has run others TensorFlow holds memory of theirs, and none would seem to be taken.
    The result, d values, is part of it.

    Returns:
      MiB, or None if the operating system does not say.
    """
    if not os.access(CLEAR, os.W_OK):
        return None
    command = [sys.executable, "-m", "experiments.bench.memory", name, str(n), str(f), str(d)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)


def main(name: str, n: int, f: int, d: int) -> None:
    """Measures the rule and prints the result."""
    import numpy as np

    from aggregathor.cli.tf_log import quiet_tensorflow

    with quiet_tensorflow():
        import tensorflow as tf

        from aggregathor.gars import GARS

    with tf.device("CPU"):
        stack = tf.constant(np.random.default_rng(0).standard_normal((n, d), np.float32))
        GARS[name](stack[:, :1000], f=f)  # threads and code are not the rule's memory
        CLEAR.write_text("5")
        before_mib = _status_mib("VmRSS")
        GARS[name](stack, f=f)
        sys.stdout.write(f"{_status_mib('VmHWM') - before_mib}\n")


def _status_mib(field: str) -> float:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[field].split()[0]) / 1024


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
