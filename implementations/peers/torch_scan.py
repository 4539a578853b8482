"""PyTorch: its scan operator as it comes. https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_higher_order_ops/scan.py

Bridged: it takes no None, so one run of the layer says where those are; a layer without ys has an empty one.
"""

import torch
from torch._higher_order_ops.scan import scan
from torch.utils import _pytree as pytree

FRAMEWORK = "torch"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False, own=lambda a: a):
    slices, spec = pytree.tree_flatten((stacked_params,) if xs is None else (stacked_params, xs))
    arrays = [a for a in slices if a is not None]

    def run(carry, own_slices):
        rest = iter(own_slices)
        carry, y = layer(carry, *pytree.tree_unflatten([None if a is None else next(rest) for a in slices], spec))
        return pytree.tree_map(own, carry), y

    def body(carry, own_slices):
        carry, y = run(carry, own_slices)
        ys = [own(a) for a in pytree.tree_leaves(y) if a is not None]
        return carry, ys or [torch.empty(0)]

    like, form = pytree.tree_flatten(run(init, [a[0] for a in arrays])[1])
    carry, ys = scan(body, init, arrays, reverse=reverse)
    rest = iter(ys)
    return carry, pytree.tree_unflatten([None if a is None else next(rest) for a in like], form)
