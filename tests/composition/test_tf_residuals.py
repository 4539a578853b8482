"""What tf_while keeps of a layer, of kinds that TensorFlow differentiates in ways of their own: equal to the twin."""

from __future__ import annotations

import re
from functools import partial

import pytest

from tests.conftest import loaded
from tests.support.outside import FORMS, assert_near, forms, gradients


def layers():
    """Layers (c [4], p [])."""
    import tensorflow as tf

    variable, table = tf.Variable([0.5, 0.2, 0.1, 0.3]), tf.reshape(tf.range(12.0), [3, 4]) / 10

    @tf.custom_gradient
    def rounded(x):
        return tf.round(x), lambda d: 3 * d

    @tf.custom_gradient
    def scaled(x):
        return x * variable, lambda d, variables=None: (d * variable, [d * x])

    def python_function(c, p):
        return tf.ensure_shape(tf.py_function(lambda a, b: tf.sin(a * b) + a, [c, p], tf.float32), [4]), c

    def tape(c, p):
        with tf.GradientTape() as inner:
            inner.watch(c)
            energy = tf.reduce_sum(tf.sin(c * p))
        return c - inner.gradient(energy, c) * p, energy

    def array(c, p):
        written = tf.TensorArray(tf.float32, 2, element_shape=[4]).write(0, tf.sin(c * p)).write(1, c * c)
        return tf.reduce_sum(written.stack(), 0), None

    def branches(c, p):
        return tf.cond(p > 0, lambda: tf.cond(c[0] > 0, lambda: tf.sin(c * p), lambda: c * c), lambda: tf.exp(c * p)), c

    def loop(c, p):
        return tf.while_loop(lambda j, c: j < 2, lambda j, c: (j + 1, tf.sin(c * p)), (0, c), maximum_iterations=2)[
            1
        ], c

    return {
        "loop": loop,
        "py_function": python_function,
        "tape": tape,
        "TensorArray": array,
        "branches": branches,
        "custom_gradient": lambda c, p: (rounded(c * p) + tf.sin(c), None),
        "custom_gradient of a variable": lambda c, p: (scaled(c * p) + tf.sin(c), None),
        "tf.function": tf.function(lambda c, p: (tf.tanh(c * p) + tf.sin(c), c**2), autograph=False),
        "jit_compile": tf.function(lambda c, p: (tf.tanh(c * p) + c, c**2), autograph=False, jit_compile=True),
        "recompute_grad": lambda c, p: (tf.recompute_grad(lambda c: tf.tanh(tf.sin(c * p)))(c), None),
        "rows of an array": lambda c, p: (tf.tanh(c * p + tf.gather(table, tf.argmax(c) % 3)), tf.gather(c, [0, 3])),
    }


NAMES = ["py_function", "tape", "TensorArray", "branches", "custom_gradient", "custom_gradient of a variable"]
NAMES += ["tf.function", "jit_compile", "recompute_grad", "rows of an array", "loop"]


@FORMS
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_the_twin(name, form):
    tf_while, layer = loaded("tf_while"), layers()[name]
    import tensorflow as tf

    if name == "py_function" and form == "XLA":
        pytest.skip("XLA compiles no Python")
    arrays = tf.constant([0.5, -0.7, 0.9]), tf.constant([0.3, 0.8, -0.4, 0.1])
    right = gradients(lambda w, x: tf_while.unroll_layers(layer, w, x), *arrays)
    for options in ({}, {"unroll": 2}, {"remat": True}):
        run = forms()[form](
            lambda w, x, o=options: gradients(lambda w, x: tf_while.scan_layers(layer, w, x, **o), w, x)
        )
        assert_near(run(*arrays), right)


