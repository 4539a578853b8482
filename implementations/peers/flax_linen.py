"""Flax: `nn.scan` of a module. https://flax-linen.readthedocs.io/en/latest/api_reference/flax.linen/transformations.html

Bridged: a module whose one variable is the layer's params.
"""

from flax import linen as nn

LIBRARY = "flax"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False, unroll=1):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            params = self.get_variable("params", "own")
            return layer(carry, params) if xs is None else layer(carry, params, x)

    import jax

    how = {"reverse": reverse, "unroll": unroll, "length": jax.tree.leaves(stacked_params)[0].shape[0]}
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": False}, **how)
    return stack().apply({"params": {"own": stacked_params}}, init, xs)
