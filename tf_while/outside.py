"""What users put around a stack, in the words of the framework, and the operations that checks write layers in.

Of the transforms, `apply(w, x)` is a stack of arrays, and tw, tx are tangents of w and x. Second order is that of
|apply(w, x)|^2 / 2, times the tangents.
Source: https://www.tensorflow.org/api_docs/python/tf/autodiff/ForwardAccumulator
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Apply = Callable[..., tf.Tensor]

OPS: dict[str, Any] = {
    "tanh": tf.tanh,
    "exp": tf.exp,
    "sigmoid": tf.sigmoid,
    "softmax": tf.nn.softmax,
    "matvec": tf.linalg.matvec,
    "sum": tf.reduce_sum,
    "cast": tf.cast,
    "like": lambda a, b: tf.cast(a, b.dtype),  # `a` in the dtype of b
    "shared": lambda a, N: tf.broadcast_to(a, (N, *a.shape)),  # one parameter as that of each of N layers
    "bfloat16": tf.bfloat16,
}


def batching(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return tf.vectorized_map(lambda x: apply(w, x), tf.stack([x, tx]))


def ensemble(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return tf.vectorized_map(lambda w: apply(w, x), tf.stack([w, tw]))


def per_example_gradients(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return tf.vectorized_map(lambda x: _gradient(apply, w, x), tf.stack([x, tx]))


def gradient_of_batch(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return _gradient(lambda w, xs: tf.vectorized_map(lambda x: apply(w, x), xs), w, tf.stack([x, tx]))


def forward_mode(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    @tf.function(autograph=False)
    def pushed(w: Any, x: Any, tw: Any, tx: Any) -> Any:
        with tf.autodiff.ForwardAccumulator((w, x), (tw, tx)) as accumulator:
            y = apply(w, x)
        return accumulator.jvp(y)

    return pushed(w, x, tw, tx)


def reverse_inside(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return tf.function(lambda w, x: _gradient(apply, w, x), jit_compile=True, autograph=False)(w, x)


def reverse_over_reverse(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    with tf.GradientTape() as outer:
        outer.watch((w, x))
        first = _gradient(apply, w, x)
    return outer.gradient(first, (w, x), (tw, tx))


def forward_over_reverse(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    with tf.autodiff.ForwardAccumulator((w, x), (tw, tx)) as accumulator:
        first = _gradient(apply, w, x)
    return accumulator.jvp(first)


AROUND = {
    function.__name__: function
    for function in (
        *(batching, ensemble, per_example_gradients, gradient_of_batch),
        *(forward_mode, reverse_inside, reverse_over_reverse, forward_over_reverse),
    )
}


def profile_names(apply: Apply, *args: Any) -> str:
    graph = tf.function(apply, autograph=False).get_concrete_function(*args).graph.as_graph_def()
    return "\n".join(node.name for node in graph.node)


def _gradient(apply: Apply, *arrays: Any) -> Any:
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        loss = tf.reduce_sum(apply(*arrays) ** 2) / 2
    return tape.gradient(loss, arrays)
