"""What closes a round (``WIRE.md``): the one rule that all links share."""

from __future__ import annotations


def closed_by(
    num_live: int,
    num_complete: int,
    num_settled: int,
    quorum: int,
    is_late: bool,
    num_given_up: int = 0,
) -> str | None:
    """Returns what closes a round whose rows are in this state, None if it stays open.

    Args:
      num_live: workers that the round waits for.
      num_complete: live workers whose whole gradient has come.
      num_settled: live workers that the round need not wait for any more, complete ones included.
      quorum: how many settled workers are enough; all live ones, where fewer live.
      is_late: whether the round may wait no longer.
      num_given_up: other live workers whose allowance is used up; the quorum does without them.
    Returns:
      "complete", "early" or "deadline", the first that applies.
    """
    if num_live and num_complete == num_live:
        return "complete"
    if num_live and num_settled >= min(quorum, num_live - num_given_up):
        return "early"
    return "deadline" if is_late else None
