"""TensorFlow: `tf.scan`. https://www.tensorflow.org/api_docs/python/tf/scan

Bridged: it returns every carry, of which the last is the result; one run of the layer says what ys to begin with.
"""

import tensorflow as tf

FRAMEWORK = "tensorflow"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False):
    slices = (stacked_params,) if xs is None else (stacked_params, xs)
    holes = tf.nest.map_structure(lambda a: None if a is None else 0, slices)
    arrays = [a for a in tf.nest.flatten(slices) if a is not None]

    def tree(own):
        rest = iter(own)
        return tf.nest.map_structure(lambda hole: None if hole is None else next(rest), holes)

    _, y = layer(init, *tree([a[0] for a in arrays]))
    zeros = [tf.zeros_like(a) for a in tf.nest.flatten(y) if a is not None]

    def step(state, own):
        carry, y = layer(state[0], *tree(own))
        return carry, [a for a in tf.nest.flatten(y) if a is not None]

    carries, ys = tf.scan(step, arrays, (init, zeros), reverse=reverse)
    rest = iter(ys)
    carry = tf.nest.map_structure(lambda a: a[0 if reverse else -1], carries)
    return carry, tf.nest.map_structure(lambda a: None if a is None else next(rest), y)
