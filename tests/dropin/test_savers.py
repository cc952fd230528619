"""Files of v1's ``Saver`` and ``FileWriter``: the server's, as those of ``tf.train.Checkpoint``."""

import json
from pathlib import Path

from tests.mpi.launch import check, train

SCRIPT = Path(__file__).with_name("savers_script.py")


def test_workers_restore_what_the_server_saves_and_write_nothing(tmp_path):
    done = train(3, SCRIPT, tmp_path)
    check(done)
    told = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(3)]
    assert told[0]["paths"] == [str(tmp_path / "model.ckpt-3"), str(tmp_path / "model.ckpt")]
    assert told[0]["newest"] == told[0]["paths"][1]
    assert told[0]["ended"] != told[0]["restored"]
    assert told[1] == told[2] == told[0]
    assert len(list((tmp_path / "events").iterdir())) == 1
    for rank in (1, 2):
        for name in ("mine", "far"):
            assert f"rank {rank} has no {tmp_path / name}, and keeps its values" in done.stderr
