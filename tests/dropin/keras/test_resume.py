"""The checkpoints of ``fit`` on one rank, without a job: where they lie, and what is refused."""

import gc
import os
import re
import resource
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from aggregathor import checkpoint
from aggregathor.dropin.description import Group
from aggregathor.dropin.keras.resume import Checkpoints
from aggregathor.errors import UserError
from aggregathor.protocols.setting import Setting
from tests.test_files import AS_ROOT, FOREIGN, mode_of, within


def job_of(folder, row=None, setting=None, halves=()):
    """A job of this process alone: the server's, or a worker's whose server is at step 8."""

    def synchronise(arrays):
        return arrays if row is None else {"position": np.array([1, 8, 0])}

    return SimpleNamespace(
        config=SimpleNamespace(checkpoint=str(folder), checkpoint_every=4),
        setting=setting or Setting(num_workers=4, f=1, gar="median"),
        is_server=row is None,
        ranks=SimpleNamespace(row=row),
        loop=SimpleNamespace(in_step=True),
        halves=list(halves),
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
    dtype = np.dtype(float)
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
    two = ["server-before.npz", "server.npz"]
    three = [f"000001-00000000{steps:02}.npz" for steps in (4, 8, 12)]
    assert found == {"server": two, "worker_0000": three, "worker_0001": three}
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
    with pytest.raises(UserError, match=words) as refused:
        resumed(tmp_path, row)
    assert "\n" not in str(refused.value)


def remedy(error):
    """Does what an error says."""
    command = re.search(r"`((?:rm|mv) .*?)`", str(error))
    assert command is not None
    assert os.system(command[1]) == 0


def test_the_checkpoint_before_a_damaged_one_is_offered(tmp_path):
    for row in (None, 1):
        train(tmp_path, row, steps=12)
    (tmp_path / "server" / "server.npz").write_bytes(b"half")
    words = r"The one before it, of step 8 of fit 1, is whole: the same command goes on from there"
    with pytest.raises(UserError, match=words) as refused:
        resumed(tmp_path)
    remedy(refused.value)
    checkpoints, value = resumed(tmp_path)
    assert checkpoints.skipped == 8
    np.testing.assert_array_equal(value, np.ones(3))
    # The worker still has what it had then.
    np.testing.assert_array_equal(resumed(tmp_path, 1)[1], np.ones(3))


def test_where_both_are_damaged_none_is_offered(tmp_path):
    train(tmp_path, steps=12)
    for name in ("server.npz", "server-before.npz"):
        (tmp_path / "server" / name).write_bytes(b"half")
    with pytest.raises(UserError, match=r"There is no other: .* the training begins") as refused:
        resumed(tmp_path)
    remedy(refused.value)
    assert resumed(tmp_path)[0].skipped == 0


@pytest.mark.parametrize("row", [None, 1])
def test_a_full_disk_is_one_line_and_the_next_checkpoint_is_tried(row, tmp_path, capfd):
    checkpoints = train(tmp_path, row, steps=8)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*/*")}
    capfd.readouterr()
    large = {"model": [np.zeros(10_000)]}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        checkpoints.made(4, large)
        gc.collect()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capfd.readouterr().err
    assert re.fullmatch(
        r".*no checkpoint after step 12: cannot save to .*: .*File too large.*\n", said
    )
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*/*")} == before
    checkpoints.made(4, large)
    assert capfd.readouterr().err == ""
    checkpoints = Checkpoints(job_of(tmp_path))
    checkpoints.begin_fit()
    assert checkpoints.skipped == (16 if row is None else 0)


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


@pytest.mark.parametrize("is_described", [True, False])
def test_a_checkpoint_of_another_model_is_refused(is_described, tmp_path):
    train(tmp_path)
    if not is_described:
        undescribe(tmp_path)
    checkpoints = Checkpoints(job_of(tmp_path))
    checkpoints.begin_fit()
    other = Variable()
    other.shape = (4,)
    words = r"number 0 is .*\[3\] there and .*\[4\] here"
    if not is_described:
        words = r"model number 0 has the shape \[3\] there"
    with pytest.raises(UserError, match=f"another model: {words}"):
        checkpoints.take("model", [other])


def undescribe(folder):
    """Makes a checkpoint one of before it had names."""
    path = folder / "server" / "server.npz"
    arrays = checkpoint.read(path)
    del arrays["description"]
    checkpoint.write(path, arrays)


def model(*units, name="dense"):
    layers = [keras.layers.Dense(each, name=f"{name}_{i}") for i, each in enumerate(units)]
    return keras.Sequential([keras.Input([2]), *layers], name="m")


def saved_by(folder, made, optimizer):
    optimizer.build(made.trainable_variables)
    groups = {
        "model": made.variables,
        "0/optimizer": Group(optimizer.variables, owner=type(optimizer).__name__),
    }
    checkpoints = Checkpoints(job_of(folder))
    checkpoints.begin_fit()
    checkpoints.made(4, groups)
    checkpoints = Checkpoints(job_of(folder))
    checkpoints.begin_fit()
    return checkpoints, groups


def test_adam_does_not_take_the_learning_rate_of_sgd(tmp_path):
    made = model(3)
    checkpoints, _ = saved_by(tmp_path, made, keras.optimizers.SGD(0.2))
    adam = keras.optimizers.Adam(0.002)
    adam.build(made.trainable_variables)
    words = r"server.npz is of another optimizer: SGD there and Adam here\. .*--checkpoint"
    with pytest.raises(UserError, match=words):
        checkpoints.take("0/optimizer", Group(adam.variables, owner="Adam"))
    assert float(adam.learning_rate) == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            lambda: model(3, 3),
            r"2 variables there and 4 here; number 2 is missing there and m/dense",
        ),
        (
            lambda: model(3, name="other"),
            r"m/dense_0/kernel float32\[2, 3\] there and m/other_0/ke",
        ),
        (lambda: model(4), r"float32\[2, 3\] there and m/dense_0/kernel float32\[2, 4\] here"),
        (
            lambda: keras.Sequential(
                [keras.Input([2]), keras.layers.Dense(3, dtype="float64", name="dense_0")], name="m"
            ),
            r"kernel float32\[2, 3\] there and m/dense_0/kernel float64\[2, 3\] here",
        ),
    ],
)
def test_what_is_another_model_is_named_on_both_sides(other, words, tmp_path):
    checkpoints, _ = saved_by(tmp_path, model(3), keras.optimizers.SGD(0.2))
    with pytest.raises(UserError, match=f"server.npz is of another model: .*{words}"):
        checkpoints.take("model", other().variables)


