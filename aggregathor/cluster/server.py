"""The server's side of one optimizer's rounds: collect, fill, aggregate; then publish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import numpy as np
from tensorflow.python.eager import context

from aggregathor.attacks import ATTACKS, View
from aggregathor.cluster.config import Config
from aggregathor.cluster.ranks import Patience
from aggregathor.errors import UserError
from aggregathor.gars import GARS
from aggregathor.log import say
from aggregathor.monitor.observer import ChannelObserver
from aggregathor.protocols.aggregation import Aggregator, RuleError
from aggregathor.protocols.rounds import RoundReport, server_aggregates
from aggregathor.protocols.setting import Setting
from lossympi import Collected, ServerLink
from lossympi.link import CFunctions, RoundStats
from lossympi.rng import generator

_LONG_S = 1.0  # for a round to wait


class TrainingStopped(UserError):
    """The rule's condition holds no longer on what arrives."""


class ServerChannel:
    """Rounds of one optimizer, as the server sees them.

    A worker of which nothing arrives counts among the f Byzantine ones. Where more than f are
    missing, the rule is applied to those that are left, if its condition holds for them; else the
    model is published unchanged, and the next round tried, until ``stop_after_s`` have passed.

    Attributes:
      round: of the link, the next one to collect.
      params_d: what was published last, float32 [d].
      aggregator: fills and applies the rule.
    """

    def __init__(
        self,
        link: ServerLink,
        setting: Setting,
        config: Config,
        params_d: np.ndarray,
        observer: ChannelObserver | None = None,
        gone: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        """Takes over a link.

        Args:
          link: the server's end.
          setting: the rule and what belongs to it.
          config: of the job.
          params_d: what all workers begin with, float32 [d].
          observer: is told of every round.
          gone: is asked every second of a wait for the rows of workers that have ended.
        """
        self.round = 0
        self.params_d = params_d
        self._link = link
        self._setting = setting
        self._report: RoundReport | None = None  # of the round that is open
        self._observer = observer or ChannelObserver(setting.num_workers)
        with context.eager_mode():
            self.aggregator = Aggregator(setting, link.dim)
        self._gar = GARS[setting.gar]
        attack = ATTACKS[setting.attack] if setting.attack else None
        # Others are the workers' business.
        self._attack = attack if attack is not None and attack.form == "coordinates" else None
        self._stop_after_s = config.start_s  # in the first round
        self._later_stop_after_s = config.stop_after_s
        self._watched = _Watched(self._whom, self._look_for_gone)
        self._gone = gone
        self._forgotten: set[int] = set()
        self._away: set[int] = set()  # rows that are not waited for, as has been said
        self._leaving = False

    def aggregate(self) -> RoundReport:
        """Collects rounds until the rule can be applied to one.

        Raises:
          TrainingStopped: it could be applied to none for too long.
        """
        begun = time.monotonic()
        # The rule runs eagerly, also in scripts of v1, which have switched that off.
        with self._watched, context.eager_mode():
            while True:
                try:
                    report = self._aggregate_once()
                    break
                except RuleError as error:
                    self._observer.refuse()
                    too_long = time.monotonic() - begun >= self._stop_after_s
                    if self._leaving or too_long or self._is_hopeless():
                        raise TrainingStopped(f"round {self.round}: {error}") from None
                self.publish(self.params_d)
        self._stop_after_s = self._later_stop_after_s
        return report

    def aggregate_once(self) -> tuple[RoundReport, RuleError | None]:
        """Collects one round.

        Returns:
          Where the rule cannot be applied, the reason, beside a report with an aggregate of zeros
          that was made of no row.
        """
        with self._watched, context.eager_mode():
            try:
                return self._aggregate_once(), None
            except RuleError as error:
                self._observer.refuse()
                got = self._collected
                nothing_d = np.zeros(self._link.dim, np.float32)
                none_n = np.zeros(len(got.stack_nd))
                report = RoundReport(got.stack_nd, nothing_d, none_n, got.delivered_n, got.stats)
                return report, error

    def publish(self, params_d: np.ndarray) -> RoundReport | None:
        """Broadcasts the model of the round, and ends the round.

        ``params_d`` must stay as it is until the next call.

        Returns:
          What ``aggregate`` did, with who is suspected, which nobody has to wait for; None where it
          aggregated nothing.
        """
        self._link.broadcast(self.round, params_d)
        self.params_d = params_d
        self.round += 1
        report, self._report = self._report, None
        return None if report is None else self._observer.see(report)

    def native(self, fail: Callable[[Exception], None]) -> CFunctions | None:
        """Returns where the next model may be written for ``publish``, if the link has it."""
        return self._link.native()

    def leave(self) -> None:
        """Lets a round that another thread is in end soon."""
        self._leaving = True

    def close(self) -> None:
        """Ends the link."""
        self._watched.close()
        self._link.close()

    def _aggregate_once(self) -> RoundReport:
        # An attack hits what has arrived, so that no column is what it will be.
        self._ahead = self.aggregator.ahead() if self._attack is None else None
        self._report = server_aggregates(
            self.round, self._link, fill=self._fill, explain=self._explain, ahead=self._ahead
        )
        return self._report

    def _fill(self, collected: Collected) -> None:
        self._collected = collected
        if collected.stats is not None:
            self._tell(collected.stats)
        if self._attack is not None:
            # It hits the rows of any worker, as a faulty network or memory does.
            honest = self._setting.num_workers - self._setting.num_byzantine
            view = View(
                honest_hd=collected.stack_nd[:honest],
                own_bd=collected.stack_nd[honest:],
                f=self._setting.f,
                rng=generator("attack", self._setting.seed, collected.round),
            )
            collected.stack_nd[:] = self._attack(view, **self._setting.attack_parameters)
        self._missing = np.flatnonzero(collected.delivered_n == 0)
        self.aggregator.fill(collected)

    def _explain(self, stack_nd: np.ndarray):
        missing = self._missing
        if len(missing) <= self._setting.f:
            return self.aggregator.explain(stack_nd, self._ahead)
        present = np.setdiff1d(np.arange(len(stack_nd)), missing)
        try:
            self._check_rule(len(present))
            explained = self.aggregator.explain(stack_nd[present])
        except UserError as error:
            raise RuleError(f"nothing came from {workers(missing)}, and {error}") from None
        share_n = np.zeros(len(stack_nd))
        share_n[present] = explained.share_n
        return explained._replace(share_n=share_n)

    def _tell(self, stats: RoundStats) -> None:
        """Says who kept a round waiting, who is not waited for any more, and who is again."""
        absent = [row for row, w in enumerate(stats.workers) if w.live and w.delivered == 0]
        if absent and stats.closed_by == "deadline" and stats.elapsed_s >= _LONG_S:
            say(f"round {stats.round} has waited {stats.elapsed_s:.0f} s for {workers(absent)}")
        away = {row for row, worker in enumerate(stats.workers) if not worker.live}
        for rows, what in (
            (away - self._away, "silent, and waited for no longer"),
            (self._away - away, "back"),
        ):
            if rows:
                be = "is" if len(rows) == 1 else "are"
                say(f"{workers(sorted(rows))} {be} {what} in round {stats.round}")
        self._away = away

    def _look_for_gone(self) -> None:
        """Is called by the watching thread."""
        for row in set(self._gone()) - self._forgotten:
            self._forgotten.add(row)
            say(f"{workers([row])} has ended")
            self._link.forget(row)

    def _is_hopeless(self) -> bool:
        """Whether the rule cannot be applied any more, as too many processes have ended."""
        gone = len(self._forgotten)
        if gone <= self._setting.f:
            return False
        try:
            self._check_rule(self._setting.num_workers - gone)
        except UserError:
            return True
        return False

    def _check_rule(self, n: int) -> None:
        """Raises ``UserError`` where the rule cannot be applied to so many gradients."""
        self._gar.check(n=n, f=self._setting.f, **self._setting.gar_parameters)

    def _whom(self) -> str:
        return f"{workers(self._link.waiting_for())} in round {self.round}"


def workers(rows: object) -> str:
    """Returns such as "worker 3 (rank 4)" or "workers 0, 3 (ranks 1, 4)"."""
    rows = [int(row) for row in rows]  # type: ignore[attr-defined]
    if not rows:
        return "no worker in particular"
    many = "s" if len(rows) > 1 else ""
    ranks = ", ".join(str(row + 1) for row in rows)
    return f"worker{many} {', '.join(map(str, rows))} (rank{many} {ranks})"


class _Watched:
    """A context whose thread says for whom the server waits if it does so for long."""

    def __init__(self, whom: Callable[[], str], look: Callable[[], None]) -> None:
        self._whom = whom
        self._look = look
        self._patience: Patience | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="aggregathor-watch", daemon=True).start()

    def __enter__(self) -> None:
        self._patience = Patience(0, self._whom)

    def __exit__(self, *_: object) -> None:
        self._patience = None

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(timeout=1.0):
            patience = self._patience
            if patience is not None:
                self._look()
                patience.look()
