"""What the ranks of a job leave for its test: a JSON file each."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from tests.mpi.launch import check, train


def leave(rank, result):
    """In a script: leaves a rank's result, anything that JSON can hold."""
    path = Path(os.environ["RESULTS"], f"{rank}.json")
    path.with_suffix(".part").write_text(json.dumps(result))
    path.with_suffix(".part").rename(path)


def digest(values):
    """Tells lists of arrays, such as the parameters that a rank ends with, from others."""
    return hashlib.sha256(b"".join(np.asarray(each).tobytes() for each in values)).hexdigest()


def collected(folder):
    """In a test: returns what the ranks have left, by rank."""
    return {int(path.stem): json.loads(path.read_text()) for path in folder.glob("*.json")}


def results_of(num_ranks, folder, script, *words, **environment):
    """Runs a job whose ranks all end well; returns what each has left, by rank, and the process."""
    done = train(num_ranks, script, *words, RESULTS=str(folder), **environment)
    check(done)
    results = collected(folder)
    assert sorted(results) == list(range(num_ranks)), done.stderr
    return results, done
