"""Saves with v1's ``Saver``, and trains on in a second session that restores what it saved.

python savers_script.py FOLDER. The server is slow to write. Every rank writes rank-R.json into the
folder: the paths that it saved to, and what its variable held after it had restored and at the end.
"""

import json
import sys
import time
from pathlib import Path

import tensorflow as tf

import aggregathor as agt
from aggregathor.dropin import server_files

v1 = tf.compat.v1
v1.disable_eager_execution()
FOLDER = Path(sys.argv[1])
server_files._WAIT_S = 5.0
agt.init(gar="average")
variable = v1.get_variable("w", initializer=[8.0, 4.0])
step = v1.train.get_or_create_global_step()
optimizer = agt.DistributedOptimizer(v1.train.MomentumOptimizer(0.25, 0.5))
loss = tf.reduce_sum(variable**2) / 2
train = optimizer.minimize(loss, global_step=step)
v1.summary.scalar("loss", loss)
summary = v1.summary.merge_all()
path = str(FOLDER / "model.ckpt")


class Slow(v1.train.Saver):
    """Writes late on the server."""

    def save(self, *args, **kwargs):
        """Waits before."""
        time.sleep(1.0 if agt.is_server() else 0.0)
        return super().save(*args, **kwargs)


saver = Slow(max_to_keep=2)
with v1.Session() as session:
    session.run(v1.global_variables_initializer())
    writer = v1.summary.FileWriter(str(FOLDER / "events"), session.graph)
    for _ in range(3):
        writer.add_summary(session.run([train, summary])[1], session.run(step))
    writer.close()
    paths = [saver.save(session, path, global_step=step)]
    session.run(train)
    paths.append(saver.save(session, path))
    newest = v1.train.latest_checkpoint(str(FOLDER))
with v1.Session() as session:
    saver.restore(session, newest)
    saver.restore(session, paths[0])
    restored = session.run(variable).tolist()
    session.run(train)
    if not agt.is_server():  # what the server never saves
        saver.restore(session, saver.save(session, str(FOLDER / "mine")))
    session.run(train)
    far = saver.save(session, str(FOLDER / "far"))
    session.run(train)
    if agt.is_server():
        saver.restore(session, far)
        for file in FOLDER.glob("far*"):
            file.unlink()
    else:  # as on another host
        time.sleep(3.0)
        saver.restore(session, far)
    session.run(train)
    ended = session.run(variable).tolist()
told = {"paths": paths, "newest": newest, "restored": restored, "ended": ended}
(FOLDER / f"rank-{agt.rank()}.json").write_text(json.dumps(told))