def test_a_state_of_the_same_optimizer_that_keeps_more_is_refused(tmp_path):
    made = model(3)
    checkpoints, _ = saved_by(tmp_path, made, keras.optimizers.SGD(0.2))
    other = keras.optimizers.SGD(0.2, momentum=0.9)
    other.build(made.trainable_variables)
    with pytest.raises(UserError, match="2 variables there and 4 here; number 2 is missing there"):
        checkpoints.take("0/optimizer", Group(other.variables, owner="SGD"))


def test_the_same_model_and_optimizer_are_taken(tmp_path):
    checkpoints, groups = saved_by(tmp_path, model(3), keras.optimizers.Adam(0.2))
    for variable in groups["model"]:
        variable.assign(variable * 0)
    for name, group in groups.items():
        checkpoints.take(name, group)
    assert np.any(groups["model"][0])


def test_a_checkpoint_of_before_without_names_is_taken(tmp_path):
    """Of its shapes and its count it is still known whether they fit."""
    train(tmp_path, value=2.0)
    undescribe(tmp_path)
    checkpoints, value = resumed(tmp_path)
    np.testing.assert_array_equal(value, np.full(3, 2.0))
    with pytest.raises(UserError, match=r"model number 1 has the shape None there and \[3\] here"):
        checkpoints.take("model", [Variable(), Variable()])


@pytest.mark.parametrize("keeps", [False, True])
def test_another_rule_may_go_on_if_nothing_was_kept_for_it(keeps, tmp_path, capsys):
    state = {"round": np.array(1), "secret": np.array(2, np.uint64)}
    if keeps:
        state["previous"] = np.zeros((4, 3))
    half = SimpleNamespace(state=lambda: state)
    checkpoints = Checkpoints(job_of(tmp_path, halves=[half]))
    checkpoints.begin_fit()
    checkpoints.made(4, {"model": [np.ones(3)]})
    other = job_of(tmp_path, setting=Setting(num_workers=5, f=1, gar="krum"))
    words = "was saved with workers=4, gar=median, and this job has workers=5, gar=krum"
    if keeps:
        with pytest.raises(UserError, match=f"server.npz {words}, which cannot use what"):
            Checkpoints(other).begin_fit()
    else:
        Checkpoints(other).begin_fit()
        assert words in capsys.readouterr().err
