"""What users put around a stack, in the words of the framework, and the operations that checks write layers in.

Of the transforms, `apply(w, x)` is a stack of arrays, and tw, tx are tangents of w and x. Second order is that of
|apply(w, x)|^2 / 2, times the tangents.
Source: https://docs.jax.dev/en/latest/automatic-differentiation.html
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

Apply = Callable[..., jax.Array]

OPS: dict[str, Any] = {
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "sigmoid": jax.nn.sigmoid,
    "softmax": jax.nn.softmax,
    "matvec": lambda w, a: jnp.matmul(w, a, precision=lax.Precision.HIGHEST),
    "sum": jnp.sum,
    "cast": lambda a, dtype: a.astype(dtype),
    "like": lambda a, b: a.astype(b.dtype),  # `a` in the dtype of b
    "shared": lambda a, N: jnp.broadcast_to(a, (N, *a.shape)),  # one parameter as that of each of N layers
    "bfloat16": jnp.bfloat16,
}


def batching(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.vmap(apply, (None, 0))(w, jnp.stack([x, tx]))


def ensemble(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.vmap(apply, (0, None))(jnp.stack([w, tw]), x)


def per_example_gradients(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.vmap(_gradient(apply), (None, 0))(w, jnp.stack([x, tx]))


def gradient_of_batch(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.grad(_energy(jax.vmap(apply, (None, 0))), (0, 1))(w, jnp.stack([x, tx]))


def forward_mode(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.jvp(apply, (w, x), (tw, tx))[1]


def reverse_inside(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.jit(_gradient(apply))(w, x)


def reverse_over_reverse(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.vjp(_gradient(apply), w, x)[1]((tw, tx))


def forward_over_reverse(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jax.jvp(_gradient(apply), (w, x), (tw, tx))[1]


AROUND = {
    function.__name__: function
    for function in (
        *(batching, ensemble, per_example_gradients, gradient_of_batch),
        *(forward_mode, reverse_inside, reverse_over_reverse, forward_over_reverse),
    )
}


def profile_names(apply: Apply, *args: Any) -> str:
    """The names of operations, not those of the files and functions that they come from."""
    return "\n".join(re.findall(r'"jit\([^"]*"', jax.jit(apply).lower(*args).as_text(debug_info=True)))


def _energy(apply: Apply) -> Apply:
    return lambda w, x: (apply(w, x) ** 2).sum() / 2


def _gradient(apply: Apply) -> Callable[..., Any]:
    return jax.grad(_energy(apply), (0, 1))
