"""A small language model and its training, through the scanned stack of `transformer_decoder`.

One step is a gradient, clipped layer by layer, and AdamW: the gradient of a scanned stack is stacked like its params,
so an optimizer takes it as it is, and only what is meant for each layer by itself (`clip`) has to know.
Steps as in `reference/training.py`. The optimizer is optax's: eps outside of the root, weight decay beside Adam.
Source: https://optax.readthedocs.io/en/latest/api/optimizers.html#optax.adamw
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
from jax import numpy as jnp

from jax_scan.layers import HIGHEST, LAYERS, rms_norm
from jax_scan.recipes import clip_layers
from jax_scan.stack import scan_layers, unroll_layers
from reference import arguments


def loss(
    params: dict[str, Any],
    batch: jax.Array,
    *,
    layer: Any = LAYERS["transformer_decoder"],
    unroll: bool = False,
    remat: bool | int = False,
) -> jax.Array:
    """Mean cross entropy, in nats, of each next token of a batch [B, T + 1] of integers.

    params: embedding [V, d], layers (stacked params of transformer_decoder), norm {scale [d]}, head [d, V]. layer:
    transformer_decoder, as devices.py makes it one of many devices."""
    stack: Callable[..., Any] = unroll_layers if unroll else partial(scan_layers, remat=remat)
    x = params["embedding"][batch[:, :-1]]  # [B, T, d]
    x, _ = stack(layer, params["layers"], x)
    logits = jnp.matmul(rms_norm(x, params["norm"]), params["head"], precision=HIGHEST)  # [B, T, V]
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, batch[:, 1:, None], -1).mean()


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
) -> tuple[jax.Array, dict[str, Any]]:
    """One step of AdamW for each of batches [steps, B, T + 1]: the losses before each, [steps], and the last params.

    form: "scan" or "unroll", a Python loop over the layers. remat: as in `scan_layers`. max_norm: of `clip`.

    Raises:
        ValueError: "form: expected scan or unroll, got 'loop'", "remat: expected False without a scan, got 2"
    """
    arguments.check_form(form, remat)
    import optax  # here: what does not train does without it

    # optax computes its corrections, 1 - b ** step, in JAX's default dtype: with x64 in float64, else some digits short
    optimizer = optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)

    @jax.jit
    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params, batch, unroll=form == "unroll", remat=remat)
        updates, state = optimizer.update(clip(gradients, max_norm), state, params)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for batch in batches:
        params, state, value = step(params, state, batch)
        losses.append(value)
    return jnp.stack(losses), params


def clip(gradients: dict[str, Any], max_norm: float) -> dict[str, Any]:
    """Each layer's gradients scaled down where their norm is above max_norm; what is not stacked as one more layer."""
    others = jax.tree.map(lambda g: g[None], {name: g for name, g in gradients.items() if name != "layers"})
    clipped = jax.tree.map(lambda g: g[0], clip_layers(others, max_norm))
    return {"layers": clip_layers(gradients["layers"], max_norm), **clipped}
