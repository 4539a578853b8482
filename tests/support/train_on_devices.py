"""The small language model of `reference/training.py`, its gradient taken on many devices: NAME SIZE STEPS.

JAX: fully sharded x tensor parallel; torch: fully sharded; TensorFlow: data parallel. The steps themselves are those of
the reference. Prints {"losses": before each step, "is_same_file": of the sharded layers, written by so many devices,
read and written again by another number}.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from implementations import load as load_folder
from implementations.check.dialect import from_numpy, to_numpy, with_arrays
from implementations.checkpoints.checkpoint import stack_names, unstack_names
from implementations.environment import pin
from reference import training
from reference.arguments import leaves
from reference.shapes import axes_beside, tensor_axes
from reference.stack import tree_map

DECODER = "transformer_decoder"


def layer_on(name: str, folder: Any, devices: Any, size: int) -> tuple[Any, Any, dict[str, Any], int]:
    """(mesh, the decoder's layer, how its stacked params are cut, and the batch)."""
    layer, beside = folder.LAYERS[DECODER], axes_beside(DECODER)
    if name == "jax_scan":
        mesh = devices.make_mesh(data=size // 2, tensor=2)
        layer = devices.tensor_parallel(layer, mesh, "tensor")
        axes = {"tensor": tensor_axes(DECODER), "data": beside}
        return mesh, devices.fully_sharded(layer, mesh, "data", beside), axes, size // 2
    mesh = devices.make_mesh(data=size)
    if name == "torch_compile":
        return mesh, devices.fully_sharded(layer, mesh, "data"), {"data": 1}, size
    return mesh, devices.data_parallel(layer, mesh, "data"), {}, size


def train(name: str, folder: Any, devices: Any, size: int, steps: int) -> tuple[list[float], Any, Any, Any]:
    """(losses, the last params, mesh, how its layers are cut)."""
    mesh, layer, axes, D = layer_on(name, folder, devices, size)
    loss = importlib.import_module(f"{name}.training").loss

    def gradient(layers: Any, others: Any, batch: Any, share: Any) -> Any:
        def apply(layers: Any, others: Any) -> Any:
            others = tree_map(lambda a: devices.copy(a, mesh, "data"), others)
            return loss({**others, "layers": layers}, batch, layer=layer)

        value, dlayers, dothers = folder.gradient(apply)(layers, others, devices.copy(share, mesh, "data"))
        return devices.add(value, mesh, "data"), dlayers, dothers

    step = devices.on_mesh(gradient, mesh, (axes, {}, {"data": 0}, {}), ({}, axes, {}))
    params, losses = training.cast(training.init_params(), "float64"), []
    state = {key: tree_map(lambda a: 0 * a, params) for key in ("m", "v")}
    options = dict(training.OPTIONS)
    max_norm = options.pop("max_norm")
    for i, batch in enumerate(training.batches()[:steps], 1):
        layers, others = params["layers"], {key: params[key] for key in params if key != "layers"}
        given = from_numpy(folder, (layers, others, batch, np.array(1 / D)))
        parts = (
            devices.shard_layers(given[0], mesh, axes),
            *(devices.shard(a, mesh, cut) for a, cut in zip(given[1:], ({}, {"data": 0}, {}), strict=True)),
        )
        value, dlayers, dothers = (
            to_numpy(folder, devices.whole(tree, mesh, cut))
            for tree, cut in zip(step(*parts), ({}, axes, {}), strict=True)
        )
        gradients = training.clip({**dothers, "layers": dlayers}, max_norm)
        params, state = training.adamw(params, gradients, state, i, **options)
        losses.append(float(value) / D)
    return losses, params, mesh, axes


def file_of(folder: Any, devices: Any, layers: Any, mesh: Any, axes: Any) -> bytes:
    """The per-layer file of layers that lie on the mesh."""
    sharded = devices.shard_layers(from_numpy(folder, layers), mesh, axes)
    whole = to_numpy(folder, devices.whole(sharded, mesh, axes))
    return save(unstack_names({f"layers.{name}": a for name, a in named(whole)}, ["layers"]))


def named(tree: Any) -> list[tuple[str, Any]]:
    return [(path.strip("[]'").replace("']['", "."), array) for path, array in leaves("", tree)]


def main(name: str, size: int, steps: int) -> None:
    folder, devices = load_folder(name), importlib.import_module(f"{name}.devices")
    if name == "torch_compile":
        vars(importlib.import_module("torch_compile.edges"))["BACKEND"] = "aot_eager"
    devices.start(size)
    losses, params, mesh, axes = train(name, folder, devices, size, steps)
    written = file_of(folder, devices, params["layers"], mesh, axes)
    stacked = stack_names(load(written))
    layers = with_arrays(params["layers"], [stacked[f"layers.{path}"] for path, _ in named(params["layers"])])
    fewer = devices.make_mesh(data=size // 2, other=2)
    is_same_file = file_of(folder, devices, layers, fewer, {"data": axes_beside(DECODER)}) == written
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"losses": losses, "is_same_file": is_same_file}), flush=True)


if __name__ == "__main__":
    pin()
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
