"""The instruction sets that can be tried here: python -m tests.gars.kernel_sets prints them."""

import sys
from pathlib import Path

from aggregathor.ops import INSTRUCTION_SETS
from aggregathor.ops.loader import BUILD_FACTS
from aggregathor.version import read_build_facts

# What /proc/cpuinfo calls what an instruction set needs.
NEEDED = {
    "baseline": set(),
    "avx2": {"avx2", "fma"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}


def instruction_sets():
    """Those that were built and that this processor has, from the plainest to the best."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    built = read_build_facts(BUILD_FACTS).get("instruction_sets", [])
    return [name for name in INSTRUCTION_SETS if name in built and NEEDED[name] <= flags]


if __name__ == "__main__":
    sys.stdout.write("\n".join(instruction_sets()) + "\n")
