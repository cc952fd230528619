"""Checkpoints of ``fit``: what the server and each worker need to go on as if nothing had happened.

Every ``checkpoint_every`` steps the server saves the model, the variables and slots of the
optimizers, and what its half of their rounds keeps (of the rule, of the fill); each worker saves
what is its own, such as the states of dropout's random numbers and an attack's memory. A job that
is started again with the same command draws the batches of the steps that are done without
computing anything, so that its data come in the same order, takes over what was saved, and goes on.

Each rank has a folder of its own below the one that ``--checkpoint`` names, which other users can
neither read nor write: workers may run as another user on a file system that all hosts share.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aggregathor import checkpoint, files
from aggregathor.cluster import stopping
from aggregathor.cluster.job import Job
from aggregathor.errors import UserError
from aggregathor.protocols.state import prefixed, under

_log = logging.getLogger(__name__)
_POSITION = "position"
_SERVER = "server.npz"


class Checkpoints:
    """The files of one rank: ``server/server.npz``, or ``worker_ROW/FIT-STEP.npz``, two of these.

    Attributes:
      skipped: how many steps of the current ``fit`` are left that were made before the job was
        started again; inf for all.
    """

    def __init__(self, job: Job) -> None:
        """Reads what an earlier job has left.

        Raises:
          UserError: the folder cannot be made or read, or another user has put something there.
        """
        self.skipped: float = 0
        self._job = job
        self._fits = 0
        self._steps = 0
        self._saved: dict[str, np.ndarray] = {}
        self._folder: files.PrivateFolder | None = None
        if not job.config.checkpoint:
            return
        above = Path(job.config.checkpoint)
        try:
            own = "server" if job.is_server else f"worker_{job.ranks.row:04d}"
            self._folder = files.PrivateFolder(above / own)
            if job.is_server:
                _check_no_old_layout(above, self._folder)
                self._saved = self._load_if_there(_SERVER)
        except OSError as error:
            raise UserError(f"--checkpoint={above} cannot be used: {error}") from None

    def begin_fit(self) -> None:
        """Finds out, on every rank alike, how much of a ``fit`` that begins was done before."""
        self._fits += 1
        self._steps = 0
        if self._folder is None:
            return
        if self._job.is_server:
            stopping.wait_for_step(True)
        # In which fit, and after how many of its steps, the server was saved.
        position = self._saved.get(_POSITION, np.zeros(2, np.int64))
        position = self._job.synchronise({_POSITION: position})[_POSITION]
        fit, steps = int(position[0]), int(position[1])
        self.skipped = {-1: math.inf, 0: steps, 1: 0}[(self._fits > fit) - (self._fits < fit)]
        if not self.skipped or fit != self._fits:
            return
        if self._job.is_server:
            _log.info("going on after step %d, from %s", steps, self._folder.path)
            return
        name = self._name(steps)
        self._saved = self._load_if_there(name)
        if not self._saved:
            _log.warning(
                "%s is not there, so this worker's random numbers and the memory of an attack "
                "begin anew",
                self._folder.path / name,
            )

    def end_fit(self) -> None:
        """Ends the skipping of steps: the next ``fit`` has its own."""
        self.skipped = 0
        stopping.wait_for_step(False)
        if stopping.pending():
            stopping.stop()

    def take(self, name: str, variables: Sequence[Any]) -> None:
        """Gives variables the values that were saved under a name, if there are any."""
        for number, variable in enumerate(variables):
            value = self._saved.get(f"{name}/{number}")
            if value is None:
                return
            if value.shape != tuple(variable.shape):
                raise UserError(
                    f"{self._job.config.checkpoint} holds a checkpoint of another model: {name} "
                    f"number {number} has the shape {list(value.shape)} there and "
                    f"{list(variable.shape)} here. "
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
        if self._folder is None:
            return
        if stopping.pending():
            path = self.save(groups)
            _log.info("saved in %s: the same command goes on from there", path)
            stopping.stop()
        elif self._steps // every > before // every:
            self.save(groups)

    def skip(self, steps: int) -> None:
        """Counts steps that are not made again."""
        self._steps += steps

    def save(self, groups: Mapping[str, Sequence[Any]]) -> Path | None:
        """Saves groups of variables for this rank; returns the file, or None without a folder.

        Raises:
          UserError: it cannot be written.
        """
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
        name = _SERVER if self._job.is_server else self._name(self._steps)
        try:
            with self._folder.replacing(name) as file:
                checkpoint.save(file, arrays)
            if not self._job.is_server:
                # The server's is of the last but one of these steps at worst.
                for old in self._folder.names()[:-2]:
                    self._folder.remove(old)
        except OSError as error:
            raise UserError(f"cannot save to {self._folder.path}: {error}") from None
        return self._folder.path / name

    def _name(self, steps: int) -> str:
        return f"{self._fits:06d}-{steps:010d}.npz"

    def _load_if_there(self, name: str) -> dict[str, np.ndarray]:
        assert self._folder is not None
        path = self._folder.path / name
        try:
            with self._folder.reading(name) as file:
                return checkpoint.load(file, path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"the checkpoint {path} cannot be used: {error}") from None


def _check_no_old_layout(above: Path, folder: files.PrivateFolder) -> None:
    """Refuses a file that lies where the server's once lay, and where all ranks may write."""
    old, new = above / _SERVER, folder.path / _SERVER
    if os.path.lexists(old) and not os.path.lexists(new):
        raise UserError(
            f"{old} lies where workers may write, so it is not taken over. If it is yours, go on "
            f"from it by `mv {shlex.quote(str(old))} {shlex.quote(str(new))}`; else remove it."
        )
