"""The operator of `torch.while_loop` made safe: each mend stands here once, with its reason. JAX needs none of them.

    for t in range(count):
        carry = body(carry, t)          # reads stacks at any index, and writes its results into rows at any index

A whole stack of layers is one operator of our own in a captured program, `layers`: so that what is made of it, loops
and derivative, is Python which runs while the program is lowered (`autodiff.py`). Trees are flat lists here.
Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_higher_order_ops/while_loop.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.autograd.function import once_differentiable

from torch_compile.private import (
    BaseView,
    CachedMode,
    CachingMode,
    DispatchKey,
    ExternKernel,
    FakeTensorMode,
    FunctionalTensorMode,
    HigherOrderOperator,
    InplaceCopyFallback,
    IRNode,
    LazyVariableTracker,
    ModeKey,
    MutableBox,
    ProxyTorchDispatchMode,
    PythonFunctionalizeAPI,
    Subgraph,
    TorchHigherOrderOperatorVariable,
    TracingContext,
    below_autograd,
    call_and_unflatten,
    cond_op,
    copy_op,
    discard_graph_changes,
    dynamo,
    first_slice_copy,
    functorch_config,
    get_dispatch_mode,
    inductor,
    inlined,
    lowerings,
    make_attr,
    memory_of,
    pop_mode,
    redirect_to_mode,
    speculate_subgraph,
    unpack_iterable,
    variables_of_operators,
    while_loop_op,
)

Arrays = list[torch.Tensor]
Step = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (carry, slices) -> (new_carry, y)
Body = Callable[..., Arrays]  # (number: int, carry, rows, read) -> carry


class Seen(NamedTuple):
    """What one run of a layer has shown of it."""

    y_floats: tuple[bool, ...] = ()  # for each y, whether it has a derivative
    draws: str = ""  # an operation that draws random numbers
    writes: str = ""  # one that writes into an array which the layer has not made
    reads: str = ""  # the dtype of a complex array that it closes over
    raises: str = ""  # an operation that raises where its result is no good
    wrong_twice: str = ""  # one whose forward mode has a wrong derivative
    has_checkpoint: bool = False  # a reentrant torch.utils.checkpoint
    no_jvp: str = ""  # a derivative of the user's own without a rule for forward mode
    closed_over: tuple[torch.Tensor, ...] = ()  # arrays by which there may be a derivative


def loop(
    body: Body, first: Any, count: int, unroll: int, carry: Arrays, rows: Any, read: Any, down: bool = False
) -> tuple[Arrays, Any]:
    """`carry = body(p, carry, rows, read)` for `count` numbers p from `first` on, or down, `unroll` of them a step.

    The body writes its results into rows, which are lists of arrays, and reads the lists of arrays in `read`, and
    nothing else from outside."""
    unroll = min(unroll, count)
    way, whole, left_over = -1 if down else 1, count // unroll, count % unroll

    def times(first: Any, steps: int, size: int, carry: Arrays, rows: Any) -> tuple[Arrays, Any]:
        def several(p: int, carry: Arrays, rows: Any, read: Any) -> Arrays:
            for j in range(size):  # the layers that `unroll` asks for in one body
                carry = body(p + way * j if j else p, carry, rows, read)
            return carry

        return while_loop(several, first, steps, way * size, carry, rows, read)

    carry, rows = times(first, whole, unroll, carry, rows)
    return times(first + way * whole * unroll, left_over, 1, carry, rows) if left_over else (carry, rows)


def while_loop(body: Body, first: Any, steps: int, by: int, carry: Arrays, rows: Any, read: Any) -> tuple[Arrays, Any]:
    """The operator: carry = body(p, carry, rows, read) for p = first, first + by, ...: so many steps.

    The rows are carried too, to be written in place. Numbers that may be open in the program are arrays: a body must
    not close over them."""
    num_rows, num_read = [len(part) for part in rows], [len(part) for part in read]
    place_of_end = len(carry) + sum(num_rows)

    def goes_on(number: torch.Tensor, *given: Any) -> Any:
        return number.item() != given[place_of_end].item()

    def flat(number: torch.Tensor, *given: Any) -> tuple[Any, ...]:
        carry_, rows_, _, read_ = split(given, len(carry), sum(num_rows), 1)
        new_carry = body(number.item(), carry_, split(rows_, *num_rows[:-1]), split(read_, *num_read[:-1]))
        return number + by, *owned(new_carry), *rows_

    number, end = (torch.scalar_tensor(i, dtype=torch.int64) for i in (first, first + steps * by))
    values = (number, *owned(carry), *joined(rows)), (end, *joined(read))
    functional = get_dispatch_mode(ModeKey.FUNCTIONAL)
    with below_autograd(), without_autocast([*carry, *joined(read), number]):
        if functional is None:
            _, *out = while_loop_op(goes_on, flat, *values)
        else:  # which would take the writing for a mistake
            api = PythonFunctionalizeAPI(functional)
            with pop_mode(ModeKey.FUNCTIONAL):  # type: ignore[arg-type]
                out = while_loop_op(goes_on, flat, *api.unwrap_tensors(values))  # type: ignore[arg-type]
            _, *out = api.wrap_tensors(out)
    return out[: len(carry)], split(out[len(carry) :], *num_rows[:-1])


def without_autocast(arrays: Arrays) -> Any:
    """No autocast in here: what the one around a stack does is in each layer already (checks.py)."""
    device = arrays[0].device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def joined(lists: Any) -> list[Any]:
    return [a for part in lists for a in part]


def split(arrays: Any, *counts: int) -> list[list[Any]]:
    """Consecutive lists of `counts` arrays, and the rest."""
    lists, start = [], 0
    for count in counts:
        lists.append(list(arrays[start : start + count]))
        start += count
    return [*lists, list(arrays[start:])]


def owned(arrays: Any) -> Arrays:
    """Copies in memory and order of their own: the operator refuses outputs that alias inputs, and other strides."""
    return [a.clone(memory_format=torch.contiguous_format) for a in arrays]


def rows_for(like: Arrays, count: int) -> Arrays:
    """For each of `like`, room for so many arrays of its shape and dtype."""
    # empty: the one way to make memory that AOTAutograd neither shares among equal calls nor keeps
    return [torch.empty((count, *a.shape), dtype=a.dtype, device=a.device) for a in like]


def at(arrays: Arrays, i: int) -> Arrays:
    """Each array at i; all have as many rows as the first."""
    for a in arrays[:1]:
        torch._check(i >= 0)
        torch._check(i < a.shape[0])
    return [a.select(0, i) for a in arrays]


def write(rows: Arrays, i: int, arrays: Arrays) -> None:
    """Each array into its row i, in place."""
    for row, a in zip(at(rows, i), arrays, strict=True):
        row.copy_(a)


def written_within(rows: Any) -> Any:
    """The same rows, for a loop in the body of a loop: Inductor sees nothing of what is written there, and would give
    their memory to other arrays. It sees that a part without elements is; and it takes them in the order in which they
    are first written, so this comes before all else."""
    for row in joined(rows):
        row[:0].zero_()
    return rows


class _Layers(HigherOrderOperator):
    """`layers(body, carry, stacked, closed_over, *options)`: (carry, ys) as one list."""

    def __init__(self) -> None:
        super().__init__("layers")

    def __call__(self, body: Callable[..., Any], carry: Any, stacked: Any, closed_over: Any, *options: Any) -> Any:
        return super().__call__(body, tuple(carry), tuple(stacked), tuple(closed_over), *options)


layers = _Layers()


def lowered_by(above: Callable[..., Any], below: Callable[..., Any]) -> None:
    """Let these make loops of `layers` where a program is lowered, with its derivative and without."""
    layers.py_impl(DispatchKey.Autograd)(above)
    layers.py_impl(DispatchKey.CompositeExplicitAutograd)(below)
    for kind in (FunctionalTensorMode, ProxyTorchDispatchMode, FakeTensorMode):

        def within(mode: Any, *args: Any) -> Any:
            with mode:
                return below(*args)

        layers.py_impl(kind)(within)
    for around in (CachingMode, CachedMode):  # torch.utils.checkpoint around a stack
        redirect_to_mode(layers, around)
        redirect_to_mode(while_loop_op, around)


class Shapes(torch.autograd.Function):
    """(carry, stacked, closed) -> (carry, ys) as far as shapes go, by one layer. It says that all results depend on all
    arrays and that all gradients are new: of one layer torch would see what may be otherwise of N, and go by it."""

    @staticmethod
    def forward(ctx, layer, counts, *arrays):
        carry, stacked, closed = split(arrays, *counts)
        new_carry, y = split(layer(*owned(carry), *map(first_slice_copy, stacked), *closed), len(carry))
        results = [*owned(new_carry), *(a.expand(stacked[0].shape[0], *a.shape).clone() for a in y)]
        ctx.given = arrays
        ctx.mark_non_differentiable(*(a for a in results if not a.is_floating_point()))
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx, *cotangents):
        return None, None, *(torch.zeros(a.shape, dtype=a.dtype, device=a.device) for a in ctx.given)


class _Variable(TorchHigherOrderOperatorVariable):
    """How Dynamo captures `layers`: the layer as a graph of its own, with what it closes over as inputs."""

    _HOP_NAME = "layers"
    _ALLOW_FALLBACK_TO_EAGER = False

    def _call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        body, carry, stacked, _, *options = LazyVariableTracker.realize_all((args, kwargs))[0]
        carry, stacked = (unpack_iterable(tx, part) for part in (carry, stacked))
        with discard_graph_changes(tx):
            first = [a.call_method(tx, "clone", args=[], kwargs={}) for a in carry]
            first += [inlined(tx, first_slice_copy)(a) for a in stacked]
        (_, spec), graph, closed_over = speculate_subgraph(
            tx,
            body,
            first,
            sub_kwargs={},
            description="layers",
            source_target=self.value,
            set_subgraph_inputs="flatten_manual",
            should_flatten_outputs=True,
        )
        name = tx.output.install_subgraph("layer", torch.fx.GraphModule(dict(tx.output.nn_modules), graph))
        proxies = [[a.as_proxy() for a in part] for part in (carry, stacked)]
        # an int of the user's may be open in the program: here its value counts
        values = [o.as_python_constant() if o.is_python_constant() else o.evaluate_expr() for o in options]
        given = make_attr(tx, name), *proxies, list(closed_over), *values
        return call_and_unflatten(tx, layers, given, {}, None, spec, None)


variables_of_operators["layers"] = _Variable


def let_inductor_count() -> None:
    """Let the counter of a loop, an array, be read as a number in the one program that is being traced.

    torch allows that under fullgraph=True alone; elsewhere every program with a stack would stop at a
    DataDependentOutputException. The setting that would allow it for the whole process,
    torch._dynamo.config.capture_scalar_outputs, also changes where a user's own code breaks graphs."""
    donate_nothing()
    lowerings.update(mended)
    rules_of_loop[FakeTensorMode] = _without_values
    context = TracingContext.try_get()
    shapes = context.fake_mode.shape_env if context and context.fake_mode else None
    if shapes is not None:
        shapes.settings = dataclasses.replace(shapes.settings, allow_scalar_outputs=True)


