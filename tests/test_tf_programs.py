"""A stack of tf_while wherever users run it: as it stands, in a plain `tf.function`, with `jit_compile=True`.

Layers and sizes are those that TensorFlow's optimiser, its tf.cond and its tapes go wrong with, or that a kept program
could be stale for.
"""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest

from tests.conftest import loaded
from tests.tf_forms import FORMS, assert_near, forms, gradients


def sums():
    """Layers (c, p) that add one array twice and something of another shape."""
    import tensorflow as tf

    def once(c, p):
        return c + c + p, c

    def in_a_branch(c, p):
        return tf.cond(p > -1, lambda: c + c + p, lambda: c), None

    def in_a_loop(c, p):
        return tf.while_loop(lambda j, c: j < 2, lambda j, c: (j + 1, c + c + p), (0, c))[1], None

    def closed_over(c, p):
        w = tf.fill([2], p)
        return tf.cond(p > -1, lambda: w + w + c[0], lambda: c), None

    def of_a_function(c, p):
        v = tf.tanh(c)
        return p + v + p + v + v, {"y": v + v + 1}

    return {f.__name__: f for f in (once, in_a_branch, in_a_loop, closed_over, of_a_function)}


@FORMS
@pytest.mark.parametrize("name", ["once", "in_a_branch", "in_a_loop", "closed_over", "of_a_function"])
def test_an_array_added_twice(name, form):
    tf_while = loaded("tf_while")
    layer, run = sums()[name], forms()[form]
    import tensorflow as tf

    arrays = tf.constant([0.5, -0.25, 0.125]), tf.constant([1.0, 2.0])
    for function in (
        lambda scan, p, c: scan(layer, p, c),
        lambda scan, p, c: gradients(lambda p, c: scan(layer, p, c), p, c),
    ):
        right = function(tf_while.unroll_layers, *arrays)
        assert_near(run(lambda p, c, f=function: f(tf_while.scan_layers, p, c))(*arrays), right)


