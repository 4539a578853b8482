"""N layers for the graph of one, by `tf.while_loop`, after `jax_scan/stack.py`.

    y = x
    for w in weights:
        y = w @ y

The loop above traces N products into the graph; the while loop traces one, whatever N is, forward and backward.
TensorFlow has the loop but not the scan, which `loops.py` writes out. One graph serves every N; by XLA one each N.
Source: https://www.tensorflow.org/api_docs/python/tf/while_loop
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from reference import arguments
from tf_while import loops
from tf_while.autodiff import differentiable
from tf_while.checks import assert_dense_stack, one_size, prepare
from tf_while.edges import as_leaf, beside_autograph
from tf_while.layers import dense
from tf_while.programs import as_program
from tf_while.trees import Arrays, Layer, flat


@beside_autograph
def scan_apply_layers(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Apply N dense layers, one after the other, with a program whose size does not depend on N.

    Equivalent loop:
        y = x
        for w in weights:
            y = w @ y

    Args:
        weights: [N, d, d], weights[i] is layer i; float16, bfloat16, float32 or float64. N = 0 returns x.
        x: [d], of the same dtype.

    Returns: y [d], of the same dtype. It never shares memory with an argument.

    Raises:
        TypeError: weights or x is no array of this framework, or the dtypes are wrong (words: reference/arguments.py).
        ValueError: "weights: expected shape (N, d, d), got ...", "x: expected shape (d,), got ..."

    Graph: exactly the same number of operations for every N >= 2, forward and gradient, with one loop each way.
    Limits: called as it stands it is a graph, not XLA. Under `tf.function(jit_compile=True)` N = 0 needs a static N and
        sizes unknown at trace time go unchecked.
    """
    _check(weights, x)
    weights, x = assert_dense_stack(tf.convert_to_tensor(weights), tf.convert_to_tensor(x))
    return as_program(_scan_dense, (), (weights, x), deep=(0,))


def _scan_dense(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    # The three things to get right, in the order in which they go wrong:
    # - scan runs over axis 0, so layers must be stacked along axis 0: weights[i] is layer i;
    # - the body is called as body(carry, x_i): the carry is the activation, x_i the layer's weights;
    # - the body returns a pair (new_carry, y) even when there is no per-layer output: no ys.
    def body(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays]:
        (y,), (w,) = carry, slices
        return [dense(y, w)[0]], []

    with tf.name_scope("scan_layers"):  # the name of the stack in a profile
        # `tf.while_loop` (primitive.py), in a loop each way (loops.py): its own gradient takes time N * N.
        (y,), _ = differentiable(loops.Plan(body), [weights], [x])
    return tf.identity(y)


@beside_autograph
def scan_layers(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any = None,
    *,
    reverse: bool = False,
    unroll: int = 1,
    remat: bool | int = False,
) -> tuple[Any, Any]:
    """Apply N layers of any kind, one after the other, with a program whose size does not depend on N.

    Equivalent loop:
        carry, ys = init, [None] * N
        for i in reversed(range(N)) if reverse else range(N):
            carry, ys[i] = layer(carry, params[i]) if xs is None else layer(carry, params[i], xs[i])

    Args:
        layer: `layer(carry, params)`, or with xs `layer(carry, params, x)`, returns `(new_carry, y)`; y may be None.
        stacked_params: nested dicts, tuples and lists of arrays [N, ...]: the parameters of layer i are at index i.
        init: the first carry, nested likewise. Every new carry has its structure, shapes and dtypes.
        xs: per-layer inputs, nested likewise, arrays [N, ...].
        reverse: the last layer comes first. ys stay in the order of the layers.
        unroll: how many layers the body of the loop holds; any number.
        remat: what is kept for the backward pass. False: what the layers need; True: one carry a layer; k: one carry
            every k layers, and the carries of k layers at a time.

    Returns: (carry, ys), every y stacked along axis 0.

    Raises:
        TypeError, ValueError: before the loop is built, naming argument, leaf, expected and got (words:
            reference/arguments.py).

    Graph: unroll=1, remat False or True: exactly the same number of operations for every N >= 2, if every stacked array
        has 1000 elements (the zeros of fewer are one operation, not two). Else at most some number, whatever N is.
    Limits: with remat, and in second derivatives, layers run again, so that one that draws random numbers or writes
        state is refused. remat=False is True for a layer that calls a `tf.function` or a `tf.py_function`, and under
        XLA for one with a `tf.while_loop` of its own. What `layer` closes over is shared by all layers and receives its
        gradient. Called as it stands it is a graph, not XLA nor AutoGraph, traced once for all layers that are made of
        the same (reference/made_of.py). Under `tf.function(jit_compile=True)` N = 0 needs a static N.
    """
    arguments.check_scan(as_leaf, stacked_params, init, xs, reverse, unroll, remat)
    static = layer, reverse, unroll, remat
    return as_program(_scan_layers, static, (stacked_params, init, xs), deep=(0, 2))


def _scan_layers(
    layer: Layer, reverse: bool, unroll: int, remat: bool | int, stacked_params: Any, init: Any, xs: Any
) -> tuple[Any, Any]:
    num_layers = prepare(layer, stacked_params, init, xs)
    stacked = (stacked_params,) if xs is None else (stacked_params, xs)
    step, arrays, init_arrays, pack_carry, pack_ys = flat(layer, stacked, init)
    with tf.name_scope("scan_layers"):
        plan = loops.Plan(step, reverse, unroll, int(remat))
        carry, ys = differentiable(plan, one_size(arrays, num_layers), init_arrays)
    return pack_carry(carry), pack_ys(ys)


def unroll_apply_layers(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_apply_layers`."""
    _check(weights, x)
    weights, x = assert_dense_stack(tf.convert_to_tensor(weights), tf.convert_to_tensor(x))
    return unroll_layers(dense, weights, tf.identity(x))[0]


@beside_autograph
def unroll_layers(
    layer: Layer, stacked_params: Any, init: Any, xs: Any = None, *, reverse: bool = False
) -> tuple[Any, Any]:
    """The same values by a Python loop: N layers in the graph. Arguments, result and errors: `scan_layers`."""
    num_layers = prepare(layer, stacked_params, init, xs, reverse)
    stacked = (stacked_params,) if xs is None else (stacked_params, xs)
    step, arrays, init_arrays, pack_carry, pack_ys = flat(layer, stacked, init)
    carry, ys = loops.unrolled(step, one_size(arrays, num_layers), init_arrays, reverse)
    return pack_carry(carry), pack_ys(ys)


def _check(weights: Any, x: Any) -> None:
    arguments.check_dense_stack(arguments.leaf(as_leaf, "weights", weights), arguments.leaf(as_leaf, "x", x))
