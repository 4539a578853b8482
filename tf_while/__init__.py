"""The layer stack by `tf.while_loop`. The names and their order: `implementations/interface.py`."""

from tf_while.alternatives import ALTERNATIVES, LAYER_FORMS
from tf_while.autodiff import compile_gradient, gradient
from tf_while.decoding import decode, empty_cache
from tf_while.edges import as_leaf, cold, compile, from_numpy, set_back, settings, to_numpy, versions, wait
from tf_while.graph import UNITS, compile_seconds, graph_size, program_count
from tf_while.layers import LAYERS, init_layers
from tf_while.modules import from_modules, scanned, stack_layers, to_modules, unstack_layers
from tf_while.outside import AROUND, OPS, profile_names
from tf_while.recipes import (
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
from tf_while.stack import scan_apply_layers, scan_layers, unroll_apply_layers, unroll_layers
from tf_while.training import train
from tf_while.transforms import (
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
