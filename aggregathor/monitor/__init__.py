"""What the server sees of each worker: figures, files, suspicion."""
