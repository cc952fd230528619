"""``fit`` on a worker follows the server's: what the server tells, and how a worker obeys it.

    server                                             worker
    arguments: as many epochs            ---->         begins, too
    shape: steps an epoch, if known      ---->         what its callbacks read in ``params``
    first: the epoch to begin with       ---->
    resumed: it makes steps again        ---->         what it still skips is of this epoch
    of each epoch its logs               ---->         gives them to its callbacks
    and, after the server's callbacks, what they decided: stop, learning rates
    end: the history                     ---->         returns it

It is plain data, goes downwards only, and never waits for a worker. A worker makes as many steps an
epoch as the server, and then waits for its word. Where that comes earlier, as after a stop in the
middle of an epoch, the worker leaves the epoch at its next step. Where a round was repeated, the
worker makes one step more. Where ranks do not step together, as in asynchronous training, a worker
makes as many steps as it can until it hears that the epoch has ended. So neither waits for ever,
however many batches each has. Where nothing is trained no round keeps them together, and a slow
worker makes fewer steps than the server.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from aggregathor.cluster.ranks import AGAIN, Ranks
from aggregathor.internals.keras import start_at_epoch, step_counter
from lossympi.messages import plain, read

# A worker leaves them to the server: they write files, print, or judge by a batch.
SERVERS_CALLBACKS = (
    "BackupAndRestore",
    "CSVLogger",
    "ModelCheckpoint",
    "OrbaxCheckpoint",
    "ProgbarLogger",
    "RemoteMonitor",
    "SwapEMAWeights",
    "TensorBoard",
    "TerminateOnNaN",
)
# A worker runs them, on the server's logs; what they decide there is the server's all the same.
DECIDING_CALLBACKS = ("EarlyStopping", "LearningRateScheduler", "ReduceLROnPlateau")


class EpochOver(Exception):
    """The server's epoch ended before the step of this worker."""


class FitLeft(Exception):
    """The server's ``fit`` was left by an error."""


class News:
    """Sorts what the server tells by the number of the ``fit`` that it is about.

    Attributes:
      repeated: how many rounds the server has had to repeat.
    """

    def __init__(self, ranks: Ranks) -> None:
        """Begins with nothing heard."""
        self.repeated = 0
        self._ranks = ranks
        self._of: dict[int, deque[tuple[str, dict[str, Any]]]] = {}

    def next(self, fit: int, whom: str = "") -> tuple[str, dict[str, Any]] | None:
        """Returns the next of a ``fit``, those before it being over; None if nothing has come.

        Args:
          fit: its number, counted from 1.
          whom: waits for it, and what to say of that wait. None is returned if a round was repeated
            meanwhile.
        Raises:
          TrainingEnded: the server has ended instead.
          LinkError: it has died.
        """
        repeated = self.repeated
        self._listen(fit)
        if whom and not self._of.get(fit) and self.repeated == repeated:

            def has_come() -> bool:
                self._listen(fit)
                return bool(self._of.get(fit)) or self.repeated > repeated

            self._ranks.wait(has_come, whom)
        waiting = self._of.get(fit)
        return waiting.popleft() if waiting else None

    def forget(self, fit: int) -> None:
        """Drops what is left of a ``fit`` that is over."""
        self._of.pop(fit, None)

    def _listen(self, current: int) -> None:
        while (heard := self._ranks.heard()) is not None:
            fit, what, values = read(tuple[int, str, dict[str, Any]], heard, "what the server says")
            if what == AGAIN:
                self.repeated += 1
            elif fit >= current or fit in self._of:
                self._of.setdefault(fit, deque()).append((what, values))


