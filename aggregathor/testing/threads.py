"""One rule in several processes: TensorFlow's number of threads cannot change within one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tensorflow as tf

from aggregathor.gars import Gar
from aggregathor.testing.stacks import LARGE_D, attacked, lose_some, told
from aggregathor.testing.subject import RaisedError, SkippedError, Subject, in_short


def digests_by_threads(subject: Subject, numbers: Iterable[int]) -> list[dict[str, str]]:
    """What the rule gives on each number of threads, by case: processes that run at once.

    Raises:
      SkippedError: another process cannot import the rule.
      RaisedError: the rule raised.
    """
    given = pickled(subject)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "CUDA_VISIBLE_DEVICES": "-1",  # threads are the CPU's, and this process holds the GPU
    }
    program = "from aggregathor.testing import threads; threads.answer()"

    def run(number: int) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", program, str(number)]
        return subprocess.run(
            command, input=given, env=environment, capture_output=True, check=False
        )

    with ThreadPoolExecutor() as pool:
        processes = list(pool.map(run, numbers))
    answers = []
    for process in processes:
        if process.returncode:
            last = (process.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
            raise RaisedError(f"expected a gradient in another process, found {last}")
        last_line = process.stdout.splitlines()[-1]  # the rule may have printed before
        answers.append(json.loads(last_line))
    for answer in answers:
        if "skipped" in answer:
            raise SkippedError(answer["skipped"])
        if "raised" in answer:
            raise RaisedError(f"in another process: {answer['raised']}")
    return [answer["digests"] for answer in answers]


def pickled(subject: Subject) -> bytes:
    """The subject with its rule by name, as pickle does."""
    gar = subject.gar.function if isinstance(subject.gar, Gar) else subject.gar
    if getattr(gar, "__module__", None) == "__main__":
        raise SkippedError("the rule is in __main__, which other processes cannot import")
    try:
        return pickle.dumps(dataclasses.replace(subject, gar=gar))
    except Exception as error:
        raise SkippedError(f"other processes cannot import the rule ({in_short(error)})") from error


def answer() -> None:
    """Reads a pickled subject, writes digests as JSON; the argument is the number of threads."""
    tf.config.threading.set_intra_op_parallelism_threads(int(sys.argv[1]))
    found: dict[str, object]
    try:
        subject = pickle.load(sys.stdin.buffer)
    except Exception as error:
        found = {"skipped": f"other processes cannot import the rule ({in_short(error)})"}
    else:
        try:
            found = {"digests": dict(_digests(subject))}
        except RaisedError as error:
            found = {"raised": str(error)}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def _digests(subject: Subject) -> Iterator[tuple[str, str]]:
    """Case and SHA-256 of the result."""
    rng = subject.rng()
    for dtype in subject.dtypes[:2]:
        for n, f in [*subject.smallest(), subject.roomy()]:
            stack_nd = attacked(rng, n, f if subject.robust else 0, LARGE_D, dtype, 1e20)
            stacks = {"": stack_nd}
            if subject.tolerates_missing:
                stacks[", a tenth of the values NaN"] = lose_some(rng, stack_nd)
            for what, given_nd in stacks.items():
                grad_d = np.ascontiguousarray(subject(given_nd, f))
                yield told(given_nd, f) + what, hashlib.sha256(grad_d.tobytes()).hexdigest()
