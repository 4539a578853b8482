"""What a user puts around a stack, in each framework's own words: its transforms, its compiler, its profiler.

Of transforms, `w`, `x` are the inputs, `tw`, `tx` tangents of the same shapes. Second order is that of
f(w, x) = |apply(w, x)|^2 / 2, times the tangents. Frameworks are imported when asked for.
"""

from __future__ import annotations

import functools
import re
from types import SimpleNamespace

import numpy as np
import pytest


@functools.cache
def around(name):
    """name -> function of (apply, w, x, tw, tx); `profile_names` and `programs` are of (apply, ...) alone."""
    return {"jax_scan": _jax, "torch_compile": _torch, "tf_while": _tf}[name]()


def _energy(apply):
    return lambda w, x: (apply(w, x) ** 2).sum() / 2


def _jax():
    import jax
    from jax import numpy as jnp

    def gradient(apply):
        return jax.grad(_energy(apply), (0, 1))

    def of_batch(apply, w, x, tw, tx):
        return jax.grad(lambda w: _energy(jax.vmap(apply, (None, 0)))(w, jnp.stack([x, tx])))(w)

    def profile_names(apply, *arrays):
        # the names of operations, not those of the files and functions that they come from
        return "\n".join(re.findall(r'"jit\([^"]*"', jax.jit(apply).lower(*arrays).as_text(debug_info=True)))

    return SimpleNamespace(
        batching=lambda apply, w, x, tw, tx: jax.vmap(apply, (None, 0))(w, jnp.stack([x, tx])),
        ensemble=lambda apply, w, x, tw, tx: jax.vmap(apply, (0, None))(jnp.stack([w, tw]), x),
        per_example_gradients=lambda apply, w, x, tw, tx: jax.vmap(gradient(apply), (None, 0))(w, jnp.stack([x, tx])),
        gradient_of_batch=of_batch,
        forward_mode=lambda apply, w, x, tw, tx: jax.jvp(apply, (w, x), (tw, tx))[1],
        reverse_over_reverse=lambda apply, w, x, tw, tx: jax.vjp(gradient(apply), w, x)[1]((tw, tx)),
        forward_over_reverse=lambda apply, w, x, tw, tx: jax.jvp(gradient(apply), (w, x), (tw, tx))[1],
        reverse_inside=lambda apply, w, x, tw, tx: jax.jit(gradient(apply))(w, x),
        profile_names=profile_names,
    )


def _torch():
    import torch
    from torch.func import grad, jvp, vmap

    from torch_compile import edges, program_count

    def gradient(apply):
        return grad(_energy(apply), (0, 1))

    def of_batch(apply, w, x, tw, tx):
        return grad(lambda w: _energy(vmap(apply, (None, 0)))(w, torch.stack([x, tx])))(w)

    def reverse_over_reverse(apply, w, x, tw, tx):
        w, x = w.requires_grad_(), x.requires_grad_()
        first = torch.autograd.grad(_energy(apply)(w, x), (w, x), create_graph=True)
        return torch.autograd.grad(first, (w, x), (tw, tx))

    def profile_names(apply, *arrays):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            apply(*arrays)
        return "\n".join(event.name for event in profiler.events())

    def programs(apply, calls):
        before = program_count()
        results = [apply(*arrays) for arrays in calls]
        return program_count() - before, results

    def inside(apply, w, x, tw, tx):
        return torch.compile(gradient(apply), fullgraph=True, backend=edges.BACKEND)(w, x)

    return SimpleNamespace(
        batching=lambda apply, w, x, tw, tx: vmap(apply, (None, 0))(w, torch.stack([x, tx])),
        ensemble=lambda apply, w, x, tw, tx: vmap(apply, (0, None))(torch.stack([w, tw]), x),
        per_example_gradients=lambda apply, w, x, tw, tx: vmap(gradient(apply), (None, 0))(w, torch.stack([x, tx])),
        gradient_of_batch=of_batch,
        forward_mode=lambda apply, w, x, tw, tx: jvp(apply, (w, x), (tw, tx))[1],
        reverse_over_reverse=reverse_over_reverse,
        forward_over_reverse=lambda apply, w, x, tw, tx: jvp(gradient(apply), (w, x), (tw, tx))[1],
        reverse_inside=inside,
        profile_names=profile_names,
        programs=programs,
    )


