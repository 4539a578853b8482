"""The canonical layer stack: `jax.lax.scan`. The names and their order: `implementations/interface.py`."""

from jax_scan.alternatives import ALTERNATIVES
from jax_scan.edges import compile, from_numpy, settings, to_numpy, versions, wait
from jax_scan.graph import UNITS, compile_seconds, graph_size, program_count
from jax_scan.layers import LAYERS
from jax_scan.stack import scan_apply_layers, unroll_apply_layers
from jax_scan.transforms import compile_gradient, gradient

__all__ = [
    "scan_apply_layers",
    "unroll_apply_layers",
    "gradient",
    "compile_gradient",
    "LAYERS",
    "ALTERNATIVES",
    "UNITS",
    "graph_size",
    "compile_seconds",
    "program_count",
    "compile",
    "from_numpy",
    "to_numpy",
    "wait",
    "versions",
    "settings",
]