def _mended(lowered: Callable[..., Any]) -> Callable[..., Any]:
    """A loop, or a branch in a layer, as Inductor lowers it, whose results may lie anywhere in memory: it asserts that
    they lie at multiples of 16 bytes, and a carry that is also part of a concatenation does not."""

    def lower(*args: Any, **options: Any) -> Any:
        for part in args:
            if isinstance(part, Subgraph):
                _set_apart(part.graph_module)
        with patch.dict(lowerings, {copy_op: _copied}):
            results = lowered(*args, **options)
        arrays = [a for a in results if isinstance(a, IRNode) and a.get_device_or_error().type == "cpu"]
        inductor.graph.unaligned_buffers.update(a.get_name() for a in arrays)
        return results

    return lower


def _set_apart(body: torch.fx.GraphModule) -> None:
    """Let no two of its results be one array, as equal carries become: the C++ of Inductor hands each over once, and
    reads the second from nowhere, which ends the process."""
    output, memories = body.graph.output_node(), set()
    if isinstance(output.args[0], torch.fx.Node):  # a condition
        return
    results = list(output.args[0])  # type: ignore[arg-type]
    for place, result in enumerate(results):
        array = result.meta.get("val") if isinstance(result, torch.fx.Node) else None
        if isinstance(array, torch.Tensor) and memory_of(array) in memories:
            array = array.clone()
            with body.graph.inserting_before(output):
                results[place] = body.graph.call_function(torch.ops.aten.clone.default, (result,))
            results[place].meta["val"] = array
        if isinstance(array, torch.Tensor):
            memories.add(memory_of(array))
    output.args = (tuple(results),)
    body.recompile()


