"""Keras: `keras.ops.scan` on its jax backend. https://keras.io/api/ops/core/

Bridged: params and xs go in as one tree.
"""

import os

os.environ["KERAS_BACKEND"] = "jax"

from keras import ops

LIBRARY = "keras"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False, unroll=1):
    if xs is None:
        return ops.scan(layer, init, stacked_params, reverse=reverse, unroll=unroll)
    return ops.scan(lambda c, s: layer(c, *s), init, (stacked_params, xs), reverse=reverse, unroll=unroll)
