"""Graph size at three levels: what TensorFlow captures, what it hands to XLA, what XLA makes of it.

A function of the library (the body of a while loop) counts once, as often as it runs.
Source: https://www.tensorflow.org/xla (experimental_get_compiler_ir)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_while import programs, stack
from tf_while.autodiff import Apply, gradient
from tf_while.private import hlo_pb2

UNITS = {
    "captured": "GraphDef nodes",
    "lowered": "HLO instructions before optimisation",
    "compiled": "optimised HLO instructions",
}


def graph_size(apply: Apply, *args: Any, cotangent: Any = None, memory: bool = True) -> dict[str, int]:
    """Count `apply(*args)`, or with `cotangent` its gradient program, at each level, and what the compiled one needs.

    "loops" are those the compiler leaves; "temp_bytes" is what XLA assigns beside arguments and results.
    Without `memory` it is left out, as in PyTorch, where it costs time.
    """
    program, args = _program(apply, args, cotangent)
    graph = program.get_concrete_function(*args).graph.as_graph_def()
    ir = program.experimental_get_compiler_ir(*args)
    compiled = hlo_pb2.HloProto.FromString(ir(stage="optimized_hlo_proto_serialized"))
    instructions = _instructions(compiled.hlo_module)
    counts = {
        "captured": len(graph.node) + sum(len(function.node_def) for function in graph.library.function),
        "lowered": len(_instructions(hlo_pb2.HloModuleProto.FromString(ir(stage="hlo_serialized")))),
        "compiled": len(instructions),
        "loops": sum(instruction.opcode == "while" for instruction in instructions),
    }
    return counts | {"temp_bytes": _temp_bytes(compiled.buffer_assignment)} if memory else counts


def compile_seconds(apply: Apply, *args: Any, cotangent: Any = None, times: int = 1) -> list[float]:
    """Seconds to trace and compile: from cold, and again, for which TensorFlow keeps nothing."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        program, arrays = _program(apply, args, cotangent)
        program.experimental_get_compiler_ir(*arrays)(stage="optimized_hlo")
        seconds.append(time.perf_counter() - start)
    return seconds


def program_count() -> int:
    """Graphs traced so far for `scan_apply_layers` called as it stands: one for each d and dtype."""
    return sum(run is stack._scan_dense for run, *_ in programs._programs)


def _program(apply: Callable[..., Any], args: tuple[Any, ...], cotangent: Any) -> tuple[Any, tuple[Any, ...]]:
    if cotangent is not None:
        apply, args = gradient(apply), (*args, cotangent)
    return tf.function(apply, jit_compile=True, autograph=False), args


def _instructions(module: Any) -> list[Any]:
    return [instruction for computation in module.computations for instruction in computation.instructions]


def _temp_bytes(assignment: Any) -> int:
    buffers = assignment.buffer_allocations
    return sum(b.size for b in buffers if not (b.is_entry_computation_parameter or b.maybe_live_out or b.is_constant))
