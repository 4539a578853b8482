"""One look at a layer: what a run of it without values shows, before any loop is built. JAX needs none of it.

Source: https://docs.pytorch.org/docs/2.13/torch.compiler_fake_tensor.html
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any
from unittest.mock import patch

import torch
from torch.autograd.forward_ad import unpack_dual
from torch.overrides import TorchFunctionMode

from reference import arguments
from reference.made_of import Kept, Same, made_of
from torch_compile.edges import as_leaf
from torch_compile.primitive import Arrays, Seen, Step
from torch_compile.private import (
    CheckpointFunction,
    FakeTensor,
    FakeTensorMode,
    HigherOrderOperator,
    InstructionTranslator,
    TorchDispatchMode,
    TracingContext,
    arguments_of,
    check_errors,
    disable_proxy_modes_tracing,
    dynamo,
    get_current_dispatch_mode,
    get_unwrapped,
    in_forward_mode,
    in_functorch,
    is_functorch_wrapped_tensor,
    memory_of,
    pytree,
    skip_code,
    wrong_twice,
)
from torch_compile.trees import Layer, Structure, flatten, unflatten, with_floats

Look = tuple[Structure, Seen]  # of ys, and of what else a layer shows


def _never_alone(function: Any) -> Any:
    """Dynamo may trace it into a program, but not compile it by itself, where it has given up on the caller."""
    skip_code(function.__code__)
    return function


def call(layer: Layer, carry: Any, slices: tuple[Any, Any]) -> tuple[Any, Any]:
    """`layer` of what a step reads: (params, x), where x is None without xs."""
    params, x = slices
    return layer(carry, params) if x is None else layer(carry, params, x)


@_never_alone
def look(layer: Layer, carry: Structure, slices: Structure, init: Arrays, stacked: Arrays) -> Look:
    """The structure of ys, and what else one run of the layer shows."""

    def without_values() -> tuple[Any, Any]:
        arrays, read = _empty(init, stacked)
        return unflatten(carry, arrays), unflatten(slices, read)

    def run(first: Any, read: Any) -> tuple[Structure, tuple[bool, ...]]:
        output = call(layer, first, read)
        arguments.check_layer(as_leaf, first, output)
        arrays, ys = flatten(output[1])
        return ys, tuple(a.is_floating_point() for a in arrays)

    if torch.compiler.is_dynamo_compiling():  # whose tensors have no values already
        start = _num_nodes()
        given = without_values()
        first = _num_nodes()
        ys, y_floats = run(*given)
        return ys, Seen(y_floats, *_taken_back(start, first))
    if torch.compiler.is_exporting():  # not strictly: arrays note what becomes of them, and need not here
        with disable_proxy_modes_tracing(), _rules() as rules:
            ys, y_floats = run(*without_values())
        return ys, Seen(y_floats, no_jvp=_without_jvp(rules))
    return _shown(layer, (carry, slices), lambda: _eagerly(without_values, run))


def _eagerly(without_values: Callable[[], Any], run: Callable[..., Any]) -> Look:
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = without_values()
        with _Recorder(given) as recorder, _rules() as rules, _Outside() as outside:
            ys, y_floats = run(*given)
    seen = recorder.seen | {"has_checkpoint": CheckpointFunction in rules, "no_jvp": _without_jvp(rules)}
    return ys, Seen(y_floats, **seen, closed_over=tuple(outside.arrays))


# A look takes longer than a small layer. A stack called as it stands goes by what an equal layer has shown before, as
# long as nothing is compiled: Dynamo checks at every call all that it has read in the layer, and compiles anew.


_looks = Kept(128)


class _Call:
    """Of a stack as it stands."""

    may_assume = True
    assumes = False  # what an earlier look at the layer has shown
    has_begun = False  # to run its program


_call: ContextVar[_Call | None] = ContextVar("_call", default=None)


def looked_at_once(stack: Callable[..., Any]) -> Callable[..., Any]:
    """Let `stack` go by an earlier look at its layer, or look again where Dynamo does, and where it is refused."""

    @functools.wraps(stack)
    def called(*args: Any, **options: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return stack(*args, **options)
        return _once_or_again(stack, args, options)

    return called


@torch.compiler.disable
def _once_or_again(stack: Callable[..., Any], args: Any, options: Any) -> Any:
    call = _Call()
    token = _call.set(call)
    try:
        try:
            return stack(*args, **options)
        except Exception:
            if not call.assumes or call.has_begun:
                raise
        call.may_assume = call.assumes = False
        return stack(*args, **options)
    finally:
        _call.reset(token)


@torch.compiler.disable
def _shown(layer: Callable[..., Any], structures: tuple[Structure, ...], run: Callable[[], Look]) -> Look:
    """`run()`, or what it has shown before of an equal layer, for arguments of the same structures."""
    call = _call.get()
    is_plain = get_current_dispatch_mode() is None and not (in_functorch() or in_forward_mode())
    if call is None or not is_plain or dynamo.config.disable:
        return run()
    key = parts_of(layer), structures
    before = _looks.get(key) if call.may_assume else None
    if before:
        call.assumes = True
        return before
    ys, seen = _looks[key] = run()
    if seen.closed_over:  # the next time it may read others
        del _looks[key]
    return ys, seen


def parts_of(value: Any) -> tuple[Any, ...]:
    """What `value` is made of. An array in it is an argument of the program: of another, only the kind is the same."""
    arrays = ((part, part.refer() if isinstance(part, Same) else None) for part in made_of(value))
    return tuple((a.dtype, a.shape, a.device) if isinstance(a, torch.Tensor) else part for part, a in arrays)


def begin() -> None:
    """A program runs from here on, if it is compiled already."""
    if (call := _call.get()) is not None:
        call.has_begun = True


@torch.compiler.assume_constant_result  # so it runs while a program is traced
def stop_if_assumed() -> None:
    if (call := _call.get()) is not None and call.assumes:
        call.has_begun = False
        raise RuntimeError("the layer is looked at again")


class _Recorder(TorchDispatchMode):
    """Sees every operation of PyTorch that runs."""

    supports_higher_order_operators = True

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {}
        self.given = {id(a) for a in _tensors(given)}
        self.outputs: list[torch.Tensor] = []  # kept, so that no other gets their addresses
        self.made: list[torch.Tensor] = []  # those in memory of their own

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = operator(*args, **(kwargs or {}))
        if isinstance(operator, HigherOrderOperator):
            return outputs
        if operator is check_errors:
            self.seen["raises"] = str(operator)
        schema = arguments_of(operator)
        given = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        given |= {argument.name: value for argument, value in zip(schema, args, strict=False)} | (kwargs or {})
        # by their schema: with a rate of 0, or not in training, they draw nothing
        is_off = any(given.get(name) == 0 for name in ("p", "dropout_p", "train", "training"))
        if torch.Tag.nondeterministic_seeded in operator.tags and not is_off:
            self.seen["draws"] = str(operator)
        if operator.overloadpacket in wrong_twice and given.get("training", True):
            self.seen["wrong_twice"] = str(operator)
        inputs = _tensors(given)
        for a in inputs:
            if a.is_complex() and a.requires_grad and id(a) not in self.given | {id(b) for b in self.outputs}:
                self.seen["reads"] = str(a.dtype).removeprefix("torch.")
        written = [given.get(a.name) for a in schema if a.alias_info and a.alias_info.is_write]
        if given.get("training"):  # what the schema of batch norm does not say
            written += [given.get("running_mean"), given.get("running_var")]
        if any(_memory(a) not in map(_memory, self.made) for a in _tensors(written)):
            self.seen["writes"] = str(operator)
        made = _tensors(outputs)
        self.outputs += made
        self.made += [a for a in made if _memory(a) not in map(_memory, inputs)]
        return outputs


class _Outside(TorchFunctionMode):
    """Sees every array from outside that an operation reads and by which there may be a derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.arrays: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for a in _tensors((args, kwargs)):
            is_outside = not isinstance(_inner(a), FakeTensor) and not any(a is b for b in self.arrays)
            if is_outside and (a.requires_grad or _inner(a) is not a or unpack_dual(a).tangent is not None):
                self.arrays.append(a)
        return function(*args, **(kwargs or {}))


