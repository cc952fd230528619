"""Scripts of ``tf.compat.v1``: optimizers, and sessions whose train ops take part in rounds.

Eagerly and in a ``tf.function`` an optimizer makes a round as one of Keras does. In a graph
``apply_gradients`` builds the round into the graph. There variables have values in a session only,
so all ranks take over the server's before a session runs a train op for the first time, and again
after it has initialised or restored variables.
"""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from aggregathor.cluster.job import Job
from aggregathor.dropin.server_files import ServerFiles
from aggregathor.dropin.shared_variables import SharedVariables
from aggregathor.dropin.updates import Update, Updates, note_shared
from aggregathor.errors import UserError
from aggregathor.flat import is_number, places_of_trained
from aggregathor.internals.patching import as_method
from aggregathor.internals.tensorflow import (
    BaseSession,
    FuncGraph,
    checkpoint_name,
    wrapped_optimizer,
)
from aggregathor.locking import Guard

v1 = tf.compat.v1
Pairs = Sequence[tuple[Any, Any]]  # gradients, or None, and their variables


class _Rounds:
    """The rounds that were built into a graph.

    Attributes:
      train_ops: what makes them.
      variables: that they train.
      locks: ops that lock the variables in the session that runs them.
    """

    def __init__(self) -> None:
        """Begins without any."""
        self.train_ops: set[tf.Operation] = set()
        self.variables: list[Any] = []
        self.locks: list[tf.Operation] = []


class _Known:
    """What is known of a session.

    Attributes:
      synchronised: the train ops whose variables are the server's.
      checked: the sets of fetches that were checked since then.
    """

    def __init__(self) -> None:
        """Begins with a session that has run nothing."""
        self.synchronised: set[tf.Operation] = set()
        self.checked: set[frozenset[tf.Operation]] = set()


