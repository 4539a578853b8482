"""The forms in which users run a function of TensorFlow, and the gradient that they take; programs made for calls."""

from __future__ import annotations

import numpy as np
import pytest


def programs(implementation, apply, calls):
    """How many programs are made for calls of several depths, of a framework that leaves N open, and their results."""
    if implementation.__name__ == "torch_compile":
        before = implementation.program_count()
        results = [apply(*arrays) for arrays in calls]
        return implementation.program_count() - before, results
    import tensorflow as tf

    w, x = calls[0]
    signature = [tf.TensorSpec([None, *w.shape[1:]], w.dtype), tf.TensorSpec.from_tensor(x)]
    program = tf.function(apply, input_signature=signature, autograph=False)
    results = [program(*arrays) for arrays in calls]
    return program.experimental_get_tracing_count(), results


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
