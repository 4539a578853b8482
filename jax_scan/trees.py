"""What trees of derivatives hold where nothing is differentiated. Flat lists are JAX's own business.

Source: https://docs.jax.dev/en/latest/pytrees.html
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from jax_scan.edges import as_leaf
from reference import arguments


def tangents_like(name: str, given: Any, primals: tuple[Any, ...], of: tuple[str, ...]) -> tuple[Any, ...]:
    """`given` checked against `primals`, with zeros for a tree that is None, and JAX's own zeros for integers."""
    arguments.check_tangents(as_leaf, name, given, primals, of)

    def zeros(primal: jax.Array) -> Any:
        is_float = jnp.issubdtype(primal.dtype, jnp.inexact)
        return jnp.zeros_like(primal) if is_float else np.zeros(primal.shape, jax.dtypes.float0)

    return tuple(
        jax.tree.map(lambda p, t=None: zeros(p) if t is None else t, primal, *([] if tangent is None else [tangent]))
        for primal, tangent in zip(primals, given, strict=True)
    )


def nones(gradients: Any) -> Any:
    """None for JAX's gradients of integers."""
    return jax.tree.map(lambda g: None if g.dtype == jax.dtypes.float0 else g, gradients)
