"""The canonical layer stack: `jax.lax.scan`. The names and their order: `implementations/interface.py`."""

from jax_scan.alternatives import ALTERNATIVES, LAYER_FORMS
from jax_scan.autodiff import compile_gradient, gradient
from jax_scan.decoding import decode, empty_cache
from jax_scan.edges import as_leaf, cold, compile, from_numpy, set_back, settings, to_numpy, versions, wait
from jax_scan.graph import UNITS, compile_seconds, graph_size, program_count
from jax_scan.layers import LAYERS, init_layers
from jax_scan.modules import from_modules, scanned, stack_layers, to_modules, unstack_layers
from jax_scan.outside import AROUND, OPS, profile_names
from jax_scan.recipes import (
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
from jax_scan.stack import scan_apply_layers, scan_layers, unroll_apply_layers, unroll_layers
from jax_scan.training import train
from jax_scan.transforms import (
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
