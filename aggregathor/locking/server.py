"""A TensorFlow server that answers requests for its status and for tensors, and no others.

For clusters that exchange over TensorFlow's gRPC, without ``agt.init``. Whoever reaches the port of
a server with the protocol "grpc" can write every variable, and every file, that its process can.
With "grpc+lock" only sessions of the process itself can. It is for a parameter server whose process
also drives the workers; those run "grpc", as they get their graphs from it. SECURITY.md beside this
file says what that protects, and what not.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from aggregathor.errors import UserError
from aggregathor.version import VersionError, check_whole, read_build_facts

PROTOCOL = "grpc+lock"
LIBRARY = Path(__file__).with_name("libaggregathor_grpc.so")
BUILD_FACTS = Path(__file__).with_name("build.json")

_REBUILD = "build it with `pip install --force-reinstall --no-deps .` in the checkout"
_TELL = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_int64)


def locked_server(
    cluster: tf.train.ClusterSpec | Mapping[str, Any],
    job_name: str,
    task_index: int,
    config: Any = None,
) -> tf.distribute.Server:
    """Starts the locked server of a task, on the address that the cluster names.

    Args:
      cluster: what ``tf.train.ClusterSpec`` takes. Only this task's server should be locked: no
        graph can be registered on a locked one by another.
      job_name: of this task.
      task_index: of this task.
      config: the ``ConfigProto`` of its devices and sessions.
    Returns:
      The server; sessions of this process on its ``target`` work as usual.
    Raises:
      UserError: the library is missing or damaged, or nothing can listen on that address here.
      VersionError: the library was built for another TensorFlow.
      InvalidArgumentError: the configuration needs calls that it refuses.
    """
    register()
    address = tf.train.ClusterSpec(cluster).task_address(job_name, task_index)
    try:
        return tf.distribute.Server(cluster, job_name, task_index, PROTOCOL, config)
    except tf.errors.UnknownError as error:
        raise UserError(
            f"no server can listen on {address}, which the cluster names for {job_name} "
            f"{task_index}: something else does, or it is no address of this machine "
            f"({error.message}). A locked server listens there and nowhere else; name an address "
            "of a network card of this machine and a free port."
        ) from error


def register() -> None:
    """Makes "grpc+lock" a protocol of ``tf.distribute.Server`` in this process.

    Raises:
      UserError: the library is missing or damaged.
      VersionError: the library was built for another TensorFlow.
    """
    _library()


def refused_calls() -> dict[str, int]:
    """Returns the methods that this process's locked servers have refused, and how often."""
    counts: dict[str, int] = {}

    def note(method: bytes, count: int) -> None:
        if count:
            counts[method.decode()] = count

    _library().aggregathor_grpc_refused(_TELL(note))
    return counts


@functools.cache
def _library() -> ctypes.CDLL:
    """Loads the library, which registers the protocol with TensorFlow."""
    if not LIBRARY.exists():
        raise UserError(
            f'the protocol "{PROTOCOL}" needs {LIBRARY.name}, which was not built, as g++ or '
            f"headers of TensorFlow's were missing; {_REBUILD} and read what it says."
        )
    facts = read_build_facts(BUILD_FACTS)
    built_for = facts.get("tensorflow", "one that nobody knows, as build.json is damaged,")
    # Exactly: the library changes objects of TensorFlow's, whose layout differs between versions.
    if built_for != tf.__version__:
        raise VersionError(
            f"{LIBRARY.name} was built for TensorFlow {built_for} and {tf.__version__} is "
            f"installed. Install the one it was built for, or {_REBUILD}."
        )
    try:
        check_whole(LIBRARY, facts)
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise UserError(f"{LIBRARY.name} could not be loaded ({error}); {_REBUILD}.") from error
    library.aggregathor_grpc_refused.restype = None
    return library
