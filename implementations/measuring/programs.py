"""The programs of the general stack whose size is measured: forward, each derivative, batches, each choice of remat."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from implementations.interface import Array, Implementation, Tree
from implementations.results.records import Size
from reference.cases import layer_params
from reference.stack import tree_map

# From N = 16 on every stacked array has 1000 elements: with fewer, TensorFlow may take zeros for a constant.
D, F, B = 64, 128, 2  # width, hidden width, batch
K = 4  # layers a step (unroll) or a group (remat)
NAMES = (
    "forward", "gradient", "vjp_layers", "jvp_layers", "vmap_layers", "vmap_vjp_layers", "hvp_layers",
    "gradient, remat=True", f"gradient, remat={K}", f"gradient, unroll={K}", "gradient, unrolled",
)  # fmt: skip


class Program(NamedTuple):
    of: Size  # without N and counts; of a "gradient" that program is measured, by the framework's ordinary reverse mode
    apply: Callable[..., Any]  # of `inputs`
    inputs: tuple[str, ...]


def programs(implementation: Implementation, of: str) -> list[Program]:
    """The programs of a stack of layers `of` LAYERS, in the order in which they are shown."""
    layer, stack = implementation.LAYERS[of], ("params", "carry")

    def forward(**options: Any) -> Callable[..., Array]:
        return lambda params, x: implementation.scan_layers(layer, params, x, **options)[0]

    def unrolled(params: Tree, x: Array) -> Array:
        return implementation.unroll_layers(layer, params, x)[0]

    def vjp(params: Tree, x: Array, cotangent: Array) -> Any:
        return implementation.vjp_layers(layer, params, x, cotangents=(cotangent, None))

    def jvp(params: Tree, x: Array, *tangents: Any) -> Any:
        return implementation.jvp_layers(layer, params, x, tangents=(*tangents, None))

    def hvp(params: Tree, x: Array, *tangents: Any) -> Any:
        return implementation.hvp_layers(layer, _loss, params, x, tangents=(*tangents, None))

    def vmap(params: Tree, xs: Array) -> Array:
        return implementation.vmap_layers(layer, params, xs)[0]

    def vmap_vjp(params: Tree, xs: Array, cotangents: Array) -> Any:
        return implementation.vmap_vjp_layers(layer, params, xs, cotangents=(cotangents, None))

    at = partial(Size, layer=of, d=D, carry_bytes=4 * D)
    return [
        Program(at(program="forward"), forward(), stack),
        Program(at(program="gradient"), forward(), stack),
        Program(at(program="vjp_layers"), vjp, (*stack, "carry")),
        Program(at(program="jvp_layers"), jvp, stack * 2),
        Program(at(program="vmap_layers"), vmap, ("params", "batch")),
        Program(at(program="vmap_vjp_layers"), vmap_vjp, ("params", "batch", "batch")),
        Program(at(program="hvp_layers"), hvp, stack * 2),
        Program(at(program="gradient", remat=True), forward(remat=True), stack),
        Program(at(program="gradient", remat=K), forward(remat=K), stack),
        Program(at(program="gradient", unroll=K), forward(unroll=K), stack),
        Program(at(program="gradient", form="unrolled"), unrolled, stack),
    ]


def size(implementation: Implementation, program: Program, N: int) -> Size:
    """The program, counted at N."""
    of, gradient = program.of, program.of.program == "gradient"
    *given, cotangent = tree_map(implementation.from_numpy, inputs(of.layer, (*program.inputs, "carry"), N))
    # memory is of interest where remat and unroll change it, and takes torch most of the time
    wanted = cotangent if gradient else None
    return of.counted(N, implementation.graph_size(program.apply, *given, cotangent=wanted, memory=gradient))


def inputs(layer: str, names: tuple[str, ...], N: int) -> list[Tree]:
    """For each name: params of N layers, a carry [D], or a batch of them [B, D]; the same for the same place."""
    shapes = {"carry": (D,), "batch": (B, D)}
    sizes = {"d": D} if layer == "dense" else {"d": D, "f": F}

    def drawn(name: str, seed: int) -> Tree:
        if name == "params":
            return layer_params(layer, seed, N, **sizes)
        return np.random.default_rng(seed).standard_normal(shapes[name]).astype(np.float32)

    return [drawn(name, seed) for seed, name in enumerate(names)]


def _loss(carry: Array, _: Tree) -> Array:
    return carry[0] * carry[1]  # a scalar of two factors has a Hessian, and needs no framework's own sum
