"""``tf.compat.v1`` scripts: a graph, sessions, and optimizers whose train op takes part in a round.

``Optimizer.apply_gradients`` builds the round into the graph. Variables have values in a session
only, so all ranks take over the server's before the first run of a train op.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.dropin.shared_variables import SharedVariables
from aggregathor.internals.patching import as_method
from aggregathor.internals.tensorflow import BaseSession, wrapped_optimizer
from aggregathor.locking import Guard

v1 = tf.compat.v1


class V1:
    """Patches v1's optimizers and sessions.

    Attributes:
      all: whether every optimizer takes part, marked or not.
    """

    def __init__(self, job: Job, guard: Guard | None) -> None:
        """Patches TensorFlow; a worker's ``guard`` locks the variables that take part."""
        self.all = False
        self._job = job
        self._guard = guard
        self._shared: dict[tf.Graph, list[tf.Variable]] = {}
        self._locks: dict[tf.Graph, list[tf.Operation]] = {}
        # The sets of fetches that were checked, of each graph whose variables are locked.
        self._checked: dict[tf.Graph, set[frozenset[tf.Operation]]] = {}
        # The session that has run something of a graph last: variables have their values there.
        self._sessions: dict[tf.Graph, weakref.ref[Any]] = {}
        self._marked: list[Any] = []
        self._inside = False
        self._unsynchronised: dict[tf.Graph, set[tf.Operation]] = {}
        self._apply = v1.train.Optimizer.apply_gradients
        self._run = BaseSession.run
        self._make_callable = BaseSession.make_callable
        self._partial_run_setup = BaseSession.partial_run_setup
        v1.train.Optimizer.apply_gradients = as_method(self._take_part)
        v1.train.SyncReplicasOptimizer.apply_gradients = as_method(self._take_part)
        # Rounds are synchronous without its queues and tokens.
        v1.train.SyncReplicasOptimizer.make_session_run_hook = lambda *_, **__: (
            v1.train.SessionRunHook()
        )
        BaseSession.run = as_method(self._run_synchronised)
        BaseSession.make_callable = as_method(self._make_synchronised)
        BaseSession.partial_run_setup = as_method(self._set_up_synchronised)
        if not job.is_server:
            _write_nothing()

    def mark(self, optimizer: Any) -> None:
        """Lets an optimizer take part."""
        self._marked.append(optimizer)

    def _take_part(
        self, optimizer: Any, grads_and_vars: Any, global_step: Any = None, name: Any = None
    ) -> Any:
        inner = wrapped_optimizer(optimizer)
        pairs = list(grads_and_vars)
        takes_part = self.all or any(each in (optimizer, inner) for each in self._marked)
        if self._inside or not takes_part or not self._job.is_here:
            return self._apply(inner, pairs, global_step=global_step, name=name)
        variables = [variable for _, variable in pairs]
        if self._guard is not None:
            self._guard.train(variables)
        graph = v1.get_default_graph()
        reads: list[tf.Tensor] = []
        if self._job.is_server:
            with tf.control_dependencies(None):  # now: the graph may be finalised later
                reads = [v.read_value() for v in variables]
        shared = SharedVariables(
            self._job,
            variables,
            self._guard,
            read=lambda: self._run(self._sessions[graph](), reads),
        )
        if self._job.is_server:
            op = self._apply_aggregate(inner, shared, pairs, global_step, name)
        else:
            values = shared.replace([gradient for gradient, _ in pairs])
            assignments = [v1.assign(v, x) for v, x in zip(variables, values, strict=True)]
            if self._guard is not None:
                for assignment in assignments:
                    self._guard.allow(assignment.op)
                self._shared.setdefault(graph, []).extend(variables)
                self._locks.setdefault(graph, []).extend(self._guard.lock_ops(variables))
            if global_step is not None:
                assignments.append(v1.assign_add(global_step, 1))
            op = tf.group(*assignments, name=name)
        self._unsynchronised.setdefault(op.graph, set()).add(op)
        return op

    def _apply_aggregate(
        self, optimizer: Any, shared: SharedVariables, pairs: Any, global_step: Any, name: Any
    ) -> tf.Operation:
        aggregate = [
            (None if gradient is None else value, variable)
            for value, (gradient, variable) in zip(shared.aggregate(), pairs, strict=True)
        ]
        self._inside = True
        try:
            applied = optimizer.apply_gradients(aggregate, global_step=global_step)
        finally:
            self._inside = False
        with tf.control_dependencies([applied]):
            published = shared.publish()
        return tf.group(applied, published, name=name)

    def _run_synchronised(self, session: Any, fetches: Any, *args: Any, **kwargs: Any) -> Any:
        self._before(session, fetches)
        return self._run(session, fetches, *args, **kwargs)

    def _make_synchronised(self, session: Any, fetches: Any, *args: Any, **kwargs: Any) -> Any:
        made = self._make_callable(session, fetches, *args, **kwargs)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._before(session, fetches)
            return made(*args, **kwargs)

        return call

    def _set_up_synchronised(self, session: Any, fetches: Any, *args: Any, **kwargs: Any) -> Any:
        self._before(session, fetches)
        return self._partial_run_setup(session, fetches, *args, **kwargs)

    def _before(self, session: Any, fetches: Any) -> None:
        """Called before fetches run; collective when they train for the first time."""
        self._sessions[session.graph] = weakref.ref(session)
        waiting = self._unsynchronised.get(session.graph)
        if waiting and _needs(session.graph, fetches, waiting):
            del self._unsynchronised[session.graph]
            self._synchronise(session)
            if self._guard is not None:
                self._guard.lock(self._shared.pop(session.graph))
                self._run(session, self._locks.pop(session.graph))
                self._checked[session.graph] = set()
        if self._guard is not None and session.graph in self._checked:
            self._check(self._guard, session.graph, fetches)

    def _check(self, guard: Guard, graph: tf.Graph, fetches: Any) -> None:
        """Checks fetches that run for the first time since variables were locked."""
        wanted = frozenset(_operation(graph, fetch) for fetch in _flattened(fetches))
        if wanted not in self._checked[graph]:
            guard.check(graph, wanted)
            self._checked[graph].add(wanted)

    def _synchronise(self, session: Any) -> None:
        """Gives every rank the server's variables; collective."""
        # The server's include the slots of its optimizers, which workers do not need.
        variables = {v.name: v for v in session.graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)}
        own = {name: np.asarray(value) for name, value in self._run(session, variables).items()}
        values = self._job.synchronise(own)
        if self._guard is not None:
            self._guard.forget()
        if not self._job.is_server:
            for name, value in values.items():
                start = variables[name].initializer
                self._run(session, start, {start.inputs[1]: value})


