"""Modules of each framework's own kind, written for the tests: `affine` is the same in all three.

affine: carry + tanh(carry @ w + b), or with x: carry + tanh(carry @ w + b + x)
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

D = 4


def weights(N, seed=0):
    rng = np.random.default_rng(seed)
    return [{"w": rng.standard_normal((D, D)) / 2, "b": rng.standard_normal(D)} for _ in range(N)]


def layer(carry, params, x=0.0):
    """`affine` in NumPy."""
    return carry + np.tanh(carry @ params["w"] + params["b"] + x), None


def layer_vjp(carry, params, x, dcarry, dy):
    """Its derivative, by hand: (dcarry, dparams, dx)."""
    dsum = dcarry * (1 - np.tanh(carry @ params["w"] + params["b"] + x) ** 2)
    return dcarry + dsum @ params["w"].T, {"w": carry.T @ dsum, "b": dsum.sum(0)}, dsum


def affine(implementation, w, b):
    return _kind(implementation.__name__)(w=implementation.from_numpy(w), b=implementation.from_numpy(b))


@functools.cache
def _kind(name):
    return {"jax_scan": _of_jax, "torch_compile": _of_torch, "tf_while": _of_keras}[name]()


def _of_jax():
    import jax
    from jax import numpy as jnp

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Affine:
        b: Any
        w: Any

        def __call__(self, carry, x=0.0):
            return carry + jnp.tanh(carry @ self.w + self.b + x)

    return Affine


def _of_torch():
    import torch

    class Affine(torch.nn.Module):
        def __init__(self, w, b):
            super().__init__()
            self.w, self.b = torch.nn.Parameter(w), torch.nn.Parameter(b)

        def forward(self, carry, x=0.0):
            return carry + torch.tanh(carry @ self.w + self.b + x)

    return Affine


def _of_keras():
    import keras
    import tensorflow as tf

    class Affine(keras.layers.Layer):
        def __init__(self, w, b):
            super().__init__(dtype=w.dtype.name)
            self.w, self.b = keras.Variable(w, dtype=w.dtype.name), keras.Variable(b, dtype=w.dtype.name)
            self.built = True

        def call(self, carry, x=0.0):
            return carry + tf.tanh(carry @ self.w + self.b + x)

    return Affine


def arrays_of(implementation, module):
    """Its own w and b."""
    return {name: implementation.to_numpy(_value(getattr(module, name))) for name in ("w", "b")}


def _value(array):
    """Of torch's and Keras's variables the array."""
    return array.detach() if hasattr(array, "detach") else array.value if hasattr(array, "assign") else array


def by_name(params):
    """w and b of a stack or a gradient: in JAX it is a module, elsewhere a dict."""
    return params if isinstance(params, dict) else {"w": params.w, "b": params.b}
