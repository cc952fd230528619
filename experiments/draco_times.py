"""Times the parts of a step: computation, communication, encoding, decoding.

DRACO's codes beside the geometric median and plain SGD, in one process. Writes a table like tables
5 and 6 of the DRACO paper, and what decoding costs beside ``tf.reduce_mean`` of the same stack.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aggregathor.errors import UserError
from experiments.command import import_tensorflow, run_command
from experiments.goals import HEADER, Goal
from experiments.machine import describe_machine
from experiments.measuring import seconds_of, write_report

PARTS = ("computation", "communication", "encoding", "decoding")
ATTACK = -100.0  # what the s wrong workers send, everywhere
_WORKERS, _ERRORS = 15, 3  # of the goals


@dataclass(frozen=True)
class Method:
    """One that is timed.

    Attributes:
      name: of a row of the table.
      setting: who takes part, and how.
      errors: how many workers send ``ATTACK``.
    """

    name: str
    setting: Any
    errors: int


def methods(n: int, redundancies: list[int]) -> list[Method]:
    """Returns plain SGD, the geometric median, and each code, without and with errors."""
    from aggregathor.protocols.setting import Setting

    found = [Method("plain SGD", Setting(num_workers=n, gar="average"), 0)]
    for r in redundancies:
        s = (r - 1) // 2
        name = f"geometric-median, s={s}"
        setting = Setting(num_workers=n, gar="geometric-median", f=s)
        found += [Method(f"{name}, {errors} wrong", setting, errors) for errors in (0, s)]
        for code in ("repetition", "cyclic"):
            # Groups of r workers: n must be a multiple.
            workers = n - n % r if code == "repetition" else n
            setting = Setting(
                num_workers=workers, protocol="draco", f=s, protocol_args={"code": code}
            )
            setting.check()
            name = f"{code}, r={r}" + ("" if workers == n else f", n={workers}")
            found += [Method(f"{name}, {errors} wrong", setting, errors) for errors in (0, s)]
    return found


class Timed:
    """The parts of a method's step, on a model."""

    def __init__(self, method: Method, model: Any, batch_size: int, seed: int = 0) -> None:
        """Prepares a round: gradients, their encodings, and a link that carries them."""
        from aggregathor.protocols.aggregation import Aggregation
        from aggregathor.protocols.decoding import code_of
        from aggregathor.trainer.sampling import batches
        from aggregathor.trainer.training import Parameters, Workers
        from experiments.evaluation import cross_entropy
        from lossympi import memory

        self.setting = setting = method.setting
        n = setting.num_workers
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (512, *model.input_shape[1:]), np.uint8)
        labels = rng.integers(0, model.output_shape[1], 512).astype(np.int32)
        drawn = batches(images, labels, num_workers=n, batch_size=batch_size, seed=seed)
        self._parameters = Parameters(model)
        self._workers = Workers(setting, model, self._parameters, cross_entropy, drawn, range(1))
        self.code = code_of(setting)
        self.dim = self._parameters.dim
        self._gradients = rng.standard_normal((n, self.dim)).astype(np.float32)
        self.stack_nd = np.stack([self.encode(k) for k in range(n)])
        self.stack_nd[: method.errors] = ATTACK
        self._server, self._links = memory.connect(n, self.stack_nd.shape[1])
        self._aggregation = Aggregation(setting, self.stack_nd.shape[1])
        self._round = 0
        self._params = np.zeros(self.stack_nd.shape[1], np.float32)

    def compute(self) -> None:
        """A worker's gradients, one after the other."""
        for j in [0] if self.code is None else self.code.batches_of(0):
            self._workers.gradients(0, [j], np.zeros(1, bool))

    def encode(self, k: int = 0) -> np.ndarray:
        """What a worker sends."""
        if self.code is None:
            return self._gradients[k]
        return self.code.encode([self._gradients[j] for j in self.code.batches_of(k)], k)

    def communicate(self) -> None:
        """All gradients to the server and the model to all, through memory."""
        for link, row in zip(self._links, self.stack_nd, strict=True):
            link.send(self._round, row)
        self._collected = self._server.collect(self._round)
        self._server.broadcast(self._round, self._params)
        for link in self._links:
            link.receive(self._round)
        self._round += 1

    def decode(self) -> None:
        """The server's aggregate of what came."""
        stack_nd = self._collected.stack_nd
        context = self._aggregation.context(self._round)
        aggregated = self._aggregation.aggregate(stack_nd, np.array([], int), context)
        assert self._aggregation.unverified == 0
        assert np.isfinite(aggregated.grad_d).all()

    def reduce_mean(self) -> None:
        """What decoding is compared with."""
        import tensorflow as tf

        tf.reduce_mean(self._as_tensor(), axis=0).numpy()

    def _as_tensor(self) -> Any:
        import tensorflow as tf

        if not hasattr(self, "_tensor"):
            self._tensor = tf.constant(self.stack_nd)
        return self._tensor

    def parts(self) -> dict[str, Callable[[], Any]]:
        """Returns what is timed, in the order of a step."""
        return dict(
            zip(PARTS, (self.compute, self.communicate, self.encode, self.decode), strict=True)
        )


