"""Equinox: its own scan, with checkpoints for remat. https://github.com/patrick-kidger/equinox/tree/main/equinox/internal

Bridged: params and xs go in as one tree. Users of Equinox filter a module and call `lax.scan`, which is a column too.
"""

import equinox.internal as eqxi

LIBRARY = "equinox"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, remat=False):
    kind = {"kind": "checkpointed", "checkpoints": None if remat is True else remat} if remat else {"kind": "lax"}
    slices = (stacked_params,) if xs is None else (stacked_params, xs)
    return eqxi.scan(lambda carry, s: layer(carry, *s), init, slices, **kind)
