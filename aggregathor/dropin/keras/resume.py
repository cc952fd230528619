"""Checkpoints of ``fit``: what the server and each worker need to go on as if nothing had happened.

Every ``checkpoint_every`` steps the server saves the model, the variables and slots of the
optimizers, and what its half of their rounds keeps (of the rule, of the fill); each worker saves
what is its own, such as the states of dropout's random numbers and an attack's memory. A job that
is started again with the same command draws the batches of the steps that are done without
computing anything, so that its data come in the same order, takes over what was saved, and goes on.
At the end of a ``fit`` the server saves too, unless it has just begun. What ``fit`` returned before
is returned again: a training that is finished may be started again, and ends as it did.
With its variables a checkpoint says what they are: those of another model, of another optimizer or
of a rule with another state are refused.

The server keeps the checkpoint before its last one too, under another name. It is taken where the
last one is not there, so that who removes a damaged one goes on from the one before.

Where ranks do not step together, a worker goes on with the newest that it has saved.

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
from aggregathor.dropin.description import Group, difference, packed, unpacked
from aggregathor.errors import UserError
from aggregathor.protocols.state import prefixed, under

_log = logging.getLogger(__name__)
_POSITION, _SETTINGS, _RETURNED = "position", "settings", "returned"
_DESCRIPTION = "description"  # as `description.py` makes it; older checkpoints have none
_SERVER, _BEFORE = "server.npz", "server-before.npz"
# Of a worker. The server may be one step of these behind, and may go on from the one before.
_KEPT = 3
_MOST_FITS = 1000  # of which it is kept what they have returned
# What a rule or an attack has in every round; the rest is memory of its own.
_OF_EVERY_ROUND = ("round", "secret")


class Checkpoints:
    """The files of one rank: ``server/server.npz``, or ``worker_ROW/FIT-STEP.npz``.

    Attributes:
      skipped: how many steps of the current ``fit`` are left that were made before the job was
        started again; inf for all.
      is_last: whether the current ``fit`` is the last of which something was saved.
      returned: on the server, what each ``fit`` has returned so far, by its number.
    """

    def __init__(self, job: Job) -> None:
        """Reads what an earlier job has left.

        Raises:
          UserError: the folder cannot be made or read, or another user has put something there.
        """
        self.skipped: float = 0
        self.is_last = False
        self.returned: dict[str, Any] = {}
        self._job = job
        self._fits = 0
        self._steps = 0
        self._since_end = 0  # steps since the end of a `fit` was saved
        self._saved: dict[str, np.ndarray] = {}
        self._described: dict[str, Any] = {}  # what is saved
        self._source = Path()  # of what is saved
        self._folder: files.PrivateFolder | None = None
        if not job.config.checkpoint:
            return
        above = Path(job.config.checkpoint)
        try:
            own = "server" if job.is_server else f"worker_{job.ranks.row:04d}"
            self._folder = files.PrivateFolder(above / own)
            if job.is_server:
                _check_no_old_layout(above, self._folder)
                if not self._take_up(_SERVER) and self._take_up(_BEFORE):
                    _log.warning("%s is not there: %s is taken", _SERVER, self._source)
        except OSError as error:
            raise UserError(f"--checkpoint={above} cannot be used: {error}") from None

    def begin_fit(self) -> None:
        """Finds out, on every rank alike, how much of a ``fit`` that begins was done before."""
        self._fits += 1
        self._steps = 0
        if self._folder is None:
            return
        if self._job.is_server:
            self._check_settings()
            stopping.wait_for_step(True)
        # In which fit the server was saved, after how many of its steps, and whether at its end.
        saved = np.zeros(3, np.int64)
        if _POSITION in self._saved:
            saved[: len(self._saved[_POSITION])] = self._saved[_POSITION]
        fit, steps, is_end = map(int, self._job.synchronise({_POSITION: saved})[_POSITION])
        self.is_last = fit == self._fits
        if self.is_last:
            self.skipped = math.inf if is_end else steps
        else:
            self.skipped = math.inf if self._fits < fit else 0
        if not self.skipped or not self.is_last:
            return
        if self._job.is_server:
            at = f"the end of fit {fit}" if is_end else f"step {steps}"
            _log.info("going on after %s, from %s", at, self._folder.path)
            return
        name = self._name(steps, is_end=bool(is_end))
        if not self._job.loop.in_step:
            # A worker has made other steps than the server: its newest file is the nearest.
            name = max(self._folder.names(), default=name)
        if not self._take_up(name):
            _log.warning(
                "%s is not there, so this worker's random numbers and the memory of an attack "
                "begin anew",
                self._folder.path / name,
            )

    def returned_by(self, fit: int) -> dict[str, Any]:
        """Returns what is kept of what a ``fit`` has returned so far, to be filled."""
        if self._folder is None:
            return {}
        while len(self.returned) > _MOST_FITS:
            self.returned.pop(next(iter(self.returned)))
        return self.returned.setdefault(str(fit), {})

    def end_fit(self) -> None:
        """Ends the skipping of steps: the next ``fit`` has its own."""
        self.is_last = False
        self.skipped = 0
        stopping.wait_for_step(False)
        if stopping.pending():
            stopping.stop()

    def take(self, name: str, variables: Group | Sequence[Any]) -> None:
        """Gives variables the values that were saved under a name, if there are any.

        Raises:
          UserError: other variables were saved under that name.
        """
        group = Group.of(variables)
        saved = under(name, self._saved)
        if not saved:
            return
        self._check_settings()
        there = self._described.get(name)
        if there is not None and (differs := difference(there, group.describe())):
            raise self._other(differs)
        for number, variable in enumerate(group.variables):
            value = saved.get(str(number))
            shape = None if value is None else list(value.shape)
            if value is None or value.shape != tuple(variable.shape):
                raise self._other(
                    f"is of another model: {name} number {number} has the shape {shape} there and "
                    f"{list(variable.shape)} here"
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
        """Counts steps of the current ``fit``, and saves when it is time to.

        A checkpoint that cannot be written, as on a full disk, is left out.
        """
        every = self._job.config.checkpoint_every
        before, self._steps = self._steps, self._steps + steps
        self._since_end += steps
        if stopping.pending():
            path = self.save(groups)
            _log.info("saved in %s: the same command goes on from there", path)
            stopping.stop()
        if self._steps // every > before // every:
            self._try_to_save(groups)

    def ended(self, groups: Mapping[str, Group | Sequence[Any]]) -> None:
        """Saves the end of a ``fit``, unless few steps were made since that of another."""
        if not self.skipped and self._since_end >= self._job.config.checkpoint_every:
            self._since_end = 0
            self._try_to_save(groups, is_end=True)

    def _try_to_save(
        self, groups: Mapping[str, Group | Sequence[Any]], *, is_end: bool = False
    ) -> None:
        try:
            self._save(groups, is_end=is_end)
        except files.ForeignError as error:
            raise self._cannot_save(error) from None
        except OSError as error:
            _log.warning(
                "no checkpoint after step %d: %s. The one before it stays, and the next is "
                "tried after %d more steps",
                self._steps,
                self._cannot_save(error),
                self._job.config.checkpoint_every,
            )

    def skip(self, steps: int) -> None:
        """Counts steps that are not made again."""
        self._steps += steps

    def save(self, groups: Mapping[str, Group | Sequence[Any]]) -> Path | None:
        """Saves groups of variables for this rank; returns the file, or None without a folder.

        Raises:
          UserError: it cannot be written.
        """
        try:
            return self._save(groups)
        except OSError as error:
            raise self._cannot_save(error) from None

    def _save(
        self, groups: Mapping[str, Group | Sequence[Any]], *, is_end: bool = False
    ) -> Path | None:
        if self._folder is None:
            return None
        grouped = {name: Group.of(group) for name, group in groups.items()}
        arrays = {
            f"{name}/{number}": np.asarray(variable)
            for name, group in grouped.items()
            for number, variable in enumerate(group.variables)
        }
        for number, half in enumerate(self._job.halves):
            arrays |= prefixed(f"rounds/{number}", half.state())
        arrays[_POSITION] = np.array([self._fits, self._steps, is_end], np.int64)
        arrays[_DESCRIPTION] = packed(
            {
                **{name: group.describe() for name, group in grouped.items()},
                _SETTINGS: self._settings(),
                _RETURNED: self.returned,
            }
        )
        if self._job.is_server:
            name, before = _SERVER, _BEFORE
        else:
            name, before = self._name(self._steps, is_end=is_end), ""
        with self._folder.replacing(name, before) as file:
            checkpoint.save(file, arrays)
        if not self._job.is_server:
            for old in self._folder.names()[:-_KEPT]:
                self._folder.remove(old)
        return self._folder.path / name

    def _name(self, steps: int, *, is_end: bool) -> str:
        at = "end" if is_end else f"{steps:010d}"
        return f"{self._fits:06d}-{at}.npz"

    def _take_up(self, name: str) -> bool:
        """Reads a file of this rank's folder; returns whether it is there."""
        assert self._folder is not None
        self._source = self._folder.path / name
        try:
            self._saved = self._load(name)
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            raise UserError(
                f"the checkpoint {self._source} cannot be used: {error}. {self._remedy(name)}"
            ) from None
        self._described = {}
        if _DESCRIPTION in self._saved:
            self._described = unpacked(self._saved.pop(_DESCRIPTION))
        if self._job.is_server:
            self.returned = self._described.pop(_RETURNED, {})
        return True

    def _load(self, name: str) -> dict[str, np.ndarray]:
        assert self._folder is not None
        with self._folder.reading(name) as file:
            return checkpoint.load(file, self._folder.path / name)

    def _remedy(self, name: str) -> str:
        """Returns what to do about a file that is damaged."""
        assert self._folder is not None
        damaged = [name]
        if name == _SERVER:
            try:
                fit, steps, *_ = self._load(_BEFORE)[_POSITION]
                return (
                    f"The one before it, of step {steps} of fit {fit}, is whole: the same command "
                    f"goes on from there after {self._rm(damaged)}."
                )
            except FileNotFoundError:
                pass
            except (OSError, ValueError):
                damaged.append(_BEFORE)
        anew = (
            "the training begins" if self._job.is_server else "this worker's random numbers begin"
        )
        return f"There is no other: after {self._rm(damaged)} {anew} anew."

    def _rm(self, names: Sequence[str]) -> str:
        assert self._folder is not None
        paths = (shlex.quote(str(self._folder.path / name)) for name in names)
        return f"`rm {' '.join(paths)}`"

    def _settings(self) -> dict[str, Any]:
        """Returns on what the memory of rule and fill depends."""
        setting = self._job.setting
        return {
            "workers": setting.num_workers,
            "f": setting.f,
            "gar": setting.gar,
            "gar_args": dict(setting.gar_args),
            "fill": setting.fill,
            "protocol": setting.protocol,
            "protocol_args": dict(setting.protocol_args),
        }

    def _check_settings(self) -> None:
        """Refuses what a rule or a fill has kept that is now another one; warns of the rest.

        Once, and not sooner than needed: ``agt.init`` in the script may still name the rule.
        """
        there = self._described.pop(_SETTINGS, {})
        here = unpacked(packed(self._settings()))  # as JSON has it
        differ = [name for name in there if there[name] != here.get(name)]
        if not differ:
            return
        words = [
            ", ".join(f"{name}={which.get(name)}" for name in differ) for which in (there, here)
        ]
        says = f"was saved with {words[0]}, and this job has {words[1]}"
        kept = [
            name
            for name in self._saved
            if name.startswith("rounds/") and name.split("/", 2)[2] not in _OF_EVERY_ROUND
        ]
        if kept or "protocol" in differ:
            raise self._other(f"{says}, which cannot use what rule or fill has kept")
        _log.warning("%s %s: the training goes on with these", self._source, says)

    def _other(self, how: str) -> UserError:
        return UserError(
            f"the checkpoint {self._source} {how}. Go on with what it was saved by, name another "
            "folder by --checkpoint, or remove that one."
        )

    def _cannot_save(self, error: OSError) -> UserError:
        assert self._folder is not None
        return UserError(f"cannot save to {self._folder.path}: {error}")


def _check_no_old_layout(above: Path, folder: files.PrivateFolder) -> None:
    """Refuses a file that lies where the server's once lay, and where all ranks may write."""
    old, new = above / _SERVER, folder.path / _SERVER
    if os.path.lexists(old) and not os.path.lexists(new):
        raise UserError(
            f"{old} lies where workers may write, so it is not taken over. If it is yours, go on "
            f"from it by `mv {shlex.quote(str(old))} {shlex.quote(str(new))}`; else remove it."
        )
