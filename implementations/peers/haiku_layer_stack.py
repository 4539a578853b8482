"""Haiku: `hk.layer_stack`. https://dm-haiku.readthedocs.io/en/latest/api.html#layer-stack

Bridged: a module that asks for as many parameters as the layer has, to which those of the stack are given.
"""

import haiku as hk
import jax
from jax import numpy as jnp

LIBRARY = "dm-haiku"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init, xs=None, *, unroll=1):
    leaves, tree = jax.tree.flatten(stacked_params)

    def block(carry, *x):
        own = [hk.get_parameter(f"p{i}", a.shape[1:], a.dtype, init=jnp.zeros) for i, a in enumerate(leaves)]
        return layer(carry, jax.tree.unflatten(tree, own), *x)

    def stack(init, *xs):
        return hk.layer_stack(leaves[0].shape[0], with_per_layer_inputs=True, unroll=unroll)(block)(init, *xs)

    program, given = hk.without_apply_rng(hk.transform(stack)), () if xs is None else (xs,)
    names = jax.eval_shape(program.init, jax.random.key(0), init, *given)
    params = {module: {name: leaves[int(name[1:])] for name in own} for module, own in names.items()}
    return program.apply(params, init, *given)
