"""What TensorFlow's graph optimiser spoils in the body of a loop, and does not in a stack of tf_while."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import loaded
from tests.support.outside import FORMS, assert_near, forms, gradients


@FORMS
def test_integers_added_twice(form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    run = forms()[form](lambda p, c: tf_while.scan_layers(lambda c, p: ((c + c + 1) % 5, None), p, c)[0])
    found = run(tf.ones([3]), tf.constant([1, 2]))
    assert found.dtype == tf.int32
    assert found.numpy().tolist() == [0, 3]  # 1, 3, 2, 0 and 2, 0, 1, 3


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


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"remat": 2}, {"unroll": 2}], ids=str)
def test_sums_of_a_gradient_are_of_two_and_marked(options):
    """Of three the optimiser makes a variable where a program is large, and in a loop makes it twice, which raises."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    def layer(c, p):
        return tf.tanh(c) + c * p + tf.sin(c) * tf.cos(c), None

    run = tf.function(lambda w, x: gradients(lambda w, x: tf_while.scan_layers(layer, w, x, **options), w, x))
    library = run.get_concrete_function(tf.ones([5, 3]), tf.ones([3])).graph.as_graph_def().library
    sums = [node for function in library.function for node in function.node_def if node.op == "AddN"]
    assert len(sums) >= 3  # c is read four times
    assert {node.attr["N"].i for node in sums} == {2}
    assert all(node.attr["_grappler_do_not_remove"].b for node in sums)


@pytest.mark.parametrize("options", [{}, {"unroll": 2}, {"remat": True}], ids=str)
@pytest.mark.parametrize("power", [2, 3])
def test_the_derivative_of_a_power_is_a_product(power, options):
    """x ** (2 - 1) is as slow as ten products, unless the optimiser may compute 2 - 1."""
    tf_while = loaded("tf_while")
    import tensorflow as tf
    from tensorflow.python.eager import context

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
