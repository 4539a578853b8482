"""The framework's ordinary autodiff from outside.

JAX differentiates `lax.scan` by itself, in both modes and to any order: there is no rule to add.
Source: https://docs.jax.dev/en/latest/automatic-differentiation.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jax_scan.edges import compile
from jax_scan.trees import nones, tangents_like

Apply = Callable[..., Any]


def gradient(apply: Apply) -> Callable[..., tuple[Any, ...]]:
    """Reverse mode from outside: `(*args, cotangent) -> (y, *dargs)`, all trees; None in dargs for what is no float."""

    def run(*args_and_cotangent: Any) -> tuple[Any, ...]:
        *args, cotangent = args_and_cotangent
        y, pullback = jax.vjp(apply, *args)
        (cotangent,) = tangents_like("cotangent", (cotangent,), (y,), ("y",))
        return y, *nones(pullback(cotangent))

    return run


def compile_gradient(apply: Apply) -> Callable[..., tuple[Any, ...]]:
    """`gradient(apply)`, compiled: one program, forward and backward."""
    return compile(gradient(apply))