def _copied(into: Any, array: Any, non_blocking: bool = False) -> Any:
    """What no kernel of Inductor makes, a product, is copied into its row without one: to build one takes a second."""
    made = array
    while isinstance(made, (MutableBox, BaseView)):
        made = made.data
    if not isinstance(made, ExternKernel):
        return as_inductor_has_them[copy_op](into, array, non_blocking)
    InplaceCopyFallback.create(into, array)
    return into


def _without_values(mode: Any, goes_on: Any, body: Any, carried: Any, read: Any, **options: Any) -> Any:
    """What a loop makes of arrays without values: by its contract, arrays as it carries. torch runs the body once more
    for them, several times while a gradient is compiled, which is a tenth of the time."""
    if isinstance(body, torch.fx.GraphModule) and not options.get("stack_output"):
        given = dict(zip(body.graph.find_nodes(op="placeholder"), carried, strict=False))
        results: Any = body.graph.output_node().args[0]
        pairs = list(zip(results, carried, strict=True))
        if all(result in given or _is_like(result, array) for result, array in pairs):
            with mode:
                return tuple(given[r] if r in given else a.new_empty(a.shape) for r, a in pairs)
    return as_torch_has_it(mode, goes_on, body, carried, read, **options)


def _is_like(result: Any, array: Any) -> bool:
    value = result.meta.get("val") if isinstance(result, torch.fx.Node) else None
    if not (isinstance(value, torch.Tensor) and isinstance(array, torch.Tensor)):
        return False  # a number
    return value.is_contiguous() and (value.dtype, value.dim()) == (array.dtype, array.dim())


rules_of_loop: dict[Any, Any] = while_loop_op.python_key_table
as_torch_has_it = rules_of_loop[FakeTensorMode]
as_inductor_has_them: dict[Any, Any] = {operator: lowerings[operator] for operator in (while_loop_op, cond_op, copy_op)}
mended: dict[Any, Any] = {operator: _mended(as_inductor_has_them[operator]) for operator in (while_loop_op, cond_op)}


def donate_nothing() -> None:
    """In this thread, whose settings these are: Inductor may write into what is donated, which the forward pass keeps,
    while a loop of the backward pass still reads it: gradients of a stack used three times would be silently wrong."""
    functorch_config.donated_buffer = False


@torch.compiler.assume_constant_result  # so it runs while a program is traced, and once
def let_gradients_be_traced(is_traced: bool) -> bool:
    """Let Dynamo take `torch.autograd.grad` into the program that is being traced, or not; what was so before."""
    was = dynamo.config.trace_autograd_ops
    dynamo.config.trace_autograd_ops = is_traced
    return was
