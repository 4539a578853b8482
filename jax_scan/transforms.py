"""Derivatives of a whole stack, by the framework's ordinary autodiff from outside."""

from __future__ import annotations

from collections.abc import Callable

import jax

from jax_scan.edges import compile

Apply = Callable[[jax.Array, jax.Array], jax.Array]


def gradient(apply: Apply) -> Callable[..., tuple[jax.Array, ...]]:
    """Reverse mode: `(weights, x, cotangent) -> (y, dweights, dx)`, shapes as in `scan_apply_layers`, cotangent [d]."""

    def run(weights: jax.Array, x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
        y, pullback = jax.vjp(apply, weights, x)
        return y, *pullback(cotangent)

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[jax.Array, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))
