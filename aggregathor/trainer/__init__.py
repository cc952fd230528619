"""Training by ``python -m experiments``: simulated in one process, or real under mpirun."""
