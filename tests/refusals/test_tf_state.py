"""A layer of tf_while that draws random numbers or writes state: right where it runs once, else refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import loaded
from tests.support.outside import FORMS, assert_near, forms, gradients


def counting(count):
    return lambda c, p: ((count.assign_add(1.0), c * p)[1], None)


@FORMS
@pytest.mark.parametrize("stack", ["scan_layers", "unroll_layers"])
def test_a_layer_writes_once(stack, form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    count = tf.Variable(0.0)
    run = forms()[form](lambda w, x: gradients(lambda w, x: getattr(tf_while, stack)(counting(count), w, x)[0], w, x))
    dw, _ = run(tf.ones([3]), tf.ones([2]))
    assert (dw.numpy().tolist(), float(count)) == ([4, 4, 4], 3)  # of 2 (w0 w1 w2)^2
    run(tf.ones([3]), tf.ones([2]))
    assert float(count) == 6


def masks(name):
    """A function of a carry [50]: the carry times numbers that are drawn anew whenever it runs."""
    import tensorflow as tf

    generator = tf.random.Generator.from_seed(1)
    if name == "keras.layers.Dropout":
        keras = pytest.importorskip("keras")
        dropout = keras.layers.Dropout(0.2)
        return lambda c: dropout(c, training=True)
    return {
        "tf.nn.dropout": lambda c: tf.nn.dropout(c, 0.2),
        "tf.random": lambda c: c * tf.random.uniform([50]),
        "tf.random.Generator": lambda c: c * generator.uniform([50]),
        "in a branch": lambda c: tf.cond(c[0] > 1e9, lambda: c, lambda: c * tf.random.normal([50])),
    }[name]


MASKS = ["tf.nn.dropout", "keras.layers.Dropout", "tf.random", "tf.random.Generator", "in a branch"]


def assert_same_masks(layers, form):
    """Of c * p * mask from ones: the carry is the product of the masks, and so is its derivative by init."""
    import tensorflow as tf

    def run(p, x):
        with tf.GradientTape() as tape:
            tape.watch((p, x))
            y = layers(p, x)
        return y, *tape.gradient(y, (p, x))

    run = forms()[form](run)
    y, dp, dx = run(tf.ones([4]), tf.ones([50]))
    np.testing.assert_allclose(dx, y, rtol=1e-5)
    np.testing.assert_allclose(dp, np.full(4, y.numpy().sum()), rtol=1e-4, atol=1e-5)
    assert len(np.unique(y)) > 1
    assert np.any(y != run(tf.ones([4]), tf.ones([50]))[0])


@FORMS
@pytest.mark.parametrize("options", [{}, {"unroll": 3, "reverse": True}], ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_forward_and_gradient_see_the_same_masks(name, options, form):
    tf_while, mask = loaded("tf_while"), masks(name)
    if form == "as it stands":
        import tensorflow as tf

        mask(tf.ones([50]))  # what is made at the first call
    assert_same_masks(lambda p, x: tf_while.scan_layers(lambda c, p: (mask(c) * p, None), p, x, **options)[0], form)


@pytest.mark.parametrize("form", ["as it stands", "tf.function"])  # XLA has no list of lists
def test_a_loop_within_a_layer_sees_the_same_masks(form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def layer(c, p):
        return tf.while_loop(lambda j, c: j < 2, lambda j, c: (j + 1, c * tf.random.uniform([50])), (0, c))[1] * p, None

    assert_same_masks(lambda p, x: tf_while.scan_layers(layer, p, x)[0], form)


@FORMS
def test_layers_of_one_step_draw_apart(form):
    """Two a step, and one that is left over, with a seed."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def run(w, x):
        return tf_while.scan_layers(lambda c, p: (c * p, tf.random.uniform([50])), w, x, unroll=2)[1]

    tf.random.set_seed(7)
    try:
        rows = forms()[form](run)(tf.ones([5]), tf.ones([])).numpy()
    finally:
        tf.random.set_seed(None)
    assert len(np.unique(rows, axis=0)) == 5


