"""A script that another Keras is installed for: its version, and what it lacks, are faked."""

import sys

import keras

if "lacks" in sys.argv:
    keras.__version__ = "3.99.0"
    del keras.Layer._flatten_layers
if "untested" in sys.argv:
    keras.__version__ = "3.99.0"

import aggregathor as agt
from tests.mpi.results import leave

agt.init(gar="average")
leave(agt.rank(), True)
