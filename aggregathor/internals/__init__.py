"""Private names of TensorFlow and Keras: no other folder knows any."""
