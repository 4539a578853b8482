"""A stack of tf_while wherever users run it: as it stands, in a plain `tf.function`, with `jit_compile=True`.

Layers and sizes are those that TensorFlow's tf.cond and its tapes go wrong with, or that a kept program could be stale
for.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import os

import numpy as np
import pytest

from reference.made_of import Kept
from tests.conftest import loaded
from tests.support.outside import FORMS, assert_near, forms, gradients

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
    tf_while, programs = loaded("tf_while"), importlib.import_module("tf_while.programs")
    import tensorflow as tf

    def run(scale):
        return tf_while.scan_layers(lambda c, p: (c * p * scale, None), tf.ones([2]), tf.ones([1]))[0]

    run(3.0)
    before = len(programs._programs)
    assert [float(run(3.0)[0]) for _ in range(5)] == [9.0] * 5
    assert len(programs._programs) == before
    assert float(run(4.0)[0]) == 16


def test_programs_are_bounded_in_number(monkeypatch):
    tf_while, programs = loaded("tf_while"), importlib.import_module("tf_while.programs")
    import tensorflow as tf

    monkeypatch.setattr(programs, "_programs", Kept(3))
    for scale in range(6):
        tf_while.scan_layers(lambda c, p, scale=scale: (c * p * scale, None), tf.ones([2]), tf.ones([1]))
    assert len(programs._programs) == 3


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


@pytest.mark.parametrize("draws", [False, True])
def test_a_stack_that_is_saved_has_its_gradient_when_it_is_loaded(tmp_path, draws):
    """A SavedModel holds no list of what was kept: the layers run again, and one with state says that it cannot."""
    tf = importlib.import_module("tensorflow")
    layer = lambda c, p: (tf.sin(c * p) * (tf.random.uniform([3], 1, 1.01) if draws else 1), c)  # noqa: E731
    module, specs = tf.Module(), [tf.TensorSpec([None, 3]), tf.TensorSpec([3])]
    stack = tf.function(lambda w, x: loaded("tf_while").scan_layers(layer, w, x)[0], specs, autograph=False)
    module.stack = stack
    arrays = tf.constant([[0.5, 1.5, 2.5], [1.0, 2.0, 3.0]]), tf.constant([1.0, 2.0, 3.0])

    def gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            y = function(*arrays)
        return [g.numpy().tolist() for g in tape.gradient(y, arrays)]

    right = gradients(stack)
    tf.saved_model.save(module, str(tmp_path))
    saved = tf.saved_model.load(str(tmp_path)).stack
    if draws:
        with pytest.raises(tf.errors.InvalidArgumentError, match="expected no random numbers and no state"):
            gradients(saved)
    else:
        assert gradients(saved) == right


@pytest.mark.parametrize(("options", "at_once"), [({}, 10), ({"remat": True}, 1), ({"remat": 2}, 1)], ids=str)
def test_of_layers_that_run_again_one_at_a_time_is_in_memory(options, at_once):
    """A loop of TensorFlow has ten steps at work where they do not wait for each other, as those of remat do not."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    run = tf.function(
        lambda w, x: gradients(
            lambda w, x: tf_while.scan_layers(lambda c, p: (tf.tanh(c * p), c), w, x, **options), w, x
        )
    )
    graph = run.get_concrete_function(tf.ones([6]), tf.ones([2])).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    loops = [node.attr["parallel_iterations"].i for node in nodes if "While" in node.op]
    assert len(loops) >= 2
    assert set(loops) == {at_once}


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


def tripled(c, ys):
    return 3 * c[0] if c[0] > 2 else c[0]


CALLS = {
    "scan_layers": lambda tf_while, layer, w, x: tf_while.scan_layers(layer, w, x)[0],
    "unroll_layers": lambda tf_while, layer, w, x: tf_while.unroll_layers(layer=layer, stacked_params=w, init=x)[0],
    "vjp_layers": lambda tf_while, layer, w, x: tf_while.vjp_layers(layer, w, x, cotangents=(x, None))[0][0],
    "vmap_layers": lambda tf_while, layer, w, x: tf_while.vmap_layers(layer, w, x[None])[0][0],
    "hvp_layers": lambda tf_while, layer, w, x: tf_while.hvp_layers(layer, tripled, w, x, tangents=(None, x, None))[0][
        1
    ],
    "gated": lambda tf_while, layer, w, x: tf_while.scan_layers(tf_while.gated(layer), w, x, w / w)[0],
    "an argument": lambda tf_while, layer, w, x: an_argument(tf_while.scan_layers, layer, w, x),
}


def an_argument(scan, layer, w, x):
    """A tf.function takes of a function that wraps another the other."""
    import tensorflow as tf

    return tf.function(lambda scan, w, x: scan(layer, w, x)[0])(scan, w, x)


@pytest.mark.parametrize("jit", [False, True], ids=["", "XLA"])
@pytest.mark.parametrize("name", CALLS)
def test_autograph_goes_through_the_layer_alone(name, jit):
    """1 + 2, which is more than 2, times 3, times 5; 3 * 3 * 5 is the gradient beside a Hessian product. Through all
    that is here it would go for seconds. Where no tf.function is around, it goes through nothing."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    files: set[str] = set()

    def layer(c, p):
        files.update(frame.filename for frame in inspect.stack())
        return less_or_more(c, p), None

    def less_or_more(c, p):
        return c * p if tf.reduce_sum(c) > 2 else c + p

    run = tf.function(lambda w, x: CALLS[name](tf_while, layer, w, x), jit_compile=jit)
    assert run(tf.constant([2.0, 3.0, 5.0]), tf.constant([1.0])).numpy().tolist() == [45]
    assert any("autograph_generated" in file for file in files)
    assert any(file.endswith(os.path.join("tf_while", "checks.py")) for file in files)
    if name in ("scan_layers", "vjp_layers"):
        with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
            CALLS[name](tf_while, layer, tf.constant([2.0, 3.0, 5.0]), tf.constant([1.0]))


def test_tensors_may_be_compared_as_objects():
    """As code for TensorFlow 1 has it, in the whole process. 3 + 3 + 3: the second layer is closed."""
    tf_while = loaded("tf_while")
    import tensorflow as tf

    layer = tf_while.gated(lambda c, p: (c + p, None))
    tf.compat.v1.disable_tensor_equality()
    try:
        w, x = tf.fill([3, 1], 3), tf.fill([1], 3)
        carry, _ = tf_while.scan_layers(layer, w, x, tf.constant([1.0, 0.0, 1.0]))
        dense = tf.function(tf_while.scan_apply_layers, input_signature=[tf.TensorSpec(None), tf.TensorSpec(None)])
        y = dense(tf.fill([3, 1, 1], 3.0), tf.fill([1], 3.0))
    finally:
        tf.compat.v1.enable_tensor_equality()
    assert (carry.numpy().tolist(), y.numpy().tolist()) == ([9], [81])


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


# Every option with two depths and forms of call, of a layer that the optimiser went wrong with. Every value of each
# option meets every form in tests/composition/test_as_users_run.py.

OPTIONS = [{}, {"unroll": 2}, {"unroll": 3, "reverse": True}, {"remat": True}, {"remat": 2}, {"remat": 3, "unroll": 2}]
SWEEP = [
    (options, (i + 2 * j) % 5 + 1, ("as it stands", "tf.function", "XLA")[(i + j) % 3], bool(j))
    for (i, options), j in itertools.product(enumerate(OPTIONS), range(2))
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
