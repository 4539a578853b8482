"""PyTorch: a Python loop over the layers, as over an `nn.ModuleList`; the compiler unrolls it.

Bridged: a layer's params are a slice of the stack; the ys are stacked.
"""

import torch
from torch.utils import _pytree as pytree

FRAMEWORK = "torch"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False):
    stacked = (stacked_params,) if xs is None else (stacked_params, xs)
    N = next(a for a in pytree.tree_leaves(stacked) if a is not None).shape[0]
    carry, ys = init, [None] * N
    for i in reversed(range(N)) if reverse else range(N):
        carry, ys[i] = layer(carry, *pytree.tree_map(lambda a, i=i: None if a is None else a[i], stacked))
    if not N:
        return carry, None
    return carry, pytree.tree_map(lambda *parts: None if parts[0] is None else torch.stack(parts), *ys)
