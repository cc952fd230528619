"""Runs examples, one after the other, as a rank of a job, and compares what all ranks end with.

python -m tests.dropin.ranks one_line|zero_line FOLDER RESULTS COMMAND... ; a command is the name of
an example and its flags. Rank 0 writes the results, a dict by command, to the JSON file RESULTS;
the scripts without their marked lines are kept in FOLDER.
"""

import contextlib
import hashlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path

import numpy as np

from aggregathor import run as runner
from tests.examples.scripts import FOLDER, ordinary


def main(mode, folder, results, *commands):
    if mode == "zero_line":
        start_zero_line()
    found = {}
    for command in commands:
        name, *flags = command.split()
        sys.argv = [f"{name}.py", *flags]
        module = load(name, mode, Path(folder))
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            trained = module.main()
        found[command] = {
            "last_line": output.getvalue().splitlines()[-1],
            "digest": digest(trained),
        }
    from aggregathor import api

    current = api.current()
    assert current is not None
    everyones = current.ranks.comm.allgather(found)
    if current.is_server:
        for command, result in found.items():
            result["digests"] = [other[command]["digest"] for other in everyones]
            result["rounds"] = [half.round for half in current.halves]
        with open(results, "w") as file:
            json.dump(found, file)


def load(name, mode, folder):
    """Imports an example, without its lines of AggregaThor in the mode zero_line."""
    path = FOLDER / f"{name}.py"
    if mode == "zero_line":
        path = folder / f"{name}_{os.getpid()}.py"  # every rank its own: they run at the same time
        path.write_text(ordinary(name))
    if name.startswith("v1") and "tensorflow" in sys.modules:
        sys.modules["tensorflow"].compat.v1.reset_default_graph()
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_zero_line():
    from aggregathor import api

    told, _ = runner.parse(["--gar=median", "--f=1", __file__])
    os.environ.update(told)
    api.init()
    api.distribute_all()


def digest(trained):
    """Tells parameters from others: those of a Keras model, or a list of arrays."""
    if hasattr(trained, "trainable_variables"):
        trained = [np.asarray(v) for v in trained.variables if "seed" not in v.path]
    text = b"".join(np.asarray(values).tobytes() for values in trained)
    return hashlib.sha256(text).hexdigest()


if __name__ == "__main__":
    main(*sys.argv[1:])
