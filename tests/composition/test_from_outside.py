"""The framework's own transforms and compiler around a stack: `jax.vmap`, `torch.func.jvp`, `tf.GradientTape` ...

What is right is the loop in NumPy and its derivative by hand; of forward mode and second order complex steps through
the one and the other. Second order is symmetric, so forward and reverse over reverse agree.
"""

from __future__ import annotations

import numpy as np
import pytest

from implementations.check import rows_equal
from implementations.check.dialect import from_numpy
from reference.stack import apply_layers, apply_layers_vjp
from tests.conftest import loaded

# Layers of w = (2, 3) make 6 of x = 1 and 60 of tx = 10; of tw = (5, 7), 35. Gradients are those of y^2 / 2: y dy/dw.
BY_HAND = {
    "batching": [[6, 60]],
    "ensemble": [[6, 35]],
    "per_example_gradients": [[[6 * 3, 6 * 2], [60 * 30, 60 * 20]], [6 * 6, 60 * 6]],
    "gradient_of_batch": [[18 + 1800, 12 + 1200], [36, 360]],
    "forward_mode": [5 * 3 * 1 + 2 * 7 * 1 + 2 * 3 * 10],
    "reverse_inside": [[18, 12], 36],
}


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("transform", BY_HAND)
def test_transform_by_hand(implementation, transform):
    def apply(w, x):
        return implementation.scan_layers(lambda carry, w: (carry * w, None), w, x)[0]

    arrays = (np.array(a, float) for a in ([2, 3], 1, [5, 7], 10))
    results = implementation.AROUND[transform](apply, *from_numpy(implementation, tuple(arrays)))
    results = results if isinstance(results, (tuple, list)) else [results]
    assert [implementation.to_numpy(result).tolist() for result in results] == BY_HAND[transform]


def gradient(w, x):
    """Of |y|^2 / 2."""
    return apply_layers_vjp(w, x, apply_layers(w, x))[1:]


DENSE = rows_equal.transforms(lambda implementation: implementation.scan_apply_layers, apply_layers, gradient)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=pytest.mark.covers(row.name)) for row in DENSE])
def test_transform_of_the_dense_stack(implementation, row):
    """Of any layer: tests/tools/test_check.py."""
    assert row.wrong(row.run(implementation)) == ""


def test_accumulators_of_tensorflow_nest():
    """y = 6: its derivative by both layers is 2 + 3, and that of the derivative 1 + 1."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    w, x, one = tf.constant([2.0, 3.0]), tf.constant(1.0), tf.ones(2)
    with tf.autodiff.ForwardAccumulator(w, one) as outer:
        with tf.autodiff.ForwardAccumulator(w, one) as inner:
            y, _ = tf_while.scan_layers(lambda carry, w: (carry * w, None), w, x)
        first = inner.jvp(y)
    assert (float(y), float(first), float(outer.jvp(first))) == (6, 5, 2)


def test_forward_over_reverse_in_a_function_of_tensorflow_is_refused():
    tf_while = loaded("tf_while")
    import tensorflow as tf

    @tf.function
    def run(w, x):
        return tf_while.AROUND["forward_over_reverse"](apply, w, x, w, x)

    def apply(w, x):
        return tf_while.scan_layers(lambda carry, w: (carry * w, None), w, x)[0]

    with pytest.raises(TypeError, match="variant"):
        run(tf.constant([2.0, 3.0]), tf.constant(1.0))


@pytest.mark.parametrize("remat", [True, 2])
def test_a_vectorized_jacobian_of_tensorflow_takes_no_loop_in_a_loop(remat):
    """d x^2 w0^2 w1^2 / dx dx = 2 * 36, of a gradient whose groups of layers are loops in a loop."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    w, x = tf.constant([2.0, 3.0]), tf.constant([1.0])
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = tf_while.scan_layers(lambda carry, w: (carry * w, None), w, x, remat=remat)[0] ** 2
        gradient = inner.gradient(y, x)
    if remat > 1:
        with pytest.raises(ValueError, match="Vectorization can be disabled"):
            outer.jacobian(gradient, x)
    jacobian = outer.jacobian(gradient, x, experimental_use_pfor=remat is True)
    assert jacobian.numpy().tolist() == [[72.0]]


def test_what_tensorflow_vectorizes_around_a_list_is_not_for_xla():
    """2 x and 3 times that, of 1 and 2; and the gradient of a convolution of ones by itself."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def products(x):
        return tf_while.scan_layers(lambda c, p: (c * p, None), tf.constant([2.0, 3.0]), x)[0]

    def mapped(x):
        return tf.vectorized_map(products, x)

    def gradients(w, x):
        def layer(c, p):
            return tf.nn.conv2d(c, p, 1, "SAME"), None

        return tf_while.vmap_vjp_layers(layer, w, x, cotangents=(x, None))[1][0]

    ones = tf.ones([1, 1, 1, 1, 1]), tf.ones([2, 1, 1, 1, 1])  # one layer; two of a batch, of one pixel
    for run, given, right in ((mapped, (tf.constant([1.0, 2.0]),), [6, 12]), (gradients, ones, [1, 1])):
        assert tf.reshape(tf.function(run)(*given), [-1]).numpy().tolist() == right
        with pytest.raises(tf.errors.InvalidArgumentError):
            tf.function(run, jit_compile=True)(*given)
