"""The transforms that a user puts around a stack, in each framework's own words: name -> (apply, arrays) -> arrays.

`w`, `x` are the inputs, `tw`, `tx` tangents of the same shapes. Second order is that of f(w, x) = |apply(w, x)|^2 / 2,
times the tangents. Frameworks are imported when a function runs.
"""

from __future__ import annotations

import numpy as np
import pytest


class numpy:
    @staticmethod
    def repeat(array, N):
        return np.broadcast_to(array, (N, *array.shape))


class jax_scan:
    @staticmethod
    def profile_names(apply, *arrays):
        import re

        import jax

        # the names of operations, not those of the files and functions that they come from
        return "\n".join(re.findall(r'"jit\([^"]*"', jax.jit(apply).lower(*arrays).as_text(debug_info=True)))

    @staticmethod
    def repeat(array, N):
        import jax

        return jax.numpy.broadcast_to(array, (N, *array.shape))

    @staticmethod
    def batching(apply, w, x, tw, tx):
        import jax

        return jax.vmap(apply, (None, 0))(w, jax.numpy.stack([x, tx]))

    @staticmethod
    def ensemble(apply, w, x, tw, tx):
        import jax

        return jax.vmap(apply, (0, None))(jax.numpy.stack([w, tw]), x)

    @staticmethod
    def per_example_gradients(apply, w, x, tw, tx):
        import jax

        gradient = jax.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return jax.vmap(gradient, (None, 0))(w, jax.numpy.stack([x, tx]))

    @staticmethod
    def gradient_of_batch(apply, w, x, tw, tx):
        import jax

        return jax.grad(lambda w: (jax.vmap(apply, (None, 0))(w, jax.numpy.stack([x, tx])) ** 2).sum() / 2)(w)

    @staticmethod
    def forward_mode(apply, w, x, tw, tx):
        import jax

        return jax.jvp(apply, (w, x), (tw, tx))[1]

    @staticmethod
    def reverse_over_reverse(apply, w, x, tw, tx):
        import jax

        gradient = jax.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return jax.vjp(gradient, w, x)[1]((tw, tx))

    @staticmethod
    def forward_over_reverse(apply, w, x, tw, tx):
        import jax

        gradient = jax.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return jax.jvp(gradient, (w, x), (tw, tx))[1]

    @staticmethod
    def reverse_inside(apply, w, x, tw, tx):
        import jax

        return jax.jit(jax.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1)))(w, x)


class torch_compile:
    @staticmethod
    def profile_names(apply, *arrays):
        import torch

        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            apply(*arrays)
        return "\n".join(event.name for event in profiler.events())

    @staticmethod
    def repeat(array, N):
        return array.expand(N, *array.shape)

    @staticmethod
    def programs(apply, calls):
        from torch_compile import program_count

        before = program_count()
        results = [apply(*arrays) for arrays in calls]
        return program_count() - before, results

    @staticmethod
    def batching(apply, w, x, tw, tx):
        import torch

        return torch.func.vmap(apply, (None, 0))(w, torch.stack([x, tx]))

    @staticmethod
    def ensemble(apply, w, x, tw, tx):
        import torch

        return torch.func.vmap(apply, (0, None))(torch.stack([w, tw]), x)

    @staticmethod
    def per_example_gradients(apply, w, x, tw, tx):
        import torch

        gradient = torch.func.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return torch.func.vmap(gradient, (None, 0))(w, torch.stack([x, tx]))

    @staticmethod
    def gradient_of_batch(apply, w, x, tw, tx):
        import torch

        return torch.func.grad(lambda w: (torch.func.vmap(apply, (None, 0))(w, torch.stack([x, tx])) ** 2).sum() / 2)(w)

    @staticmethod
    def forward_mode(apply, w, x, tw, tx):
        import torch

        return torch.func.jvp(apply, (w, x), (tw, tx))[1]

    @staticmethod
    def reverse_over_reverse(apply, w, x, tw, tx):
        import torch

        w, x = w.requires_grad_(), x.requires_grad_()
        gradient = torch.autograd.grad((apply(w, x) ** 2).sum() / 2, (w, x), create_graph=True)
        return torch.autograd.grad(gradient, (w, x), (tw, tx))

    @staticmethod
    def forward_over_reverse(apply, w, x, tw, tx):
        import torch

        gradient = torch.func.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return torch.func.jvp(gradient, (w, x), (tw, tx))[1]

    @staticmethod
    def reverse_inside(apply, w, x, tw, tx):
        import torch

        from torch_compile import edges

        gradient = torch.func.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return torch.compile(gradient, fullgraph=True, backend=edges.BACKEND)(w, x)