@FORMS
def test_a_layer_reads_what_the_layer_before_wrote(form):
    """Forwards 1, 2 and 3, so the derivative by x is 6, and not of what is read at the end."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    count = tf.Variable(0.0)

    def layer(c, p):
        count.assign_add(1.0)
        return c * p * count, None

    dw, dx = forms()[form](lambda w, x: gradients(lambda w, x: tf_while.scan_layers(layer, w, x)[0], w, x))(
        tf.ones([3]), tf.ones([2])
    )
    assert (dw.numpy().tolist(), dx.numpy().tolist()) == ([144, 144, 144], [72, 72])  # of 2 * 6^2


# Where layers run again.


def draws_or_writes(name):
    import tensorflow as tf

    count, generator = tf.Variable(0.0), tf.random.Generator.from_seed(1)
    return {
        "AssignAddVariableOp": lambda c: (count.assign_add(1.0), c)[1],
        "AssignVariableOp": lambda c: (count.assign(2.0), c)[1],
        "RandomUniform": lambda c: c * tf.random.uniform([2]),
        "RandomStandardNormal": lambda c: tf.cond(c[0] > 9, lambda: c, lambda: c * tf.random.normal([2])),
        "RngReadAndSkip": lambda c: c * generator.uniform([2]),
    }[name]


NAMES = ["AssignAddVariableOp", "AssignVariableOp", "RandomUniform", "RandomStandardNormal", "RngReadAndSkip"]
REFUSED = "no random numbers and no state .* again, got {}; pass keys as xs"


@FORMS
@pytest.mark.parametrize("remat", [True, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_the_backward_pass_would_run_again_is_refused(name, remat, form):
    tf_while, act = loaded("tf_while"), draws_or_writes(name)
    import tensorflow as tf

    def run(w, x):
        stack = lambda w, x: tf_while.scan_layers(lambda c, p: (act(c) * p, None), w, x, remat=remat)[0]  # noqa: E731
        return gradients(stack, w, x)

    with pytest.raises(TypeError, match=REFUSED.format(name)):
        forms()[form](run)(tf.ones([3]), tf.ones([2]))


def test_second_derivatives_of_a_layer_that_draws_are_refused():
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def run(w, x):
        def first(w):
            return gradients(lambda w: tf_while.scan_layers(lambda c, p: (tf.nn.dropout(c, 0.5) * p, None), w, x)[0], w)

        return gradients(first, w)

    with pytest.raises(TypeError, match=REFUSED.format("RandomUniform")):
        tf.function(run, autograph=False)(tf.ones([3]), tf.ones([2]))


@FORMS
@pytest.mark.parametrize("remat", [False, True])
def test_what_does_no_harm_may_run_again(remat, form):
    """Reads, branches, checks, numbers of a key, and what prints or asserts where there is no XLA."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    scale = tf.Variable(2.0)

    def layer(c, p, key):
        if form != "XLA":
            tf.debugging.assert_non_negative(p)
        c = tf.debugging.check_numerics(c, "a carry")
        c = tf.cond(p > 0, lambda: c * scale, lambda: c)
        return c * p * tf.random.stateless_uniform([2], key), None

    def run(scan, w, x, **options):
        keys = tf.constant([[1, 2], [3, 4], [5, 6]])
        return gradients(lambda w, x: scan(layer, w, x, keys, **options)[0], w, x)

    # the unrolled twin by the same compiler: numbers of a key are others under XLA
    twin = forms()[form](lambda w, x: run(tf_while.unroll_layers, w, x))
    found = forms()[form](lambda w, x: run(tf_while.scan_layers, w, x, remat=remat))
    assert_near(found(tf.ones([3]), tf.ones([2])), twin(tf.ones([3]), tf.ones([2])))


@FORMS
@pytest.mark.parametrize("remat", [False, True])
def test_a_layer_that_jax_has_made(remat, form):
    """(2 * 3 * 5)^2 by the factors and by 2."""
    tf_while = loaded("tf_while")
    product = pytest.importorskip("jax.experimental.jax2tf").convert(lambda c, p: c * p, with_gradient=True)
    import tensorflow as tf

    def run(w, x):
        return gradients(
            lambda w, x: tf_while.scan_layers(lambda c, p: (product(c, p), None), w, x, remat=remat)[0], w, x
        )

    dw, dx = forms()[form](run)(tf.constant([3.0, 5.0]), tf.constant(2.0))
    assert (dw.numpy().tolist(), float(dx)) == ([600, 360], 900)