class Leader:
    """The server's side of one ``fit``."""

    def __init__(
        self,
        ranks: Ranks,
        fit: int,
        model: Any,
        given: Mapping[str, Any],
        returned: dict[str, Any],
        is_skipping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Tells how many epochs there are.

        Args:
          ranks: the processes.
          fit: its number, counted from 1.
          model: that is trained.
          given: the arguments of ``fit``.
          returned: what an earlier job has found of its epochs, which is filled as they end.
          is_skipping: whether an epoch that ends was made by an earlier job.
        """
        self.made = 0  # steps of this epoch
        self._returned = returned
        self._returned.setdefault("history", {})
        self._returned.setdefault("epoch", [])
        self._is_skipping = is_skipping
        self._before = bool(self._returned["epoch"])
        self._ranks = ranks
        self._fit = fit
        self._model = model
        self._given = given
        self._steps: int | None = None
        self._tell("arguments", epochs=given.get("epochs", 1), verbose=given.get("verbose", "auto"))

    def first(self) -> keras.callbacks.Callback:
        """Returns the callback that comes before the user's."""
        leader = self

        class Tells(keras.callbacks.Callback):
            def set_params(self, params: Any) -> None:
                super().set_params(params)
                leader._steps = params.get("steps")
                leader._tell("shape", steps=leader._steps)

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                leader.made = 0

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                # Before the callbacks, so that the workers' run at the same time.
                leader._tell("logs", epoch=epoch, logs=_plain_of(logs or {}))

        return Tells()

    def last(
        self, has_changed: Callable[[], bool], synchronise: Callable[[], Any]
    ) -> keras.callbacks.Callback:
        """Returns the one that comes after them.

        Args:
          has_changed: returns whether they have changed the model at the beginning.
          synchronise: called then, on all ranks.
        """
        leader = self

        class Decides(keras.callbacks.Callback):
            def on_train_begin(self, logs: Any = None) -> None:
                first = start_at_epoch(leader._model) or leader._given.get("initial_epoch", 0)
                changed = has_changed()
                leader._tell("first", epoch=first, changed=changed)
                if changed:
                    synchronise()

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                leader._keep(epoch, logs)
                leader._tell(
                    "decided",
                    epoch=epoch,
                    stop=bool(leader._model.stop_training),
                    rates=[float(rate.numpy()) for rate in learning_rates(leader._model)],
                    steps=leader.made if leader._steps is None else leader._steps,
                )

        return Decides()

    def end(self, history: Any, callbacks: Sequence[Any]) -> None:
        """Tells what ``fit`` returns, and what its callbacks have found.

        Of epochs that an earlier job has made, both are what that job has found.
        """
        if self._before:
            vars(history).update(history=self._returned["history"], epoch=self._returned["epoch"])
        if self._is_skipping():
            for callback, found in zip(callbacks, self._returned.get("found", []), strict=False):
                take_found(callback, found)
        self._returned["found"] = [_found_by(callback) for callback in callbacks]
        self._tell(
            "end",
            history=_plain_of(history.history),
            epoch=plain(list(history.epoch)),
            params=_plain_of(history.params or {}),
            stop=bool(self._model.stop_training),
            found=self._returned["found"],
        )

    def _keep(self, epoch: int, logs: Mapping[str, Any] | None) -> None:
        """Keeps of an epoch what Keras's history will have of it."""
        if not self._is_skipping():
            self._returned["epoch"].append(epoch)
            for name, value in _plain_of(logs or {}).items():
                self._returned["history"].setdefault(name, []).append(value)

    def resumed(self) -> None:
        """Tells that all steps which an earlier job has made are skipped."""
        self._tell("resumed")

    def left(self) -> None:
        """Tells that an error ends ``fit``."""
        self._tell("left")

    def _tell(self, what: str, **values: Any) -> None:
        self._ranks.tell((self._fit, what, values))


class Follower:
    """A worker's side of one ``fit``.

    Attributes:
      made: how many steps of the server's epoch this worker knows to be made.
      has_data: whether it still has a batch to make a step of.
    """

    def __init__(
        self,
        ranks: Ranks,
        news: News,
        fit: int,
        model: Any,
        in_step: bool,
        is_skipping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Waits until the server has begun, and takes over how many epochs it has.

        Args:
          ranks: the processes.
          news: what the server tells.
          fit: its number, counted from 1.
          model: that is trained.
          in_step: whether this worker makes each of the server's steps.
          is_skipping: whether an earlier job has made the next step.
        Raises:
          TrainingEnded: the server ends instead.
        """
        self.made: float = 0
        self.has_data = True
        self._ranks = ranks
        self._news = news
        self._fit = fit
        self._model = model
        self._in_step = in_step
        self._is_skipping = is_skipping
        self._epoch = 0
        self._steps: int | None = None
        self._of: dict[str, dict[str, Any]] = {}
        self._logs: dict[int, dict[str, Any]] = {}
        self._decided: dict[int, dict[str, Any]] = {}
        self._repeated = 0
        self._most_rounds = 1
        self.arguments = self._await("arguments")

    def goes_on(self) -> bool:
        """Whether the server's epoch has another step, as far as this worker can know.

        Raises:
          FitLeft: the server has left ``fit``.
          TrainingEnded: it has ended.
        """
        while True:
            while self._take(self._news.next(self._fit)):
                pass
            if self._is_skipping():
                if (steps := self._steps_to_skip()) is not None:
                    return self.made < steps
                if "left" in self._of:
                    raise FitLeft
                self._take(self._news.next(self._fit, "the server, to come to where it was saved"))
                continue
            # What raises there may raise here too, so its epochs end first.
            if self._epoch in self._logs or "end" in self._of:
                return False
            if "left" in self._of:
                raise FitLeft
            most = self._steps if self._in_step else None
            if self.has_data and (most is None or self.made < most + self._again()):
                return True
            self._take(self._news.next(self._fit, "the server, to end the epoch"))

    def _steps_to_skip(self) -> float | None:
        """Returns how many steps of this epoch are skipped at most; None if not known yet.

        The server skips them faster or slower than this worker, so its epoch may be over by far.
        """
        if self._epoch in self._decided:
            return self._decided[self._epoch]["steps"]
        if self._steps is not None:
            return self._steps
        return math.inf if "resumed" in self._of else None

    def count(self, rounds: int, steps: int, own_step: bool) -> None:
        """Counts what a call of the train function has made.

        Where that cannot be known it counts too little: then the worker learns of the epoch's end a
        step late. With too much it would wait for the end, and the server for its gradient.

        Args:
          rounds: by which it has moved on, including those that this worker has missed.
          steps: the most that it makes; fewer where the data have ended.
          own_step: whether a step may make any number of rounds.
        """
        if rounds <= 0:  # nothing is trained
            self.made += steps
        elif own_step:
            self._most_rounds = max(self._most_rounds, rounds)
            self.made += steps * rounds / self._most_rounds
        else:
            self.made += rounds

    def first(self) -> keras.callbacks.Callback:
        """Returns the callback that comes before the user's."""
        follower = self

        class Hears(keras.callbacks.Callback):
            def set_params(self, params: Any) -> None:
                # All callbacks have the same mapping.
                shape = follower._await("shape")
                follower._steps = shape["steps"]
                params.update(follower.arguments, steps=shape["steps"])
                super().set_params(params)

            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                follower._epoch = epoch
                follower.made = 0
                follower._repeated = follower._news.repeated

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                found = follower._await_of(follower._logs, epoch)["logs"]
                if logs is not None:  # the mapping that all callbacks get
                    logs.clear()
                    logs.update(found)

            def on_train_end(self, logs: Any = None) -> None:
                if logs is not None and follower._logs:
                    logs.clear()
                    logs.update(follower._logs[max(follower._logs)]["logs"])

        return Hears()

    def last(self, synchronise: Callable[[], Any]) -> keras.callbacks.Callback:
        """Returns the one that comes after them.

        Args:
          synchronise: called where the server's callbacks have changed the model at the beginning.
        """
        follower = self

        class Obeys(keras.callbacks.Callback):
            async_safe = True  # what a callback of a batch decides counts on the server only

            def on_train_begin(self, logs: Any = None) -> None:
                first = follower._await("first")
                start_at_epoch(follower._model, first["epoch"])
                if first["changed"]:
                    synchronise()

            def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
                follower._model.stop_training = False

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
                decided = follower._await_of(follower._decided, epoch)
                follower._steps = decided["steps"]
                follower._model.stop_training = decided["stop"]
                rates = learning_rates(follower._model)
                for variable, rate in zip(rates, decided["rates"], strict=False):
                    variable.assign(rate)

        return Obeys()

    def take_end(self, callbacks: Sequence[Any]) -> dict[str, Any]:
        """Waits for the end of the server's ``fit``; returns its history, epochs and params.

        Args:
          callbacks: the user's, which get what the server's have found.
        Raises:
          FitLeft: the server has left ``fit``.
        """
        end = self._await("end")
        self._model.stop_training = end["stop"]
        for callback, found in zip(callbacks, end["found"], strict=False):
            take_found(callback, found)
        self._news.forget(self._fit)
        return end

    def _again(self) -> int:
        return self._news.repeated - self._repeated

    def _await(self, what: str) -> dict[str, Any]:
        while what not in self._of:
            if "left" in self._of:
                raise FitLeft
            self._take(self._news.next(self._fit, f"the server's fit ({what})"))
        return self._of[what]

    def _await_of(self, found: Mapping[int, dict[str, Any]], epoch: int) -> dict[str, Any]:
        while epoch not in found:
            if "left" in self._of or "end" in self._of:
                raise FitLeft
            self._take(self._news.next(self._fit, f"the server, to end epoch {epoch + 1}"))
        return found[epoch]

    def _take(self, message: tuple[str, dict[str, Any]] | None) -> bool:
        if message is None:
            return False
        what, values = message
        if what == "logs":
            self._logs[values["epoch"]] = values
        elif what == "decided":
            self._decided[values["epoch"]] = values
        else:
            self._of[what] = values
        return True


def learning_rates(model: Any) -> list[Any]:
    """Returns the variables of the learning rates of a model's optimizers; a schedule has none."""
    return [
        v for each in _optimizers_of(model) for v in each.variables if v.name == "learning_rate"
    ]


def counters(model: Any) -> list[Any]:
    """Returns the variables of its optimizers that a script reads: learning rates, iterations."""
    return [*learning_rates(model), *map(step_counter, _optimizers_of(model))]


def is_servers(callback: Any) -> bool:
    """Whether a worker leaves a callback to the server."""
    return _is_one_of(callback, SERVERS_CALLBACKS)


def _optimizers_of(model: Any) -> list[Any]:
    named = [getattr(model, "optimizer", None), *vars(model).values()]
    inner = [getattr(each, "inner_optimizer", each) for each in named]
    found = {id(each): each for each in inner if isinstance(each, keras.optimizers.Optimizer)}
    return list(found.values())


def take_found(callback: Any, found: Mapping[str, Any]) -> None:
    """Gives a callback of Keras's what the server's has found."""
    if _is_one_of(callback, SERVERS_CALLBACKS + DECIDING_CALLBACKS):
        vars(callback).update(found)


def _is_one_of(callback: Any, names: Sequence[str]) -> bool:
    classes = tuple(getattr(keras.callbacks, name, None) for name in names)
    return isinstance(callback, tuple(each for each in classes if each is not None))


def _found_by(callback: Any) -> dict[str, Any]:
    """Returns the numbers that a callback of Keras has found, such as an epoch."""
    if not _is_one_of(callback, SERVERS_CALLBACKS + DECIDING_CALLBACKS):
        return {}
    return {
        name: plain(value)
        for name, value in vars(callback).items()
        if not name.startswith("_") and isinstance(value, (bool, int, float, np.number))
    }


def _plain_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what of a mapping can travel; an array as lists."""
    found = {}
    for name, value in values.items():
        try:
            found[str(name)] = plain(value.tolist() if hasattr(value, "tolist") else value)
        except TypeError:
            continue
    return found


__all__ = [
    "DECIDING_CALLBACKS",
    "SERVERS_CALLBACKS",
    "EpochOver",
    "FitLeft",
    "Follower",
    "Leader",
    "News",
    "counters",
    "is_servers",
]
