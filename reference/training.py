"""A small language model and its training, in NumPy: the problem, and the losses and weights that are right.

Characters of the repository's LICENSE are predicted one after the other: embedding, N layers of `transformer_decoder`,
RMS norm, head, cross entropy. Gradients are written by hand, clipped layer by layer, and AdamW takes the steps. In
float64 it is the oracle, in float32 the yardstick: rounding errors grow over the steps, and here they show how fast.
Sources: https://arxiv.org/abs/1711.05101, algorithm 2 (decoupled weight decay); https://arxiv.org/abs/1412.6980 (Adam).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reference.cases import layer_params
from reference.layers import Array, rms_norm, rms_norm_vjp, transformer_decoder, transformer_decoder_vjp
from reference.stack import run_layers, run_layers_vjp, tree_map

TEXT = Path(__file__).parents[1] / "LICENSE"
STEPS, N, B, T, SEED = 50, 4, 4, 32, 0
SIZES = {"d": 32, "h": 4, "g": 2, "e": 8, "f": 64}
# What `train` of a framework folder takes beside params and batches. With this max_norm every layer is clipped in some
# steps and in others not, and so is what is not stacked.
OPTIONS: dict[str, Any] = {
    "learning_rate": 0.01,
    "b1": 0.9,
    "b2": 0.95,
    "eps": 1e-8,
    "weight_decay": 0.1,
    "max_norm": 0.5,
}


class Trained(NamedTuple):
    losses: Array  # [STEPS], each before its step
    params: Any
    weight_norms: Array  # [N], of the layers, at the end


@functools.cache
def vocabulary() -> str:
    """The characters that occur, in order: token i is vocabulary()[i]."""
    return "".join(sorted(set(TEXT.read_text(encoding="utf-8"))))


def batches() -> Array:
    """[STEPS, B, T + 1] of int32, from places drawn at random: the first T tokens of a row are read, the last T
    predicted."""
    number = {character: i for i, character in enumerate(vocabulary())}
    tokens = np.array([number[character] for character in TEXT.read_text(encoding="utf-8")], np.int32)
    starts = np.random.default_rng(SEED).integers(0, len(tokens) - T, (STEPS, B))
    return tokens[starts[..., None] + np.arange(T + 1)]


def init_params() -> dict[str, Any]:
    """In float32: embedding [V, d], layers (stacked params), norm {scale [d]}, head [d, V]."""
    rng, V, d = np.random.default_rng([SEED, 1]), len(vocabulary()), SIZES["d"]
    params = {
        "embedding": rng.standard_normal((V, d)),
        "layers": layer_params("transformer_decoder", SEED, N, **SIZES),
        "norm": {"scale": np.ones(d)},
        "head": rng.standard_normal((d, V)) / d**0.5,
    }
    return cast(params, "float32")


def cast(params: Any, dtype: str) -> Any:
    return tree_map(lambda array: array.astype(dtype), params)


@functools.cache
def train(dtype: str) -> Trained:
    """STEPS steps in that dtype, from the same params and batches: what every framework is compared with."""
    params, losses = cast(init_params(), dtype), []
    state = {name: tree_map(np.zeros_like, params) for name in ("m", "v")}
    options = dict(OPTIONS)
    max_norm = options.pop("max_norm")
    for step, batch in enumerate(batches(), 1):
        loss, gradients = loss_and_gradients(params, batch)
        params, state = adamw(params, clip(gradients, max_norm), state, step, **options)
        losses.append(loss)
    return Trained(np.array(losses), params, layer_norms(params["layers"]))


def loss_and_gradients(params: dict[str, Any], batch: Array) -> tuple[Any, dict[str, Any]]:
    """The loss of a batch [B, T + 1], and its derivative with respect to params."""
    carry, n, log_p = _forward(params, batch)
    tokens, targets = batch[:, :-1], batch[:, 1:]
    dlogits = (np.exp(log_p) - np.eye(log_p.shape[-1], dtype=log_p.dtype)[targets]) / targets.size  # [B, T, V]
    dcarry, dnorm = rms_norm_vjp(carry, params["norm"], dlogits @ params["head"].T)
    layer = transformer_decoder, transformer_decoder_vjp
    x = params["embedding"][tokens]
    _, (dlayers, dx, _) = run_layers_vjp(*layer, params["layers"], x, cotangents=(dcarry, None))
    dembedding = np.zeros_like(params["embedding"])
    np.add.at(dembedding, tokens, dx)  # a token that comes twice has two gradients
    dhead = np.einsum("btd,btv->dv", n, dlogits, optimize=True)
    return _cross_entropy(log_p, batch), {"embedding": dembedding, "layers": dlayers, "norm": dnorm, "head": dhead}


def loss(params: dict[str, Any], batch: Array) -> Any:
    """Mean cross entropy, in nats, of each next token of a batch [B, T + 1]. Params may be complex."""
    return _cross_entropy(_forward(params, batch)[2], batch)


def _forward(params: dict[str, Any], batch: Array) -> tuple[Array, Array, Array]:
    """The carry behind the layers and what its norm makes of it, [B, T, d], and log probabilities [B, T, V]."""
    x = params["embedding"][batch[:, :-1]]
    carry, _ = run_layers(transformer_decoder, params["layers"], x)
    n = rms_norm(carry, params["norm"])
    logits = n @ params["head"]
    logits = logits - np.real(logits).max(-1, keepdims=True)
    return carry, n, logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _cross_entropy(log_p: Array, batch: Array) -> Any:
    return -np.take_along_axis(log_p, batch[:, 1:, None], -1).mean()


def adamw(
    params: Any,
    gradients: Any,
    state: dict[str, Any],
    step: int,
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> tuple[Any, dict[str, Any]]:
    """Step 1, 2, ... of AdamW: new params, new state {m, v}, both zero before step 1. Every array decays."""
    m = tree_map(lambda m, g: b1 * m + (1 - b1) * g, state["m"], gradients)
    v = tree_map(lambda v, g: b2 * v + (1 - b2) * g**2, state["v"], gradients)

    def stepped(p: Array, m: Array, v: Array) -> Array:
        # both moments begin at 0, which is divided out; eps stands outside of the root
        direction = (m / (1 - b1**step)) / (np.sqrt(v / (1 - b2**step)) + eps)
        # the decay is beside Adam, not in the gradient: the moments do not see it
        updated: Array = p - learning_rate * (direction + weight_decay * p)
        return updated

    return tree_map(stepped, params, m, v), {"m": m, "v": v}


def clip(gradients: dict[str, Any], max_norm: float) -> dict[str, Any]:
    """Each layer's gradients scaled down where their norm is above max_norm; what is not stacked as one more layer."""
    others = tree_map(lambda g: g[None], {name: g for name, g in gradients.items() if name != "layers"})
    clipped = tree_map(lambda g: g[0], _clip_layers(others, max_norm))
    return {"layers": _clip_layers(gradients["layers"], max_norm), **clipped}


def _clip_layers(stacked: Any, max_norm: float) -> Any:
    factors = np.minimum(1, max_norm / layer_norms(stacked))  # [N]
    return tree_map(lambda g: g * factors.reshape(-1, *[1] * (g.ndim - 1)), stacked)


def layer_norms(stacked: Any) -> Array:
    """The Euclidean norm of each layer over all its arrays, [N]."""
    squares: list[Array] = []
    tree_map(lambda a: squares.append((a.reshape(len(a), -1) ** 2).sum(1)), stacked)
    norms: Array = np.sqrt(np.sum(squares, 0))
    return norms
