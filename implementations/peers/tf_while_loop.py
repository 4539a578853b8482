"""TensorFlow: `tf.while_loop` as one first writes it, with its own gradient. https://www.tensorflow.org/api_docs/python/tf/while_loop

Bridged: a counter, and reads of the stack by index; ys are not written.
"""

import tensorflow as tf

FRAMEWORK = "tensorflow"


def scan_layers(layer, stacked_params, init):
    N = tf.nest.flatten(stacked_params)[0].shape[0]

    def body(i, carry):
        carry, y = layer(carry, tf.nest.map_structure(lambda a: a[i], stacked_params))
        if y is not None:
            raise NotImplementedError("no ys")
        return i + 1, carry

    return tf.while_loop(lambda i, _: i < N, body, (0, init), maximum_iterations=N)[1], None
