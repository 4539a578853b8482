"""The layer stack by torch's scan operator. The names and their order: `implementations/interface.py`."""

from torch_compile.alternatives import ALTERNATIVES
from torch_compile.edges import compile, from_numpy, settings, to_numpy, versions, wait
from torch_compile.graph import UNITS, compile_seconds, graph_size, program_count
from torch_compile.layers import LAYERS
from torch_compile.stack import scan_apply_layers, unroll_apply_layers
from torch_compile.transforms import compile_gradient, gradient

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
