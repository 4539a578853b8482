"""The ways in which a stack is cut over devices, each with a problem whose right answer NumPy knows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from implementations.check.problems import Results, is_float
from reference import layers
from reference.cases import layer_carry, layer_params
from reference.shapes import axes_beside, tensor_axes
from reference.stack import run_layers, run_layers_vjp, tree_map

# Every size that is cut is one that 8 devices divide.
SIZES = {"d": 16, "f": 64, "h": 8, "g": 8, "e": 4}


class Way(NamedTuple):
    """A layer, the mesh, what is cut along which of its axes, and how the layer is told."""

    layer: str
    mesh: Callable[[int], dict[str, int]]  # of so many devices
    params: dict[str, Any]
    carry: dict[str, Any]
    told: Callable[[Any, Any, Any], Any]  # (devices, layer, mesh) -> layer
    options: dict[str, Any] = {}  # noqa: RUF012  # of scan_layers
    dtype: str = "float64"


def _data(name: str) -> Way:
    return Way(name, _one("data"), {}, {"data": 0}, lambda devices, *of: devices.data_parallel(*of, "data"))


def _fully(name: str, dtype: str = "float64", **options: Any) -> Way:
    return Way(
        *(name, _one("data"), {"data": 1}, {"data": 0}),
        lambda devices, *of: devices.fully_sharded(*of, "data"),
        *(options, dtype),
    )


def _tensor(name: str) -> Way:
    axes = {"tensor": tensor_axes(name)}
    return Way(name, _one("tensor"), axes, {}, lambda devices, *of: devices.tensor_parallel(*of, "tensor"))


def _both(name: str) -> Way:
    beside = axes_beside(name)

    def told(devices: Any, layer: Any, mesh: Any) -> Any:
        return devices.fully_sharded(devices.tensor_parallel(layer, mesh, "tensor"), mesh, "data", beside)

    axes = {"tensor": tensor_axes(name), "data": beside}
    return Way(name, lambda size: {"data": 2, "tensor": size // 2}, axes, {"data": 0}, told)


def _one(name: str) -> Callable[[int], dict[str, int]]:
    return lambda size: {name: size}


WAYS = {
    "data parallel": _data("mlp"),
    "fully sharded": _fully("mlp"),
    "fully sharded, unroll=3": _fully("mlp", unroll=3),
    "fully sharded, remat=True": _fully("mlp", remat=True),
    "fully sharded, remat=3": _fully("mlp", remat=3),
    "fully sharded, reverse": _fully("mlp", reverse=True),
    "fully sharded, bfloat16": _fully("mlp", "bfloat16"),
    "fully sharded, decoder": _fully("transformer_decoder"),
    "tensor parallel": _tensor("mlp"),
    "tensor parallel, encoder": _tensor("transformer_encoder"),
    "tensor parallel, decoder": _tensor("transformer_decoder"),
    "fully sharded x tensor": _both("mlp"),
    "fully sharded x tensor, decoder": _both("transformer_decoder"),
}


@functools.cache
def problem(layer: str, N: int, reverse: bool, B: int, dtype: str = "float64") -> tuple[Any, ...]:
    """(stacked_params, carry, cotangent of the carry) in dtype, what is right of them, and NumPy's own in float32."""
    params, carry = layer_params(layer, 1, N, **SIZES), layer_carry(layer, 1, B=B, T=4, **SIZES)
    rng = np.random.default_rng(2)
    dcarry = tree_map(lambda a: rng.standard_normal(a.shape).astype(np.float32) if is_float(a) else None, carry)
    given = _as_dtype((params, carry, dcarry), dtype)
    exact, yardstick = (_results(dtype, layer, given, reverse) for dtype in ("float64", "float32"))
    return *given, exact, yardstick


def _as_dtype(tree: Any, dtype: str) -> Any:
    return tree_map(lambda a: a.astype(dtype) if is_float(a) else a, tree)


def _results(dtype: str, layer: str, given: Any, reverse: bool) -> Results:
    params, carry, dcarry = _as_dtype(given, dtype)
    forward, vjp = layers.LAYERS[layer].forward, layers.LAYERS[layer].vjp
    outputs, gradients = run_layers_vjp(forward, vjp, params, carry, cotangents=(dcarry, None), reverse=reverse)
    return Results(*outputs, *gradients)


PIPELINE, MICROBATCHES = "pipeline", 8  # mlp, whose layers are cut over stages


@functools.cache
def pipeline_problem(N: int) -> tuple[Any, Any, Any, Any]:
    """(stacked_params, microbatches [M, ...]) in float64; exact and NumPy's own {value, dparams} of half the sum of
    squares of each microbatch's carry, on average."""
    params, carry, *_ = problem("mlp", N, False, 2 * MICROBATCHES)

    def results(dtype: str) -> Any:
        y = run_layers(layers.mlp, *_as_dtype((params, carry), dtype))[0] / MICROBATCHES
        found = _results(dtype, "mlp", (params, carry, y), False)
        return {"value": MICROBATCHES * np.sum(y * y, dtype=dtype)[None] / 2, "dparams": found.dparams}

    return params, carry.reshape(MICROBATCHES, -1, *carry.shape[1:]), results("float64"), results("float32")
