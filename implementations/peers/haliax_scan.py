"""Haliax: `hax.scan` over a named axis. https://github.com/marin-community/marin/tree/main/lib/haliax

Bridged: nothing; of arrays without names it scans the first axis.
"""

import haliax
import jax

LIBRARY = "marin-haliax"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False, unroll=1, remat=False):
    if remat not in (False, True):
        raise NotImplementedError("remat: all layers or none")
    axis = haliax.Axis("layers", jax.tree.leaves(stacked_params)[0].shape[0])
    slices = (stacked_params,) if xs is None else (stacked_params, xs)
    return haliax.scan(layer, axis, reverse=reverse, unroll=unroll, remat=remat)(init, *slices)
