"""What the commands share: a quiet start, and a line instead of a traceback where nothing broke."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable

from aggregathor.cli.tf_log import quiet_tensorflow
from aggregathor.errors import UserError
from lossympi import mpi
from lossympi.topology import ROOT


def run_command(name: str, body: Callable[[], int]) -> int:
    """Runs ``body`` and returns its exit status; 2 for a user's mistake, 130 for Ctrl-C."""
    try:
        return body()
    except UserError as error:
        return tell(f"{name}: error: {error}", 2)
    except KeyboardInterrupt:  # while nothing is being trained, or twice
        return tell(f"{name}: stopped", 130)


def tell(line: str, status: int) -> int:
    """Writes a line and returns the status; under mpirun rank 0 does so for all.

    A status of 0 elsewhere keeps mpirun from ending rank 0 before it has written.
    """
    if not _speaks():
        return 0
    sys.stderr.write(line + "\n")
    return status


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up log and its advice on functions traced again.

    Every run traces the functions of its own model: that is several times in one process.

    Raises:
      UserError: TensorFlow or Keras lacks what this package needs.
    """
    with quiet_tensorflow():
        import tensorflow as tf

        from aggregathor.internals import compatibility

        tf.get_logger().setLevel("ERROR")
    compatibility.check()
    if _speaks() and (untested := compatibility.untested()):
        logging.getLogger("aggregathor").warning("%s", untested)


def _speaks() -> bool:
    """Whether this process is rank 0, or alone."""
    launch = mpi.launch_of(os.environ)
    return launch is None or launch.rank == ROOT
