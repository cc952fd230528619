"""What a training script calls: the one module that composes the others.

``init`` joins the process to the job; the drop-in then patches Keras and TensorFlow. An optimizer
takes part once ``DistributedOptimizer`` or ``distribute_all`` marks it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from aggregathor import log
from aggregathor.cluster import ending
from aggregathor.cluster.config import Config
from aggregathor.cluster.meeting import Meeting
from aggregathor.cluster.ranks import start_ranks
from aggregathor.errors import UserError
from aggregathor.settings import in_words

# What imports TensorFlow and Keras is imported where it is first needed: after the configuration
# and their versions have been checked.
if TYPE_CHECKING:
    from aggregathor.cluster.job import Job
    from aggregathor.dropin.install import Dropin
    from aggregathor.protocols.server import Report

_logger = logging.getLogger(__name__)
_job: Job | None = None
_dropin: Dropin | None = None
_initialised = False
_given: dict[str, Any] = {}  # to `init`
_PROCESS = "AGGREGATHOR_PROCESS"  # the number of the rank's process, which its children inherit


def init(*, validation_data: Any = None, **given: Any) -> None:
    """Joins this process to the others that ``mpirun`` has started; collective.

    Args:
      validation_data: what the server judges gradients by in a ``fit`` without ``validation_data``,
        for rules such as "zeno" that need that: arrays (x, y), or a data set of batches, that no
        worker trains on.
      given: fields of ``Config``, such as gar="multi-krum", f=2. What is not given comes from the
        environment, which ``aggregathor run`` sets, and else is the default.

    Without mpirun it checks the arguments and does nothing: the script trains as it would without.
    So it does in the processes that a rank starts, as by ``multiprocessing``: these are no ranks.
    Called again, such as in a script that ``aggregathor run`` has started, it takes up what was not
    said before, on all ranks alike and before the first step.

    Raises:
      UserError: an argument is wrong, contradicts the command line or an earlier call, or comes too
        late, as ``lock``, ``checkpoint`` and ``protocol`` do in a job that runs; or the installed
        Keras or TensorFlow lacks what is needed. Every rank ends, and rank 0 reports it.
    """
    global _job, _dropin, _initialised
    ending.install_hook()
    log.install()
    config = Config.of(given, os.environ)
    if config.log != Config.log:
        log.install(config.log)
    if _initialised:
        if _job is not None and given:
            with _said_by_server(_job.is_server):
                _job.complete(_joined(given))
        if _dropin is not None and validation_data is not None:
            _dropin.validations.hold_out(validation_data)
        return
    _initialised = True
    _given.update(given)
    if os.environ.get(_PROCESS, str(os.getpid())) != str(os.getpid()):
        return  # a child that a rank has spawned, which runs the script's first lines too
    ranks = start_ranks(config.start_s)
    if ranks is None:
        _logger.info(
            "one process only, so nothing is distributed: start it with `aggregathor run -n 5 ...`"
        )
        return
    os.environ[_PROCESS] = str(os.getpid())
    os.register_at_fork(after_in_child=_leave_to_parent)
    with _said_by_server(ranks.is_server):
        from aggregathor.internals import compatibility

        Meeting(ranks, config.start_s).together(compatibility.check)
        from aggregathor.cluster.job import Job

        _job = Job(ranks, config)
    ending.watch(_job)
    if ranks.is_server and (untested := compatibility.untested()):
        _logger.warning("%s", untested)
    from aggregathor.dropin.install import Dropin
    from aggregathor.internals.tensorflow import not_converted

    _dropin = Dropin(_job)
    _dropin.validations.hold_out(validation_data)
    not_converted(apply)


def rank() -> int:
    """Returns this process's rank: 0 is the server; 0 too in a process that was started alone."""
    return 0 if _job is None else _job.ranks.rank


def num_workers() -> int:
    """Returns n, the number of workers; 1 in a process that was started alone."""
    return 1 if _job is None else _job.ranks.topology.workers


def is_server() -> bool:
    """Returns whether this process is rank 0, the one to write files and to print."""
    return rank() == 0


