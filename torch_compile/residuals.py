"""What the derivative of a layer keeps of it: the layer and its derivative traced once, as one graph, and cut in two.

    forwards:   new_carry, ys, kept = layer(carry, slices)
    backwards:  dcarry, dslices = derivative(kept, slices, dcarry, dys)

What the derivative reads of the layer is kept by the loop forwards, so that no layer runs twice. What is at hand anyway
is read again: slices of the stack, what the layer closes over, and what depends on neither the carry nor chance, as a
causal mask does. What costs less to make again than to keep, torch's own partitioner makes again.
Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_functorch/partitioners.py
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.fx.traceback import preserve_node_meta

from torch_compile.loops import Rule
from torch_compile.primitive import Arrays, owned, split, without_autocast
from torch_compile.private import (
    CheckpointPolicy,
    FunctionalTensorMode,
    HigherOrderOperator,
    HopJointGraph,
    disable_proxy_modes_tracing,
    dispatch_functionalize,
    first_slice_copy,
    functorch_config,
    materialize_as_graph,
    min_cut_rematerialization_partition,
    recompute_complex,
)
from torch_compile.trees import real

Graph = torch.fx.GraphModule


def plain(layer: Any, carry: Arrays, stacked: Arrays, closed: Any) -> Rule:
    """The rule without a derivative."""
    given = [*owned(carry), *map(first_slice_copy, stacked), *closed]
    graph = _functional(layer, given)
    constants = _constants(graph)

    def forward(carry: Arrays, slices: Arrays, closed: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        new_carry, ys = split(graph(*carry, *slices, *closed), len(carry))
        return new_carry, ys, []

    return Rule(forward, forward, _values(_outputs(graph)[len(carry) :]), [], [], [], constants)


def differentiated(layer: Any, carry: Arrays, stacked: Arrays, closed: Any, remat: int) -> Rule:
    """The rule that keeps what the derivative reads, or with `remat` the carry."""
    counts = len(carry), len(stacked)
    with disable_proxy_modes_tracing():
        # owned: as loops carry it, whatever the order of the first in memory
        given = [*owned(a.detach() for a in carry), *(first_slice_copy(a.detach()) for a in stacked), *closed]
        wanted = [a.is_floating_point() for a in carry] + [*map(is_wanted, (*stacked, *closed))]
        with torch.no_grad():
            like = layer(*given)
        seeds = [torch.zeros_like(a) for a in like if a.is_floating_point()]
        remat = remat or not seeds  # torch's partitioner takes no graph without cotangents
        joint = _joint(layer, given, wanted, seeds)
        forwards = _functional(layer, given) if remat else None
    if forwards is not None:
        backwards = _gradients(joint, len(like))
    else:
        forwards, backwards = _partitioned(joint, len(given), len(like), len(carry))
    # What the derivative reads, by name: inputs of the layer, and results of the layer beside its outputs.
    inputs, results = forwards.graph.find_nodes(op="placeholder"), _outputs(forwards)[len(like) :]
    names, more = [n.name for n in inputs], [n.name for n in results]
    read = names if remat else [n.name for n in backwards.graph.find_nodes(op="placeholder")][: len(results)]
    kept = names[: len(carry)] if remat else [name for name in read if name not in names[len(carry) :]]
    values = dict(zip([*names, *more], _values([*inputs, *results]), strict=True))
    forms = [_Form.of(values[name]) for name in kept]
    with disable_proxy_modes_tracing():
        like_kept = [form.store(values[name]) for form, name in zip(forms, kept, strict=True)]
    _, like_dslices, like_dclosed = (
        [a for a, is_one in zip(part, which, strict=True) if is_one]
        for part, which in zip(split(given, *counts), split(wanted, *counts), strict=True)
    )

    of_each = [_constants(graph) for graph in (forwards, backwards)]
    num_closed, num_constants = len(closed), len(of_each[0])

    def forward(carry: Arrays, slices: Arrays, read: Arrays) -> tuple[Arrays, Arrays, Arrays]:
        closed, constants, _ = split(read, num_closed, num_constants)
        arrays = [*carry, *slices, *closed]
        new_carry, ys, beside = split(forwards(*arrays, *constants), len(carry), len(like) - len(carry))
        values = dict(zip([*names, *more], [*arrays, *beside], strict=True))
        return new_carry, ys, [form.store(values[name]) for form, name in zip(forms, kept, strict=True)]

    def backward(kept_: Arrays, slices: Arrays, read_: Arrays, dcarry: Arrays, dys: Arrays) -> Any:
        closed, _, constants = split(read_, num_closed, num_constants)
        loaded = [form.load(a) for form, a in zip(forms, kept_, strict=True)]
        values = dict(zip([*names[len(carry) :], *kept], [*slices, *closed, *loaded], strict=True))
        grads = backwards(*(values[name] for name in read), *dcarry, *dys, *constants)
        return split(grads, len(dcarry), len(like_dslices))

    constants = [a for arrays in of_each for a in arrays]
    return Rule(forward, backward, like[len(carry) :], like_kept, like_dslices, like_dclosed, constants)


def as_read(layer: Any, closed: Any) -> tuple[Any, Arrays]:
    """The layer, and what it closes over as loops read it: complex arrays as pairs, and floats, which torch makes part
    of the program, not at all."""
    floats = {i: float(a) for i, a in enumerate(closed) if isinstance(a, (float, torch.SymFloat))}
    read = {i: a for i, a in enumerate(closed) if i not in floats}
    pairs = {i for i, a in read.items() if isinstance(a, torch.Tensor) and a.is_complex()}

    def of_pairs(*arrays: Any) -> Any:
        given, values = split(arrays, len(arrays) - len(read))
        found = {i: torch.view_as_complex(a) if i in pairs else a for i, a in zip(read, values, strict=True)} | floats
        return layer(*given, *(found[i] for i in range(len(closed))))

    return (of_pairs if pairs or floats else layer), [real(a) if i in pairs else a for i, a in read.items()]


def is_wanted(array: Any) -> bool:
    """Whether there is a derivative by it; what a layer closes over may be a size."""
    return isinstance(array, torch.Tensor) and array.is_floating_point() and array.requires_grad


class _Form(NamedTuple):
    """How an array is kept: as one piece of memory, complex numbers as pairs.

    The derivative was traced for an array in the order of its memory, and views it accordingly."""

    order: tuple[int, ...]  # of the axes in memory
    is_complex: bool

    @classmethod
    def of(cls, like: torch.Tensor) -> _Form:
        return cls(tuple(sorted(range(like.dim()), key=lambda axis: -like.stride()[axis])), like.is_complex())

    def store(self, array: torch.Tensor) -> torch.Tensor:
        return real(array.permute(self.order))

    def load(self, row: torch.Tensor) -> torch.Tensor:
        array = torch.view_as_complex(row) if self.is_complex else row
        return array.permute([self.order.index(axis) for axis in range(len(self.order))])


def _joint(layer: Any, given: Arrays, wanted: list[bool], seeds: Arrays) -> Graph:
    """The graph of `(*given, *cotangents) -> (*outputs, *gradients)`."""

    def run(*arrays: Any) -> Arrays:
        inputs, cotangents = split(arrays, len(given))
        leaves = [a.detach().requires_grad_() if w else a for a, w in zip(inputs, wanted, strict=True)]
        outputs = layer(*leaves)
        floats = [a for a in outputs if a.is_floating_point()]
        moved = [(a, d) for a, d in zip(floats, cotangents, strict=True) if a.requires_grad]
        wrt = [a for a, is_wanted in zip(leaves, wanted, strict=True) if is_wanted]
        grads: Any = [torch.zeros_like(a) for a in wrt]
        if moved and wrt:
            grads = torch.autograd.grad([a for a, _ in moved], wrt, [d for _, d in moved], materialize_grads=True)
        return [*(a.detach() for a in outputs), *grads]

    return _functional(run, [*given, *seeds])


def _functional(function: Any, arrays: Arrays) -> Graph:
    """Its graph, in which nothing is written in place and nothing returned is an argument."""
    run = dispatch_functionalize(lambda *arrays: owned(function(*arrays)), FunctionalTensorMode())
    # Not what a checkpoint around the stack says of its operations; nor is NaN looked for where there are no numbers.
    with preserve_node_meta(False), torch.autograd.set_detect_anomaly(False), without_autocast(arrays):
        return materialize_as_graph(run, tuple(arrays), force_enable_grad=True)


def _constants(graph: Graph) -> Arrays:
    """The arrays that are part of the graph, which become its last arguments: Inductor takes none in a loop's body."""
    nodes = [n for n in graph.graph.find_nodes(op="get_attr") if isinstance(getattr(graph, n.target), torch.Tensor)]
    for node in nodes:
        with graph.graph.inserting_after(graph.graph.find_nodes(op="placeholder")[-1]):
            argument = graph.graph.placeholder(node.name)
        argument.meta = node.meta
        node.replace_all_uses_with(argument)
        graph.graph.erase_node(node)
    graph.recompile()
    return [torch.ops.aten.lift_fresh_copy(getattr(graph, node.target)) for node in nodes]


