"""The forms in which users run a function of TensorFlow, and the gradient that they take."""

from __future__ import annotations

import numpy as np
import pytest


def forms():
    """How users run a function of arrays."""
    import tensorflow as tf

    return {
        "as it stands": lambda function: function,
        "tf.function": lambda function: tf.function(function, autograph=False),
        "XLA": lambda function: tf.function(function, autograph=False, jit_compile=True),
    }


FORMS = pytest.mark.parametrize("form", ["as it stands", "tf.function", "XLA"])


def gradients(stack, *arrays):
    """The gradient by each of `arrays` of the sum of the squares of what `stack(*arrays)` returns."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(arrays)
        loss = tf.add_n([tf.reduce_sum(a**2) for a in tf.nest.flatten(stack(*arrays)) if a is not None])
    return tape.gradient(loss, arrays, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def assert_near(found, right):
    import tensorflow as tf

    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(right), strict=True):
        if b is None:  # no ys
            assert a is None
            continue
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
