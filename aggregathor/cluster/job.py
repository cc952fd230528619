"""One training job on this process: its ranks, its configuration, its optimizers' rounds."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import DTypeLike

import lossympi
from aggregathor import notes
from aggregathor.cluster.config import FIELDS, PREFIX, Config
from aggregathor.cluster.loops import Parts, loop_of
from aggregathor.cluster.meeting import Meeting
from aggregathor.cluster.places import Places
from aggregathor.cluster.ranks import CheckDone, Ranks
from aggregathor.cluster.waits import ServerWaits, WorkerWaits
from aggregathor.errors import UserError
from aggregathor.monitor.observer import Observer, columns_for, open_folder
from aggregathor.protocols import draco
from aggregathor.protocols.checks import check_transport, doubts
from aggregathor.protocols.decoding import code_of
from aggregathor.protocols.registry import PROTOCOLS
from aggregathor.protocols.rounds import TrainingStopped
from aggregathor.protocols.server import Report, ServerHalf
from aggregathor.protocols.setting import Setting
from aggregathor.protocols.validation import Validate, Validation
from aggregathor.protocols.wide import wide_worker
from aggregathor.protocols.worker import WorkerHalf
from aggregathor.settings import in_words, shared
from lossympi import ServerLink, WorkerLink

_log = logging.getLogger(__name__)
# Of a link between ranks that train, where the user gives no other.
_LINK_ARGS = {"timeout_s": 10.0, "give_up_s": 600.0}
# Workers pause all at once between epochs.
_UDP_ARGS = {**_LINK_ARGS, "floor_s": 1.0}
_CLOSE_S = 5.0  # for a round that a cancelled session has left behind
# What a job acts on as soon as it starts: how Keras is patched, and what an earlier job has left.
_AT_START = frozenset(
    ("protocol", "protocol_args", "lock", "digest_every", "checkpoint", "check_rounds", "show")
)
_ROUNDS, _DOING = "rounds of the optimizers", "what the server is doing"
# Of a name that Keras has made: a rank that makes more models counts differently.
_NUMBER = re.compile(r"_\d+\b")

Half = ServerHalf | WorkerHalf


class Job:
    """What ``agt.init`` sets up, once for the process.

    Attributes:
      ranks: the processes of the job.
      config: what all of them were told, with the defaults of the link.
      told: the same without any default, as variables of the environment.
      failure: what ended the training early, if something did: a round within a graph can raise it
        only in TensorFlow's words.
      loop: how its ranks take turns.
      last_round: on the server, what it saw in the latest round, or of the latest step's gradient.
      has_begun: whether an optimizer has taken part.
      doing: what all ranks do together now, such as "fit 2 of NAME"; "" for a script's own loop.
      secret: seed of what is random in rules, of the server's alone.
      halves: this rank's half of each optimizer's rounds, in the order in which they began.
    """

    def __init__(self, ranks: Ranks, config: Config, *, secret: int | None = None) -> None:
        """Checks the configuration; collective.

        Args:
          ranks: the processes.
          config: the same on all of them.
          secret: seed of what is random in rules, in experiments that shall repeat to the bit; by
            default the server draws one and keeps it secret.

        Raises:
          UserError: on every rank.
        """
        self._process = os.getpid()
        if config.check_rounds:
            notes.keep()
            ranks.sends_notes = True
        self.ranks = ranks
        self.meeting = Meeting(ranks, config.start_s)
        self._take(config)
        ranks.identify(self.meeting)
        self.failure: Exception | None = None
        self.last_round: Report | None = None
        self.halves: list[Half] = []
        self._doings: list[str] = []  # in which `fit` each half began
        self._places = Places(ranks, self.halves)
        self.secret = secrets.randbits(63) if secret is None else secret
        self._folder = self._open_folder()  # of the monitor
        self._observer = self._observe()
        self.has_begun = False
        self.doing = ""
        self._at_begin: list[Callable[[], None]] = []
        self._at_close: list[Callable[[float], None]] = []
        self._closed = False
        self._given_up = 0  # rounds by which the numbers of the halves moved without an exchange

    def complete(self, config: Config) -> None:
        """Takes up what the script says beside what the job was started with; collective.

        Args:
          config: with what the job was started with, and more.
        Raises:
          UserError: on every rank: it cannot work, it comes after the first step, or it changes
            what a job has to know when it starts.
        """
        told = config.to_environment()
        names = [name for name in FIELDS if getattr(config, name) != getattr(self._asked, name)]
        if not names:
            return
        more = in_words(vars(config), names)
        if self.has_begun:
            raise UserError(f"agt.init({more}) comes after the first step: call it before.")
        # Draco's groups of workers, which draw alike, depend on f.
        fixed = _AT_START | ({"f", "byzantine"} if config.protocol == "draco" else set())
        variables = [PREFIX + name.upper() for name in names if name in fixed]
        if variables:
            flags = [
                f"--{variable.removeprefix(PREFIX).lower()}={told[variable]}"
                for variable in variables
                if variable in told
            ]
            raise UserError(
                f"agt.init({more}) comes too late for what a job must know when it starts: give "
                f"`aggregathor run` {shlex.join(flags)}"
            )
        self._take(config)
        if "monitor" in names:
            self._folder = self._open_folder()
        self._observer = self._observe()

    def _take(self, config: Config) -> None:
        """Checks a configuration, and makes it this job's; collective."""
        self._asked = config
        self.told = config.to_environment()
        self.meeting.agree("configuration", self.told)
        if config.check_rounds:
            config = dataclasses.replace(config, checkpoint="", monitor="")
        self.setting = Setting(
            num_workers=self.ranks.topology.workers,
            quorum=config.link_args.get("quorum"),
            **shared(config),
        )
        self.setting.check()
        self.loop = loop_of(self.setting)
        _check_wire(config)
        check_transport(config, config.transport)
        usual = _UDP_ARGS if config.transport == "udp" else _LINK_ARGS
        # A rule that tolerates nobody needs all gradients.
        f = min(config.f, self.ranks.topology.workers - 1) if self.setting.robust else 0
        link_args = {**usual, "f": f, **config.link_args}
        self.config = Config(**{**vars(config), "link_args": link_args})

    def _open_folder(self) -> Path | None:
        return self.meeting.together(
            lambda: open_folder(
                self.config.monitor if self.is_server else "", columns_for(self.setting)
            )
        )

    def _observe(self) -> Observer:
        return Observer(self.setting, self._folder, self.config.monitor_every)

    def _warn(self) -> None:
        """Warns of what can run, and will hardly be what was meant."""
        for doubt in doubts(self.config, robust=self.setting.robust):
            _log.warning("%s", doubt)
        loses_to_nan = self.config.transport == "udp" and self.config.fill == "nan"
        has_rule = PROTOCOLS[self.config.protocol].has_rule
        if loses_to_nan and has_rule and self.config.gar == "average":
            _log.warning(
                "a value that UDP loses is NaN, and so is their average: see --gar=average-nan"
            )

    @property
    def rounds(self) -> int:
        """How many rounds this rank has made, or has missed, in all halves."""
        return sum(half.round for half in self.halves) - self._given_up

    @property
    def is_here(self) -> bool:
        """Whether this process is the rank, and no fork of it."""
        return os.getpid() == self._process

    @property
    def is_server(self) -> bool:
        """Whether this process is the server."""
        return self.ranks.is_server

    def serve(
        self,
        dim: int,
        read: Callable[[], np.ndarray],
        dtype: DTypeLike = np.float32,
        names: Sequence[str] = (),
        *,
        learning_rate: Callable[[], float] | None = None,
        validation: Validation | None = None,
        validate: Validate | None = None,
    ) -> ServerHalf:
        """Opens the rounds of an optimizer's variables on the server; collective with ``work``.

        Args:
          dim: d, coordinates of all of them.
          read: gives their values as they are, [d], on the thread that calls it.
          dtype: of all that travels, float32 or float64.
          names: of the variables, for errors.
          learning_rate: gives the optimizer's in this step; None if unknown.
          validation: the losses that the rule may judge gradients by; None where there are none.
          validate: the same for Zeno++: see ``arrival_rule``.
        Raises:
          UserError: on every rank, with the same words.
        """
        self._check_further()
        number = len(self.halves)
        tell = (lambda: self._places.tell(number)) if self.loop.tells_place else (lambda: None)
        waits = ServerWaits(self.ranks, tell)
        width = self._width(dtype)
        server = self.loop.serve(
            Parts(
                link=cast(ServerLink, self._connect(width * dim, dtype)),
                width=width,
                read=read,
                secret=self.secret,
                observer=self._observer,
                waiting=waits.context,
                # In the first round every worker traces and compiles.
                first_limit_s=self.config.start_s,
                limit_s=self.config.stop_after_s,
                learning_rate=learning_rate,
                validation=validation,
                validate=validate,
            )
        )
        waits.begin(server)
        self.at_close(lambda _: waits.close())
        self._add(server, names)
        return server

    def work(
        self,
        dim: int,
        read: Callable[[], np.ndarray],
        dtype: DTypeLike = np.float32,
        names: Sequence[str] = (),
    ) -> WorkerHalf:
        """Opens them on a worker: see ``serve``."""
        self._check_further()
        width = self._width(dtype)
        link = wide_worker(cast(WorkerLink, self._connect(width * dim, dtype)), width)
        number = len(self.halves)
        waits = WorkerWaits(
            self.ranks,
            float(self.config.link_args["give_up_s"]),
            lambda has_begun: self._compare_places(number, has_begun),
        )
        attack = self.loop.attacker(self.ranks, link.dim, read, number, link.dtype)
        worker = WorkerHalf(link, attack=attack, watch=waits)
        self._add(worker, names)
        return worker

    def _check_further(self) -> None:
        self.loop.check_further(self._doings, self.doing)
        self._doings.append(self.doing)

    def _add(self, half: Half, names: Iterable[str]) -> None:
        """Adds a half, and the names of what it is about, which stand at the same place."""
        self._places.names.append(list(names))
        self.halves.append(half)

    def _width(self, dtype: DTypeLike) -> int:
        """Returns how many values travel for each coordinate of a gradient."""
        code = code_of(self.setting, dtype)
        return 1 if code is None else code.width

    def _connect(self, dim: int, dtype: DTypeLike) -> ServerLink | WorkerLink:
        self.begin()
        try:
            return lossympi.connect(
                self.meeting,
                dim,
                dtype=dtype,
                transport=self.config.transport,
                **self.config.link_args,
            )
        except lossympi.ConnectError as error:
            raise UserError(str(error)) from None

    def _compare_places(self, half: int | None, has_begun: bool = False) -> None:
        """Worker: raises ``UserError`` if the server waits for it elsewhere, or begins that.

        Not within a `fit`, which a worker may leave for its end while the server trains on.
        """
        if self.doing:
            return
        self._places.compare(half)
        if has_begun:
            theirs = self.ranks.receive_state()
            self._check_doing(theirs.pop(_DOING).tobytes().decode())
            names = [name.partition(": ")[2] for name in theirs if name != _ROUNDS]
            raise self._places.apart(half, names)

    def synchronise(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the server's arrays of the same names, on every rank; collective.

        Raises:
          TrainingEnded: on a worker, if the server ends instead.
          UserError: the server has no array of a name, or one of another shape or dtype.
        """
        if self.is_server:
            for half in self.halves:
                before = half.round
                cast(ServerHalf, half).resume()
                self._given_up += half.round - before
        theirs = self.align(arrays)
        if self.is_server:
            return theirs
        for name, array in arrays.items():
            differs = _difference(np.asarray(array), theirs.get(name))
            if differs:
                more = [each for each in theirs if each not in arrays]
                instead = f", but {', '.join(more[:3])}" if name not in theirs and more else ""
                raise UserError(
                    f"rank {self.ranks.rank} has a variable {name} of {differs}{instead}. All "
                    "ranks must build the same model, and train the same variables in the same "
                    "order: choose alike on all of them."
                )
        return {name: theirs[name] for name in arrays}

    def align(self, arrays: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Lets all ranks go on with the server's rounds; returns its arrays; collective.

        Raises:
          TrainingEnded: on a worker, if the server ends instead.
          UserError: on a worker, if the server does something else. What it has done in a `fit`
            that this worker has left before is passed over.
        """
        arrays = dict(arrays or {})
        if self.is_server:
            rounds = np.array([cast(ServerHalf, half).rounds() for half in self.halves], np.int64)
            said = np.frombuffer(self.doing.encode(), np.uint8)
            self.ranks.send_state({**arrays, _ROUNDS: rounds, _DOING: said})
            return arrays
        theirs = self.ranks.receive_state(lambda: self._compare_places(None))
        while (doing := theirs.pop(_DOING).tobytes().decode()) and _is_over(doing, self.doing):
            theirs = self.ranks.receive_state()
        self._check_doing(doing)
        for half, rounds_n in zip(self.halves, theirs.pop(_ROUNDS), strict=True):
            round = int(rounds_n[self.ranks.row])
            self._given_up += round - half.round
            half.round = round
        return theirs

    def _check_doing(self, theirs: str) -> None:
        """Worker: raises ``UserError`` if the server does something else."""
        if _NUMBER.sub("", theirs) != _NUMBER.sub("", self.doing):
            raise UserError(
                f"rank {self.ranks.rank} is at {self.doing or 'a loop of its own'}, and the server "
                f"at {theirs or 'a loop of its own'}. All ranks must train the same models in the "
                "same order: choose alike on all of them."
            )

    def fail(self, error: Exception) -> None:
        """Keeps what ends the training: within a graph TensorFlow raises an error of its own.

        What the rule lacks is not what is wrong where workers' scripts have failed: that is added.
        """
        if self.is_server and isinstance(error, TrainingStopped):
            error.args = (self._explained(str(error)),)
        self.failure = error

    def _explained(self, words: str) -> str:
        """Returns why the training stopped, with the causes in place of the rule's remedy."""
        said, remedy, rest = _remedy_of(words)
        if not remedy:
            return words
        gone = self.ranks.gone()
        causes = self.ranks.causes() or "; ".join(
            self.ranks.describe_end(self.ranks.topology.rank_of(row)) for row in gone
        )
        why = f"{causes[:1].upper()}{causes[1:]}. Mend that, and start again." if causes else ""
        return f"{said} {why or 'See whether these workers still run.'}{rest}"

    def end_check(self) -> None:
        """Server: ends a check whose rounds are made.

        Raises:
          CheckDone: they are.
        """
        if self.config.check_rounds and self.rounds >= self.config.check_rounds:
            raise CheckDone(f"{self.rounds} rounds were checked")

    def take_failure(self) -> Exception | None:
        """Returns what ended the training, for the caller to raise or to mend, and forgets it."""
        failure, self.failure = self.failure, None
        return failure

    def at_begin(self, begin: Callable[[], None]) -> None:
        """Has something called once, before the first round."""
        self._at_begin.append(begin)

    def begin(self) -> None:
        """Marks that the training begins; more than once does no harm."""
        if self.is_server and not self.has_begun:
            self._warn()
        self.has_begun = True
        calls, self._at_begin = self._at_begin, []
        for call in calls:
            call()

    def at_close(self, close: Callable[[float], None]) -> None:
        """Has something called before the links are closed: it may take that many seconds."""
        self._at_close.append(close)

    def close(self) -> None:
        """Ends the job for this process; the server's workers end with it."""
        if self._closed or not self.is_here:
            return
        self._closed = True
        self._observer.close()
        for half in self.halves:
            half.leave()
        for close in self._at_close:
            close(_CLOSE_S)
        for half in self.halves:
            half.close()
        is_over = self.failure is None or isinstance(self.failure, CheckDone)
        self.ranks.shutdown("" if is_over or not self.is_server else str(self.failure))
        if self.is_server and self.config.check_rounds:
            sys.stdout.write(notes.report({0: notes.kept(), **self.ranks.notes()}))


def _check_wire(config: Config) -> None:
    """Raises ``UserError`` where what travels is rounded more coarsely than a decoder tolerates."""
    wire = config.link_args.get("wire", "float32")
    is_cyclic = config.protocol == "draco" and draco.is_cyclic(config.protocol_args)
    if is_cyclic and wire != "float32":
        raise UserError(
            f"draco's cyclic codes need all digits of what travels, and wire={wire} drops some: "
            f"leave the wire out, or take code={draco.REPETITION}"
        )


def _difference(own: np.ndarray, theirs: np.ndarray | None) -> str:
    """Returns how a worker's array differs from the server's in form, "" where it does not."""
    if theirs is None or theirs.shape != own.shape:
        other = "none" if theirs is None else list(theirs.shape)
        return f"shape {list(own.shape)} and the server has {other}"
    # The type of a text has its length.
    if theirs.dtype != own.dtype and not theirs.dtype.kind == own.dtype.kind == "U":
        return f"type {own.dtype} and the server has {theirs.dtype}"
    return ""


def _is_over(theirs: str, own: str) -> bool:
    """Whether the server is in a ``fit`` that this rank has left for a later one."""
    numbers = [re.match(r"fit (\d+)", doing) for doing in (theirs, own)]
    return all(numbers) and int(numbers[0][1]) < int(numbers[1][1])  # type: ignore[index]


def _remedy_of(words: str) -> tuple[str, str, str]:
    """Returns what a rule says that it lacks, its remedy, and what follows that."""
    found = re.search(r" (Start \d+ more workers?|Declare a smaller f)[^.]*\.", words)
    return (
        (words, "", "") if not found else (words[: found.start()], found[0], words[found.end() :])
    )
