"""What is compiled and kept, where a stack is called as it stands. JAX needs none of it: `jax.jit` does it.

A program is kept by what the layer is made of (`reference/made_of.py`) and by the shapes of the parameters. An equal
layer, a fresh lambda too, finds its program; a value that it reads and that has changed since makes another. Dynamo
checks at every call what it has read in the layer, also what `made_of` cannot see: nothing is ever stale. A batch, a
length or a number of layers that changes is left open in the program, and then any other serves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch

from reference.made_of import Kept
from torch_compile import edges
from torch_compile.looks import begin, parts_of, stop_if_assumed
from torch_compile.loops import Plan, unrolled
from torch_compile.primitive import Arrays, joined, split
from torch_compile.private import FailOnRecompileLimitHit, dynamo, memory_of

_programs = Kept(128)


def run_compiled(
    program: Callable[..., Any], plan: Plan, stacked: Arrays, init: Arrays, wanted: tuple[bool, ...]
) -> tuple[Arrays, Arrays]:
    """(leaves, outputs): what stands for the arrays, and `program(plan, stacked, init)`, compiled, as one list.

    wanted: of each array, whether the outputs have a derivative by its leaf."""
    arrays = _apart([_dense(array.detach()) for array in (*stacked, *init)])
    for array, is_wanted in zip(arrays, wanted, strict=False):
        array.requires_grad_(is_wanted)
    num_layers = tuple(a.shape[0] for a in arrays[: len(stacked)] if a.shape[0] <= plan.span)
    sizes = tuple(tuple(a.shape[1:]) for a in arrays[: plan.num_params])
    kinds = tuple((a.dtype, a.device, *(stride == 0 for stride in a.stride())) for a in arrays)
    key = parts_of((program, plan, wanted)), num_layers, sizes, kinds, len(stacked), edges.BACKEND
    kept = _programs[key] = _programs.get(key) or _Program(program, plan, len(stacked), arrays)
    with torch.set_grad_enabled(any(wanted)):
        return arrays, kept.run(plan, arrays)


class _Program:
    """One compiled object. torch keeps up to eight programs in it: the second size of a batch makes an open one."""

    def __init__(self, program: Callable[..., Any], plan: Plan, num_stacked: int, arrays: Arrays) -> None:
        compiler = (os.environ.get("CXX") or "g++").split()[0]
        if any(array.device.type == "cpu" for array in arrays) and shutil.which(compiler) is None:
            raise RuntimeError(
                f"torch.compile on the CPU needs a C++ compiler: install {compiler}, or name another in CXX"
            )
        self.program, self.span, self.num_stacked = program, plan.span, num_stacked
        self.shapes = [array.shape for array in arrays]  # of the first call
        self.open = {(i, 0) for i in range(num_stacked)}
        self.compiled = self._compile()

    def _compile(self) -> Callable[..., Any]:
        program, count = self.program, self.num_stacked

        def run(plan: Plan, *arrays: torch.Tensor) -> Arrays:
            stop_if_assumed()
            stacked, init = split(arrays, count)
            for array in stacked:  # or each has a symbol of its own, and whether a row exists is not seen
                torch._check(array.shape[0] == stacked[0].shape[0])
            if torch.compiler.is_dynamo_compiling():
                return joined(program(plan, stacked, init))
            return joined(unrolled(plan.step, stacked, init, plan.reverse))  # the user has switched compiling off

        run.__code__ = run.__code__.replace()  # code of its own: of one, torch makes 256 programs in a process
        return edges.compile(run)

    def run(self, plan: Plan, arrays: Arrays) -> Arrays:
        for i, (array, shape) in enumerate(zip(arrays, self.shapes, strict=True)):
            self.open.update((i, axis) for axis in range(array.dim()) if array.shape[axis] != shape[axis])
        for i, axis in self.open:
            # torch specialises on 0 and 1; and where not more layers than a step holds, there is no loop
            if arrays[i].shape[axis] > (self.span if axis == 0 and i < self.num_stacked else 1):
                dynamo.maybe_mark_dynamic(arrays[i], axis)
        begin()
        try:
            return self.compiled(plan, *arrays)
        except FailOnRecompileLimitHit:  # eight programs: begin again
            self.compiled = self._compile()
            return self.compiled(plan, *arrays)


def _dense(array: torch.Tensor) -> torch.Tensor:
    """Contiguous, except that what is expanded stays so: a parameter shared by all layers takes the memory of one."""
    repeated = [stride == 0 and size > 0 for stride, size in zip(array.stride(), array.shape, strict=True)]
    one = array[tuple(0 if is_repeated else slice(None) for is_repeated in repeated)]
    return array if one.is_contiguous() else array.contiguous()


def _apart(arrays: Arrays) -> Arrays:
    """A copy of what shares memory with another: the operator refuses a body that closes over both."""
    memory = [memory_of(array) for array in arrays]
    return [array.clone() if memory.index(memory[i]) < i else array for i, array in enumerate(arrays)]
