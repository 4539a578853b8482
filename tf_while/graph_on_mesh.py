"""What runs on a mesh, and what its program consists of.

Source: https://www.tensorflow.org/api_docs/python/tf/Graph#as_graph_def
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from tf_while.autodiff import Apply


def run_on_mesh(apply: Apply, *args: Any) -> tuple[Any, dict[str, Any]]:
    """`apply(*args)`, a function `on_mesh`, and the counts of its program: "operations" as captured; "collectives" of
    each kind in the bodies of loops, and "outside" of them; "param_bytes", of args[0] on one device, and "temp_bytes",
    of the lists that loops fill there, less those that become the gradient of args[0], or None where a loop is within a
    loop. "sent_bytes" are not known: a graph does not say the shapes in its functions."""
    program, _ = apply.traced(*args)  # type: ignore[attr-defined]
    graph = program.graph.as_graph_def()
    functions = {function.signature.name: function.node_def for function in graph.library.function}
    bodies = set(_called(graph.node, functions, in_loop=False))
    collectives: Counter[str] = Counter()
    for name, nodes in {"": graph.node, **functions}.items():
        collectives.update(_KINDS[n.op] if name in bodies else "outside" for n in nodes if n.op in _KINDS)
    params = sum(_bytes(a.parts[0].shape, a.dtype) for a in tf.nest.flatten(args[0]))
    lists = sum(_list_bytes(op) for op in program.graph.get_operations() if op.type == "TensorListReserve")
    return apply(*args), {
        "operations": len(graph.node) + sum(map(len, functions.values())),
        "collectives": dict(collectives),
        "temp_bytes": lists - params if lists > params else None,
        "param_bytes": params,
    }


# An exchange and a sum stand for a reduce-scatter, which a CPU has not.
_KINDS = {
    "CollectiveReduceV2": "all-reduce",
    "CollectiveGatherV2": "all-gather",
    "CollectiveAllToAllV2": "reduce-scatter",
}


def _called(nodes: Any, functions: dict[str, Any], in_loop: bool) -> Iterator[str]:
    """The functions that `nodes` call in the bodies of loops."""
    for node in nodes:
        for attr in node.attr.values():
            for name in [attr.func.name, *(func.name for func in attr.list.func)]:
                if name in functions:
                    is_body = in_loop or node.op in ("While", "StatelessWhile")
                    yield from [name] if is_body else []
                    yield from _called(functions[name], functions, is_body)


def _list_bytes(reserve: tf.Operation) -> int:
    shape, count = map(tf.get_static_value, reserve.inputs)
    return int(count) * _bytes(shape, reserve.get_attr("element_dtype"))


def _bytes(shape: Any, dtype: tf.DType) -> int:
    return math.prod(int(size) for size in shape) * dtype.size
