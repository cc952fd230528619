"""``python -m lossympi.bench`` under mpirun: LossyMPI, MPI and TCP moving the same vectors."""
