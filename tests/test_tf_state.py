"""A layer of tf_while that draws random numbers or writes state: refused where the backward pass would run it again."""

from __future__ import annotations

import pytest

from tests.conftest import loaded
from tests.tf_forms import FORMS, assert_near, forms, gradients

# A layer that draws or writes something whenever it runs.


def draws_or_writes(name):
    import tensorflow as tf

    count, generator = tf.Variable(0.0), tf.random.Generator.from_seed(1)
    return {
        "AssignAddVariableOp": lambda c: (count.assign_add(1.0), c)[1],
        "AssignVariableOp": lambda c: (count.assign(2.0), c)[1],
        "RandomUniform": lambda c: c * tf.random.uniform([2]),
        "RandomStandardNormal": lambda c: tf.cond(c[0] > 9, lambda: c, lambda: c * tf.random.normal([2])),
        "RngReadAndSkip": lambda c: c * generator.uniform([2]),
    }[name], count


NAMES = ["AssignAddVariableOp", "AssignVariableOp", "RandomUniform", "RandomStandardNormal", "RngReadAndSkip"]


@FORMS
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_the_backward_pass_would_run_again_is_refused(name, form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    act, _ = draws_or_writes(name)

    def run(w, x):
        return gradients(lambda w, x: tf_while.scan_layers(lambda c, p: (act(c) * p, None), w, x)[0], w, x)

    with pytest.raises(TypeError, match=f"no random numbers and no state .* again, got {name}; pass keys as xs"):
        forms()[form](run)(tf.ones([3]), tf.ones([2]))


@FORMS
def test_without_a_gradient_a_layer_writes_once(form):
    tf_while = loaded("tf_while")
    import tensorflow as tf

    act, count = draws_or_writes("AssignAddVariableOp")
    forms()[form](lambda w, x: tf_while.scan_layers(lambda c, p: (act(c) * p, None), w, x)[0])(tf.ones([3]), tf.ones(2))
    assert float(count) == 3


@FORMS
def test_what_does_no_harm_may_run_again(form):
    """Reads, branches, numbers of a key, and what prints or asserts where there is no XLA."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    scale = tf.Variable(2.0)

    def layer(c, p, key):
        if form != "XLA":
            tf.debugging.assert_non_negative(p)
        c = tf.cond(p > 0, lambda: c * scale, lambda: c)
        return c * p * tf.random.stateless_uniform([2], key), None

    def run(scan, w, x):
        keys = tf.constant([[1, 2], [3, 4], [5, 6]])
        return gradients(lambda w, x: scan(layer, w, x, keys)[0], w, x)

    # the unrolled twin by the same compiler: numbers of a key are others under XLA
    found, right = (
        forms()[form](lambda w, x, scan=scan: run(scan, w, x))(tf.ones([3]), tf.ones([2]))
        for scan in (tf_while.scan_layers, tf_while.unroll_layers)
    )
    assert_near(found, right)
