"""Defects of TensorFlow 2.21 that the stack here must not share: each shown raw, beside the stack that is right.

A raw one is a strict xfail, so that a fix upstream is noticed.
"""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import loaded, raw

# TensorFlow 2.21: forward mode of a max pool.


def pool(c, w):
    import tensorflow as tf

    return tf.nn.max_pool1d((c @ w)[:, :, None], 2, 1, "SAME")[:, :, 0], None


def jvp_of_pool():
    """Of products 1, 2, 3 along 30, 20, 10: of each two the larger moves, the last of the row has no neighbour."""
    import tensorflow as tf

    loaded("tf_while")
    c, w, tangent = tf.constant([[1.0, 2, 3]]), tf.eye(3)[None], tf.constant([[30.0, 20, 10]])

    @tf.function(autograph=False)
    def jvp(c, tangent):
        with tf.autodiff.ForwardAccumulator(c, tangent) as accumulator:
            y, _ = pool(c, w[0])
        return accumulator.jvp(y)

    return jvp(c, tangent), (c, w, tangent)


@raw("tensorflow 2.21: MaxPoolGradGrad writes its result where it still reads")
def test_forward_mode_of_a_max_pool_itself():
    np.testing.assert_array_equal(jvp_of_pool()[0], [[20, 10, 10]])


def jvp_by_tapes(layer, w, c, tangent):
    """The derivative along `tangent` of one layer of a stack, by its gradient's derivative by the cotangent."""
    import tensorflow as tf

    cotangent = tf.zeros_like(c)
    with tf.GradientTape() as outer:
        outer.watch(cotangent)
        with tf.GradientTape() as inner:
            inner.watch(c)
            y, _ = loaded("tf_while").scan_layers(layer, w, c)
        along = tf.reduce_sum(inner.gradient(y, c, output_gradients=cotangent) * tangent)
    return outer.gradient(along, cotangent)


@pytest.mark.parametrize("by", ["jvp_layers", "tapes"])
@pytest.mark.parametrize("form", ["layer", "tf.function", "stack"])
def test_second_derivatives_of_a_max_pool_are_refused_where_they_are_wrong(form, by):
    """XLA has them right. The pool stands in the layer, in a function of its own, in a stack within."""
    import tensorflow as tf

    tf_while, (_, (c, w, tangent)) = loaded("tf_while"), jvp_of_pool()
    layer = {
        "layer": pool,
        "tf.function": tf.function(pool, autograph=False),
        "stack": lambda c, w: (tf_while.scan_layers(pool, w[None], c)[0], None),
    }[form]

    def jvp():
        if by == "tapes":
            return jvp_by_tapes(layer, w, c, tangent)
        return tf_while.jvp_layers(layer, w, c, tangents=(None, tangent, None))[1][0]

    np.testing.assert_array_equal(tf.function(jvp, jit_compile=True, autograph=False)(), [[20, 10, 10]])
    with pytest.raises(TypeError, match="layer: expected operations whose second derivative is right, got max_pool of"):
        jvp()


# TensorFlow 2.21, XLA: the second derivative of a slice.


def halves(how):
    """(a, b) -> (b * b, a): of half the squares of that the gradient is (a, 2 b^3), the Hessian (1, 6 b^2)."""
    import tensorflow as tf

    def layer(c, _):
        a, b = tf.split(c, 2) if how == "split" else (tf.slice(c, [0], [2]), tf.slice(c, [2], [2]))
        return tf.concat([b * b, a], 0), None

    return layer, lambda carry, _: tf.reduce_sum(carry * carry) / 2


@pytest.mark.parametrize("how", ["split", "slice"])
def test_a_hessian_product_of_slices_under_xla(how):
    import tensorflow as tf

    (layer, loss), hvp_layers = halves(how), loaded("tf_while").hvp_layers
    c, nothing = tf.constant([1.0, 2.0, 3.0, 4.0]), tf.zeros((1, 0))

    @tf.function(jit_compile=True, autograph=False)
    def hvp(c):
        return hvp_layers(layer, loss, nothing, c, tangents=(None, tf.ones_like(c), None))

    (_, gradient, _), (_, product, _) = hvp(c)
    np.testing.assert_allclose(gradient, [1, 2, 2 * 27, 2 * 64])
    np.testing.assert_allclose(product, [1, 1, 6 * 9, 6 * 16])


@raw("tensorflow 2.21: the gradient of a slice under XLA has none", raises=LookupError)
def test_a_hessian_product_of_slices_by_tapes():
    import tensorflow as tf

    layer, loss = halves("slice")

    @tf.function(jit_compile=True, autograph=False)
    def hvp(c):
        with tf.GradientTape() as outer:
            outer.watch(c)
            with tf.GradientTape() as inner:
                inner.watch(c)
                y = loss(*layer(c, None))
            gradient = inner.gradient(y, c)
        return outer.gradient(gradient, c)

    hvp(tf.constant([1.0, 2.0, 3.0, 4.0]))


