"""The layer stack by `tf.while_loop`. The names and their order: `implementations/interface.py`."""

from tf_while.alternatives import ALTERNATIVES
from tf_while.edges import compile, from_numpy, settings, to_numpy, versions, wait
from tf_while.graph import UNITS, compile_seconds, graph_size, program_count
from tf_while.layers import LAYERS
from tf_while.stack import scan_apply_layers, unroll_apply_layers
from tf_while.transforms import compile_gradient, gradient

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
