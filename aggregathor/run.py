"""``mpirun -n 9 python -m aggregathor.run --gar=multi-krum --f=2 script.py its args``.

Runs a TensorFlow script, unchanged, as one rank of a job: rank 0 is the server, the others are
workers. Every optimizer of the script takes part.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from aggregathor import log
from aggregathor.cli import standard_input
from aggregathor.cli.flags import parse
from aggregathor.cli.program import Program
from lossympi import mpi
from lossympi.topology import ROOT


def main(arguments: Sequence[str]) -> None:
    """Runs the script that the arguments name, in this process."""
    from aggregathor import api
    from aggregathor.cluster import ending, stopping

    log.install()
    if mpi.launch_of(os.environ) is not None:
        stopping.listen(lambda: api.is_server() if api.current() is not None else None)
    standard_input.receive(os.environ)
    try:
        told, program = parse(arguments)
        os.environ.update(told)
        _run(program)
    except SystemExit as error:
        ending.end(_status(error))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and stopping.asked():
            ending.end(0)  # the launcher has the status; of another mpirun would say much
        status = ending.report(error)
        if status is None:
            raise
        ending.end(status)


def _run(program: Program) -> None:
    from aggregathor import api
    from aggregathor.cli.tf_log import quiet_tensorflow

    _spread_server()
    with quiet_tensorflow():
        import tensorflow  # noqa: F401 - only to have its start-up log held back
    program.set_path()  # a rule of the user's own is looked for there
    api.init()
    api.distribute_all()
    current = api.current()
    if current is not None and not current.is_server and current.config.show == "server":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives
    program.run()


def _spread_server() -> None:
    """Lets the server's ops use all cores: the workers wait while it steps."""
    launch = mpi.launch_of(os.environ)
    threads = os.environ.get("AGGREGATHOR_SERVER_THREADS")
    if threads and launch is not None and launch.rank == ROOT:
        os.environ["TF_NUM_INTRAOP_THREADS"] = threads  # before TensorFlow reads it


def _status(error: SystemExit) -> int:
    """Returns the exit status that Python would end with."""
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f"{error.code}\n")
    return 1


if __name__ == "__main__":
    main(sys.argv[1:])
