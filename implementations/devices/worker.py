"""One implementation on many devices, in this process.

    python -m implementations.devices.worker NAME SIZE DEPTHS WAYS BACKEND

DEPTHS: as "8,64"; WAYS: names of ways.py, separated by "; "; BACKEND: what compiles torch's programs, of which each
process makes its own. Prints JSON lines as `implementations.check.run` does; of several processes, the first prints.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from implementations import load
from implementations.check.comparator import assert_trees
from implementations.check.dialect import flat, from_numpy, to_numpy
from implementations.check.problems import Results
from implementations.devices.ways import PIPELINE, WAYS, pipeline_problem, problem
from implementations.environment import pin
from implementations.results import records


def run(name: str, implementation: Any, devices: Any, size: int, N: int) -> records.Way:
    """The gradient of a stack, `on_mesh`."""
    way = WAYS[name]
    *given, exact, yardstick = problem(way.layer, N, way.options.get("reverse", False), 2 * size, way.dtype)
    mesh = devices.make_mesh(**way.mesh(size))
    layer = way.told(devices, implementation.LAYERS[way.layer], mesh)

    def gradient(params: Any, carry: Any, dcarry: Any) -> Any:
        (carry, _), (dparams, dinit, _) = implementation.vjp_layers(
            layer, params, carry, cotangents=(dcarry, None), **way.options
        )
        return carry, dparams, dinit

    axes = way.carry, way.params, way.carry
    step = devices.on_mesh(gradient, mesh, (way.params, way.carry, way.carry), axes)
    params, *carries = from_numpy(implementation, tuple(given))
    parts = [devices.shard_layers(params, mesh, way.params), *(devices.shard(a, mesh, way.carry) for a in carries)]
    results, counts = counted(implementation, step, parts)
    whole = [devices.whole(tree, mesh, cut) for tree, cut in zip(results, axes, strict=True)]
    carry, dparams, dinit = to_numpy(implementation, tuple(whole))
    found = Results(carry, None, dparams, dinit, None)
    return judged(name, N, given[0], found, (exact, yardstick), counts, way.dtype)


def run_pipeline(implementation: Any, devices: Any, size: int, N: int) -> records.Way:
    """The gradient of a loss, through stages."""
    *given, exact, yardstick = pipeline_problem(N)
    mesh, sum_of = devices.make_mesh(stage=size), implementation.OPS["sum"]

    def gradient(params: Any, microbatches: Any) -> Any:
        layer = implementation.LAYERS["mlp"]
        return devices.pipeline(layer, params, microbatches, lambda y: sum_of(y * y) / 2, mesh, "stage")

    step = devices.on_mesh(gradient, mesh, ({"stage": 0}, {}), ({}, {"stage": 0}))
    params, microbatches = from_numpy(implementation, tuple(given))
    parts = [devices.shard(params, mesh, {"stage": 0}), devices.shard(microbatches, mesh, {})]
    (value, dparams), counts = counted(implementation, step, parts)
    value, dparams = devices.whole(value, mesh, {}), devices.whole(dparams, mesh, {"stage": 0})
    found = {"value": implementation.to_numpy(value)[None], "dparams": to_numpy(implementation, dparams)}
    return judged(PIPELINE, N, given[0], found, (exact, yardstick), counts)


def counted(implementation: Any, step: Any, parts: Any) -> Any:
    return importlib.import_module(f"{implementation.__name__}.graph_on_mesh").run_on_mesh(step, *parts)


def judged(way: str, N: int, params: Any, found: Any, right: Any, counts: Any, dtype: str = "float64") -> records.Way:
    wrong = ""
    try:
        assert_trees("on devices", found, *right, dtype=dtype)
    except AssertionError as error:
        wrong = str(error)
    return records.Way(way=way, N=N, wrong=wrong, whole_bytes=sum(a.nbytes for a in flat(params)), **counts)


def main(name: str, size: int, depths: Sequence[int], ways: Sequence[str], backend: str) -> records.OnDevices:
    start = time.perf_counter()
    implementation, devices = load(name), importlib.import_module(f"{name}.devices")
    if name == "torch_compile":
        vars(importlib.import_module("torch_compile.edges"))["BACKEND"] = backend
    devices.start(size)
    asked = [(way, N) for way in ways for N in depths]
    found = []
    for done, (way, N) in enumerate(asked):
        tell({"event": "progress", "done": done, "total": len(asked), "what": f"{way}, N = {N}"})
        one = run_pipeline if way == PIPELINE else partial(run, way)
        found.append(one(implementation, devices, size, N))
    return records.OnDevices(
        name=name,
        size=size,
        versions=implementation.versions(),
        ways=tuple(found),
        seconds=time.perf_counter() - start,
    )


def tell(event: dict[str, Any]) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(event), flush=True)


if __name__ == "__main__":
    pin()
    name, size, depths, ways, backend = sys.argv[1:]
    found = main(name, int(size), [*map(int, depths.split(","))], ways.split("; "), backend)
    tell({"event": "result", "result": records.to_json(found)})
