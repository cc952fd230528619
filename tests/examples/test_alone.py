"""Each example runs alone and without AggregaThor, for a moment, as its flags choose."""

import ast
import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.examples.scripts import FOLDER, MARK, NAMES, ordinary

COMMANDS = (
    "async_fit --epochs=1",
    "draco --epochs=1",
    "keras_fit --epochs=1 --schedule --checkpoint=best.keras --save=last.keras",
    "keras_gan --epochs=1",
    "keras_options --epochs=2 --policy=mixed_float16 --jit-compile=true --steps-per-execution=4 "
    "--clipnorm=1 --ema",
    "keras_text --epochs=1",
    "keras_vae --epochs=1",
    "mirrored --epochs=1",
    "mirrored --epochs=1 --loop",
    "own_rule --steps=50",
    "shard --epochs=1",
    "tape_loop --steps=50",
    "tape_loop --steps=20 --eager",
    "v1_monitored --steps=50 --sync-replicas --checkpoint-dir=checkpoints",
    "v1_session --steps=50",
    "v1_session --steps=50 --reference-variables",
    "zeno --steps=50",
)
LEFT = {"keras_fit": {"best.keras", "last.keras"}, "v1_monitored": {"checkpoints"}}


def run(command, folder):
    """Runs an example in a folder of its own, which has nothing but the script."""
    name, *flags = command.split()
    (folder / f"{name}.py").write_text(ordinary(name))
    return subprocess.run(
        [sys.executable, f"{name}.py", *flags],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def running(request, tmp_path_factory):
    """The commands of the selected tests and their folders; two run at a time."""
    chosen = [
        item.callspec.params["command"]
        for item in request.session.items
        if item.path == request.path and "running" in item.fixturenames
    ]
    folders = {command: tmp_path_factory.mktemp("alone") for command in chosen}
    with ThreadPoolExecutor(2) as pool:
        yield {
            command: (pool.submit(run, command, folder), folder)
            for command, folder in folders.items()
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_runs_alone_and_tells_its_result(running, command):
    future, folder = running[command]
    done = future.result()
    assert done.returncode == 0, done.stderr
    name = command.split()[0]
    result = re.fullmatch(rf"{name}: (accuracy|loss) (\S+)", done.stdout.splitlines()[-1])
    assert result, done.stdout
    assert math.isfinite(float(result[2]))
    if "=best.keras" in command or "=checkpoints" in command:
        assert LEFT[name] <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_the_marked_lines_are_few_and_all_there_is_of_aggregathor(name):
    lines = (FOLDER / f"{name}.py").read_text().splitlines()
    marked = [line for line in lines if line.endswith(MARK)]
    # One more where there is more to say: a second optimizer, a shard of the data, a loss.
    assert len(marked) <= (4 if name in ("keras_gan", "shard", "zeno") else 3)
    assert not re.search(r"\bimport aggregathor|\bagt\.[a-z]\w*\(", ordinary(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_has_a_main_function_and_a_line_in_the_readme(name):
    tree = ast.parse(ordinary(name))
    assert "main" in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert f"| `{name}.py` |" in (FOLDER / "README.md").read_text()


def test_every_example_is_run():
    assert {command.split()[0] for command in COMMANDS} == set(NAMES)
