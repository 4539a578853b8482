"""One language for layers: the few operations that tests need, by the same names in NumPy and in each framework.

A layer is written once, as `def make(o): return lambda carry, params: ...`, with o one of these namespaces. In NumPy it
also takes complex numbers: so it is its own derivative, by complex step. Frameworks are imported when asked for.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16
import numpy as np

from implementations import load
from reference.arguments import is_float
from reference.stack import run_layers, tree_map


@functools.cache
def layer_of(make, name):
    """The layer that `make` makes of the namespace `name`: one object, so that it is compiled once."""
    return make(ops(name))


@functools.cache
def ops(name):
    return {"numpy": _numpy, "exact": _exact, "jax_scan": _jax, "torch_compile": _torch, "tf_while": _tf}[name]()


def _exact():
    """NumPy in float64 throughout: a cast to fewer bits rounds nothing."""
    wide = SimpleNamespace(**vars(ops("numpy")))
    wide.cast = lambda array, dtype: array.astype(np.result_type(array, np.float64))
    return wide


def _numpy():
    def cast(array, dtype):
        # what NumPy has no complex numbers of keeps those it has
        as_complex = {"float32": "complex64", "float64": "complex128"}.get(dtype, np.asarray(array).dtype)
        return np.asarray(array).astype(as_complex if np.iscomplexobj(array) else dtype)

    def softmax(array):
        e = np.exp(array - np.real(array).max())
        return e / e.sum()

    return SimpleNamespace(
        tanh=np.tanh,
        exp=np.exp,
        sigmoid=lambda a: 1 / (1 + np.exp(-a)),
        softmax=softmax,
        matvec=lambda w, a: w @ a,
        sum=np.sum,
        cast=cast,
        like=lambda a, b: a.astype(b.dtype),  # `a` in the dtype of b
        shared=lambda a, N: np.broadcast_to(a, (N, *a.shape)),  # one parameter as that of each of N layers
        scan=run_layers,
        gated=_gated,
    )


def _gated(layer):
    def step(carry, params, gate):
        new, y = layer(carry, params)
        return gate * new + (1 - gate) * carry, y

    return step


def _jax():
    import jax
    from jax import numpy as jnp

    return SimpleNamespace(
        tanh=jnp.tanh,
        exp=jnp.exp,
        sigmoid=jax.nn.sigmoid,
        softmax=jax.nn.softmax,
        bfloat16=jnp.bfloat16,
        matvec=lambda w, a: jnp.matmul(w, a, precision=jax.lax.Precision.HIGHEST),
        sum=jnp.sum,
        cast=lambda a, dtype: a.astype(dtype),
        like=lambda a, b: a.astype(b.dtype),
        shared=lambda a, N: jnp.broadcast_to(a, (N, *a.shape)),
        scan=load("jax_scan").scan_layers,
        gated=load("jax_scan").gated,
    )


def _torch():
    import torch

    return SimpleNamespace(
        tanh=torch.tanh,
        exp=torch.exp,
        sigmoid=torch.sigmoid,
        softmax=lambda a: torch.softmax(a, -1),
        bfloat16=torch.bfloat16,
        matvec=torch.matmul,
        sum=torch.sum,
        cast=lambda a, dtype: a.to(getattr(torch, dtype)),
        like=lambda a, b: a.to(b.dtype),
        shared=lambda a, N: a.expand(N, *a.shape),
        scan=load("torch_compile").scan_layers,
        gated=load("torch_compile").gated,
    )


def _tf():
    import tensorflow as tf

    return SimpleNamespace(
        tanh=tf.tanh,
        exp=tf.exp,
        sigmoid=tf.sigmoid,
        softmax=tf.nn.softmax,
        bfloat16=tf.bfloat16,
        matvec=tf.linalg.matvec,
        sum=tf.reduce_sum,
        cast=tf.cast,
        like=lambda a, b: tf.cast(a, b.dtype),
        shared=lambda a, N: tf.broadcast_to(a, (N, *a.shape)),
        scan=load("tf_while").scan_layers,
        gated=load("tf_while").gated,
    )


# Trees of arrays.


def flat(tree):
    """Its arrays, in order."""
    arrays: list[Any] = []
    tree_map(arrays.append, tree)
    return arrays


def with_arrays(tree, arrays):
    """A tree like `tree` of these arrays."""
    arrays = iter(arrays)
    return tree_map(lambda _: next(arrays), tree)


def from_numpy(implementation, tree):
    return tree_map(lambda array: implementation.from_numpy(np.asarray(array)), tree)


def to_numpy(implementation, tree):
    return tree_map(implementation.to_numpy, tree)


# Ordinary reverse mode, from outside.


def pullback(implementation, function, inputs, cotangents, *, compiled=False, wanted=None):
    """(outputs, gradients) of `function(*inputs)`, by what the framework's users call, for trees of NumPy arrays.

    cotangents: a tree like the outputs; gradients: a tree like `inputs`. Both are None where the array is an integer;
    gradients also where `wanted`, the indices of what is not frozen among the inputs, says so.
    """
    inputs, cotangents = from_numpy(implementation, inputs), from_numpy(implementation, cotangents)
    frozen = set() if wanted is None else set(range(len(inputs))) - set(wanted)
    of = [
        is_float(implementation.as_leaf(array)) and i not in frozen
        for i, tree in enumerate(inputs)
        for array in flat(tree)
    ]

    def floats(outputs):
        return [array for array in flat(outputs) if is_float(implementation.as_leaf(array))]

    run = {"jax_scan": _pull_jax, "torch_compile": _pull_torch, "tf_while": _pull_tf}[implementation.__name__]
    outputs, gradients = run(implementation, function, inputs, of, floats, flat(cotangents), compiled)
    gradients = iter(gradients)
    gradients = with_arrays(inputs, [next(gradients) if is_wanted else None for is_wanted in of])
    return to_numpy(implementation, outputs), to_numpy(implementation, gradients)


def _pull_jax(implementation, function, inputs, of, floats, cotangents, compiled):
    import jax

    def run(inputs, cotangents):
        arrays = flat(inputs)

        def of_wanted(*values):
            rest = iter(values)
            merged = [next(rest) if is_wanted else array for array, is_wanted in zip(arrays, of, strict=True)]
            outputs = function(*with_arrays(inputs, merged))
            differentiable = [a for a in flat(outputs) if jax.numpy.issubdtype(a.dtype, jax.numpy.inexact)]
            return differentiable, outputs

        values = (array for array, is_wanted in zip(arrays, of, strict=True) if is_wanted)
        _, pull, outputs = jax.vjp(of_wanted, *values, has_aux=True)
        return outputs, pull(cotangents)

    return (implementation.compile(run) if compiled else run)(inputs, cotangents)


def _pull_torch(implementation, function, inputs, of, floats, cotangents, compiled):
    import torch

    arrays = flat(inputs)
    values = [array.requires_grad_() for array, is_wanted in zip(arrays, of, strict=True) if is_wanted]
    outputs = (implementation.compile(function) if compiled else function)(*inputs)
    pairs = [(a, ct) for a, ct in zip(floats(outputs), cotangents, strict=True) if a.requires_grad]
    if not pairs:
        return outputs, [torch.zeros_like(value) for value in values]
    results, cotangents = zip(*pairs, strict=True)
    return outputs, torch.autograd.grad(results, values, cotangents, allow_unused=True, materialize_grads=True)


def _pull_tf(implementation, function, inputs, of, floats, cotangents, compiled):
    import tensorflow as tf

    def run(inputs, cotangents):
        values = [array for array, is_wanted in zip(flat(inputs), of, strict=True) if is_wanted]
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = function(*inputs)
        zero = tf.UnconnectedGradients.ZERO
        return outputs, tape.gradient(floats(outputs), values, cotangents, unconnected_gradients=zero)

    return (implementation.compile(run) if compiled else run)(inputs, cotangents)
