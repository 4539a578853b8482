"""The programs of the general stack whose size is measured: forward, each derivative, batches, each choice of remat.

`graph_size` takes flat arrays, so each program rebuilds its trees from a flat list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from implementations.interface import Array, Implementation, Tree
from implementations.results.records import Size

D, F, B = 64, 128, 2  # width, hidden width, batch
K = 4  # layers a step (unroll) or a group (remat)
# From N = 16 on every stacked array has 1000 elements: with fewer, TensorFlow may take zeros for a constant.
PARAMS: dict[str, Tree] = {
    "dense": (D, D),
    "mlp": {  # in the order of the alphabet, in which JAX returns them
        "down": {"bias": (D,), "w": (F, D)},
        "norm": {"bias": (D,), "scale": (D,)},
        "up": {"bias": (F,), "w": (D, F)},
    },
}
NAMES = (
    "forward", "gradient", "vjp_layers", "jvp_layers", "vmap_layers", "vmap_vjp_layers", "hvp_layers",
    "gradient, remat=True", f"gradient, remat={K}", f"gradient, unroll={K}", "gradient, unrolled",
)  # fmt: skip


class Program(NamedTuple):
    of: Size  # without N and counts; of a "gradient" that program is measured, by the framework's ordinary reverse mode
    apply: Callable[..., Any]  # of `inputs`, flat
    inputs: tuple[str, ...]


def programs(implementation: Implementation, of: str) -> list[Program]:
    """The programs of a stack of layers `of` LAYERS, in the order in which they are shown."""
    layer, stack = implementation.LAYERS[of], ("params", "init")

    def split(flat: Sequence[Array]) -> tuple[Tree, Array]:
        return rebuilt(PARAMS[of], iter(flat[:-1])), flat[-1]

    def forward(**options: Any) -> Callable[..., Array]:
        return lambda *flat: implementation.scan_layers(layer, *split(flat), **options)[0]

    def unrolled(*flat: Array) -> Array:
        return implementation.unroll_layers(layer, *split(flat))[0]

    def vjp(*flat: Array) -> Any:
        *stack, cotangent = flat
        return leaves(implementation.vjp_layers(layer, *split(stack), cotangents=(cotangent, None)))

    def jvp(*flat: Array) -> Any:
        tangents = (*split(flat[len(flat) // 2 :]), None)
        return leaves(implementation.jvp_layers(layer, *split(flat[: len(flat) // 2]), tangents=tangents))

    def hvp(*flat: Array) -> Any:
        tangents = (*split(flat[len(flat) // 2 :]), None)
        return leaves(implementation.hvp_layers(layer, _loss, *split(flat[: len(flat) // 2]), tangents=tangents))

    def vmap(*flat: Array) -> Array:
        return implementation.vmap_layers(layer, *split(flat))[0]

    def vmap_vjp(*flat: Array) -> Any:
        *stack, cotangent = flat
        return leaves(implementation.vmap_vjp_layers(layer, *split(stack), cotangents=(cotangent, None)))

    at = partial(Size, layer=of, d=D, carry_bytes=4 * D)
    return [
        Program(at(program="forward"), forward(), stack),
        Program(at(program="gradient"), forward(), stack),
        Program(at(program="vjp_layers"), vjp, (*stack, "cotangent")),
        Program(at(program="jvp_layers"), jvp, stack * 2),
        Program(at(program="vmap_layers"), vmap, ("params", "inits")),
        Program(at(program="vmap_vjp_layers"), vmap_vjp, ("params", "inits", "cotangents")),
        Program(at(program="hvp_layers"), hvp, stack * 2),
        Program(at(program="gradient", remat=True), forward(remat=True), stack),
        Program(at(program="gradient", remat=K), forward(remat=K), stack),
        Program(at(program="gradient", unroll=K), forward(unroll=K), stack),
        Program(at(program="gradient", form="unrolled"), unrolled, stack),
    ]


def size(implementation: Implementation, program: Program, N: int) -> Size:
    """The program, counted at N."""
    of, gradient = program.of, program.of.program == "gradient"
    flat = [implementation.from_numpy(array) for array in arrays(of.layer, program.inputs, N)]
    cotangent = implementation.from_numpy(next(arrays(of.layer, ("cotangent",), N))) if gradient else None
    # memory is of interest where remat and unroll change it, and takes torch most of the time
    return of.counted(N, implementation.graph_size(program.apply, *flat, cotangent=cotangent, memory=gradient))


def arrays(layer: str, inputs: tuple[str, ...], N: int) -> Iterator[np.ndarray]:
    """The arrays of each input, one after the other: small Gaussian params [N, ...], carries [D] or a batch [B, D]."""
    rng = np.random.default_rng(N)
    for name in inputs:
        shapes = [(N, *shape) for shape in _shapes(PARAMS[layer])]
        for shape in shapes if name == "params" else [(B, D) if name.endswith("s") else (D,)]:
            yield (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def _shapes(tree: Tree) -> list[tuple[int, ...]]:
    return [shape for part in tree.values() for shape in _shapes(part)] if isinstance(tree, dict) else [tree]


def rebuilt(shapes: Tree, flat: Iterator[Array]) -> Tree:
    return {name: rebuilt(part, flat) for name, part in shapes.items()} if isinstance(shapes, dict) else next(flat)


def _loss(carry: Array, _: Tree) -> Array:
    return carry[0] * carry[1]  # a scalar of two factors has a Hessian, and needs no framework's own sum


def leaves(tree: Tree) -> tuple[Array, ...]:
    if isinstance(tree, (dict, list, tuple)):
        parts = tree.values() if isinstance(tree, dict) else tree
        return tuple(leaf for part in parts for leaf in leaves(part))
    return () if tree is None else (tree,)
