"""A loop whose ranks end as ENDINGS says: "rank:step:how ..."; how is break, raise or exit.

Each rank leaves how many steps it has made.
"""

import os
import sys

import keras
import numpy as np
import tensorflow as tf

import aggregathor as agt
from tests.mpi.results import leave

ENDINGS = {}
agt.init(link_args={"timeout_s": 2.0})  # the rule comes from the environment
for word in os.environ["ENDINGS"].split():
    rank, step, how = word.split(":")
    if int(rank) == agt.rank():
        ENDINGS[int(step)] = how

variable = tf.Variable(np.zeros(3, np.float32))
optimizer = agt.DistributedOptimizer(keras.optimizers.SGD(0.1))
made = 0
for step in range(int(os.environ["STEPS"])):
    how = ENDINGS.get(step)
    if how == "break":
        break
    if how == "raise":
        raise ArithmeticError("no more of this")
    if how == "exit":
        sys.exit(3)
    optimizer.apply_gradients([(variable - 1.0, variable)])
    made += 1
leave(agt.rank(), made)
