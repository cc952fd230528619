"""Experiments: data, a model and a run. ``python -m experiments --help`` lists the flags."""