def last_round() -> Report | None:
    """Returns what the server saw in the latest round; None on workers, and while one is open.

    A report has the workers that are ``suspected``, ``delivered_n``, ``usage_n``, how much of each
    gradient the rule used, the aggregate ``grad_d``, and the link's ``stats``. With an asynchronous
    protocol it is of the gradient that made the latest step: an ``ArrivalReport``.
    """
    return None if _job is None else _job.last_round


def current() -> Job | None:
    """Returns this process's job; None before ``init`` and where it runs alone."""
    return _job


def distribute_all() -> None:
    """Lets every optimizer of the script take part."""
    if _dropin is not None:
        _dropin.distribute_all()


def DistributedOptimizer(optimizer: Any) -> Any:
    """Lets an optimizer take part in the job; returns the same object.

    On the server it applies the aggregate of what the workers send; on a worker it sends the
    gradients and takes over the server's variables. In a process that was started alone it stays
    as it is. Everything else about it, such as its class and its configuration, is unchanged, so a
    model that was compiled with it is saved and loaded as usual.

    Args:
      optimizer: any ``keras.optimizers.Optimizer``, or its name, such as "adam"; or one of
        ``tf.compat.v1.train``.
    Raises:
      UserError: it is something else, or ``agt.init`` was not called.
    """
    from aggregathor.dropin.install import checked_optimizer

    optimizer = checked_optimizer(optimizer)
    if _dropin is not None:
        _dropin.mark(optimizer)
    _check_initialised("agt.DistributedOptimizer")
    return optimizer


def apply(grads_and_vars: Iterable[tuple[Any, Any]], update: Callable[..., Any]) -> Any:
    """Lets an update rule of your own take part in the job, whatever its class.

    On the server ``update`` is called with the aggregate of what the workers send; a worker sends
    its gradients, and takes over the server's variables without calling it. In a process that was
    started alone this is ``update(grads_and_vars)``. It works eagerly, in a ``tf.function``, also
    with ``jit_compile=True``, and in a graph of ``tf.compat.v1``.

    Args:
      grads_and_vars: pairs of a gradient, a tensor, an ``IndexedSlices`` or None, and its variable;
        for the same variables in the same order on all ranks.
      update: called with a list of such pairs; changes the variables. What it keeps from step to
        step, such as momenta, is the server's.
    Returns:
      In a graph of v1 the op that makes the step, for which ``update`` must return the op that
      changes the variables; else None.
    Raises:
      UserError: something else was given, or ``agt.init`` was not called.

    >>> def descend(grads_and_vars):
    ...     for gradient, variable in grads_and_vars:
    ...         variable.assign_sub(0.1 * gradient)
    >>> agt.apply(zip(gradients, variables), descend)  # doctest: +SKIP
    """
    _check_initialised("agt.apply")
    from aggregathor.dropin.install import checked_pairs

    pairs = checked_pairs(grads_and_vars)
    return update(pairs) if _dropin is None else _dropin.apply(pairs, update)


def validation(loss_fn: Callable[..., Any], data: Any = None) -> None:
    """Gives the server a loss to judge gradients by, for rules such as "zeno" that need that.

    Call it before the first step of a loop of your own; it goes before the compiled loss of
    ``fit``. In every round the server computes the loss at the variables as they are, and after a
    step along each worker's gradient. It computes on copies: the variables, metrics, statistics of
    batch normalisation and states of random generators that ``loss_fn`` reads or writes are not
    changed. It does nothing on workers, with rules that do not need it, and in a process that was
    started alone.

    Args:
      loss_fn: ``loss_fn(*batch)`` returns the loss of a batch, a scalar, with the model's variables
        as they are, as for inference (``training=False``). It is traced once, as a ``tf.function``.
      data: arrays, or a tuple of them, whose first axis are examples that no worker trains on; or a
        data set of batches. In each round ``loss_fn`` is called with the same ``n_r`` of them, a
        parameter of the rule. By default ``loss_fn()`` has data of its own: then it must give the
        same as long as the variables are the same, and what it draws is up to it.
    Raises:
      UserError: ``loss_fn`` cannot be called, there are no examples, or ``agt.init`` was not
        called.

    >>> def loss_fn(x, y):
    ...     return loss(y, model(x, training=False))
    >>> agt.validation(loss_fn, (x_held_out, y_held_out))  # doctest: +SKIP
    """
    _check_initialised("agt.validation")
    if not callable(loss_fn):
        raise UserError(
            f"agt.validation takes a function that returns a loss, got {type(loss_fn).__name__}."
        )
    if _dropin is not None:
        _dropin.validations.give(loss_fn, data)


