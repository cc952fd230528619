"""Synchronous SGD with a parameter server: every round, all gradients in, one model out.

    worker                                 server
    gradient -> link.send    ---->         link.collect -> fill -> explain (the GAR) -> apply
    assign   <- link.receive <----         link.broadcast

These functions know no transport and no model: links and actions are passed in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import tensorflow as tf

from aggregathor.gars import Explained
from lossympi import Collected, RoundStats, ServerLink, WorkerLink
from lossympi.link import Ahead


@dataclass(frozen=True, eq=False)
class RoundReport:
    """What the server saw in a round.

    Attributes:
      stack_nd: float32 [n, d], what the rule was given. It is the link's own buffer, and holds this
        until the model of the round is published; a script, which reads it after that, may find
        parts of the next round in it.
      grad_d: float32 [d], the aggregate that was applied.
      share_n: float64 [n], how much of each row the rule used, 0..1.
      delivered_n: float64 [n], share of each worker's coordinates that arrived, 0..1.
      stats: what the link saw: the number of the round, how it was closed, and of each worker what
        came, what came late and what was rejected, and why.
      suspected: in a job, the workers that the rule has left out in so many rounds in a row that it
        is no chance: see ``aggregathor.monitor.suspicion``.
    """

    stack_nd: np.ndarray = field(repr=False)
    grad_d: np.ndarray = field(repr=False)
    share_n: np.ndarray
    delivered_n: np.ndarray
    stats: RoundStats | None = None
    suspected: tuple[int, ...] = ()


def server_round(
    round: int,
    link: ServerLink,
    *,
    fill: Callable[[Collected], None],
    explain: Callable[[np.ndarray], Explained],
    apply: Callable[[tf.Tensor], None],
    read: Callable[[], np.ndarray],
) -> RoundReport:
    """Runs the server's side of a round.

    Args:
      round: its number; they increase.
      link: the server's end.
      fill: replaces, in place, what did not arrive.
      explain: the rule: stack [n, d] -> (grad [d], share [n]).
      apply: the optimizer's step with the aggregate [d].
      read: gives the parameters, float32 [d].
    """
    report = server_aggregates(round, link, fill=fill, explain=explain)
    apply(tf.convert_to_tensor(report.grad_d))
    link.broadcast(round, read())
    return report


def server_aggregates(
    round: int,
    link: ServerLink,
    *,
    fill: Callable[[Collected], None],
    explain: Callable[[np.ndarray], Explained],
    ahead: Ahead | None = None,
) -> RoundReport:
    """Runs the first half of the server's side, for those whose optimizer is in a graph.

    ``ahead`` is given to the link.
    """
    collected = link.collect(round, ahead)
    fill(collected)
    explained = explain(collected.stack_nd)
    return RoundReport(
        collected.stack_nd,
        np.asarray(explained.grad_d),
        np.asarray(explained.share_n),
        collected.delivered_n,
        collected.stats,
    )


def worker_sends(round: int, link: WorkerLink, grad_d: np.ndarray) -> bool:
    """Runs the first half of a worker's side of a round: its gradient leaves.

    Returns:
      False if the server did not wait for all of it.
    """
    return bool(link.send(round, grad_d))


def worker_receives(round: int, link: WorkerLink, assign: Callable[[np.ndarray], None]) -> int:
    """Runs the second half: the model that the server made of the round comes in.

    Returns:
      The round of the model: a later one if the worker was left behind, and then the next round to
      take part in is the one after it.
    """
    model = link.receive(round)
    assert model is not None  # as it waits
    assign(model.params_d)
    return model.round