@FORMS
def test_a_derivative_that_writes_does_so_once_a_layer(form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    count = tf.Variable(0.0)

    @tf.custom_gradient
    def counted(x):
        def pulled(d):
            count.assign_add(1.0)
            return 2 * d

        return tf.identity(x), pulled

    run = forms()[form](
        lambda w, x: gradients(lambda w, x: tf_while.scan_layers(lambda c, p: (counted(c * p), None), w, x)[0], w, x)
    )
    dw, _ = run(tf.ones([3]), tf.ones([2]))
    assert float(count) == 3
    assert dw.numpy().tolist() == [32, 16, 8]


@FORMS
def test_a_layer_whose_derivative_raises_runs_forwards(form):
    """And who asks for the gradient hears what the layer says."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    @tf.custom_gradient
    def without(x):
        def pulled(d):
            raise NotImplementedError("no derivative of this one")

        return tf.sin(x), pulled

    def stack(w, x):
        return tf_while.scan_layers(lambda c, p: (without(c * p), None), w, x)[0]

    w, x = tf.constant([0.5, 2.0]), tf.constant([0.3, 0.8])
    assert_near([forms()[form](stack)(w, x)], [tf.sin(2 * tf.sin(0.5 * x))])
    with pytest.raises(NotImplementedError, match="no derivative of this one"):
        forms()[form](lambda w, x: gradients(stack, w, x))(w, x)


def numbers_kept(layer, stacked, init, jit_compile=None):
    """How many numbers each array has that is kept of a layer of flat lists."""
    import tensorflow as tf

    from tf_while.checks import trace_flat
    from tf_while.residuals import keeping

    kept: list[int] = []

    def run(stacked, init):
        rule = keeping(trace_flat(layer, [stacked], [init]), 1, 1)
        assert rule is not None
        kept.extend(a.shape.num_elements() for a in rule.like_kept)

    tf.function(run, autograph=False, jit_compile=jit_compile).get_concrete_function(stacked, init)
    return sorted(kept)


def test_what_is_at_hand_is_not_kept():
    """Neither weights, in any order or dtype, nor a mask that all layers share: the carry, and what is made of it."""
    loaded("tf_while")
    import tensorflow as tf

    shared = tf.random.stateless_normal([5, 5], [1, 2])

    def layer(carry, slices):
        (c,), (w,) = carry, slices
        mask = tf.range(5)[:, None] >= tf.range(5)
        h = tf.linalg.matvec(tf.where(mask, shared, 0.0), c)
        return [tf.tanh(tf.linalg.matvec(tf.transpose(tf.cast(w, tf.float32)), h))], []

    # c, h and what comes out
    assert numbers_kept(layer, tf.ones([3, 5, 7], tf.float64), tf.ones([5])) == [5, 5, 7]


@pytest.mark.parametrize(("jit_compile", "kept"), [(None, 4), (True, 3)])
def test_under_xla_a_product_is_made_again(jit_compile, kept):
    """The carry, its sine and its cosine; the product of which they are is kept elsewhere, where nothing is fused."""
    loaded("tf_while")
    import tensorflow as tf

    def layer(carry, slices):
        h = carry[0] * slices[0]
        return [tf.sin(h) * tf.cos(h)], []

    assert numbers_kept(layer, tf.ones([3, 5]), tf.ones([5]), jit_compile) == [5] * kept


def test_under_xla_what_is_made_of_one_array_is_kept_as_that_array():
    """gelu by hand: its product, of which the two factors and the sum in each of them are made."""
    loaded("tf_while")
    import tensorflow as tf

    def layer(carry, slices):
        (c,), (w,) = carry, slices
        h = tf.linalg.matvec(w, c, transpose_a=True) + 1.0
        return [tf.linalg.matvec(w, 0.5 * h * tf.math.erfc(-h / 2.0))], []

    assert numbers_kept(layer, tf.ones([3, 5, 7]), tf.ones([5]), True) == [5, 7]
    assert numbers_kept(layer, tf.ones([3, 5, 7]), tf.ones([5])) == [5, 7, 7, 7, 7]


def test_the_carry_is_not_kept_for_what_is_made_of_it_and_of_another_array():
    loaded("tf_while")
    import tensorflow as tf

    def layer(carry, slices):
        return [tf.square(carry[0] + tf.cumsum(carry[0])) * slices[0]], []

    assert numbers_kept(layer, tf.ones([3]), tf.ones([5]), True) == [5]


def convolutions():
    """Layers (c [2, 6, 5, 3], w [h, w, 3, 3]), the sizes of their kernels, and whether XLA has them in order."""
    import tensorflow as tf

    def conv(padding, strides=1):
        return lambda c, w: tf.tanh(tf.nn.conv2d(c, w, strides, padding))

    uneven, much = [[0, 0], [2, 0], [0, 1], [0, 0]], [[0, 0], [4, 4], [4, 4], [0, 0]]
    return {
        "SAME": (conv("SAME"), (3, 3), True),
        "SAME of an even kernel": (conv("SAME"), (4, 2), True),
        "VALID": (lambda c, w: tf.pad(conv("VALID")(c, w), [[0, 0], [1, 1], [1, 1], [0, 0]]), (3, 3), True),
        "padded on one side": (conv(uneven), (3, 2), True),
        "padded by more than the kernel": (lambda c, w: conv(much)(c, w)[:, 3:-3, 3:-3], (3, 3), False),
        "of stride 2": (lambda c, w: tf.repeat(conv("SAME", [1, 2, 1, 1])(c, w), 2, 1), (3, 3), False),
    }


CONVOLUTIONS = ["SAME", "SAME of an even kernel", "VALID", "padded on one side"]
CONVOLUTIONS += ["padded by more than the kernel", "of stride 2"]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_gradient_of_a_convolution_is_in_the_order_that_is_fast_in_a_loop(name):
    """Under XLA. Elsewhere TensorFlow has gradients of its own."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    (layer, kernel, is_in_order), draw = convolutions()[name], tf.random.Generator.from_seed(1)
    w, x = draw.normal([3, *kernel, 3, 3], dtype=tf.float64) / 3, draw.normal([2, 6, 5, 3], dtype=tf.float64)

    def gradient(stack, w, x):
        return gradients(lambda w, x: stack(lambda c, w: (layer(c, w), None), w, x)[0], w, x)

    def of_gradient(stack, w, x):
        return gradients(partial(gradient, stack), w, x)

    scan, twin = tf_while.scan_layers, tf_while.unroll_layers
    run = tf.function(partial(gradient, scan), jit_compile=True, autograph=False)
    assert_near(run(w, x), gradient(twin, w, x))
    orders = re.findall(r"dim_labels=(\S+?),", run.experimental_get_compiler_ir(w, x)(stage="optimized_hlo"))
    assert (set(orders) == {"b01f_01io->b01f"}) == is_in_order
    if name == "SAME":
        run = tf.function(partial(of_gradient, scan), jit_compile=True, autograph=False)
        assert_near(run(w, x), of_gradient(twin, w, x))
