"""Keras: optimizers, ``fit``, files and seeds of a script that takes part in a job."""
