"""Graph size at three levels: what Dynamo captures, what AOTAutograd lowers to ATen, what Inductor makes of it.

Everything that touches torch's internals is here. A subgraph (the body of a scan) counts once, as often as it runs.
The compiled level counts calls of kernels, written by Inductor or not: equal kernels are written once, called N times.
Source: https://docs.pytorch.org/docs/2.13/torch.compiler_faq.html
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache, run_and_get_code
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from torch_compile.autodiff import Apply, gradient
from torch_compile.edges import compile

UNITS = {"captured": "FX nodes", "lowered": "ATen FX nodes", "compiled": "kernel calls and their loops"}

# In Inductor's code: the call of a kernel it wrote (C++ or Triton), of an existing one, of an operator as it is, of a
# region compiled once; and the loops within its kernels, because on the CPU one kernel may hold all layers.
_KERNELS = (
    r"(?m)^ +(?:cpp|triton)_\w+(?:\.run)?\(|extern_kernels\.\w+\(|torch\.ops\.\w+\.\w+\.\w+\("
    r"|= repeated_subgraph\d+\(|\bfor *\("
)


def graph_size(
    apply: Apply, *args: torch.Tensor, cotangent: torch.Tensor | None = None, compiled: bool = True
) -> dict[str, int]:
    """Count `apply(*args)`, or with `cotangent` its gradient program, at each level, and what the compiled one needs.

    "loops" are those the compiler leaves; "temp_bytes" is the peak that one call allocates, less its results.
    """
    captured: list[torch.fx.GraphModule] = []
    lowered: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        lowered.append(graph)
        # The graph is counted, not run: results of the right shape are enough to get at the backward graph.
        return make_boxed_func(lambda *_: [_empty(node) for node in graph.graph.output_node().args[0]])  # type: ignore

    def record(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        captured.append(graph)
        return aot_autograd(fw_compiler=keep, bw_compiler=keep)(graph, inputs)

    # isolate_recompiles: see `compile` in edges.py
    count = torch.compile(_fresh(apply), backend=record, fullgraph=True, dynamic=False, isolate_recompiles=True)  # type: ignore[call-overload]
    _run(count, args, cotangent)
    counts = {"captured": _nodes(captured), "lowered": _nodes(lowered)}
    if not compiled:
        return counts
    with torch._inductor.config.patch(force_disable_caches=True):  # a program found in a cache comes without its code
        program = compile(_fresh(apply))
        _, sources = run_and_get_code(_run, program, args, cotangent)
    code = "\n".join(sources)
    return counts | {
        "compiled": len(re.findall(_KERNELS, code)),
        "loops": code.count("while should_loop:"),
        "temp_bytes": _temp_bytes(lambda: _run(program, args, cotangent)),
    }


def compile_seconds(apply: Apply, *args: torch.Tensor, cotangent: torch.Tensor | None = None) -> float:
    """Seconds to trace and compile from cold: the first call less the second."""
    with fresh_cache():
        program = compile(_fresh(apply))
        start = time.perf_counter()
        _run(program, args, cotangent)
        first = time.perf_counter()
        _run(program, args, cotangent)
        return 2 * first - start - time.perf_counter()


def program_count() -> int:
    """Graphs compiled so far in this process, whoever asked for them."""
    return counters["stats"]["unique_graphs"]


def _run(program: Apply, args: tuple[torch.Tensor, ...], cotangent: torch.Tensor | None) -> Any:
    return program(*args) if cotangent is None else gradient(program)(*args, cotangent)


def _fresh(apply: Callable[..., Any]) -> Callable[..., Any]:
    # A function of its own each time, so that nothing compiled before is found again.
    return lambda *args: apply(*args)


def _empty(node: torch.fx.Node | None) -> Any:
    value = node.meta["val"] if isinstance(node, torch.fx.Node) else node
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def _nodes(graphs: Iterable[torch.fx.GraphModule]) -> int:
    modules = (module for graph in graphs for module in graph.modules())
    return sum(len(module.graph.nodes) for module in modules if isinstance(module, torch.fx.GraphModule))


def _temp_bytes(run: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        results = run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak - sum(result.nbytes for result in pytree.tree_leaves(results) if result is not None)
