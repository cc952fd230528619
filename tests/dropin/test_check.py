"""``aggregathor run --check``: a few rounds, and what they have shown of the script."""

from pathlib import Path

from tests.mpi.launch import run_on_one_host

SCRIPT = Path(__file__).with_name("checked_script.py")
SAID = (
    "5 values in float32, trained by adam: sequential/dense/kernel, sequential/dense/bias",
    "private             each rank's own: seed_generator/seed_generator_state",
    "seeded              the script sets 3; what feeds gradients is drawn by 3 + 7919 rank",
    "written             best.keras, by the server; workers leave it out",
    "written             notes.txt, by rank 0",
    "locked              rank 1 to 3: on workers: sequential/dense/kernel",
    "the server's alone  the callback ModelCheckpoint",
    "look at             rows is written by rank 0 to 3: write it where agt.is_server()",
    "look at             log.csv is written by rank 0 to 3: write it where agt.is_server()",
)


def test_a_check_ends_with_its_report(tmp_path):
    done = run_on_one_host(
        4,
        SCRIPT,
        str(tmp_path),
        warnings=(),
        timeout_s=240,
        AGGREGATHOR_CHECK_ROUNDS="3",
        AGGREGATHOR_CHECKPOINT=str(tmp_path / "saved"),
        TF_NUM_INTRAOP_THREADS="1",
        TF_CPP_MIN_LOG_LEVEL="2",
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for line in SAID:
        assert line in done.stdout, done.stdout
    assert not (tmp_path / "saved").exists()
