"""JAX: `lax.scan` as it comes. https://docs.jax.dev/en/latest/_autosummary/jax.lax.scan.html

Bridged: params and xs go in as one tree.
"""

from jax import lax

FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False, unroll=1):
    if xs is None:
        return lax.scan(layer, init, stacked_params, reverse=reverse, unroll=unroll)
    return lax.scan(lambda c, s: layer(c, *s), init, (stacked_params, xs), reverse=reverse, unroll=unroll)
