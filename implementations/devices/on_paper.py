"""What a device holds and sends for one layer of transformer_decoder, computed from the sizes in reference/shapes.py.

    python -m implementations.devices.on_paper

For machines that nobody has at hand; at small sizes tests hold it to the counted programs. Sent are the whole arrays
that a training step gathers, scatters, sums or passes on for a layer: of one that is gathered or scattered a ring of P
devices sends (P - 1) / P, of one that is summed twice that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich.console import Console

from implementations.report.table import Table, renderable
from reference.containers import leaves
from reference.shapes import PARAMS, shape_and_scale, tensor_axes

# A decoder of about 70 billion parameters: 80 layers of width 8192, one sequence of 4096 positions a device.
SIZES = {"d": 8192, "h": 64, "g": 8, "e": 128, "f": 28672}
N, BATCH, POSITIONS, BYTES = 80, 1, 4096, 2
DEVICES = (8, 64, 512, 4096)


class Layer(NamedTuple):
    """Bytes of one layer on one device."""

    held: int  # of its params
    whole: int  # of its params while it runs
    sent: int  # of the arrays that are gathered, scattered, summed or passed on for it


def fully_sharded(sizes: Mapping[str, int], size: int, width: int = BYTES) -> Layer:
    """Gathered forwards, gathered again backwards, its gradient scattered."""
    whole = sum(_bytes(sizes, width).values())
    return Layer(whole // size, whole, 3 * whole)


def tensor_parallel(sizes: Mapping[str, int], size: int, carry: int, width: int = BYTES) -> Layer:
    """Two sums of a carry forwards, after attention and after the hidden layer, and two backwards, before them."""
    axes, parts = dict(leaves("", tensor_axes("transformer_decoder"))), _bytes(sizes, width)
    held = sum(count // size if path in axes else count for path, count in parts.items())
    return Layer(held, held, 4 * carry)


def both(sizes: Mapping[str, int], size: int, tensor: int, carry: int, width: int = BYTES) -> Layer:
    """Of each part of a layer that is cut by `tensor`, what is fully sharded among the others."""
    part = tensor_parallel(sizes, tensor, carry, width)
    return Layer(part.held * tensor // size, part.held, 3 * part.held + part.sent)


def pipeline(sizes: Mapping[str, int], size: int, carry: int, depth: int, width: int = BYTES) -> Layer:
    """Of N / P layers one passes its carry on, forwards, and its cotangent backwards."""
    whole = sum(_bytes(sizes, width).values())
    return Layer(whole // size, whole, 2 * carry * size // depth)


def _bytes(sizes: Mapping[str, int], width: int) -> dict[str, int]:
    arrays: Any = leaves("", PARAMS["transformer_decoder"])
    return {path: width * math.prod(shape_and_scale(axes, dict(sizes))[0]) for path, axes in arrays}


def table() -> Table:
    carry = BATCH * POSITIONS * SIZES["d"] * BYTES
    rows = []
    for size in DEVICES:
        ways = {"fully sharded": fully_sharded(SIZES, size)}
        if size <= SIZES["g"]:
            ways["tensor parallel"] = tensor_parallel(SIZES, size, carry)
        else:
            ways["fully sharded x tensor, 8"] = both(SIZES, size, SIZES["g"], carry)
        if N % size == 0:
            ways["pipeline"] = pipeline(SIZES, size, carry, N)
        for way, layer in ways.items():
            counts = N * layer.held, layer.whole, layer.sent
            rows.append([f"{size}", way, *(f"{count / 1e6:,.0f}" for count in counts)])
    columns = ("devices", "way", "params a device, MB", "of a layer as it runs, MB", "sent a layer, MB")
    note = f"transformer_decoder, N = {N}, {', '.join(f'{k} = {v}' for k, v in SIZES.items())}, bfloat16; "
    note += f"{BATCH} x {POSITIONS} positions a device."
    return Table("devices", "On paper", columns, "rlrrr", rows, note)


if __name__ == "__main__":
    Console(width=110).print(renderable(table()))
