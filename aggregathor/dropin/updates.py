"""Rounds around an update rule: the server applies the aggregate by it, the workers follow.

An update rule is whatever changes variables by gradients: ``apply`` of an optimizer of Keras or of
v1, or a function that the script gives to ``agt.apply``. It runs on the server only. A worker sends
its gradients and assigns what the server has published.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import tensorflow as tf

from aggregathor import notes
from aggregathor.cluster.job import Job
from aggregathor.dropin import xla
from aggregathor.dropin.deferred_variables import initialise
from aggregathor.dropin.description import Group
from aggregathor.dropin.functions import turns
from aggregathor.dropin.shared_variables import SharedVariables
from aggregathor.dropin.validation import Validations
from aggregathor.flat import FlatLayout, is_number, places_of_trained
from aggregathor.locking import Guard, name_of, variable_of

if TYPE_CHECKING:
    from aggregathor.dropin.keras.resume import Checkpoints


class Update(NamedTuple):
    """An update rule and its variables.

    Attributes:
      owner: the rule's object. The same variables have a round of their own for each owner.
      variables: of TensorFlow or Keras, the same on all ranks, in the same order.
      apply: changes the variables by gradients, one for each; None where there is none.
      follow: called on a worker once it has the server's variables, to keep its own state in step.
      counters: variables that all ranks begin with alike, beside those that are trained.
      state: returns the variables of the rule, for a checkpoint.
      learning_rate: returns the step's; None where that is not known.
    """

    owner: Any
    variables: Sequence[Any]
    apply: Callable[[list[Any]], Any]
    follow: Callable[[], None] = lambda: None
    counters: Sequence[Any] = ()
    state: Callable[[], Sequence[Any]] = lambda: ()
    learning_rate: Callable[[], float] | None = None


class Updates:
    """The update rules that take part, and the variables that they share."""

    def __init__(
        self, job: Job, checkpoints: Checkpoints, guard: Guard | None, validations: Validations
    ) -> None:
        """Begins without any; a worker's ``guard`` locks the variables that take part."""
        self._job = job
        self._guard = guard
        self._validations = validations
        self._checkpoints = checkpoints
        self._saved: dict[str, Group] = {}
        self._inside = threading.local()  # a rule is applied, which may call one that takes part
        self._shared: dict[tuple[int, ...], SharedVariables] = {}
        self._owners: list[Any] = []  # kept alive, as an id may be used again
        self._beginning = threading.RLock()  # rounds begin one after the other

    @property
    def is_server(self) -> bool:
        """Whether this process is the server, which applies the rules."""
        return self._job.is_server

    @property
    def is_here(self) -> bool:
        """Whether this process is the rank, and no fork of it."""
        return self._job.is_here

    @property
    def is_applying(self) -> bool:
        """Whether a rule is applied on this thread: what it calls takes part by it already."""
        return getattr(self._inside, "apply", False)

    @contextmanager
    def applying(self) -> Iterator[None]:
        """A context in which a rule is applied."""
        before = self.is_applying
        self._inside.apply = True
        try:
            yield
        finally:
            self._inside.apply = before

    def round(self, update: Update, gradients: Sequence[Any]) -> None:
        """Makes a round, eagerly or in the graph of a function; collective."""
        update, gradients = _of_trained(update, gradients)
        used = [*update.variables, *update.counters]
        if xla.record(lambda given: self.round(update, given), gradients, used):
            return
        replicas = tf.distribute.get_replica_context()
        if replicas is not None and any(map(_is_mirrored, map(variable_of, update.variables))):
            self._round_in_replica(update, gradients, replicas)
            return
        shared = self.shared(update)
        with turns(shared.turn):
            if self._job.is_server:
                self._apply_aggregate(update, shared.aggregate(), gradients)
                shared.publish()
                return
            values = shared.replace(gradients)
            for variable, value in zip(update.variables, values, strict=True):
                self.overwrite(variable_of(variable), value)
            update.follow()

    def shared(self, update: Update) -> SharedVariables:
        """Returns the shared variables of an update rule; collective the first time."""
        variables = list(update.variables)
        key = (id(update.owner), *map(id, variables))
        if key in self._shared:
            return self._shared[key]
        # The current values, even while a function is being traced.
        with self._beginning, tf.init_scope():
            if key not in self._shared:
                self._validations.check()
                self._owners.append(update.owner)
                initialise([variable_of(v) for v in variables])
                if self._job.is_server:
                    self._take_saved(update)
                if self._guard is not None:
                    self._guard.train(variables)
                self.synchronise([*variables, *update.counters])
                shared = SharedVariables(
                    self._job,
                    variables,
                    self._guard,
                    learning_rate=update.learning_rate,
                    validations=self._validations,
                )
                note_shared(update.owner, update.variables, self._guard)
                self._checkpoints.restore(len(self._job.halves) - 1)
                if self._guard is not None:
                    self._guard.lock(variables)
                self._shared[key] = shared
            return self._shared[key]

    def groups(self) -> dict[str, Group]:
        """Returns the variables and those of the rules, for a checkpoint of the server."""
        return self._saved

    def synchronise(self, variables: Sequence[Any]) -> list[np.ndarray]:
        """Gives every rank the server's variables, and returns their values; collective.

        Text and tables stay with their rank.
        """
        variables = [v for v in variables if is_number(v)]
        own = {f"{i}: {name_of(v)}": _value(v) for i, v in enumerate(variables)}
        values = list(self._job.synchronise(own).values())
        if not self._job.is_server:
            for variable, value in zip(variables, values, strict=True):
                self.overwrite(variable_of(variable), value)
            if self._guard is not None:
                self._guard.note(variables, values)
        return values

    def overwrite(self, variable: tf.Variable, value: Any) -> None:
        """Worker: assigns what the server has published."""
        if self._guard is None:
            variable.assign(value, read_value=False)
        else:
            self._guard.overwrite(variable, value)

    def _take_saved(self, update: Update) -> None:
        number = len(self._shared)
        owner = getattr(update.owner, "__qualname__", type(update.owner).__name__)
        state = Group(list(update.state()), owner=owner)
        for name, group in (("variables", Group(list(update.variables))), ("optimizer", state)):
            self._saved[f"{number}/{name}"] = group
            self._checkpoints.take(f"{number}/{name}", group)

    def _apply_aggregate(
        self, update: Update, aggregate: Sequence[tf.Tensor], gradients: Sequence[Any]
    ) -> None:
        """Applies the aggregate as the rule would have applied the local gradients."""
        used = [None if g is None else a for g, a in zip(gradients, aggregate, strict=True)]
        with self.applying():
            update.apply(used)

    def _round_in_replica(self, update: Update, gradients: Sequence[Any], replicas: Any) -> None:
        """Makes one round for all replicas of a ``MirroredStrategy``."""
        if self._job.is_server:

            @tf.autograph.experimental.do_not_convert
            def aggregate(strategy: Any) -> tf.Tensor:
                shared = self.shared(update)
                return shared.flatten(shared.aggregate())

            @tf.autograph.experimental.do_not_convert
            def publish(strategy: Any) -> None:
                self.shared(update).publish()

            grad_d = replicas.merge_call(aggregate)
            shared = self.shared(update)
            # The rule adds the replicas' gradients up.
            parts = shared.unflatten(grad_d / replicas.num_replicas_in_sync)
            self._apply_aggregate(update, parts, gradients)
            replicas.merge_call(publish)
            return

        @tf.autograph.experimental.do_not_convert
        def replace(strategy: Any, flat: Any) -> None:
            shared = self.shared(update)
            sum_d = strategy.reduce(tf.distribute.ReduceOp.SUM, flat, axis=None)
            values = shared.replace(shared.unflatten(sum_d))
            for variable, value in zip(update.variables, values, strict=True):
                strategy.extended.update(variable_of(variable), self.overwrite, args=(value,))

        grad_d = FlatLayout(update.variables).flatten(gradients)
        replicas.merge_call(replace, args=(grad_d,))
        update.follow()


