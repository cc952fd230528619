"""What TensorFlow itself does, to compare with."""