_watching = threading.RLock()


@contextlib.contextmanager
def _rules() -> Iterator[set[Any]]:
    """The user's own autograd.Functions that this thread applies in here, and torch's own for a checkpoint."""
    rules, thread = set(), threading.get_ident()
    apply = torch.autograd.Function.__dict__["apply"]

    def recorded(rule: Any, *args: Any, **options: Any) -> Any:
        if threading.get_ident() == thread and not rule.__module__.startswith("torch_compile."):
            rules.add(rule)
        return apply.__get__(None, rule)(*args, **options)

    with _watching, patch.object(torch.autograd.Function, "apply", classmethod(recorded)):
        yield rules
    for rule in rules:
        if has_jvp(rule):  # which Dynamo refuses to look into
            dynamo.allow_in_graph(rule)


def has_jvp(rule: Any) -> bool:
    return rule.jvp is not torch.autograd.Function.jvp


def _without_jvp(rules: set[Any]) -> str:
    return "".join(rule.__name__ for rule in rules if not has_jvp(rule))


@_never_alone
def check_forward_mode(seen: Seen, step: Step, init: Arrays, stacked: Arrays) -> None:
    """Refuse a user's own derivative without a rule for forward mode: Dynamo would differentiate its forward code."""
    missing = _differentiated(step, init, stacked) if torch.compiler.is_dynamo_compiling() else seen.no_jvp
    if missing:
        raise arguments.no_forward_mode(missing)


