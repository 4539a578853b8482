"""What TensorFlow users write today instead of an own loop under XLA, measured beside it.

Each entry is how such a program is written, and how it is compiled: ALTERNATIVES has (apply, compiler) of the dense
stack, LAYER_FORMS (stack, compiler) of any layer, the scan and its twin among them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_while.edges import compile
from tf_while.layers import dense
from tf_while.stack import scan_apply_layers, scan_layers, unroll_layers

Layer = Callable[..., tuple[Any, Any]]
Stack = Callable[[Any, Any], Any]  # (stacked_params, init) -> the last carry


def rolled(layer: Layer) -> Stack:
    """The scan."""
    return lambda params, init: scan_layers(layer, params, init)[0]


def unrolled(layer: Layer) -> Stack:
    """Its twin."""
    return lambda params, init: unroll_layers(layer, params, init)[0]


def raw_while_loop(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The loop as first written: no checks, and TensorFlow's own gradient."""
    num_layers = weights.shape[0]

    def body(i: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, tf.linalg.matvec(weights[i], y)

    return tf.while_loop(lambda i, _: i < num_layers, body, (0, x), maximum_iterations=num_layers)[1]


def graph_mode(apply):
    """`tf.function` without XLA: any N in one graph, and one kernel launch for each operation."""
    return tf.function(apply, autograph=False)


def autograph_loop(layer: Layer) -> Stack:
    """A Python `for` over a tensor, which AutoGraph turns into a while loop that reads `params[i]`."""

    def loop(params: Any, init: Any) -> Any:
        carry = init
        for i in tf.range(tf.nest.flatten(params)[0].shape[0]):
            carry, _ = layer(carry, tf.nest.map_structure(lambda a: a[i], params))  # noqa: B023
        return carry

    return lambda params, init: tf.autograph.to_graph(loop)(params, init)


def keras_layers(layer: Layer) -> Stack:
    """Keras layers called one after the other, as those of a model: for `graph_mode`, of size N."""
    import keras  # takes a second, which nobody else needs

    class Block(keras.Layer):
        def call(self, carry: Any, params: Any) -> Any:
            return layer(carry, params)[0]

    def stack(params: Any, init: Any) -> Any:
        carry = init
        for parts in zip(*map(tf.unstack, tf.nest.flatten(params)), strict=True):
            carry = Block()(carry, tf.nest.pack_sequence_as(params, parts))
        return carry

    return stack


def foldl(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """`tf.foldl`: a while loop over TensorArrays."""
    return tf.foldl(lambda y, w: dense(y, w)[0], weights, initializer=x)


ALTERNATIVES = {
    "raw while_loop": (raw_while_loop, compile),
    "graph mode": (scan_apply_layers, graph_mode),
    "AutoGraph loop": (autograph_loop(dense), compile),
    "tf.foldl": (foldl, compile),
}
LAYER_FORMS = {
    "rolled": (rolled, compile),
    "unrolled": (unrolled, compile),
    "graph mode": (rolled, graph_mode),
    "AutoGraph loop": (autograph_loop, compile),
    "Keras layers": (keras_layers, graph_mode),
}