@FORMS
def test_integers_added_twice(form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    run = forms()[form](lambda p, c: tf_while.scan_layers(lambda c, p: ((c + c + 1) % 5, None), p, c)[0])
    found = run(tf.ones([3]), tf.constant([1, 2]))
    assert found.dtype == tf.int32
    assert found.numpy().tolist() == [0, 3]  # 1, 3, 2, 0 and 2, 0, 1, 3


def drawn(seed):
    """A layer of eight operations drawn at random, of the carry, the layer's parameters and a number."""
    import tensorflow as tf

    def layer(c, p):
        draw = np.random.default_rng(seed)
        pool = [c["a"], c["b"], p, tf.tanh(c["a"]), tf.constant(0.5)]
        for _ in range(8):
            a, b = (pool[i] for i in draw.integers(len(pool), size=2))
            operations = (
                lambda a, b: a + b,
                lambda a, b: a + a + b,
                lambda a, b: a - b,
                lambda a, b: tf.tanh(a) * b,
                lambda a, b: tf.where(a > b, a, b),
                lambda a, b: tf.add_n([a, a]) + b,
                lambda a, b: tf.reduce_sum(a) * b,
                lambda a, b: tf.cast(tf.cast(a, tf.int32) + 1, tf.float32) + b,
            )
            pool.append(operations[draw.integers(len(operations))](a, b))
        whole = [a for a in pool if a.shape == (2, 2)]
        total = tf.add_n([tf.reduce_sum(a) for a in pool[-3:]])
        return {"a": tf.tanh(whole[-1] + c["a"]), "b": tf.tanh(total + c["b"])}, tf.tanh(pool[-1])

    return layer


@pytest.mark.parametrize("seed", range(24))
def test_layers_drawn_at_random(seed):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    draw, layer = np.random.default_rng(seed).normal, drawn(seed)
    init = {"a": tf.constant(draw(size=(2, 2)), tf.float32), "b": tf.constant(0.3)}
    params = tf.constant(draw(size=(3, 2)), tf.float32)
    assert_near(tf_while.scan_layers(layer, params, init), tf_while.unroll_layers(layer, params, init))


# What a layer reads beside its arguments.


class Scaled:
    """A layer with a value of its own that changes."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, c, p):
        return c * p * self.scale, None


def test_a_value_that_a_layer_reads_is_that_of_now():
    tf_while = loaded("tf_while")
    import tensorflow as tf

    w, x, layer = tf.ones([2]), tf.ones([1]), Scaled(1.0)
    for scale in range(12):
        layer.scale = float(scale)
        assert float(tf_while.scan_layers(layer, w, x)[0][0]) == scale**2
        _, (_, dx, _) = tf_while.vjp_layers(layer, w, x, cotangents=(tf.ones([1]), None))
        assert float(dx[0]) == scale**2


def test_an_equal_layer_finds_its_program():
    tf_while, trees = loaded("tf_while"), importlib.import_module("tf_while.trees")
    import tensorflow as tf

    def run(scale):
        return tf_while.scan_layers(lambda c, p: (c * p * scale, None), tf.ones([2]), tf.ones([1]))[0]

    run(3.0)
    before = len(trees._PROGRAMS)
    assert [float(run(3.0)[0]) for _ in range(5)] == [9.0] * 5
    assert len(trees._PROGRAMS) == before
    assert float(run(4.0)[0]) == 16


def test_programs_are_bounded_in_number(monkeypatch):
    tf_while, trees = loaded("tf_while"), importlib.import_module("tf_while.trees")
    import tensorflow as tf

    monkeypatch.setattr(trees, "_PROGRAMS", {})
    monkeypatch.setattr(trees, "MAX_PROGRAMS", 3)
    for scale in range(6):
        tf_while.scan_layers(lambda c, p, scale=scale: (c * p * scale, None), tf.ones([2]), tf.ones([1]))
    assert len(trees._PROGRAMS) == 3


# Sizes, branches and settings around a stack.


@pytest.mark.parametrize("N", [0, 1, 3])
@pytest.mark.parametrize("options", [{}, {"remat": 2}, {"unroll": 2, "reverse": True}], ids=str)
def test_gradient_where_every_size_is_open(N, options):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def stack(scan, w, x, options):
        def layer(c, p):
            return tf.tanh(c @ p), tf.reduce_sum(c, [0, 1])

        return scan(layer, w, x, **options)

    w = tf.constant(np.random.default_rng(0).normal(size=(N, 4, 4)) / 2)
    x = tf.constant(np.random.default_rng(1).normal(size=(2, 5, 4)))
    specs = [tf.TensorSpec([None, 4, 4], tf.float64), tf.TensorSpec([None, None, 4], tf.float64)]
    program = tf.function(
        lambda w, x: stack(tf_while.scan_layers, w, x, options), input_signature=specs, autograph=False
    )
    reverse = {key: value for key, value in options.items() if key == "reverse"}
    right = gradients(lambda w, x: stack(tf_while.unroll_layers, w, x, reverse), w, x)
    assert_near(program(w, x), stack(tf_while.unroll_layers, w, x, reverse))
    assert_near(gradients(program, w, x), right)


def test_functions_that_run_eagerly_have_gradients():
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def layer(c, p):
        return c * p, None

    w, x = tf.range(1.0, 4.0), tf.ones([2])
    tf.config.run_functions_eagerly(True)
    try:
        dw, dx = gradients(tf.function(lambda w, x: tf_while.scan_layers(layer, w, x)[0]), w, x)
        _, (dparams, _, _) = tf_while.vjp_layers(layer, w, x, cotangents=(tf.ones([2]), None))
    finally:
        tf.config.run_functions_eagerly(False)
    assert (dw.numpy().tolist(), dx.numpy().tolist()) == ([144, 72, 48], [72, 72])  # of 2 * 6^2
    assert dparams.numpy().tolist() == [12, 6, 4]


@FORMS
@pytest.mark.parametrize("reads", ["slices", "array", "integers", "variable", "constant"])
def test_a_stack_in_a_branch_of_a_layer(reads, form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    variable, constant = tf.Variable([0.3, 0.7]), tf.fill([200, 2], 0.3)

    def stack(scan, w, x, mask):
        read = {
            "slices": lambda: 1.0,
            "array": lambda: w[0],
            "integers": lambda: tf.cast(mask, tf.float32),
            "variable": lambda: variable,
            "constant": lambda: constant[0],
        }[reads]

        def outer(c, t):
            return tf.cond(t > 0, lambda: scan(lambda c, p: (tf.tanh(p * c * read()), None), w, c)[0], lambda: c), None

        return scan(outer, tf.constant([1, 0, 1]), x)[0]

    def gradient(scan, w, x, mask):
        return [*gradients(lambda w, x: stack(scan, w, x, mask), w, x), *by_variable(scan, w, x, mask)]

    def by_variable(scan, w, x, mask):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(stack(scan, w, x, mask))
        return tape.gradient(loss, [variable], unconnected_gradients=tf.UnconnectedGradients.ZERO)

    arrays = tf.constant([[0.5, 0.2], [0.1, 0.4]]), tf.ones([2]), tf.constant([1, 2])
    found = forms()[form](lambda *arrays: gradient(tf_while.scan_layers, *arrays))(*arrays)
    assert_near(found, gradient(tf_while.unroll_layers, *arrays))


# Every option with every depth and form of call, by pairs.

OPTIONS = [{}, {"unroll": 2}, {"unroll": 3, "reverse": True}, {"remat": True}, {"remat": 2}, {"remat": 3, "unroll": 2}]
SWEEP = [
    (options, N, ("as it stands", "tf.function", "XLA")[(i + N) % 3], bool((i + N // 2) % 2))
    for (i, options), N in itertools.product(enumerate(OPTIONS), range(1, 6))
]


@pytest.mark.parametrize(("options", "N", "form", "nested"), SWEEP, ids=str)
def test_options_depths_and_forms(options, N, form, nested):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    draw = np.random.default_rng(N).normal
    w, x, xs = (tf.constant(draw(size=size)) for size in ((N, 3), (3,), (N, 3)))

    def stack(scan, options, w, x, xs):
        def layer(c, p, v):
            return tf.tanh(c + c + p * v[0] + v), c * v

        def outer(c, p, v):
            return scan(layer, tf.stack([p, v]), c, tf.stack([v, p]), **options)

        return scan(outer if nested else layer, w, x, xs, **options)

    reverse = {"reverse": options.get("reverse", False)}
    for function in (lambda stack, *arrays: stack(*arrays), gradients):
        right = function(lambda *arrays: stack(tf_while.unroll_layers, reverse, *arrays), w, x, xs)
        run = forms()[form](lambda *a, f=function: f(lambda *a: stack(tf_while.scan_layers, options, *a), *a))
        assert_near(run(w, x, xs), right)


@pytest.mark.parametrize("options", [{}, {"unroll": 2}], ids=str)
@pytest.mark.parametrize("power", [2, 3])
def test_the_derivative_of_a_power_is_a_product(power, options):
    """x ** (2 - 1) is as slow as ten products, unless the optimiser may compute 2 - 1."""
    tf_while = loaded("tf_while")
    from tensorflow.python.eager import context

    import tensorflow as tf

    run = forms()["tf.function"](
        lambda w, x: gradients(
            lambda w, x: tf_while.scan_layers(lambda c, p: (c**power * p, None), w, x, **options), w, x
        )
    )
    context.enable_run_metadata()
    try:
        run(tf.ones([3]), tf.ones([2]))
        functions = context.export_run_metadata().function_graphs
    finally:
        context.disable_run_metadata()
    nodes = [node.op for function in functions for node in function.post_optimization_graph.node]
    assert "LoopCond" in nodes
    assert "Pow" not in nodes