def _differentiated(step: Step, init: Arrays, stacked: Arrays) -> str:
    start = _num_nodes()
    carry, slices = _empty(init, stacked)

    def run(*values: torch.Tensor) -> Any:  # only what is differentiated shows its rule
        arrays = with_floats([*carry, *slices], [value.view_as(value) for value in values])
        outputs = step(arrays[: len(carry)], arrays[len(carry) :])
        return [a for part in outputs for a in part if a.is_floating_point()]

    torch.func.vjp(run, *(a for a in (*carry, *slices) if a.is_floating_point()))
    return Seen((), *_taken_back(start, start)).no_jvp


def _empty(init: Arrays, stacked: Arrays) -> tuple[Arrays, Arrays]:
    carry = [torch.empty(c.shape, dtype=c.dtype, device=c.device) for c in init]
    return carry, [torch.empty(a.shape[1:], dtype=a.dtype, device=a.device) for a in stacked]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _inner(array: torch.Tensor) -> torch.Tensor:
    while is_functorch_wrapped_tensor(array):
        array = get_unwrapped(array)
    return array


def _memory(array: torch.Tensor) -> int:
    return memory_of(_inner(array))


# Within a user's own compiled function the run of the layer is traced into the program. It is looked at and taken out
# again: it would run once more at every call, on arrays that hold anything.


@torch.compiler.assume_constant_result  # so it runs while a program is traced
def _num_nodes() -> int:
    return len(_graph().nodes)


@torch.compiler.assume_constant_result
def _taken_back(start: int, first: int) -> tuple[Any, ...]:
    """What the nodes from `first` on show, and nothing left of those from `start` on."""
    nodes = list(_graph().nodes)
    given = [node.meta.get("example_value") for node in nodes[start:first]]
    with TracingContext.get().fake_mode, _Recorder(given) as recorder:  # type: ignore[union-attr]
        _replay([node for node in nodes[first:] if node.op != "placeholder"], recorder)
    for node in reversed([node for node in nodes[start:] if not _is_kept(node)]):
        _graph().erase_node(node)
    return tuple(Seen((), **recorder.seen))[1:]


def _is_kept(node: torch.fx.Node) -> bool:
    """Whether Dynamo will use it again: an input of the program, or the number that a float from outside is there."""
    return node.op == "placeholder" or (node.target == "item" and node.all_input_nodes[0].op == "placeholder")


def _replay(nodes: list[torch.fx.Node], recorder: _Recorder) -> None:
    """Run the nodes on arrays without values, as Dynamo has."""
    values: dict[torch.fx.Node, Any] = {}
    modules = InstructionTranslator.current_tx().output.nn_modules
    for node in nodes:
        values[node] = node.meta.get("example_value")
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda n: values.get(n, n.meta.get("example_value")))
        if str(node.target) == "autograd_function_apply":
            recorder.seen["no_jvp"] = "the autograd.Function"
        elif isinstance(node.target, HigherOrderOperator):
            for used in node.all_input_nodes:
                if used.op == "get_attr" and isinstance(inner := modules.get(str(used.target)), torch.fx.GraphModule):
                    _replay([n for n in inner.graph.nodes if n.op.startswith("call")], recorder)
        elif node.op in ("call_function", "call_method") and not _is_level(node.target):
            function = node.target if callable(node.target) else getattr(args[0], node.target)
            with contextlib.suppress(Exception):  # what cannot be looked at by itself, torch.func in a layer
                values[node] = function(*(args if callable(node.target) else args[1:]), **kwargs)


LEVELS = ("torch._C._functorch", "torch._C._autograd", "torch._functorch", "torch.autograd")


def _is_level(target: Any) -> bool:
    """Whether it opens or closes a level of torch.func, which is not done twice."""
    return str(getattr(target, "__module__", "")).startswith(LEVELS)


def _graph() -> torch.fx.Graph:
    return InstructionTranslator.current_tx().output.current_tracer.graph