class V1:
    """Patches v1's optimizers and sessions.

    Attributes:
      all: whether every optimizer takes part, marked or not.
    """

    def __init__(self, job: Job, updates: Updates, guard: Guard | None, files: ServerFiles) -> None:
        """Patches TensorFlow; a worker's ``guard`` locks the variables that take part."""
        self.all = False
        self._job = job
        self._updates = updates
        self._guard = guard
        self._rounds: dict[tf.Graph, _Rounds] = {}
        self._known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()
        # The session that has run something of a graph last: variables have their values there.
        self._sessions: dict[tf.Graph, weakref.ref[Any]] = {}
        self._marked: list[Any] = []
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
        self._files = files
        v1.train.Saver.save = self._saving(v1.train.Saver.save)
        if not job.is_server:
            v1.train.Saver.restore = self._restoring(v1.train.Saver.restore)
            _leave_files_of_sessions()

    def mark(self, optimizer: Any) -> None:
        """Lets an optimizer take part."""
        self._marked.append(optimizer)

    def _take_part(
        self, optimizer: Any, grads_and_vars: Any, global_step: Any = None, name: Any = None
    ) -> Any:
        inner = wrapped_optimizer(optimizer)
        pairs = list(grads_and_vars)
        takes_part = self.all or any(each in (optimizer, inner) for each in self._marked)

        def apply(used: Pairs) -> Any:
            return self._apply(inner, used, global_step=global_step, name=name)

        def count() -> Any:
            return None if global_step is None else v1.assign_add(global_step, 1)

        if self._updates.is_applying or not takes_part or not self._job.is_here:
            return apply(pairs)
        if is_graph_of_sessions():
            return self.train_op(pairs, apply, count, name, inner)
        variables = [variable for _, variable in pairs]
        update = Update(
            owner=inner,
            variables=variables,
            apply=lambda used: apply(list(zip(used, variables, strict=True))),
            follow=count,
            counters=[] if global_step is None else [global_step],
        )
        self._updates.round(update, [gradient for gradient, _ in pairs])
        return None if tf.executing_eagerly() else tf.no_op(name=name)

    def train_op(
        self,
        pairs: Pairs,
        apply: Callable[[Pairs], Any],
        follow: Callable[[], Any] = lambda: None,
        name: str | None = None,
        owner: Any = None,
    ) -> tf.Operation:
        """Builds a round into the graph.

        Args:
          pairs: this rank's gradients, or None, and their variables.
          apply: server: makes the op that applies the aggregate, given as such pairs.
          follow: worker: makes an op, or None, to run beside the assignment of the variables.
          name: of the op that is returned.
          owner: the rule's object, if it has one.

        Raises:
          UserError: the rule judges gradients by a loss, which graphs of sessions do not compute.
        """
        rule = self._job.setting.rule
        if rule.needs_validation:
            raise UserError(
                f"{rule.gar.name} judges gradients by a loss on validation data, which is not "
                "computed in graphs of tf.compat.v1: train by fit, or by a loop with "
                "tf.GradientTape"
            )
        gradients, variables = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        pairs = [pairs[place] for place in places_of_trained(gradients, variables)]
        variables = [variable for _, variable in pairs]
        note_shared(owner, variables, self._guard)
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
        rounds = self._rounds.setdefault(graph, _Rounds())
        rounds.variables += variables
        if self._job.is_server:
            op = self._apply_aggregate(apply, shared, pairs, name)
        else:
            values = shared.replace([gradient for gradient, _ in pairs])
            assignments = [v1.assign(v, x) for v, x in zip(variables, values, strict=True)]
            if self._guard is not None:
                for assignment in assignments:
                    self._guard.allow(assignment.op)
                rounds.locks += self._guard.lock_ops(variables)
            followed = follow()
            op = tf.group(*assignments, *([] if followed is None else [followed]), name=name)
        rounds.train_ops.add(op)
        return op

    def _apply_aggregate(
        self, apply: Callable[[Pairs], Any], shared: SharedVariables, pairs: Pairs, name: Any
    ) -> tf.Operation:
        aggregate = [
            (None if gradient is None else value, variable)
            for value, (gradient, variable) in zip(shared.aggregate(), pairs, strict=True)
        ]
        with self._updates.applying():
            applied = apply(aggregate)
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
        graph = session.graph
        self._sessions[graph] = weakref.ref(session)
        rounds = self._rounds.get(graph)
        if rounds is None:
            return
        known = self._known.setdefault(session, _Known())
        waiting = rounds.train_ops - known.synchronised
        wanted = frozenset(_operation(graph, fetch) for fetch in _flattened(fetches))
        if waiting and _needs(wanted, waiting.__contains__):
            self._begin(session, rounds, known)
        if known.synchronised and wanted not in known.checked:
            self._check(graph, rounds, known, wanted)

    def _begin(self, session: Any, rounds: _Rounds, known: _Known) -> None:
        """Begins to train in a session; collective."""
        known.synchronised = set(rounds.train_ops)
        known.checked = set()
        self._synchronise(session)
        if self._guard is not None:
            self._guard.lock(rounds.variables)
            self._run(session, rounds.locks)

    def _check(
        self, graph: tf.Graph, rounds: _Rounds, known: _Known, wanted: frozenset[tf.Operation]
    ) -> None:
        """Checks fetches that run for the first time since all ranks have the same variables."""
        initializers = {variable.initializer for variable in rounds.variables}
        may_begin_again = self._guard is None or not self._guard.is_strict
        if may_begin_again and _needs(
            wanted, lambda each: each in initializers or each.type == "RestoreV2"
        ):
            # On all ranks, which have the server's values again before they train on.
            known.synchronised = set()
            return
        if self._guard is not None:
            self._guard.check(graph, wanted)
        known.checked.add(wanted)

    def _synchronise(self, session: Any) -> None:
        """Gives every rank the server's variables; collective.

        Text and tables stay with their rank.
        """
        # The server's include the slots of its optimizers, which workers do not need.
        variables = {
            v.name: v
            for v in session.graph.get_collection(v1.GraphKeys.GLOBAL_VARIABLES)
            if is_number(v)
        }
        own = {name: np.asarray(value) for name, value in self._run(session, variables).items()}
        values = self._job.synchronise(own)
        if self._guard is not None:
            self._guard.forget()
        if not self._job.is_server:
            for name, value in values.items():
                start = variables[name].initializer
                self._run(session, start, {start.inputs[1]: value})

    def _saving(self, save: Callable[..., Any]) -> Callable[..., Any]:
        """Patches ``Saver.save``: the server writes, and a worker knows the path."""

        @functools.wraps(save)
        def ours(
            saver: Any,
            sess: Any,
            save_path: Any,
            global_step: Any = None,
            latest_filename: Any = None,
            meta_graph_suffix: str = "meta",
            write_meta_graph: bool = True,
            write_state: bool = True,
            **kwargs: Any,
        ) -> Any:
            if self._job.is_server:
                how = (latest_filename, meta_graph_suffix, write_meta_graph, write_state)
                path = save(saver, sess, save_path, global_step, *how, **kwargs)
            else:
                path = checkpoint_name(saver, sess, save_path, global_step)
                if write_state:  # the server's is told of where it is written
                    name = latest_filename or "checkpoint"
                    self._files.has_written(os.path.join(os.path.dirname(path), name))
            if path is not None:  # of a saver without variables
                self._files.has_written(path)
            return path

        return ours

    def _restoring(self, restore: Callable[..., Any]) -> Callable[..., Any]:
        """Patches ``Saver.restore`` of a worker: it reads what the server has written."""

        @functools.wraps(restore)
        def ours(saver: Any, sess: Any, save_path: Any) -> None:
            if save_path is None or not self._files.is_missing(save_path):
                restore(saver, sess, save_path)
            elif self._files.await_written(save_path):
                # On another host, where the server restores it: all begin with its values again.
                self._known.setdefault(sess, _Known()).synchronised = set()

        return ours


def is_graph_of_sessions() -> bool:
    """Whether what is made now goes into a graph that a session of v1 runs."""
    return not tf.executing_eagerly() and not isinstance(v1.get_default_graph(), FuncGraph)


def _needs(wanted: Iterable[tf.Operation], is_one: Callable[[tf.Operation], bool]) -> bool:
    """Whether running the wanted operations runs one for which ``is_one`` holds."""
    ahead = list(wanted)
    seen = set(ahead)
    while ahead:
        operation = ahead.pop()
        if is_one(operation):
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


def _leave_files_of_sessions() -> None:
    """Keeps a worker's sessions from writing or restoring the server's files."""
    monitored = v1.train.MonitoredTrainingSession

    @functools.wraps(monitored)
    def worker_session(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(checkpoint_dir=None, summary_dir=None)
        return monitored(*args[:2], **kwargs)  # master, is_chief

    v1.train.MonitoredTrainingSession = worker_session
