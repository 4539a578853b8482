"""Layers of Keras for the tests: an encoder's and a decoder's block of its attention, and small ones."""

from __future__ import annotations

import functools

# name -> shapes of the carry and of what all layers are given beside it
MODULES = {"encoder": ((2, 5, 8),), "decoder": ((2, 5, 8), (2, 3, 8))}


@functools.cache
def kinds():
    import keras

    class Encoder(keras.layers.Layer):
        """Attention to itself, then an MLP, each after a norm; with `rate`, dropout in both; with `statistics`, a batch
        norm before the MLP."""

        def __init__(self, width=8, rate=0.0, statistics=False, **kwargs):  # as Keras saves it
            super().__init__(**{"dtype": "float64"} | kwargs)
            options = {"dtype": "float64"}
            self.norm = keras.layers.LayerNormalization(epsilon=1e-5, **options)
            self.attention = keras.layers.MultiHeadAttention(2, width // 2, dropout=rate, **options)
            kind = keras.layers.BatchNormalization if statistics else keras.layers.LayerNormalization
            self.norms = [kind(epsilon=1e-5, **options)]
            self.up = keras.layers.Dense(2 * width, activation="gelu", **options)
            self.down = keras.layers.Dense(width, **options)
            self.dropout = keras.layers.Dropout(rate, **options)

        def call(self, x):
            h = self.norm(x)
            x = x + self.attention(h, h)
            return x + self.dropout(self.down(self.up(self.norms[0](x))))

    class Decoder(keras.layers.Layer):
        """The same, and attention to a memory."""

        def __init__(self):
            super().__init__(dtype="float64")
            self.encoder = Encoder()
            self.cross = keras.layers.MultiHeadAttention(2, 4, dtype="float64")

        def call(self, x, memory):
            return self.encoder(x + self.cross(x, memory))

    class Tied(keras.layers.Layer):
        """y = w (w x), by one variable in two layers."""

        def __init__(self):
            super().__init__()
            self.once = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
            self.twice = self.once

        def call(self, x):
            return self.twice(self.once(x))

    class Half(keras.layers.Layer):
        """Computed in bfloat16, kept in float32."""

        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.dense = keras.layers.Dense(4, dtype="mixed_bfloat16")
            self.norm = keras.layers.BatchNormalization(dtype="mixed_bfloat16")

        def call(self, x):
            return self.norm(self.dense(x))

    return {"encoder": Encoder, "decoder": Decoder, "tied": Tied, "half": Half}


def modules_of(name, N, seed=0, **options):
    """N layers, built, and the carry with what goes with it."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    arrays = [tf.random.normal(shape, dtype=tf.float64) for shape in MODULES[name]]
    modules = [kinds()[name](**options) for _ in range(N)]
    for module in modules:
        module(*arrays)
    return modules, arrays


def linear(weight, bias, **options):
    import keras
    import tensorflow as tf

    module = keras.layers.Dense(1, **options)
    module(tf.ones([1, 1]))
    module.kernel.assign([[weight]])
    module.bias.assign([bias])
    return module


def loop(modules, x, *given, **options):
    for module in modules:
        x = module(x, *given, **options)
    return x
