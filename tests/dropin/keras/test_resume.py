"""The checkpoints of ``fit`` on one rank, without a job: where they lie, and what is refused."""

import os
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.errors import UserError
from tests.test_files import AS_ROOT, FOREIGN, mode_of, within


def job_of(folder, row=None):
    """A job of this process alone: the server's, or a worker's whose server is at step 8."""

    def synchronise(arrays):
        return arrays if row is None else {"position": np.array([1, 8])}

    return SimpleNamespace(
        config=SimpleNamespace(checkpoint=str(folder), checkpoint_every=4),
        is_server=row is None,
        ranks=SimpleNamespace(row=row),
        halves=[],
        synchronise=synchronise,
    )


def train(folder, row=None, *, steps=8, value=1.0):
    checkpoints = Checkpoints(job_of(folder, row))
    checkpoints.begin_fit()
    for _ in range(0, steps, 4):
        checkpoints.made(4, {"model": [np.full(3, value)]})
    return checkpoints


def resumed(folder, row=None):
    checkpoints = Checkpoints(job_of(folder, row))
    checkpoints.begin_fit()
    return checkpoints, Variable.taken(checkpoints)


class Variable:
    shape = (3,)
    value = None

    def assign(self, value):
        self.value = value

    @classmethod
    def taken(cls, checkpoints):
        variable = cls()
        checkpoints.take("model", [variable])
        return variable.value


def test_each_rank_has_a_folder_of_its_own_that_is_closed_to_others(tmp_path):
    for row in (None, 0, 1):
        train(tmp_path, row, steps=12)
    found = {path.name: sorted(os.listdir(path)) for path in tmp_path.iterdir()}
    two = ["000001-0000000008.npz", "000001-0000000012.npz"]
    assert found == {"server": ["server.npz"], "worker_0000": two, "worker_0001": two}
    assert {mode_of(path) for path in tmp_path.iterdir()} == {0o700}


@pytest.mark.parametrize("row", [None, 1])
def test_a_job_that_is_started_again_goes_on(row, tmp_path):
    train(tmp_path, row, value=2.5)
    checkpoints, value = resumed(tmp_path, row)
    assert checkpoints.skipped == 8
    np.testing.assert_array_equal(value, np.full(3, 2.5))


def test_a_worker_without_its_file_begins_anew_and_says_so(tmp_path, capsys):
    train(tmp_path, 1)
    shutil.rmtree(tmp_path / "worker_0001")
    _, value = resumed(tmp_path, 1)
    assert value is None
    assert (
        "worker_0001/000001-0000000008.npz is not there, so this worker's random"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("row", [None, 1])
@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_checkpoint_is_told_as_such(damage, row, tmp_path):
    train(tmp_path, row)
    path = tmp_path / ("server/server.npz" if row is None else "worker_0001/000001-0000000008.npz")
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "other": b"text"}[damage])
    words = rf"the checkpoint {path} cannot be used: {path} is no whole checkpoint: \w"
    with pytest.raises(UserError, match=words):
        resumed(tmp_path, row)


@pytest.mark.parametrize("name", [".server.npz.{pid}", "server/.server.npz.{pid}"])
def test_a_link_that_is_planted_for_the_temporary_file_is_not_written_through(name, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / name.format(pid=os.getpid())
    checkpoints = Checkpoints(job_of(tmp_path))
    checkpoints.begin_fit()
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    checkpoints.made(4, {"model": [np.ones(3)]})
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("kind", ["link", "pipe"])
@pytest.mark.parametrize("name", ["server", "server/server.npz"])
def test_a_link_or_a_pipe_in_place_of_folder_or_file_is_refused(name, kind, tmp_path):
    elsewhere, path = tmp_path / "elsewhere", tmp_path / "saved"
    train(elsewhere)
    path.mkdir()
    if name != "server":
        train(path)
        os.unlink(path / name)
    if kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to(elsewhere / name)
    with within(10), pytest.raises(UserError, match=re.escape(str(path))) as refused:
        Checkpoints(job_of(path))
    assert "\n" not in str(refused.value)


@AS_ROOT
@pytest.mark.parametrize("name", ["server", "server/server.npz"])
def test_what_another_user_has_put_there_is_refused(name, tmp_path):
    train(tmp_path)
    os.chown(tmp_path / name, FOREIGN, FOREIGN)
    words = f"cannot be used: {tmp_path / name} belongs to user {FOREIGN}, and what this process"
    with pytest.raises(UserError, match=words):
        Checkpoints(job_of(tmp_path))


def test_a_folder_that_is_replaced_meanwhile_is_not_written_to(tmp_path):
    checkpoints = train(tmp_path)
    (tmp_path / "server").rename(tmp_path / "moved")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "server").symlink_to("theirs")
    with pytest.raises(UserError, match=r"cannot save to .*server: .*is a symbolic link"):
        checkpoints.made(4, {"model": [np.ones(3)]})
    assert os.listdir(tmp_path / "theirs") == []


def test_a_file_where_the_servers_once_lay_is_not_taken_over(tmp_path):
    """Where all ranks may write, any of them could have put it there."""
    train(tmp_path / "of before", value=3.0)
    path = tmp_path / "saved folder"
    path.mkdir()
    shutil.copy(tmp_path / "of before" / "server" / "server.npz", path / "server.npz")
    with pytest.raises(UserError, match=r"server.npz lies where workers may write") as refused:
        Checkpoints(job_of(path))
    command = re.search(r"`(mv .*)`", str(refused.value))
    assert command is not None
    assert os.system(command[1]) == 0
    _, value = resumed(path)
    np.testing.assert_array_equal(value, np.full(3, 3.0))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path)
    checkpoints = Checkpoints(job_of(tmp_path))
    checkpoints.begin_fit()
    other = Variable()
    other.shape = (4,)
    with pytest.raises(UserError, match=r"another model: model number 0 has the shape \[3\] there"):
        checkpoints.take("model", [other])
