"""Where arrays and programs enter and leave torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch


def compile(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of the whole function by Inductor: one graph, static shapes."""
    # isolate_recompiles: the limit of eight programs is for this object, not for all that share its code
    return torch.compile(apply, fullgraph=True, dynamic=False, isolate_recompiles=True)  # type: ignore[call-overload]


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same shape, dtype and bytes, in memory of its own."""
    if array.dtype == ml_dtypes.bfloat16:  # torch reads no ml_dtypes; the 16 bits are the same
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_numpy(array: torch.Tensor) -> np.ndarray:
    """The NumPy array of the same shape, dtype and bytes, in memory of its own."""
    array = array.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16:
        return array.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return array.numpy().copy()


def wait(value: Any) -> Any:
    """Return `value` once every array in it has been computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value


def versions() -> dict[str, str]:
    """Package name -> version."""
    return {name: importlib.metadata.version(name) for name in ("torch",)}


def settings() -> dict[str, str]:
    """What numbers depend on."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": str(torch.get_num_threads()),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "cpp_wrapper": str(torch._inductor.config.cpp_wrapper),
    }


def run_compiled(
    program: Callable[..., Any],
    layer: Callable[..., Any],
    stacked: tuple[torch.Tensor, ...],
    single: tuple[torch.Tensor, ...],
    *options: Any,
) -> Any:
    """`program(layer, *stacked, *single, *options)`, compiled; within the user's own compiled function, inlined.

    One compiled object for each signature, shared by all N >= 2: a single one for everything would stop at torch's
    limit of eight programs.
    """
    if torch.compiler.is_compiling():
        return program(layer, *stacked, *single, *options)
    arrays = [array.detach().contiguous() for array in (*stacked, *single)]
    signature = [(array.shape[1:] if k < len(stacked) else array.shape, array.dtype) for k, array in enumerate(arrays)]
    compiled = _compiled(program, layer, options, arrays[0].device, *signature)
    if arrays[0].shape[0] >= 2:  # torch specialises on 0 and 1
        for array in arrays[: len(stacked)]:
            torch._dynamo.mark_dynamic(array, 0)
    return compiled(*arrays)


@functools.cache
def _compiled(program: Callable[..., Any], layer: Any, options: tuple[Any, ...], device: torch.device, *_: Any) -> Any:
    compiler = (os.environ.get("CXX") or "g++").split()[0]
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise RuntimeError(f"torch.compile on the CPU needs a C++ compiler: install {compiler}, or name another in CXX")
    return compile(lambda *arrays: program(layer, *arrays, *options))
