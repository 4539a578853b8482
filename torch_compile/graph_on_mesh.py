"""What runs on a mesh, and what its programs consist of.

Source: https://docs.pytorch.org/docs/2.13/torch.compiler_faq.html
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch

from torch_compile import edges, programs
from torch_compile.autodiff import Apply
from torch_compile.graph import nodes_of
from torch_compile.private import aot_autograd, dynamo, pytree, while_loop_op


def run_on_mesh(apply: Apply, *args: Any) -> tuple[Any, dict[str, Any]]:
    """`apply(*args)`, a function `on_mesh`, and the counts of its programs: "operations" as lowered; "collectives" of
    each kind in the bodies of loops, and "outside" of them; "sent_bytes", of the whole arrays that those in loops are
    about; "param_bytes", of args[0] on this device, and "temp_bytes", of what loops return there, less those of the
    gradient of args[0]."""
    graphs: list[torch.fx.GraphModule] = []

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    programs._programs.clear()
    dynamo.reset()
    with patch.object(edges, "BACKEND", aot_autograd(fw_compiler=record)):
        results = apply(*args)
    if edges.BACKEND != "aot_eager":  # which is how what is recorded runs
        results = apply(*args)
    collectives, sent = Counter[str](), 0
    for name, body in (named for graph in graphs for named in graph.named_modules()):
        nodes = body.graph.nodes if isinstance(body, torch.fx.GraphModule) else ()
        for node in (node for node in nodes if str(node.target).startswith("torch_compile.")):
            kind = str(node.target).split(".")[1]
            collectives[_KINDS[kind] if name else "outside"] += 1
            array = node.meta["val"] if kind == "gather" else node.args[0].meta["val"]
            sent += array.nbytes if name else 0
    params = sum(a.to_local().nbytes for a in pytree.tree_leaves(args[0]))
    # not by the profiler, which would count what is copied where nothing compiles
    loops = [node for graph in graphs for node in graph.graph.nodes if node.target is while_loop_op]
    rows = sum(_nbytes(a) for node in loops for a in pytree.tree_leaves(node.meta["val"]))
    return results, {
        "operations": sum(map(nodes_of, graphs)),
        "collectives": dict(collectives),
        "sent_bytes": sent,
        "temp_bytes": rows - params,
        "param_bytes": params,
    }


def _nbytes(array: Any) -> int:
    """Also where the number of layers is open: as it was when the program was traced."""
    if not isinstance(array, torch.Tensor):
        return 0
    return array.itemsize * math.prod(s if isinstance(s, int) else s.node.hint for s in array.shape)


_KINDS = {"add": "all-reduce", "gather": "all-gather", "scatter": "reduce-scatter"}
