"""Graph size at three levels: what Dynamo captures, what AOTAutograd lowers to ATen, what Inductor makes of it.

A subgraph (the body of a scan) counts once, as often as it runs. The compiled level counts calls of kernels, written by
Inductor or not: equal kernels are written once, called N times.
Source: https://docs.pytorch.org/docs/2.13/torch.compiler_faq.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from torch_compile.autodiff import Apply, gradient
from torch_compile.edges import OPTIONS, cold, compile
from torch_compile.private import (
    AsyncCompile,
    compile_fx,
    compile_fx_inner,
    counters,
    functorch_config,
    inductor_config,
    make_boxed_func,
    pytree,
)

UNITS = {"captured": "FX nodes", "lowered": "ATen FX nodes", "compiled": "kernel calls and their loops"}

# In Inductor's code: the call of a kernel it wrote (C++ or Triton), of an existing one, of an operator as it is, or a
# copy; and the loops within its kernels, because on the CPU one kernel may hold all layers.
_KERNELS = r"(?m)^ +(?:cpp|triton)_\w+(?:\.run)?\(|(?:extern_kernels|torch\.ops\.\w+\.\w+)\.\w+\(|\.copy_\(|\bfor *\("
# What it defines there and calls, whatever its name: a region compiled once, forward or backward. The condition and the
# body of a loop are no calls but the loop.
_SUBGRAPHS = r"(?m)^def (?!while_loop_)(\w+)\(args\):"


def graph_size(apply: Apply, *args: Any, cotangent: Any = None, memory: bool = True) -> dict[str, int]:
    """Count `apply(*args)`, or with `cotangent` its gradient program, at each level, and what the compiled one needs.

    "loops" are those the compiler leaves; "temp_bytes" is the peak that one call allocates, less its results. Without
    `memory` the program is written, but neither built nor run, which takes a third of the time.
    """
    captured, lowered, code = [], [], []

    def inner(graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        lowered.append(nodes_of(graph))
        results = graph.graph.output_node().args[0]
        with nullcontext() if memory else patch.object(AsyncCompile, "cpp_pybinding", lambda *_: None):
            program = compile_fx_inner(graph, inputs, **options)
        code.append(getattr(program, "source_code", ""))  # without operations none is written
        # what is not built is not run: results of the right shape are enough to get at the backward graph
        return program if memory else make_boxed_func(lambda *_: [_empty(node) for node in results])  # type: ignore

    def record(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        captured.append(nodes_of(graph))
        # the same kernels, called from Python, where they can be told from the rest
        return compile_fx(graph, inputs, inner_compile=inner, config_patches=OPTIONS | {"cpp_wrapper": False})

    # AOTAutograd's cache would skip `inner`, and what is not built must be in none
    with functorch_config.patch(enable_autograd_cache=False), inductor_config.patch(force_disable_caches=not memory):
        program = torch.compile(_fresh(apply), backend=record, fullgraph=True, dynamic=False, isolate_recompiles=True)  # type: ignore[call-overload]
        _run(program, args, cotangent)
    counts = {
        "captured": sum(captured),
        "lowered": sum(lowered),
        "compiled": sum(map(_kernel_calls, code)),
        "loops": sum(text.count("while should_loop:") for text in code),
    }
    return counts | {"temp_bytes": _temp_bytes(lambda: _run(program, args, cotangent))} if memory else counts


def compile_seconds(apply: Apply, *args: Any, cotangent: Any = None, times: int = 1) -> list[float]:
    """Seconds to trace and compile, the first call less the second: from cold, then with the files Inductor keeps."""
    seconds = []
    with cold():
        for _ in range(times):
            program = compile(_fresh(apply))
            start = time.perf_counter()
            _run(program, args, cotangent)
            first = time.perf_counter()
            _run(program, args, cotangent)
            seconds.append(2 * first - start - time.perf_counter())
    return seconds


def program_count() -> int:
    """Graphs compiled so far in this process, whoever asked for them."""
    return counters["stats"]["unique_graphs"]


def _run(program: Apply, args: tuple[Any, ...], cotangent: Any) -> Any:
    return program(*args) if cotangent is None else gradient(program)(*args, cotangent)


def _fresh(apply: Apply) -> Apply:
    return lambda *args: apply(*args)  # of its own each time, so that nothing compiled before is found again


def _empty(node: torch.fx.Node | None) -> Any:
    value = node.meta["val"] if isinstance(node, torch.fx.Node) else node
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def nodes_of(graph: torch.fx.GraphModule) -> int:
    return sum(len(module.graph.nodes) for module in graph.modules() if isinstance(module, torch.fx.GraphModule))


def _kernel_calls(code: str) -> int:
    calls = [rf"= {name}\(" for name in re.findall(_SUBGRAPHS, code)]
    return len(re.findall("|".join([_KERNELS, *calls]), code))


def _temp_bytes(run: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak - sum(result.nbytes for result in pytree.tree_leaves(results) if result is not None)
