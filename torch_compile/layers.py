"""Layers, each a scan body: `layer(carry, params) -> (new_carry, y)`.

Line-parallel with `reference/layers.py` and with the other frameworks' `layers.py`. What frameworks choose differently
by default (precision, eps, flavours) is explicit in every layer, or said where it is a global switch.
"""

from __future__ import annotations

import torch


def dense(carry: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, None]:
    """One dense layer, no activation: `w @ carry`, with carry [d], w [d, d]; no per-layer output."""
    # TF32 is a global switch here, off by default: torch.set_float32_matmul_precision("highest").
    return torch.matmul(w, carry), None  # [d]


LAYERS = {"dense": dense}
