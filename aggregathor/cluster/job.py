"""One training job on this process: its ranks, its configuration, its optimizers' channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import numpy as np

import lossympi
from aggregathor.cluster.attackers import attacker_of
from aggregathor.cluster.config import Config
from aggregathor.cluster.meeting import Meeting
from aggregathor.cluster.ranks import Ranks
from aggregathor.cluster.server import ServerChannel
from aggregathor.cluster.worker import WorkerChannel
from aggregathor.errors import UserError
from aggregathor.log import say
from aggregathor.monitor.observer import observe
from aggregathor.protocols.rounds import RoundReport
from aggregathor.protocols.setting import Setting
from lossympi import ServerLink, WorkerLink

# Of a link between ranks that train, where the user gives no other.
_LINK_ARGS = {"timeout_s": 10.0, "give_up_s": 600.0}
# Workers pause all at once between epochs.
_UDP_ARGS = {**_LINK_ARGS, "floor_s": 1.0}
_CLOSE_S = 5.0  # for a round that a cancelled session has left behind
_ROUNDS = "rounds of the channels"


class Job:
    """What ``agt.init`` sets up, once for the process.

    Attributes:
      ranks: the processes of the job.
      config: what all of them were told, with the defaults of the link.
      told: the same without any default, as variables of the environment.
      failure: what ended the training early, if something did: an exchange within a graph can
        raise it only in TensorFlow's words.
      last_round: on the server, what it saw in the latest round.
      channels: of the optimizers, in the order in which they began.
    """

    def __init__(self, ranks: Ranks, config: Config) -> None:
        """Checks the configuration; collective.

        Raises:
          UserError: on every rank.
        """
        self.told = config.to_environment()
        self.ranks = ranks
        self.meeting = Meeting(ranks, config.start_s)
        self.meeting.agree("configuration", self.told)
        usual = _UDP_ARGS if config.transport == "udp" else _LINK_ARGS
        self.config = Config(**{**vars(config), "link_args": {**usual, **config.link_args}})
        self.setting = Setting(
            num_workers=ranks.num_workers,
            num_byzantine=config.byzantine,
            f=config.f,
            gar=config.gar,
            gar_parameters=config.gar_args,
            attack=config.attack,
            attack_parameters=config.attack_args,
            fill=config.fill,
            seed=config.seed,
        )
        self.setting.check()
        if ranks.is_server and config.byzantine > config.f:
            say(f"{config.byzantine} workers attack, and {config.gar} is told of f={config.f}")
        loses_to_nan = config.transport == "udp" and config.fill == "nan"
        if ranks.is_server and loses_to_nan and config.gar == "average":
            say("a value that UDP loses is NaN, and so is their average: see --gar=average-nan")
        self.failure: Exception | None = None
        self.last_round: RoundReport | None = None
        self._observer = observe(self.meeting, self.config, self.setting)
        self.channels: list[ServerChannel | WorkerChannel] = []
        self._at_begin: list[Callable[[], None]] = []
        self._at_close: list[Callable[[float], None]] = []
        self._closed = False

    @property
    def is_server(self) -> bool:
        """Whether this process is rank 0."""
        return self.ranks.is_server

    def connect(self, params_d: np.ndarray) -> ServerChannel | WorkerChannel:
        """Opens a channel for an optimizer's variables; collective.

        Args:
          params_d: their values, float32 [d], which are the same on all ranks.
        Raises:
          UserError: on every rank, with the same words.
        """
        self.begin()
        try:
            link = lossympi.connect(
                self.meeting,
                len(params_d),
                transport=self.config.transport,
                **self.config.link_args,
            )
        except lossympi.ConnectError as error:
            raise UserError(str(error)) from None
        channel: ServerChannel | WorkerChannel
        if self.is_server:
            channel = ServerChannel(
                cast(ServerLink, link),
                self.setting,
                self.config,
                params_d,
                self._observer.channel(),
                self.ranks.gone,
            )
        else:
            attacker = attacker_of(self.ranks, self.setting, len(params_d))
            channel = WorkerChannel(cast(WorkerLink, link), self.ranks, self.config, attacker)
        self.channels.append(channel)
        return channel

    def synchronise(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the server's arrays of the same names, on every rank; collective.

        Raises:
          TrainingEnded: on a worker, if the server ends instead.
          UserError: the server has no array of a name, or one of another shape.
        """
        if self.is_server:
            for channel in self.channels:
                # What a worker has sent for a round that never came is of no use in a later one.
                channel.round += 1
            rounds = np.array([channel.round for channel in self.channels], np.int64)
            self.ranks.send_state({**arrays, _ROUNDS: rounds})
            return dict(arrays)
        theirs = self.ranks.receive_state()
        for channel, round in zip(self.channels, theirs.pop(_ROUNDS), strict=True):
            channel.round = int(round)
        for name, array in arrays.items():
            if name not in theirs or theirs[name].shape != np.shape(array):
                other = f"{list(theirs[name].shape)}" if name in theirs else "none"
                raise UserError(
                    f"rank {self.ranks.rank} has a variable {name} of shape "
                    f"{list(np.shape(array))} and the server has {other}. All ranks must build the "
                    "same model."
                )
        return {name: theirs[name] for name in arrays}

    def at_begin(self, begin: Callable[[], None]) -> None:
        """Has something called once, before the first round."""
        self._at_begin.append(begin)

    def begin(self) -> None:
        """Is called where the training begins; more than once does no harm."""
        calls, self._at_begin = self._at_begin, []
        for call in calls:
            call()

    def at_close(self, close: Callable[[float], None]) -> None:
        """Has something called before the channels are closed: it may take so many seconds."""
        self._at_close.append(close)

    def close(self) -> None:
        """Ends the job for this process; the server's workers end with it."""
        if self._closed:
            return
        self._closed = True
        self._observer.close()
        for channel in self.channels:
            channel.leave()
        for close in self._at_close:
            close(_CLOSE_S)
        for channel in self.channels:
            channel.close()
        self.ranks.part(str(self.failure or "") if self.is_server else "")
