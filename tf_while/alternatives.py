"""What TensorFlow users write today instead of an own loop under XLA, measured beside it.

Each entry is (apply, compiler): how such a program is written, and how it is compiled.
"""

from __future__ import annotations

import tensorflow as tf

from tf_while.edges import compile
from tf_while.layers import dense
from tf_while.stack import scan_apply_layers


def raw_while_loop(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """The loop as first written: no checks, and TensorFlow's own gradient."""
    num_layers = weights.shape[0]

    def body(i: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return i + 1, tf.linalg.matvec(weights[i], y)

    return tf.while_loop(lambda i, _: i < num_layers, body, (0, x), maximum_iterations=num_layers)[1]


def graph_mode(apply):
    """`tf.function` without XLA: any N in one graph, and one kernel launch for each operation."""
    return tf.function(apply, autograph=False)


def autograph_loop(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """A Python `for` over a tensor, which AutoGraph turns into a while loop."""
    y = x
    for w in weights:
        y, _ = dense(y, w)
    return y


def foldl(weights: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """`tf.foldl`: a while loop over TensorArrays."""
    return tf.foldl(lambda y, w: dense(y, w)[0], weights, initializer=x)


ALTERNATIVES = {
    "raw while_loop": (raw_while_loop, compile),
    "graph mode": (scan_apply_layers, graph_mode),
    "AutoGraph loop": (tf.autograph.to_graph(autograph_loop), compile),
    "tf.foldl": (foldl, compile),
}
