"""Trains one of two heads each step; rank 1 takes the other one from step WRONG on.

With "new" as HOW the ranks begin with other heads, with "old" they know both by then.
"""

import os

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt

agt.init(gar="average", link_args={"timeout_s": 60.0})
heads = [keras.Variable(np.zeros(3, np.float32), name=f"head_{i}") for i in range(2)]
optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.1))
optimizer.build(heads)
wrong = {"new": 0, "old": 4}[os.environ["HOW"]]
for step in range(8):
    chosen = (step + (agt.rank() == 1 and step >= wrong)) % 2
    optimizer.apply_gradients([(tf.ones(3), heads[chosen])])
