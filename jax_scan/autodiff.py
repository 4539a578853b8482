"""The framework's ordinary autodiff from outside.

JAX differentiates `lax.scan` by itself, in both modes and to any order: there is no rule to add.
Source: https://docs.jax.dev/en/latest/automatic-differentiation.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jax_scan.edges import compile

Apply = Callable[..., Any]


def gradient(apply: Apply) -> Callable[..., tuple[jax.Array, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, for an `apply` from arrays to one array."""

    def run(*args_and_cotangent: jax.Array) -> tuple[jax.Array, ...]:
        *args, cotangent = args_and_cotangent
        y, pullback = jax.vjp(apply, *args)
        return y, *pullback(cotangent)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[jax.Array, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))