def measure(n: int, redundancies: list[int], model: Any, batch_size: int, turns: int) -> dict:
    """Returns the median of each part of each method's step, and ratios of decoding.

    All methods take turns; a ratio is the median over the turns of that in a turn.
    """
    found: dict[str, Any] = {}
    for method in methods(n, redundancies):
        timed = Timed(method, model, batch_size)
        parts = timed.parts()
        for call in parts.values():  # traces, and touches memory
            call()
        timed.reduce_mean()
        times: dict[str, list[float]] = {part: [] for part in PARTS}
        ratios = []
        for _ in range(turns):
            for part, call in parts.items():
                times[part].append(seconds_of(call))
            ratios.append(times["decoding"][-1] / seconds_of(timed.reduce_mean))
        found[method.name] = {part: statistics.median(each) for part, each in times.items()}
        found[method.name]["ratio"] = statistics.median(ratios)
        found[method.name]["dim"] = timed.dim
        found[method.name]["bytes"] = timed.stack_nd[0].nbytes
    return found


def table(found: dict[str, Any]) -> list[str]:
    """Returns the lines of a table in Markdown."""
    header = ["method", *(f"{part}, ms" for part in PARTS), "MB a gradient", "decoding / mean"]
    lines = [f"| {' | '.join(header)} |", f"| --- {'| ---: ' * (len(header) - 1)}|"]
    for name, of in found.items():
        figures = [f"{1e3 * of[part]:.1f}" for part in PARTS]
        figures += [f"{of['bytes'] / 1e6:.1f}", f"{of['ratio']:.1f}"]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return lines


def goals(found: dict[str, Any]) -> list[str]:
    """Returns the lines of the table of goals; empty where other sizes were measured."""
    name = f"cyclic, r={2 * _ERRORS + 1}"
    rows = []
    for errors, must in ((0, 3.0), (_ERRORS, 5.0)):
        each = found.get(f"{name}, {errors} wrong")
        if each is not None:
            what = f"decoding with {errors} wrong of {_WORKERS}, over tf.reduce_mean"
            rows.append(Goal(what, must, must / 2, each["ratio"], "ratio").row())
    return ["", *HEADER, *rows] if rows else []


def main(argv: list[str]) -> int:
    """Measures, prints the table and writes it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.draco_times", description=__doc__)
    parser.add_argument("--workers", type=int, default=_WORKERS, help="n (%(default)s)")
    parser.add_argument(
        "--redundancies", type=int, nargs="+", default=[3, 7], help="r of the codes (%(default)s)"
    )
    parser.add_argument("--model", default="aggregathor-cnn", help="the network (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="examples a batch (%(default)s)")
    parser.add_argument("--turns", type=int, default=9, help="of each method (%(default)s)")
    parser.add_argument("--output", default="results", help="folder (%(default)s)")
    args = parser.parse_args(argv)
    if min(args.turns, args.batch_size, *args.redundancies) < 1:
        raise UserError("--turns, --batch_size and --redundancies are whole numbers above 0")
    import_tensorflow()
    from experiments import models
    from experiments.dataset import Dataset

    empty = np.zeros((0, 32, 32, 3), np.uint8), np.zeros(0, np.int32)
    dataset = Dataset(*empty, *empty, num_classes=10, scale=1 / 255)
    model = models.build(args.model, dataset)
    found = measure(args.workers, args.redundancies, model, args.batch_size, args.turns)
    command = shlex.join(["python", "-m", "experiments.draco_times", *argv])
    today = datetime.date.today().isoformat()
    (dim,) = {of["dim"] for of in found.values()}
    lines = [
        f"`{command}`, {describe_machine()}, {today}.",
        "",
        f"n={args.workers} workers, {args.model} with d={dim:,}, batches of {args.batch_size}. "
        "Computation and encoding are those of one worker, communication is that of all through "
        "memory, decoding is the server's.",
        "",
        *table(found),
        *goals(found),
    ]
    text = "\n".join(lines) + "\n"
    write_report("draco_times", text, Path(args.output))
    return 0


if __name__ == "__main__":
    sys.exit(run_command("draco_times", lambda: main(sys.argv[1:])))
