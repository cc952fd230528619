"""What makes an existing TensorFlow script take part in a job, without a change to it."""
