"""Every example under a real mpirun, by its own lines and with none: all ranks end the same."""

import json
import re

import pytest

from tests.mpi.launch import check, run_on_one_host

# Few jobs, as TensorFlow takes seconds to start in each of four processes.
JOBS = {
    "keras": (
        "mirrored --epochs=1",  # first, as it divides the CPU into devices
        "keras_fit --epochs=2 --schedule --checkpoint={folder}/best.keras "
        "--save={folder}/last.keras",
        "keras_text --epochs=1",
        "keras_gan --epochs=1",
        "keras_options --epochs=2 --policy=mixed_float16 --jit-compile=true "
        "--steps-per-execution=4 --clipnorm=1 --ema",
        "tape_loop --steps=50",
        "tape_loop --steps=20 --eager",
        "own_rule --steps=50",
    ),
    "more": (
        "mirrored --epochs=1 --loop",
        "keras_vae --epochs=1",
        "keras_options --epochs=1 --jit-compile=auto",
        "shard --epochs=1",
    ),
    "draco": ("draco --epochs=1",),
    "async": ("async_fit --epochs=2",),
    "v1": (
        "v1_monitored --steps=50 --sync-replicas --checkpoint-dir={folder}/checkpoints",
        "v1_session --steps=50",
        "v1_session --steps=50 --reference-variables",
    ),
    "zeno": ("zeno --steps=50",),  # by itself: its rule is another one
}
LEFT = {"keras": {"best.keras", "last.keras"}, "more": set(), "v1": {"checkpoints"}}
# Of held-out data, after the few steps above; 0.1 is chance. A GAN has learnt nothing by then.
LEAST_ACCURACY = {"keras_options": 0.6, "mirrored": 0.6, "shard": 0.6, "tape_loop": 0.7}
LEAST_ACCURACY |= {"own_rule": 0.4, "zeno": 0.7, "draco": 0.6, "async_fit": 0.6}
LEAST_ACCURACY |= {"keras_fit": 0.4, "keras_text": 0.3, "v1_monitored": 0.8, "v1_session": 0.8}


# The others are with the long tests: by their own lines they do what they do with none.
ONE_LINE = ("keras_fit", "tape_loop", "own_rule", "zeno", "draco", "async_fit")
# Without their lines own_rule trains by no optimizer that could take part, the others by a rule.
NOT_WITHOUT = ("own_rule", "zeno", "draco", "async_fit")
CASES = [
    pytest.param(mode, job, command, marks=[pytest.mark.long] if is_long else [])
    for mode in ("zero_line", "one_line", "one_line_all")
    for job, commands in JOBS.items()
    for is_long in [mode == "one_line_all" or job == "more"]
    for command in commands
    if mode != "one_line" or command.split()[0] in ONE_LINE
    if mode != "one_line_all" or job not in ("draco", "async")  # those have been
    if mode != "zero_line" or command.split()[0] not in NOT_WITHOUT
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Runs a job when its first test asks for it; returns its results and its folder."""
    done = {}

    def results(mode, job):
        if (mode, job) not in done:
            folder = tmp_path_factory.mktemp(f"{mode}_{job}")
            chosen = [case.values[2] for case in CASES if case.values[:2] == (mode, job)]
            commands = {command: command.format(folder=folder) for command in chosen}
            file = folder / "results.json"
            form = mode.removesuffix("_all")
            words = ("-m", "tests.dropin.ranks", form, folder, file, *commands.values())
            check(run_on_one_host(4, *words, timeout_s=400, warnings=()))
            found = json.loads(file.read_text())
            done[mode, job] = {each: found[commands[each]] for each in chosen}, folder
        return done[mode, job]

    return results


@pytest.mark.parametrize(("mode", "job", "command"), CASES)
def test_all_ranks_end_with_the_servers_parameters(jobs, mode, job, command):
    result = jobs(mode, job)[0][command]
    assert len(result["digests"]) == 4
    assert len(set(result["digests"])) == 1
    name, figure = re.fullmatch(r"(\w+): (?:accuracy|loss) (\S+)", result["last_line"]).groups()
    assert float(figure) >= LEAST_ACCURACY.get(name, 0), result["last_line"]


@pytest.mark.parametrize("job", ["keras", "v1", pytest.param("more", marks=pytest.mark.long)])
def test_only_the_server_writes(jobs, job):
    folder = jobs("zero_line", job)[1]
    given = (".json", ".py")
    found = {p.name for p in folder.iterdir() if p.suffix not in given and p.name != "__pycache__"}
    assert found == LEFT[job]
