"""What users put around a stack, in the words of the framework, and the operations that checks write layers in.

Of the transforms, `apply(w, x)` is a stack of arrays, and tw, tx are tangents of w and x. Second order is that of
|apply(w, x)|^2 / 2, times the tangents.
Source: https://docs.pytorch.org/docs/2.13/func.api.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.func import grad, jvp, vmap

from torch_compile import edges

Apply = Callable[..., torch.Tensor]

OPS: dict[str, Any] = {
    "tanh": torch.tanh,
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "softmax": lambda a: torch.softmax(a, -1),
    "matvec": torch.matmul,
    "sum": torch.sum,
    "cast": lambda a, dtype: a.to(getattr(torch, dtype)),
    "like": lambda a, b: a.to(b.dtype),  # `a` in the dtype of b
    "shared": lambda a, N: a.expand(N, *a.shape),  # one parameter as that of each of N layers
    "bfloat16": torch.bfloat16,
}


def batching(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return vmap(apply, (None, 0))(w, torch.stack([x, tx]))


def ensemble(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return vmap(apply, (0, None))(torch.stack([w, tw]), x)


def per_example_gradients(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return vmap(_gradient(apply), (None, 0))(w, torch.stack([x, tx]))


def gradient_of_batch(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return _gradient(vmap(apply, (None, 0)))(w, torch.stack([x, tx]))


def forward_mode(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jvp(apply, (w, x), (tw, tx))[1]


def reverse_inside(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return torch.compile(_gradient(apply), fullgraph=True, backend=edges.BACKEND)(w, x)


def reverse_over_reverse(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    w, x = w.requires_grad_(), x.requires_grad_()
    first = torch.autograd.grad(_energy(apply)(w, x), (w, x), create_graph=True)
    return torch.autograd.grad(first, (w, x), (tw, tx))


def forward_over_reverse(apply: Apply, w: Any, x: Any, tw: Any, tx: Any) -> Any:
    return jvp(_gradient(apply), (w, x), (tw, tx))[1]


AROUND = {
    function.__name__: function
    for function in (
        *(batching, ensemble, per_example_gradients, gradient_of_batch),
        *(forward_mode, reverse_inside, reverse_over_reverse, forward_over_reverse),
    )
}


def profile_names(apply: Apply, *args: Any) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        apply(*args)
    return "\n".join(event.name for event in profiler.events())


def _energy(apply: Apply) -> Apply:
    return lambda w, x: (apply(w, x) ** 2).sum() / 2


def _gradient(apply: Apply) -> Callable[..., Any]:
    return grad(_energy(apply), (0, 1))