class tf_while:
    @staticmethod
    def profile_names(apply, *arrays):
        import tensorflow as tf

        graph = tf.function(apply, autograph=False).get_concrete_function(*arrays).graph.as_graph_def()
        return "\n".join(node.name for node in graph.node)

    @staticmethod
    def repeat(array, N):
        import tensorflow as tf

        return tf.broadcast_to(array, (N, *array.shape))

    @staticmethod
    def programs(apply, calls):
        import tensorflow as tf

        signature = [tf.TensorSpec([None, *w.shape[1:]], w.dtype) for w, _ in calls[:1]]
        program = tf.function(
            apply, input_signature=[*signature, tf.TensorSpec.from_tensor(calls[0][1])], autograph=False
        )
        results = [program(*arrays) for arrays in calls]
        return program.experimental_get_tracing_count(), results

    @staticmethod
    def batching(apply, w, x, tw, tx):
        import tensorflow as tf

        return tf.vectorized_map(lambda x: apply(w, x), tf.stack([x, tx]))

    @staticmethod
    def ensemble(apply, w, x, tw, tx):
        import tensorflow as tf

        return tf.vectorized_map(lambda w: apply(w, x), tf.stack([w, tw]))

    @staticmethod
    def per_example_gradients(apply, w, x, tw, tx):
        import tensorflow as tf

        return tf.vectorized_map(lambda x: tf_while._gradient(apply, w, x), tf.stack([x, tx]))

    @staticmethod
    def gradient_of_batch(apply, w, x, tw, tx):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(w)
            loss = tf.reduce_sum(tf.vectorized_map(lambda x: apply(w, x), tf.stack([x, tx])) ** 2) / 2
        return tape.gradient(loss, w)

    @staticmethod
    def forward_mode(apply, w, x, tw, tx):
        import tensorflow as tf

        @tf.function(autograph=False)
        def forward(w, x, tw, tx):
            with tf.autodiff.ForwardAccumulator((w, x), (tw, tx)) as accumulator:
                y = apply(w, x)
            return accumulator.jvp(y)

        return forward(w, x, tw, tx)

    @staticmethod
    def reverse_over_reverse(apply, w, x, tw, tx):
        import tensorflow as tf

        with tf.GradientTape() as outer:
            outer.watch((w, x))
            gradient = tf_while._gradient(apply, w, x)
        return outer.gradient(gradient, (w, x), (tw, tx))

    @staticmethod
    def forward_over_reverse(apply, w, x, tw, tx):
        import tensorflow as tf

        with tf.autodiff.ForwardAccumulator((w, x), (tw, tx)) as accumulator:
            gradient = tf_while._gradient(apply, w, x)
        return accumulator.jvp(gradient)

    @staticmethod
    def reverse_inside(apply, w, x, tw, tx):
        import tensorflow as tf

        return tf.function(lambda w, x: tf_while._gradient(apply, w, x), jit_compile=True, autograph=False)(w, x)

    @staticmethod
    def _gradient(apply, w, x):
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch((w, x))
            loss = tf.reduce_sum(apply(w, x) ** 2) / 2
        return tape.gradient(loss, (w, x))


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