# TensorFlow 2.21: recomputation that loses the gradient of the weights.


def gradient_by_weights(stack):
    """A graph of dw of the sum of stack(w, x), zeros where there is none."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def gradient(w, x):
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = tf.reduce_sum(stack(w, x))
        return tape.gradient(y, w, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return gradient


def gradient_of_recomputed(stack):
    """dw of the sum of 3 layers tanh(carry * w)."""
    tf_while = loaded("tf_while")
    w, x = tf_while.from_numpy(np.full((3, 4), 0.5)), tf_while.from_numpy(np.arange(4.0))
    return tf_while.to_numpy(gradient_by_weights(stack)(w, x))


def recomputed_by_hand():
    carries = [np.arange(4.0)]
    for _ in range(3):
        carries.append(np.tanh(carries[-1] * 0.5))
    dw, cotangent = np.zeros((3, 4)), np.ones(4)
    for i in (2, 1, 0):
        cotangent = cotangent * (1 - carries[i + 1] ** 2)
        dw[i], cotangent = cotangent * carries[i], cotangent * 0.5
    return dw


def test_gradient_of_recomputed_layers():
    import tensorflow as tf

    def stack(w, x):
        return loaded("tf_while").scan_layers(lambda c, w: (tf.tanh(c * w), None), w, x, remat=True)[0]

    np.testing.assert_allclose(gradient_of_recomputed(stack), recomputed_by_hand(), rtol=1e-12)


def recompute_grad(w, x):
    """What one writes first: a step that reads its layer from the stack, recomputed."""
    import tensorflow as tf

    def body(i, carry):
        return i + 1, tf.recompute_grad(lambda carry: tf.tanh(carry * w[i]))(carry)

    return tf.while_loop(lambda i, _: i < 3, body, (0, x), maximum_iterations=3)[1]


@raw("tensorflow 2.21: tf.recompute_grad drops what its function closes over")
def test_gradient_of_recomputed_layers_by_recompute_grad():
    np.testing.assert_allclose(gradient_of_recomputed(recompute_grad), recomputed_by_hand(), rtol=1e-12)


def test_what_recompute_grad_gives_is_zero():
    """Not an error, and not a little off."""
    loaded("tf_while")
    assert not gradient_of_recomputed(recompute_grad).any()


# TensorFlow 2.21: the gradient of a read in a loop adds a whole stack of zeros for each layer.


def whole_stacks_in_the_backward_loop(stack):
    """How many arrays of the stack's size the backward loop's body makes or carries anew: time N for each layer."""
    tf_while = loaded("tf_while")
    w, x = tf_while.from_numpy(np.full((37, 4), 0.5)), tf_while.from_numpy(np.arange(4.0))
    library = gradient_by_weights(stack).get_concrete_function(w, x).graph.as_graph_def().library.function
    grows = ("StridedSliceGrad", "ResourceStridedSliceAssign", "AddN")
    bodies = [f for f in library if "body" in f.signature.name]
    return sum(node.op in grows for f in bodies for node in f.node_def)


def test_no_whole_stack_for_each_layer():
    import tensorflow as tf

    def stack(w, x):
        return loaded("tf_while").scan_layers(lambda c, w: (tf.tanh(c * w), None), w, x)[0]

    assert whole_stacks_in_the_backward_loop(stack) == 0


@raw("tensorflow 2.21: the gradient of weights[i] in a loop takes time N for each layer")
def test_no_whole_stack_for_each_layer_by_while_loop_itself():
    import tensorflow as tf

    def stack(w, x):
        def body(i, carry):
            return i + 1, tf.tanh(carry * w[i])

        return tf.while_loop(lambda i, _: i < 37, body, (0, x), maximum_iterations=37)[1]

    assert whole_stacks_in_the_backward_loop(stack) == 0


# TensorFlow 2.21: an array added twice in a loop.


def added_twice(stack):
    """The carry of 3 layers carry + carry + 1, of two ones, by a graph without XLA."""
    loaded("tf_while")
    import tensorflow as tf

    return tf.function(stack, autograph=False)(tf.ones([2])).numpy()


def test_an_array_added_twice():
    import tensorflow as tf

    scan_layers = loaded("tf_while").scan_layers
    found = added_twice(lambda x: scan_layers(lambda c, p: (c + c + p, None), tf.ones([3]), x)[0])
    np.testing.assert_array_equal(found, [15, 15])


def twice_by_while_loop(x):
    import tensorflow as tf

    return tf.while_loop(lambda i, _: i < 3, lambda i, c: (i + 1, c + c + 1), (0, x))[1]


@raw("tensorflow 2.21: the graph optimiser makes an empty float32 array of c + c + 1 in a loop")
def test_an_array_added_twice_by_while_loop_itself():
    np.testing.assert_array_equal(added_twice(twice_by_while_loop), [15, 15])


def test_what_while_loop_gives_is_empty():
    """Not an error, and not a little off."""
    assert added_twice(twice_by_while_loop).shape == (0,)
