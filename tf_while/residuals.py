"""What the derivative of a layer keeps of it: the layer traced once, its gradient traced once, and their border.

    forwards:   new_carry, ys, kept = layer(carry, slices)
    backwards:  dcarry, dslices = gradient(kept, slices, dcarry, dys)

What the gradient's graph captures of the layer's graph is kept by the loop forwards, so that no layer runs twice. What
is at hand anyway is read again instead: slices of the stack, what the layer closes over, a cast or another view of
either, and what depends on neither carry nor slices, as a causal mask does. Under XLA what is made element by element
of what is at hand, or kept, is not kept, and where one array more is needed for it, that one is kept in its place.
Source: https://www.tensorflow.org/api_docs/python/tf/graph_util/import_graph_def
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import tensorflow as tf

from tf_while.checks import Traced
from tf_while.edges import compiled_by_xla, operations
from tf_while.loops import Rule
from tf_while.trees import Arrays, FlatLayer, filled, floats, pulled, split


def recomputing(layer: FlatLayer, init: Arrays, traced: Traced) -> Rule:
    """The rule that keeps the carry, and runs the layer again."""

    def forward(carry: Arrays, slices: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        return (*layer(carry, slices), carry)

    def backward(carry: Arrays, slices: Arrays, dcarry: Arrays, dys: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        carry, slices = [*map(tf.identity, carry)], [*map(tf.identity, slices)]
        outputs = [a for part in layer(carry, slices) for a in floats(part)]
        wrt = [*floats(carry), *floats(slices), *captured(traced)]
        # tf.gradients, not a tape: a tape in here would stop forward mode from passing through
        grads = pulled(outputs, wrt, [*dcarry, *dys], stop_gradients=[*carry, *slices])
        dcarry_, dslices, dclosed = split(grads, len(dcarry), len(floats(slices)))
        return filled(dcarry_, dcarry), filled(dslices, floats(slices)), dclosed

    return Rule(forward, backward, traced.like_ys, init, runs_again=True)


def captured(traced: Traced) -> Arrays:
    """What stands for the arrays that the layer closes over in the graph that is being built."""
    graph = tf.compat.v1.get_default_graph()
    return [graph.capture(a) for a, _ in traced.closed_over]


# Operations that cost nothing; those that cost little where their array is at hand; and those that cost nothing under
# XLA, which makes them where they are read.
RESHAPES = ("Identity", "Reshape", "ExpandDims", "Squeeze", "StopGradient", "PreventGradient")
PARTS = ("StridedSlice", "Split", "SplitV")
VIEWS = (*RESHAPES, *PARTS, "IdentityN", "Cast", "Bitcast", "Transpose", "Shape", "ShapeN", "Size", "Rank")
ARITHMETIC = ("Mul", "AddV2", "Sub", "Neg", "RealDiv", "Square", "Maximum", "Minimum", "SelectV2", "BroadcastTo")
FUSED = (*ARITHMETIC, "Relu", "Tanh", "Sigmoid", "Exp", "Erf", "Erfc")
# Costs, but kept of all layers it would be the whole stack on each device.
GATHER = "CollectiveGatherV2"
CALLS = ("PartitionedCall", "StatefulPartitionedCall")
BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile")


def keeping(traced: Traced, num_slices: int, num_carry: int) -> Rule | None:
    """The rule that keeps what the gradient of a layer reads; None where there is none, or a loop cannot keep it.

    Of all calls of a tf.py_function TensorFlow itself keeps the last, by name."""
    layer = traced.graph
    carry, slices, _ = split(layer.inputs, num_carry, num_slices)
    new_carry, ys = split(tf.nest.flatten(layer.structured_outputs), num_carry)
    places = {id(outer): inner for outer, inner in layer.captures}
    closed = [places[id(capture)] for capture, _ in traced.closed_over]
    outputs, wrt = floats([*new_carry, *ys]), [*floats(carry), *floats(slices), *closed]
    gradient = None if any(node.op == "EagerPyFunc" for node in operations(layer)) else _gradient(layer, outputs, wrt)
    if gradient is None:
        return None

    # The two graphs are cut into three parts: `back` is the gradient, from cotangents and from arrays of the layer,
    # `crossing`; `again` has these from what is kept and what is at hand; `whole` is the layer, with what is kept.
    grads = gradient.structured_outputs
    back = _part(gradient, [g for g in grads if g is not None], gradient.inputs, gradient.control_outputs)
    reached = [(outer, inner) for outer, inner in gradient.captures if inner.name in back.reads]
    crosses = [(outer, inner) for outer, inner in reached if _is_of(layer, outer)]
    beyond = [(inner, outer) for outer, inner in reached if not _is_of(layer, outer)]
    crossing, reads = [outer for outer, _ in crosses], _reads(traced, places)
    kept = _kept(layer, carry, slices, crossing, reads)
    again = _part(layer, crossing, [*layer.inputs, *kept, *(read for read, _ in reads)], controls=False)
    kept += [a for a in carry if a.name in again.reads]
    whole = _part(layer, [*new_carry, *ys, *kept], layer.inputs, layer.control_outputs)
    if any(a.dtype == tf.resource or (a.dtype == tf.variant and compiled_by_xla()) for a in kept):
        return None  # the lists of a loop within the layer: XLA has no list of lists
    if traced.state is None and any(a.op.type in CALLS for a in kept):
        return None  # a function hands over whatever its gradient reads, parameters and sizes too
    closed_over, copies = [(inner, value) for value, inner in layer.captures], itertools.count()

    def forward(carry_: Arrays, slices_: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        here = zip([*carry, *slices], [*carry_, *slices_], strict=True)
        found = _inlined(_drawing_apart(whole, next(copies)), _values(whole, here, closed_over))
        new_carry_, ys_, kept_ = split(found, num_carry, len(ys))
        return new_carry_, ys_, kept_

    def backward(kept_: Arrays, slices_: Arrays, dcarry: Arrays, dys: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        here = zip([*slices, *kept], [*slices_, *kept_], strict=True)
        crossed = _inlined(again, _values(again, here, [*closed_over, *reads]))
        there = zip(
            [*gradient.inputs[: len(outputs)], *(inner for _, inner in crosses)], [*dcarry, *dys, *crossed], strict=True
        )
        found = iter(_inlined(back, _values(back, there, beyond)))
        full = [None if grad is None else next(found) for grad in grads]
        dcarry_, dslices, dclosed = split(full, len(dcarry), len(floats(slices)))
        return filled(dcarry_, dcarry), filled(dslices, floats(slices_)), dclosed

    like_kept = [tf.TensorSpec(a.shape, a.dtype) for a in kept]
    return Rule(forward, backward, traced.like_ys, like_kept, runs_again=False)


def _gradient(layer: tf.Graph, outputs: Arrays, wrt: Arrays) -> tf.Graph | None:
    """The graph of the gradients of `outputs` by `wrt`, from cotangents, within the graph of the layer."""

    def pull(*cotangents: tf.Tensor) -> list[Any]:
        grads = pulled(outputs, wrt, [*cotangents])
        return [None if grad is None else tf.convert_to_tensor(grad) for grad in grads]

    try:
        with layer.as_default():
            seeds = [tf.TensorSpec(a.shape, a.dtype) for a in outputs]
            return tf.function(pull, autograph=False).get_concrete_function(*seeds).graph
    except Exception:  # the layer has no gradient: who asks for it hears why, and nobody else
        return None


def _is_of(graph: tf.Graph, a: Any) -> bool:
    return tf.is_symbolic_tensor(a) and a.graph is graph


class Part(NamedTuple):
    """Some operations of a graph, to be built anew in others."""

    operations: tf.compat.v1.GraphDef
    fetches: Arrays
    reads: set[str]  # the names of the arrays at which it begins


def _part(graph: tf.Graph, fetches: Arrays, begin: Arrays, roots: Iterable[Any] = (), controls: bool = True) -> Part:
    """What computes `fetches` from `begin`, and `roots`, operations that are to run in any case."""
    begins, reads, names = {a.name for a in begin}, {a.name for a in fetches}, set()
    todo = [*roots, *(a.op for a in fetches if a.name not in begins)]
    while todo:
        operation = todo.pop()
        if operation.name not in names:
            names.add(operation.name)
            reads |= {a.name for a in operation.inputs}
            todo += [a.op for a in operation.inputs if a.name not in begins]
            todo += [op for op in operation.control_inputs if controls and op.type != "Placeholder"]
    whole = graph.as_graph_def()
    nodes = [node for node in whole.node if node.name in names]
    for node in nodes:
        node.input[:] = [name for name in node.input if name[0] != "^" or name[1:] in names]
        node.attr.pop("_class", None)  # a wish to share the device of an operation that may not come along
    calls = any(attr.HasField("func") or attr.list.func for node in nodes for attr in node.attr.values())
    library = whole.library if calls else None
    return Part(tf.compat.v1.GraphDef(node=nodes, versions=whole.versions, library=library), fetches, reads & begins)


def _values(part: Part, here: Iterable[tuple[Any, Any]], around: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """What stands for the arrays at which `part` begins: arrays of the graph that is being built, and from around."""
    graph = tf.compat.v1.get_default_graph()
    values = {a.name: value for a, value in here if a.name in part.reads}
    return values | {a.name: graph.capture(value) for a, value in around if a.name in part.reads}


def _inlined(part: Part, values: dict[str, Any]) -> Arrays:
    """The fetches of `part`, computed in the graph that is being built."""
    used = {name if ":" in name else f"{name}:0" for node in part.operations.node for name in node.input}
    inputs = {name: value for name, value in values.items() if name in used}
    names = [a.name for a in part.fetches if a.name not in values]
    found = iter(
        tf.graph_util.import_graph_def(part.operations, inputs, names, name="layer") if part.operations.node else ()
    )
    results = [values[a.name] if a.name in values else next(found) for a in part.fetches]
    for result, a in zip(results, part.fetches, strict=True):
        result.set_shape(a.shape)
    return results


def _drawing_apart(part: Part, copy: int) -> Part:
    """`part` with seeds of its own, where there are seeds: the layers of a body are not to draw the same numbers."""
    operations = tf.compat.v1.GraphDef()
    operations.CopyFrom(part.operations)
    for node in operations.node:
        if "seed2" in node.attr and (node.attr["seed"].i or node.attr["seed2"].i):
            node.attr["seed2"].i += copy << 20
    return part._replace(operations=operations)


def _reads(traced: Traced, places: dict[int, Any]) -> list[tuple[Any, Any]]:
    """(read, value) of variables that the layer closes over and does not write: the value is known from outside."""
    only_read, reads = {"ReadVariableOp", "ResourceGather", "VariableShape"}, []
    for capture, value in traced.closed_over:
        place = places[id(capture)]
        if place.dtype == tf.resource and (traced.state is None or {op.type for op in place.consumers()} <= only_read):
            reads += [(op.outputs[0], value) for op in place.consumers() if op.type == "ReadVariableOp"]
    return reads


def _kept(layer: tf.Graph, carry: Arrays, slices: Arrays, crossing: Arrays, reads: list[tuple[Any, Any]]) -> Arrays:
    """What has to be kept so that the arrays in `crossing` can be had again, without the carry itself."""
    moving, at_hand = {a.op.name for a in (*carry, *slices)}, {a.op.name for a, _ in reads}
    crosses, fused = {a.name for a in crossing}, FUSED if compiled_by_xla() else ()
    cheap, only_for_this = (*VIEWS, GATHER, *fused), {a.name for a in carry} - crosses
    for op in layer.get_operations():
        inputs = {a.op.name for a in op.inputs}
        fixed = not (op.op_def.is_stateful or op.type in BRANCHES or inputs & moving)
        if not fixed and op.name not in at_hand:
            moving.add(op.name)
        if fixed or (op.type in cheap and all(a.op.name in at_hand or a.name in crosses for a in op.inputs)):
            at_hand.add(op.name)

    def beneath(a: tf.Tensor) -> tf.Tensor | None:
        """The one array that `a` is made of: no larger than `a`, and maybe that of others too. None if the carry would
        have to be kept with it."""
        others = {x.name: x for x in a.op.inputs if x.op.name not in at_hand or x.name in only_for_this}
        is_made = a.op.type in (*RESHAPES, *fused) and len(others) == 1
        return others.popitem()[1] if is_made else None

    kept = {}
    for a in crossing:
        if a.op.name not in at_hand:
            while (below := beneath(a)) is not None:
                a = below
            kept[a.name] = a
    return [*kept.values()]