def _tf():
    import tensorflow as tf

    def pulled(function, *arrays):
        with tf.GradientTape() as tape:
            tape.watch(arrays)
            loss = tf.reduce_sum(function(*arrays) ** 2) / 2
        return tape.gradient(loss, arrays)

    def of_batch(apply, w, x, tw, tx):
        return pulled(lambda w: tf.vectorized_map(lambda x: apply(w, x), tf.stack([x, tx])), w)[0]

    @tf.function(autograph=False)
    def pushed(function, w, x, tw, tx):
        with tf.autodiff.ForwardAccumulator((w, x), (tw, tx)) as accumulator:
            y = function(w, x)
        return accumulator.jvp(y)

    def reverse_over_reverse(apply, w, x, tw, tx):
        with tf.GradientTape() as outer:
            outer.watch((w, x))
            gradient = pulled(apply, w, x)
        return outer.gradient(gradient, (w, x), (tw, tx))

    def forward_over_reverse(apply, w, x, tw, tx):
        with tf.autodiff.ForwardAccumulator((w, x), (tw, tx)) as accumulator:
            gradient = pulled(apply, w, x)
        return accumulator.jvp(gradient)

    def inside(apply, w, x, tw, tx):
        return tf.function(lambda w, x: pulled(apply, w, x), jit_compile=True, autograph=False)(w, x)

    def profile_names(apply, *arrays):
        graph = tf.function(apply, autograph=False).get_concrete_function(*arrays).graph.as_graph_def()
        return "\n".join(node.name for node in graph.node)

    def programs(apply, calls):
        w, x = calls[0]
        signature = [tf.TensorSpec([None, *w.shape[1:]], w.dtype), tf.TensorSpec.from_tensor(x)]
        program = tf.function(apply, input_signature=signature, autograph=False)
        results = [program(*arrays) for arrays in calls]
        return program.experimental_get_tracing_count(), results

    return SimpleNamespace(
        batching=lambda apply, w, x, tw, tx: tf.vectorized_map(lambda x: apply(w, x), tf.stack([x, tx])),
        ensemble=lambda apply, w, x, tw, tx: tf.vectorized_map(lambda w: apply(w, x), tf.stack([w, tw])),
        per_example_gradients=lambda apply, w, x, tw, tx: tf.vectorized_map(
            lambda x: pulled(apply, w, x), tf.stack([x, tx])
        ),
        gradient_of_batch=of_batch,
        forward_mode=pushed,
        reverse_over_reverse=reverse_over_reverse,
        forward_over_reverse=forward_over_reverse,
        reverse_inside=inside,
        profile_names=profile_names,
        programs=programs,
    )


# The forms in which users run a function of TensorFlow, and the gradient that they take.


def forms():
    """How users run a function of arrays."""
    import tensorflow as tf

    return {
        "as it stands": lambda function: function,
        "tf.function": lambda function: tf.function(function, autograph=False),
        "XLA": lambda function: tf.function(function, autograph=False, jit_compile=True),
    }


FORMS = pytest.mark.parametrize("form", ["as it stands", "tf.function", "XLA"])


def gradients(stack, *arrays):
    """The gradient by each of `arrays` of the sum of the squares of what `stack(*arrays)` returns."""
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(arrays)
        loss = tf.add_n([tf.reduce_sum(a**2) for a in tf.nest.flatten(stack(*arrays)) if a is not None])
    return tape.gradient(loss, arrays, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def assert_near(found, right):
    import tensorflow as tf

    for a, b in zip(tf.nest.flatten(found), tf.nest.flatten(right), strict=True):
        if b is None:  # no ys
            assert a is None
            continue
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-6)