def _needs(graph: tf.Graph, fetches: Any, wanted: set[tf.Operation]) -> bool:
    """Whether running the fetches runs one of the wanted operations."""
    ahead = [_operation(graph, fetch) for fetch in _flattened(fetches)]
    seen = set(ahead)
    while ahead:
        operation = ahead.pop()
        if operation in wanted:
            return True
        before: Iterable[tf.Operation] = [
            *(tensor.op for tensor in operation.inputs),
            *operation.control_inputs,
        ]
        ahead += [each for each in before if each not in seen]
        seen.update(before)
    return False


def _flattened(fetches: Any) -> Iterable[Any]:
    """Yields the fetches of a structure; keys of dicts, such as hooks, need not be sortable."""
    if isinstance(fetches, dict):
        fetches = fetches.values()
    elif not isinstance(fetches, (list, tuple)):
        yield from tf.nest.flatten(fetches, expand_composites=True)
        return
    for each in fetches:
        yield from _flattened(each)


def _operation(graph: tf.Graph, fetch: Any) -> tf.Operation:
    element = graph.as_graph_element(fetch, allow_tensor=True, allow_operation=True)
    return element if isinstance(element, tf.Operation) else element.op


def _write_nothing() -> None:
    """Keeps a worker's sessions from writing or restoring the server's files."""
    monitored = v1.train.MonitoredTrainingSession

    @functools.wraps(monitored)
    def worker_session(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(checkpoint_dir=None, summary_dir=None)
        return monitored(*args[:2], **kwargs)  # master, is_chief

    v1.train.MonitoredTrainingSession = worker_session
    v1.train.Saver.save = lambda self, session, save_path, *_, **__: save_path
