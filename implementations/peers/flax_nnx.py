"""Flax: `nnx.scan` of a function of trees. https://flax.readthedocs.io/en/latest/api_reference/flax.nnx/transforms.html

Bridged: params and xs go in as one tree.
"""

from flax import nnx

LIBRARY = "flax"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False, unroll=1):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0), reverse=reverse, unroll=unroll)
    def stack(carry, slices):
        return layer(carry, *slices)

    return stack(init, (stacked_params,) if xs is None else (stacked_params, xs))
