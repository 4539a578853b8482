"""TensorFlow: `tf.foldl`, which keeps the last carry alone. https://www.tensorflow.org/api_docs/python/tf/foldl

Bridged: nothing; it has no ys.
"""

import tensorflow as tf

FRAMEWORK = "tensorflow"


def scan_layers(layer, stacked_params, init):
    def step(carry, params):
        carry, y = layer(carry, params)
        if y is not None:
            raise NotImplementedError("no ys")
        return carry

    return tf.foldl(step, stacked_params, init), None
