"""What torch does on processes beyond the ways of `implementations/devices`: under `torchrun`, with the name of one.

Each prints {"error": the largest of all arrays, over the largest number in it}, from what one process finds alone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard

import torch_compile
from implementations.check.dialect import from_numpy
from implementations.devices.ways import problem
from torch_compile import devices, edges
from torch_compile.devices import add, copy, fully_sharded, gather, make_mesh, on_mesh, scatter, shard_layers
from torch_compile.private import pytree

MLP: Any = torch_compile.LAYERS["mlp"]
N = 4
CUT, BATCH = {"data": 1}, {"data": 0}


def posed(seed=0):
    params, carry, dcarry, *_ = problem("mlp", N, False, 16)
    return [
        pytree.tree_map(lambda a: a.roll(seed), from_numpy(torch_compile, tree)) for tree in (params, carry, dcarry)
    ]


def stack(layer):
    return lambda params, carry: torch_compile.scan_layers(layer, params, carry)[0]


def gradient(run, params, carry, dcarry):
    """By ordinary autodiff from outside, DTensors or not."""
    params, carry = pytree.tree_map(lambda a: a.detach().requires_grad_(), (params, carry))
    y = run(params, carry)
    torch.autograd.backward([whole(y)], [dcarry])
    return y, pytree.tree_map(lambda a: a.grad, (params, carry))


def whole(tree):
    return pytree.tree_map(lambda a: a.full_tensor() if hasattr(a, "full_tensor") else a, tree)


def error(found, right):
    pairs = zip(pytree.tree_leaves(whole(found)), pytree.tree_leaves(right), strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def a_gradient_from_outside(size):
    mesh, given = make_mesh(data=size), posed()
    run = on_mesh(stack(fully_sharded(MLP, mesh, "data")), mesh, (CUT, BATCH), BATCH)
    sharded = shard_layers(given[0], mesh, CUT)
    return error(gradient(run, sharded, *given[1:]), gradient(stack(MLP), *given))


def transforms(size):
    """Forward mode, Hessian-vector products and batching, within on_mesh."""
    mesh, (params, carry, _), (tparams, tcarry, _) = make_mesh(data=size), posed(), posed(1)

    def run(layer, params, carry, tparams, tcarry):
        moved = torch_compile.jvp_layers(layer, params, carry, tangents=(tparams, tcarry, None))[1][0]
        half = lambda carry, _: (carry**2).sum() / 2  # noqa: E731
        _, (hparams, hcarry, _) = torch_compile.hvp_layers(layer, half, params, carry, tangents=(tparams, tcarry, None))
        return moved, hparams, hcarry, torch_compile.vmap_layers(layer, params, carry)[0]

    given = params, carry, tparams, tcarry
    axes = (CUT, BATCH, CUT, BATCH), (BATCH, CUT, BATCH, BATCH)
    found = on_mesh(partial(run, fully_sharded(MLP, mesh, "data")), mesh, *axes)(*given)
    return error(found, run(MLP, *given))


def two_meshes(size):
    """Whose axes have the same name: neither runs the other's program."""
    given, errors = posed(), []
    for sizes in {"data": size}, {"data": size // 2, "other": 2}, {"data": size}:
        mesh = make_mesh(**sizes)
        run = on_mesh(stack(fully_sharded(MLP, mesh, "data")), mesh, (CUT, BATCH), BATCH)
        errors.append(error(gradient(run, *given), gradient(stack(MLP), *given)))
    return max(errors)


def collectives_of_what_is_differentiated(size):
    """All four applied straight to the carry or to the parameters; and the sum of a carry, of which each device makes
    something else, copied."""
    mesh = make_mesh(data=size)
    w, x, dx = (torch.randn(shape, dtype=torch.float64) for shape in ((N, 8, 8), (8,), (8,)))

    def cut(carry, w):
        y = scatter(copy(w, mesh, "data") @ gather(carry, mesh, "data", 0), mesh, "data", 0)
        return y * copy(add(carry, mesh, "data"), mesh, "data"), None

    def alone(carry, w):
        return size * (w @ carry) * carry.unflatten(0, (size, -1)).sum(0).repeat(size), None

    run = on_mesh(stack(cut), mesh, ({}, BATCH), BATCH)
    return error(gradient(run, w, x, dx), gradient(stack(alone), w, x, dx))


def by_fully_shard(size):
    """torch's own wrapper, around a module whose forward is the stack: it means the gradients of the processes."""
    mesh, given = make_mesh(data=size), posed()

    class Stack(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.params = torch.nn.ParameterDict({k: torch.nn.ParameterDict(of) for k, of in given[0].items()})

        def forward(self, x):
            return stack(MLP)(self.params, x)

    own = [a.chunk(size)[distributed.get_rank()] for a in given[1:]]
    fully_shard(wrapped := Stack(), mesh=mesh)
    wrapped(own[0]).backward(size * own[1])
    found = pytree.tree_map(lambda a: a.grad, {k: {**of} for k, of in wrapped.params.items()})
    return error(found, gradient(stack(MLP), *given)[1][0])


def three_steps_of_adamw(size):
    """On DTensors."""
    mesh, (params, carry, _) = make_mesh(data=size), posed()
    run = on_mesh(stack(fully_sharded(MLP, mesh, "data")), mesh, (CUT, BATCH), BATCH)

    def trained(run, params):
        params = pytree.tree_map(lambda a: a.detach().clone().requires_grad_(), params)
        optimizer = torch.optim.AdamW(pytree.tree_leaves(params), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            (whole(run(params, carry)) ** 2).mean().backward()
            optimizer.step()
        return pytree.tree_map(torch.Tensor.detach, params)

    return error(trained(run, shard_layers(params, mesh, CUT)), trained(stack(MLP), params))


def a_process_that_dies(size, end=lambda: os.kill(os.getpid(), signal.SIGKILL)):
    mesh, given = make_mesh(data=size), posed()
    run = on_mesh(stack(fully_sharded(MLP, mesh, "data")), mesh, (CUT, BATCH), BATCH)
    for step in range(1000):
        gradient(run, *given)
        if step == 1 and distributed.get_rank() == size - 1:
            end()
    raise AssertionError("the others went on")


def a_process_that_hangs(size):
    """The others end, and a group that nobody waits in by then says which it is: that of the mesh is closed."""
    beside, start = distributed.new_group(), time.monotonic()
    try:
        return a_process_that_dies(size, lambda: time.sleep(1000))
    except RuntimeError as error:
        words, seconds = str(error), time.monotonic() - start
        try:
            distributed.monitored_barrier(beside, timedelta(seconds=5), wait_all_ranks=True)
        except RuntimeError as missing:
            if distributed.get_rank() == 0:
                print(json.dumps({"ended": words, "seconds": seconds, "missing": str(missing)}), flush=True)
        raise


if __name__ == "__main__":
    name, size = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(0)
    edges.BACKEND = "aot_eager"
    devices.SECONDS = 10 if name == "a_process_that_hangs" else devices.SECONDS
    devices.start(size)
    line = json.dumps({"error": globals()[name](size)})
    if distributed.get_rank() == 0:
        print(line, flush=True)
    distributed.destroy_process_group()
