"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

Line-parallel with `reference/layers.py` and with the other frameworks' `layers.py`. What frameworks choose differently
by default (precision, eps, flavours) is explicit in every layer, or said where it is a global switch.
"""

from __future__ import annotations

from typing import Any

import torch


def dense(carry: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    # TF32 is a global switch here, off by default: torch.set_float32_matmul_precision("highest").
    return torch.matmul(w, carry), None  # [d]


def mlp(carry: torch.Tensor, params: dict[str, Any]) -> tuple[torch.Tensor, None]:
    """Pre-norm residual block, `carry + down(gelu(up(norm(carry))))`: carry [..., d]; no per-layer output.

    params: norm {scale [d], bias [d]}, up {w [d, f], bias [f]}, down {w [f, d], bias [d]}.
    """
    norm, up, down = params["norm"], params["up"], params["down"]
    centred = carry - carry.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    h = centred * torch.rsqrt(variance + EPS) * norm["scale"] + norm["bias"]  # [..., d]
    h = torch.matmul(h, up["w"]) + up["bias"]  # [..., f]
    h = torch.nn.functional.gelu(h, approximate="tanh")
    h = torch.matmul(h, down["w"]) + down["bias"]  # [..., d]
    return carry + h, None


EPS = 1e-5  # of the norm; frameworks' defaults differ
LAYERS = {"dense": dense, "mlp": mlp}
