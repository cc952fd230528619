"""Checkpoints keep every bit, and are there as a whole or not at all."""

import ml_dtypes
import numpy as np
import pytest

from aggregathor import checkpoint

ARRAYS = {
    "a/b": np.array([[1.5, np.nan, -np.inf], [5e-324, -0.0, 1e300]]),
    "half": np.array([1.25, -3e38, np.nan], ml_dtypes.bfloat16),
    "eight bits": np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
    "integers": np.arange(5, dtype=np.int8),
    "scalar": np.array(2**63, np.uint64),
    "none": np.zeros((0, 7), np.float32),
    "flags": np.array([True, False]),
}


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "saved"
    checkpoint.write(path, ARRAYS)
    got = checkpoint.read(path)
    assert got.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape)
        assert got[name].tobytes() == array.tobytes()
    assert [each.name for each in tmp_path.iterdir()] == ["saved"]


def test_every_cut_and_every_changed_byte_is_seen(tmp_path):
    path = tmp_path / "saved"
    checkpoint.write(path, {"w": np.arange(40, dtype=np.float32)})
    whole = path.read_bytes()
    for kept in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:kept])
        with pytest.raises(checkpoint.DamagedError, match="is no whole checkpoint"):
            checkpoint.read(path)
    at = whole.index(np.arange(40, dtype=np.float32).tobytes())
    for place in range(at, at + 160, 13):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(checkpoint.DamagedError):
            checkpoint.read(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "saved"
    checkpoint.write(path, {"w": np.ones(3)})

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write(path, {"w": np.zeros(3)})
    monkeypatch.undo()
    np.testing.assert_array_equal(checkpoint.read(path)["w"], np.ones(3))
    assert [each.name for each in tmp_path.iterdir()] == ["saved"]


def test_no_checkpoint_can_run_code(tmp_path):
    path = tmp_path / "saved"
    with path.open("wb") as file:
        np.savez(file, w=np.array([print], dtype=object))
    with pytest.raises(checkpoint.DamagedError):
        checkpoint.read(path)


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint.read(tmp_path / "nowhere")
