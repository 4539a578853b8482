"""Where arrays and programs enter and leave torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from reference import arguments
from torch_compile.primitive import as_inductor_has_them, as_torch_has_it, rules_of_loop
from torch_compile.private import FakeTensorMode, cache_dir, fresh_cache, functorch_config, lowerings, pytree

BACKEND = "inductor"  # what compiles; the tests also use a quicker one
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where arrays are made, as in JAX and TensorFlow
# For the CPU. A loop in C++ costs a third of one in Python, and waking a second thread for less than some microseconds
# of work costs more than the work. No result is written into the memory of an argument: where that is a result of a
# loop that nobody reads, the C++ of torch 2.13 declares it twice.
OPTIONS: dict[str, Any] = (
    {"cpp_wrapper": True, "cpp.min_chunk_size": 8192, "inplace_buffers": False} if DEVICE == "cpu" else {}
)


def compile(apply: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile` of the whole function by Inductor: one graph, static shapes."""
    return compile_with(OPTIONS, apply)


def compile_with(options: dict[str, Any], apply: Callable[..., Any]) -> Callable[..., Any]:
    """`compile` with other options of Inductor."""
    # isolate_recompiles: the limit of eight programs is for this object, not for all that share its code
    return torch.compile(  # type: ignore[call-overload]
        apply,
        backend=BACKEND,
        fullgraph=True,
        dynamic=False,
        options=options if BACKEND == "inductor" else None,
        isolate_recompiles=True,
    )


def set_back() -> None:
    """Set back what a compiled stack has set, the first in this thread alone (primitive.py says why)."""
    functorch_config.donated_buffer = True
    lowerings.update(as_inductor_has_them)
    rules_of_loop[FakeTensorMode] = as_torch_has_it


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Within it no file is found again that Inductor keeps; after it all are."""
    kept = cache_dir()
    with fresh_cache():
        yield
        # Who compiles the same program to run it need not wait. Some of the files are there already.
        with contextlib.suppress(shutil.Error):
            shutil.copytree(cache_dir(), kept, copy_function=os.link, dirs_exist_ok=True)


def from_numpy(array: np.ndarray) -> torch.Tensor:
    """A tensor of the same shape, dtype and bytes, in memory of its own, on the GPU where there is one."""
    if array.dtype == ml_dtypes.bfloat16:  # torch reads no ml_dtypes; the 16 bits are the same
        return from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array.copy()).to(DEVICE)


def to_numpy(array: torch.Tensor) -> np.ndarray:
    """The NumPy array of the same shape, dtype and bytes, in memory of its own."""
    array = array.detach().cpu().contiguous()
    if array.dtype == torch.bfloat16:
        return array.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return array.numpy().copy()


def as_leaf(value: Any) -> arguments.Leaf | arguments.Branch | None:
    """Shape and dtype of an array, or a container that torch's pytree knows, for the checks of arguments; else None."""
    if isinstance(value, torch.Tensor):
        if value.is_nested or value.is_quantized or value.layout is not torch.strided:
            return None
        return arguments.Leaf(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    value = plain(value)
    if isinstance(value, (dict, list, tuple)):
        return arguments.branch(value)
    node = pytree.SUPPORTED_NODES.get(type(value))
    if node is None:
        return None
    children, static = node.flatten_fn(value)
    return arguments.Branch(type(value), "()", tuple(enumerate(children)), static)


def plain(value: Any) -> Any:
    """A dict or a list for a container that torch's pytree does not know: nn.ParameterDict, nn.ParameterList, UserDict.

    The layer is given it in the place of the container, and so are gradients."""
    if type(value) in pytree.SUPPORTED_NODES or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (torch.nn.ParameterDict, Mapping)):
        return dict(value.items())
    return list(value) if isinstance(value, (torch.nn.ParameterList, list)) else value


def wait(value: Any) -> Any:
    """Return `value` once every array in it has been computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return value


def named_scope(name: str) -> Any:
    """A name for the profiler; Dynamo keeps none."""
    return contextlib.nullcontext() if torch.compiler.is_compiling() else torch.profiler.record_function(name)


def versions() -> dict[str, str]:
    """Package name -> version."""
    return {name: importlib.metadata.version(name) for name in ("torch",)}


def settings() -> dict[str, str]:
    """What numbers depend on."""
    return {
        "device": "cpu" if DEVICE == "cpu" else torch.cuda.get_device_name(),
        "threads": str(torch.get_num_threads()),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "options": ", ".join(f"{name}={OPTIONS[name]}" for name in OPTIONS),
    }
