"""Private names of TensorFlow and Keras, and how their methods are replaced."""
