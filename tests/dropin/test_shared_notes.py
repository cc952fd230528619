"""What ``aggregathor run --check`` says of update rules."""

import keras
import tensorflow as tf

from aggregathor import notes
from aggregathor.dropin.updates import note_shared


def test_a_check_says_what_rules_of_every_kind_share(monkeypatch):
    monkeypatch.setattr(notes, "_kept", {})
    variables = [tf.Variable(tf.zeros([3]), name="kernel"), tf.Variable(1.0, name="bias")]

    def mine(grads_and_vars):
        """Is no optimizer."""

    for owner in (
        *(keras.optimizers.Adam(name="adam"), tf.compat.v1.train.AdamOptimizer(), mine, None),
    ):
        note_shared(owner, variables, None)
    told = [each.split(" by ")[1] for each in notes.kept()[notes.SHARED]]
    assert told[:2] == ["adam: kernel, bias", "Adam: kernel, bias"]
    assert told[2].endswith("mine: kernel, bias")
    assert told[3] == "agt.apply: kernel, bias"
    assert all("4 values in float32" in each for each in notes.kept()[notes.SHARED])
