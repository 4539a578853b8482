"""A small language model and its training, through the scanned stack of `transformer_decoder`.

One step is a gradient, clipped layer by layer, and AdamW: the gradient of a scanned stack is stacked like its params,
so an optimizer takes it as it is, and only what is meant for each layer by itself (`clip`) has to know.
Steps as in `reference/training.py`. The optimizer is torch's: eps outside of the root, weight decay beside Adam.
Source: https://docs.pytorch.org/docs/2.13/generated/torch.optim.AdamW.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from reference import arguments
from torch_compile.edges import compile
from torch_compile.layers import LAYERS, rms_norm
from torch_compile.recipes import clip_layers
from torch_compile.stack import scan_layers, unroll_layers
from torch_compile.trees import flatten, flatten_like, map_arrays


def loss(
    params: dict[str, Any],
    batch: torch.Tensor,
    *,
    layer: Any = LAYERS["transformer_decoder"],
    unroll: bool = False,
    remat: bool | int = False,
) -> torch.Tensor:
    """Mean cross entropy, in nats, of each next token of a batch [B, T + 1] of integers.

    params: embedding [V, d], layers (stacked params of transformer_decoder), norm {scale [d]}, head [d, V]. layer:
    transformer_decoder, as devices.py makes it one of many devices."""
    stack: Callable[..., Any] = unroll_layers if unroll else partial(scan_layers, remat=remat)
    x = F.embedding(batch[:, :-1], params["embedding"])  # [B, T, d]
    x, _ = stack(layer, params["layers"], x)
    logits = torch.matmul(rms_norm(x, params["norm"]), params["head"])  # [B, T, V]
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten().long())


def train(
    params: dict[str, Any],
    batches: Iterable[Any],
    *,
    form: str = "scan",
    remat: bool | int = False,
    learning_rate: float = 0.01,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    max_norm: float = 0.5,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """One step of AdamW for each of batches [steps, B, T + 1]: the losses before each, [steps], and the last params.

    form: "scan" or "unroll", a Python loop over the layers. remat: as in `scan_layers`. max_norm: of `clip`.

    Raises:
        ValueError: "form: expected scan or unroll, got 'loop'", "remat: expected False without a scan, got 2"
    """
    arguments.check_form(form, remat)
    program = compile(lambda params, batch: loss(params, batch, unroll=form == "unroll", remat=remat))
    params = map_arrays(lambda p: p.detach().clone().requires_grad_(), params)  # the optimizer writes into them
    arrays, structure = flatten(params)
    optimizer = torch.optim.AdamW(arrays, learning_rate, (b1, b2), eps, weight_decay)

    losses = []
    for batch in batches:
        optimizer.zero_grad()
        value = program(params, batch)
        value.backward()
        gradients = clip(map_arrays(lambda p: p.grad, params), max_norm)
        for p, gradient in zip(arrays, flatten_like(structure, gradients), strict=True):
            p.grad = gradient
        optimizer.step()
        losses.append(value.detach())
    return torch.stack(losses), map_arrays(torch.Tensor.detach, params)


def clip(gradients: dict[str, Any], max_norm: float) -> dict[str, Any]:
    """Each layer's gradients scaled down where their norm is above max_norm; what is not stacked as one more layer."""
    others = map_arrays(lambda g: g[None], {name: g for name, g in gradients.items() if name != "layers"})
    clipped = map_arrays(lambda g: g[0], clip_layers(others, max_norm))
    return {"layers": clip_layers(gradients["layers"], max_norm), **clipped}
