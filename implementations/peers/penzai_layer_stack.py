"""Penzai: `pz.nn.LayerStack`. https://penzai.readthedocs.io/en/stable/_autosummary/penzai.nn.LayerStack.html

Bridged: a Layer whose attributes are the parameters, with the stack's axis named. A LayerStack returns no ys.
"""

from typing import Any

import jax
from penzai import pz

LIBRARY = "penzai"
FRAMEWORK = "jax"


def scan_layers(layer, stacked_params, init):
    @pz.pytree_dataclass
    class Block(pz.nn.Layer):
        params: Any

        def __call__(self, carry, **_):
            carry, y = layer(carry, jax.tree.map(pz.nx.NamedArray.unwrap, self.params, is_leaf=pz.nx.is_namedarray))
            if jax.tree.leaves(y):
                raise NotImplementedError("a LayerStack returns no ys")
            return carry

    named = jax.tree.map(lambda a: pz.nx.wrap(a).tag_prefix("layers"), stacked_params)
    return pz.nn.LayerStack(Block(named), "layers", jax.tree.leaves(stacked_params)[0].shape[0])(init), None
