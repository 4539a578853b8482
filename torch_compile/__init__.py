"""The layer stack by the operator of `torch.while_loop`. The names and their order: `implementations/interface.py`."""

from torch_compile.alternatives import ALTERNATIVES, LAYER_FORMS
from torch_compile.autodiff import compile_gradient, gradient
from torch_compile.decoding import decode, empty_cache
from torch_compile.edges import as_leaf, cold, compile, from_numpy, set_back, settings, to_numpy, versions, wait
from torch_compile.graph import UNITS, compile_seconds, graph_size, program_count
from torch_compile.layers import LAYERS, init_layers
from torch_compile.modules import from_modules, scanned, stack_layers, to_modules, unstack_layers
from torch_compile.outside import AROUND, OPS, profile_names
from torch_compile.recipes import (
    cast_params,
    clip_layers,
    cycled,
    dropout,
    gated,
    layer_keys,
    layer_norms,
    locate_nonfinite,
    scan_cycle,
)
from torch_compile.stack import scan_apply_layers, scan_layers, unroll_apply_layers, unroll_layers
from torch_compile.training import train
from torch_compile.transforms import (
    hvp_layers,
    jvp_layers,
    vjp_layers,
    vmap_layers,
    vmap_vjp_layers,
)

__all__ = [
    # what users call
    "scan_apply_layers",
    "scan_layers",
    "unroll_apply_layers",
    "unroll_layers",
    "vjp_layers",
    "jvp_layers",
    "vmap_layers",
    "hvp_layers",
    "vmap_vjp_layers",
    "gradient",
    "compile_gradient",
    "gated",
    "layer_keys",
    "dropout",
    "cast_params",
    "locate_nonfinite",
    "cycled",
    "scan_cycle",
    "layer_norms",
    "clip_layers",
    "stack_layers",
    "unstack_layers",
    "from_modules",
    "to_modules",
    "scanned",
    "empty_cache",
    "decode",
    "train",
    "LAYERS",
    "init_layers",
    # what the comparison asks for
    "ALTERNATIVES",
    "LAYER_FORMS",
    "OPS",
    "AROUND",
    "profile_names",
    "UNITS",
    "graph_size",
    "compile_seconds",
    "program_count",
    "compile",
    "set_back",
    "cold",
    "from_numpy",
    "to_numpy",
    "as_leaf",
    "wait",
    "versions",
    "settings",
]
