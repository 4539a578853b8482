"""PyTorch: `nested_compile_region`, which compiles a repeated block once within a program.

https://docs.pytorch.org/docs/2.13/generated/torch.compiler.nested_compile_region.html

Bridged: as `torch_module_list.py`.
"""

import torch

from implementations.peers import torch_module_list

FRAMEWORK = "torch"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False):
    region = torch.compiler.nested_compile_region(layer)
    return torch_module_list.scan_layers(region, stacked_params, init, xs, reverse=reverse)
