"""The drop-in: patches with which an existing TensorFlow script takes part in a job, unchanged."""
