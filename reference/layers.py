"""Every layer in NumPy, forward and hand-written vjp, as scan bodies: `layer(carry, params) -> (new_carry, y)`.

A layer works in the dtype it is given: in float64 it is the oracle; in float32 or bfloat16 it is the yardstick, what
NumPy makes of the same computation in the same dtype; with Fractions in arrays of objects it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]


def dense(carry: Array, w: Array) -> tuple[Array, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    return _product(w, carry), None  # [d]


def dense_vjp(carry: Array, w: Array, cotangent: Array) -> tuple[Array, Array]:
    """From the cotangent [d] of the new carry: those of the carry [d] and of w [d, d]."""
    return _product(w.T, cotangent), np.outer(cotangent, carry)  # [d], [d, d]


def _product(w: Array, y: Array) -> Array:
    # NumPy multiplies bfloat16 (ml_dtypes) in float32 and leaves the result there: round it, as the frameworks do.
    return (w @ y).astype(np.result_type(w, y), copy=False)


class Layer(NamedTuple):
    forward: Callable[..., tuple[Any, Any]]  # (carry, params) -> (carry, y)
    vjp: Callable[..., tuple[Any, Any]]  # (carry, params, cotangent) -> (dcarry, dparams)


LAYERS = {"dense": Layer(dense, dense_vjp)}