def lock(model_or_variables: Any, *, on_violation: str | None = None) -> None:
    """Keeps the graphs that a worker traces from now on from writing variables.

    The variables that an optimizer of the job trains are locked when its first step is traced. This
    locks them sooner, so that graphs which are traced before are checked too, or locks others. It
    does nothing on the server, which may write, in a process that was started alone, and with
    ``lock="off"``.

    Args:
      model_or_variables: a variable of Keras or TensorFlow, an object with ``trainable_variables``,
        or a list of these. Of a model only the trainable variables are locked: the others, such as
        the statistics of batch normalisation, stay open.
      on_violation: "error" refuses a graph that could write. "patch" lets it write a copy of this
        worker's own instead, and logs that, where the graph names the variable itself; elsewhere it
        refuses it. By default as ``lock`` of ``agt.init`` says. Graphs of ``tf.compat.v1`` are
        always refused.
    Raises:
      UserError: there is nothing to lock, or ``agt.init`` was not called.
      LockError: a graph that was traced before could write one.
    """
    _check_initialised("agt.lock")
    from aggregathor.dropin.install import variables_to_lock

    if on_violation not in (None, "error", "patch"):
        raise UserError(f"on_violation must be 'error' or 'patch', got {on_violation!r}.")
    variables = variables_to_lock(model_or_variables)
    if _dropin is not None and _dropin.guard is not None:
        patch = None if on_violation is None else on_violation == "patch"
        _dropin.guard.lock(variables, patch=patch)


def shard(data: Any) -> Any:
    """Returns this worker's own part of the data: element i goes to worker i mod n.

    Workers that compute the same in groups, as with ``protocol="draco"``, have a part a group. The
    server, which trains on nothing, gets the part of the last worker: no part is shorter, so no
    worker finishes its data before the server does. In a process that was started alone the data
    are returned as they are.

    Args:
      data: a ``tf.data.Dataset``, before it is shuffled and batched; or an array, or a tuple of
        arrays, whose first axis is divided.
    Raises:
      UserError: the data are something else, or fewer than there are workers.
    """
    _check_initialised("agt.shard")
    if _job is None:
        return data
    from aggregathor.dropin.data import part_of

    size = _job.setting.group
    n = _job.ranks.topology.workers // size
    return part_of(data, n, n - 1 if _job.is_server else _job.ranks.row // size)


@contextlib.contextmanager
def _said_by_server(is_server: bool) -> Iterator[None]:
    """Ends a worker without words for what the server says for all."""
    try:
        yield
    except UserError:
        if is_server:
            raise
        raise SystemExit(2) from None


def _joined(given: dict[str, Any]) -> Config:
    """Returns the configuration of all calls of ``init`` so far, and keeps what this one is given.

    Raises:
      UserError: they contradict each other.
    """
    differ = [name for name in given if name in _given and _given[name] != given[name]]
    if differ:
        now, before = in_words(given, differ), in_words(_given, differ)
        raise UserError(f"agt.init({now}) contradicts agt.init({before}) before. Call it once.")
    _given.update(given)
    return Config.of(_given, os.environ)


def _leave_to_parent() -> None:
    """Makes a fork of a rank, such as one of ``multiprocessing``, a process that is no rank."""
    global _job, _dropin
    _job = _dropin = None
    ending.forget()


def _check_initialised(caller: str) -> None:
    """Raises ``UserError`` unless ``init`` was called, with or without an mpirun."""
    if not _initialised:
        ending.install_hook()  # so that it is one line
        raise UserError(f"{caller} comes after agt.init(...): call that first.")