def note_shared(owner: Any, variables: Sequence[Any], guard: Guard | None) -> None:
    """Notes what an update rule shares."""
    name = owner.get_name() if hasattr(owner, "get_name") else getattr(owner, "name", None)
    rule = name or getattr(owner, "__qualname__", "agt.apply")
    layout = FlatLayout([variable_of(v) for v in variables])
    names = notes.listed(map(name_of, variables))
    notes.add(
        notes.SHARED, f"{layout.dim} values in {layout.dtype.name}, trained by {rule}: {names}"
    )
    if guard is not None:
        notes.add(notes.LOCKED, f"on workers: {names}, {guard.describe()}")


def _of_trained(update: Update, gradients: Sequence[Any]) -> tuple[Update, Sequence[Any]]:
    """Leaves out the variables that no rule can train; the rule gets None for their gradients."""
    places = places_of_trained(gradients, update.variables)
    if len(places) == len(update.variables):
        return update, gradients

    def apply(used: list[Any]) -> Any:
        given: list[Any] = [None] * len(gradients)
        for place, gradient in zip(places, used, strict=True):
            given[place] = gradient
        return update.apply(given)

    variables = [update.variables[place] for place in places]
    return update._replace(variables=variables, apply=apply), [gradients[i] for i in places]


def _value(variable: Any) -> np.ndarray:
    variable = variable_of(variable)
    if _is_mirrored(variable):
        variable = variable.values[0]  # all its replicas are equal
    return variable.numpy()


def _is_mirrored(variable: tf.Variable) -> bool:
    return isinstance(variable, tf.distribute.DistributedValues)


__all__ = ["Update", "Updates"]