def _partitioned(joint: Graph, num_inputs: int, num_outputs: int, num_carry: int) -> tuple[Graph, Graph]:
    """The layer, which also returns what its derivative reads, and the derivative."""
    recompute_complex(HopJointGraph(joint, num_inputs, num_outputs, functionalized=True))
    arguments = joint.graph.find_nodes(op="placeholder")
    moving = {*arguments[:num_carry], *arguments[num_inputs:]}
    for node in joint.graph.nodes:
        if node.op != "call_function":
            continue
        tags = getattr(node.target, "tags", ())
        is_fixed = torch.Tag.nondeterministic_seeded not in tags and not isinstance(node.target, HigherOrderOperator)
        if is_fixed and moving.isdisjoint(node.all_input_nodes):
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        else:
            moving.add(node)
    with functorch_config.patch(activation_memory_budget=1.0):  # what the user's is for is `remat` here
        return min_cut_rematerialization_partition(joint, None, num_fwd_outputs=num_outputs)


def _gradients(joint: Graph, num_outputs: int) -> Graph:
    """What of `joint` makes the gradients, from what was given to the layer."""
    graph = torch.fx.Graph()
    results: Any = graph.graph_copy(joint.graph, {})
    graph.output(results[num_outputs:])
    graph.eliminate_dead_code()
    return Graph(joint, graph)


def _outputs(graph: Graph) -> list[Any]:
    return list(graph.graph.output_node().args[0])  # type: ignore[arg-type]


def _values(nodes: list[Any]) -> list[Any]:
    return [node.meta.get("val") for node in nodes]
