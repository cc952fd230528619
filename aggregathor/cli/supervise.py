"""Runs mpirun as a child, so that Ctrl-C ends a training instead of killing it.

On Ctrl-C mpirun would end its processes within a second: nothing could be saved. So it runs in a
process group of its own, which no terminal signals. The launcher asks the ranks to stop by a signal
that Open MPI's mpirun passes on and that nothing else uses; see ``aggregathor.cluster.stopping``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from aggregathor.cli import standard_input
from aggregathor.cluster.stopping import SIGNALS
from aggregathor.errors import UserError

_ASK_EVERY_S = 1.0  # as a process that has just been started may not listen yet
_TERMINATE_S = 30  # after which who was asked by SIGTERM or SIGHUP, which come once, is ended
_PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGTSTP)
_PR_SET_PDEATHSIG = 1


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    can_ask: bool,
    is_one_host: bool,
) -> int:
    """Runs mpirun and returns its status; 130 after Ctrl-C, 143 after SIGTERM.

    The first Ctrl-C or SIGTERM asks the training to stop, the second ends all processes.

    Args:
      command: of mpirun.
      environment: of it.
      can_ask: whether this mpirun passes signals on; else the first ends all processes.
      is_one_host: whether all ranks run here; else rank 0 alone gets the standard input.

    Raises:
      UserError: it does not start.
    """
    prctl = ctypes.CDLL(None).prctl  # loaded before the fork

    def detach() -> None:
        os.setpgid(0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # it shall not outlive the launcher

    with contextlib.ExitStack() as stack:
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL}
        source = None
        if standard_input.is_there():
            source = standard_input.Source()
            if is_one_host:
                path = stack.enter_context(standard_input.served(source))
                environment = {**environment, standard_input.VARIABLE: path}
            else:
                given["stdin"] = subprocess.PIPE
        try:
            child = subprocess.Popen(command, env=environment, preexec_fn=detach, **given)
        except OSError as error:
            raise UserError(f"{command[0]} does not start: {error.strerror}") from error
        if source is not None and child.stdin is not None:
            source.write_to(child.stdin)
            child.stdin = None
        stop = stack.enter_context(_Stop(child, can_ask=can_ask))
        status = child.wait()
    if stop.by is not None:
        return 128 + stop.by
    return 128 - status if status < 0 else status


class _Stop:
    """Handles the signals of the launcher while mpirun runs.

    Attributes:
      by: the signal that asked for the end.
    """

    def __init__(self, child: subprocess.Popen, *, can_ask: bool) -> None:
        self.by: signal.Signals | None = None
        self._child = child
        self._can_ask = can_ask
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Stop:
        handlers = {
            **dict.fromkeys((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), self._on_stop),
            **dict.fromkeys(_PASSED_ON, self._on_other),
            signal.SIGALRM: self._on_alarm,
        }
        self._before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _on_stop(self, number: int, _: FrameType | None) -> None:
        if self.by is None:
            self.by = signal.Signals(number)
            if self._can_ask:
                if self.by is signal.SIGINT:
                    _say("stopping; Ctrl-C again ends all processes at once")
                signal.setitimer(signal.ITIMER_REAL, _ASK_EVERY_S, _ASK_EVERY_S)
                self._ask()
                return
        self._end()

    def _on_alarm(self, _: int, __: FrameType | None) -> None:
        if self._can_ask and self.by is not signal.SIGINT and self._asked >= _TERMINATE_S:
            self._end()
        else:
            self._ask()

    def _on_other(self, number: int, _: FrameType | None) -> None:
        self._child.send_signal(number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def _ask(self) -> None:
        self._asked += 1
        assert self.by is not None
        is_ctrl_c = self.by is signal.SIGINT
        self._child.send_signal(SIGNALS[signal.SIGINT if is_ctrl_c else signal.SIGTERM])

    def _end(self) -> None:
        """Lets mpirun end all processes; kills it where it was told so before."""
        is_told, self._can_ask = not self._can_ask and self._asked < 0, False
        self._asked = -1
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._child.send_signal(signal.SIGKILL if is_told else signal.SIGTERM)


def _say(text: str) -> None:
    sys.stderr.write(f"\naggregathor: {text}\n")
    sys.stderr.flush()
