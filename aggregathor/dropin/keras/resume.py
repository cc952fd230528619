"""Checkpoints of ``fit``: what the server and each worker need to go on as if nothing had happened.

Every ``checkpoint_every`` steps the server saves the model, the variables and slots of the
optimizers, and what its half of their rounds keeps (of the rule, of the fill); each worker saves
what is its own, such as the states of dropout's random numbers and an attack's memory. A job that
is started again with the same command draws the batches of the steps that are done without
computing anything, so that its data come in the same order, takes over what was saved, and goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aggregathor import checkpoint
from aggregathor.cluster.job import Job
from aggregathor.errors import UserError
from aggregathor.protocols.state import prefixed, under

_log = logging.getLogger(__name__)
_POSITION = "position"


class Checkpoints:
    """The files of one rank in the folder that ``--checkpoint`` names.

    Attributes:
      skipped: how many steps of the current ``fit`` are left that were made before the job was
        started again; inf for all.
    """

    def __init__(self, job: Job) -> None:
        """Reads what an earlier job has left.

        Raises:
          UserError: the folder cannot be made or read.
        """
        self.skipped: float = 0
        self._job = job
        self._fits = 0
        self._steps = 0
        self._saved: dict[str, np.ndarray] = {}
        self._folder = Path(job.config.checkpoint) if job.config.checkpoint else None
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if job.is_server and (self._folder / "server.npz").exists():
                self._saved = checkpoint.read(self._folder / "server.npz")
        except (OSError, ValueError) as error:
            raise UserError(f"--checkpoint={self._folder} cannot be used: {error}") from None

    def begin_fit(self) -> None:
        """Finds out, on every rank alike, how much of a ``fit`` that begins was done before."""
        self._fits += 1
        self._steps = 0
        if self._folder is None:
            return
        # In which fit, and after how many of its steps, the server was saved.
        position = self._saved.get(_POSITION, np.zeros(2, np.int64))
        position = self._job.synchronise({_POSITION: position})[_POSITION]
        fit, steps = int(position[0]), int(position[1])
        self.skipped = {-1: math.inf, 0: steps, 1: 0}[(self._fits > fit) - (self._fits < fit)]
        if not self.skipped or fit != self._fits:
            return
        if self._job.is_server:
            _log.info("going on after step %d, from %s", steps, self._folder)
        else:
            self._saved = _load_if_there(self._file(steps))

    def end_fit(self) -> None:
        """Ends the skipping of steps: the next ``fit`` has its own."""
        self.skipped = 0

    def take(self, name: str, variables: Sequence[Any]) -> None:
        """Gives variables the values that were saved under a name, if there are any."""
        for number, variable in enumerate(variables):
            value = self._saved.get(f"{name}/{number}")
            if value is None:
                return
            if value.shape != tuple(variable.shape):
                raise UserError(
                    f"{self._folder} holds a checkpoint of another model: {name} number {number} "
                    f"has the shape {list(value.shape)} there and {list(variable.shape)} here. "
                    "Name another folder, or remove that one."
                )
            variable.assign(value)

    def restore(self, first: int = 0) -> None:
        """Gives the halves of rounds, from a number on, what was saved of them; collective."""
        for number, half in enumerate(self._job.halves[first:], first):
            saved = under(f"rounds/{number}", self._saved)
            if saved:
                half.restore(saved)
        self._job.align()

    def made(self, steps: int, groups: Mapping[str, Sequence[Any]]) -> None:
        """Counts steps of the current ``fit``, and saves when it is time to."""
        every = self._job.config.checkpoint_every
        before, self._steps = self._steps, self._steps + steps
        if self._folder is not None and self._steps // every > before // every:
            self.save(groups)

    def skip(self, steps: int) -> None:
        """Counts steps that are not made again."""
        self._steps += steps

    def save(self, groups: Mapping[str, Sequence[Any]]) -> Path | None:
        """Saves groups of variables for this rank; returns the file, or None without a folder."""
        if self._folder is None:
            return None
        arrays = {
            f"{name}/{number}": np.asarray(variable)
            for name, variables in groups.items()
            for number, variable in enumerate(variables)
        }
        for number, half in enumerate(self._job.halves):
            arrays |= prefixed(f"rounds/{number}", half.state())
        arrays[_POSITION] = np.array([self._fits, self._steps], np.int64)
        path = self._folder / "server.npz" if self._job.is_server else self._file(self._steps)
        checkpoint.write(path, arrays)
        if not self._job.is_server:
            self._forget_all_but_two()
        return path

    def _file(self, steps: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._prefix()}{self._fits}-{steps:010d}.npz"

    def _prefix(self) -> str:
        return f"worker_{self._job.ranks.row:04d}-"

    def _forget_all_but_two(self) -> None:
        """Removes old files: the server's is of the last but one step at worst."""
        assert self._folder is not None
        for path in sorted(self._folder.glob(f"{self._prefix()}*.npz"))[:-2]:
            path.unlink(missing_ok=True)


def _load_if_there(path: Path) -> dict[str, np.ndarray]:
    if path.exists():
        try:
            return checkpoint.read(path)
        except (OSError, ValueError) as error:
            raise UserError(f"the checkpoint {path} cannot be used: {error}") from None
    _log.warning(
        "%s is not there, so this worker's random numbers and the memory of an attack begin anew",
        path,
    )
    return {}
