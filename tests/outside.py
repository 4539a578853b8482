"""The transforms that a user puts around a stack, in each framework's own words: name -> (apply, arrays) -> arrays.

`w`, `x` are the inputs, `tw`, `tx` tangents of the same shapes. Second order is that of f(w, x) = |apply(w, x)|^2 / 2,
times the tangents. Frameworks are imported when a function runs.
"""

from __future__ import annotations


class jax_scan:
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

        gradient = torch.func.grad(lambda w, x: (apply(w, x) ** 2).sum() / 2, (0, 1))
        return torch.compile(gradient, fullgraph=True, backend="aot_eager")(w, x)


class tf_while:
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
