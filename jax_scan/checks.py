"""The checks of a stack's arguments, and of its layer by one run without values, before any loop is built.

Source: https://docs.jax.dev/en/latest/_autosummary/jax.eval_shape.html
"""

from __future__ import annotations

from typing import Any

import jax

from jax_scan.edges import as_leaf
from jax_scan.loops import Layer
from reference import arguments


def prepare(
    layer: Layer,
    stacked_params: Any,
    init: Any,
    xs: Any,
    reverse: bool = False,
    unroll: int = 1,
    remat: bool | int = False,
) -> int:
    """Check the arguments of a stack, running the layer once on arrays without values; the number of layers.

    Raises:
        TypeError, ValueError: words in reference/arguments.py
    """
    num_layers = arguments.check_scan(as_leaf, stacked_params, init, xs, reverse, unroll, remat)

    def run_once(carry: Any, params: Any, x: Any) -> None:
        output = layer(carry, params) if xs is None else layer(carry, params, x)
        arguments.check_layer(as_leaf, carry, output)

    params, x = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (stacked_params, xs))
    jax.eval_shape(run_once, init, params, x)
    return num_layers
