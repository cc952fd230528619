"""How long the rules take, against ``tf.reduce_mean(stack, 0)``: ``make bench``."""
