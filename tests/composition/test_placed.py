"""Arrays on many devices, given to the framework alone, without `on_mesh`: gradients, and what is whole at once."""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from implementations import NAMES, ROOT
from tests.conftest import loaded

pytestmark = pytest.mark.torch_backend("eager")  # parameters are gathered, or refused, before anything is compiled


@pytest.mark.covers("arrays that are placed, and no `on_mesh`, with the gradient")
@pytest.mark.parametrize("implementation", NAMES)
def test_placement_alone(implementation):
    """JAX finds the collectives by itself. The others have such arrays too, and no loop for them."""
    folder = loaded(implementation)
    w, x = (folder.from_numpy(np.ones(shape)) for shape in ((8, 4, 4), (4,)))
    if implementation == "jax_scan":
        assert by_the_library(implementation)["error"] < 1e-13
    elif implementation == "torch_compile":
        from torch.distributed.tensor import Shard, distribute_tensor

        with four_processes() as mesh:
            folder.scan_layers(folder.LAYERS["dense"], distribute_tensor(w, mesh, [Shard(1)]), x)
    else:
        import tensorflow as tf
        from tensorflow.experimental import dtensor

        mesh = dtensor.create_mesh([("data", 1)], devices=["CPU:0"])
        w, x = (dtensor.copy_to_mesh(a, dtensor.Layout.replicated(mesh, len(a.shape))) for a in (w, x))
        with tf.GradientTape() as tape:
            tape.watch(w)
            y = tf.reduce_sum(folder.scan_layers(folder.LAYERS["dense"], w, x)[0])
        tape.gradient(y, w)


@pytest.mark.covers("the library's own wrapper holds one layer at a time")
@pytest.mark.parametrize("implementation", NAMES)
def test_the_librarys_own_wrapper(implementation):
    """The gradient of a stack that JAX has placed, `fully_shard` wraps, or a strategy of TensorFlow runs, on four
    devices: is there less on a device than the stack?"""
    loaded(implementation)
    if implementation == "torch_compile":
        held, whole = by_fully_shard()
    else:
        found = by_the_library(implementation)
        if not found["error"] < 1e-13:
            raise ValueError(found)  # no AssertionError, which is what is declared
        held, whole = found["held"], found["whole"]
    assert held < whole


@contextlib.contextmanager
def four_processes():
    """The mesh of the first of four processes of torch, of which the others are imagined: nothing is sent."""
    from torch import distributed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        yield distributed.init_device_mesh("cpu", (4,))
    finally:
        distributed.destroy_process_group()


def by_fully_shard():
    """(bytes of the parameters that a device has while the stack runs, bytes of the stack). That numbers are right, on
    processes that there are: test_processes.py."""
    import torch
    from torch.distributed.fsdp import fully_shard

    folder, held = loaded("torch_compile"), []
    params = folder.init_layers("mlp", 0, 8, "float64", d=16, f=64)

    class Stack(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.params = torch.nn.ParameterDict({name: torch.nn.ParameterDict(of) for name, of in params.items()})

        def forward(self, x):
            held.append(sum(a.nbytes for a in self.parameters()))
            return folder.scan_layers(folder.LAYERS["mlp"], self.params, x)[0]

    stack: Any = Stack()
    with four_processes() as mesh:
        fully_shard(stack, mesh=mesh)
        stack(torch.ones(4, 16, dtype=torch.float64)).sum().backward()
    whole = sum(a.numel() for a in stack.parameters()) * 8
    if sum(a.grad.to_local().numel() for a in stack.parameters()) * 8 * 4 != whole:
        raise ValueError("the gradients are not cut in four")
    return max(held), whole


@functools.cache
def by_the_library(name):
    """{error of the gradient, bytes that one of four devices holds, bytes of the stack}, from a process of its own: the
    number of devices is fixed before the framework starts."""
    program = [sys.executable, "-m", "tests.support.by_the_library", name]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr[-2000:])
    return json.loads(run.stdout.splitlines()[-1])
