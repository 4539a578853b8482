"""PyTorch: one compiled layer, called N times from Python, as `torch.compile` advises for repeated blocks.

https://docs.pytorch.org/tutorials/recipes/regional_compilation.html. Bridged: as `torch_module_list.py`.
"""

import torch

from implementations.peers import torch_module_list

FRAMEWORK = "torch"


def scan_layers(layer, stacked_params, init, xs=None, *, reverse=False):
    return torch_module_list.scan_layers(torch.compile(layer), stacked_params, init, xs, reverse=reverse)
