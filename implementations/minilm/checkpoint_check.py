"""A trained network as one scan: all-MiniLM-L6-v2 on real sentences, and the size of its program at 6 and 48 layers.

What is right is NumPy in float64, sentences without padding; what an implementation gets is one padded batch, so that a
mask that lets padding through shows. Compared are the hidden states after every layer, of tokens only: what stands in
the padding is read by nobody. Nothing here judges: `implementations/results/deviations.py` does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from implementations.interface import Implementation, Tree
from implementations.minilm import model
from implementations.minilm.sentences import PAIRS, SENTENCES
from implementations.results.records import PROGRAMS, Checkpoint, Embeddings, Hidden, Pair, Size
from reference.error_bound import FLOOR, MULTIPLE, ulps
from reference.layers import Array, transformer_encoder
from reference.stack import run_layers, tree_map

LAYER = "transformer_encoder"
COSINE = 0.999999  # of an embedding with that of the reference, at least
DEPTHS = (6, 48)  # the six layers, and the six layers eight times over
# Of the counted programs. The masks of six layers are 1536 elements: of less, TensorFlow may make a constant.
B, T = 4, 64


class Right(NamedTuple):
    """What is right for some sentences, and how far NumPy is from it in float32."""

    x: Array  # [B, T, d] float32, what goes into the first layer
    mask: Array  # [B, T]
    hidden: Array  # [N, B, T, d] float64, after each layer; zeros where there is no token
    numpy_ulps: tuple[float, ...]  # of each layer
    embeddings: Array  # [B, d] float64


@functools.cache
def right(sentences: tuple[str, ...]) -> Right:
    """Made once for the same sentences."""
    tokens = model.tokenize(sentences)
    x = model.embed_tokens(tokens.ids)
    exact, near = (reference_states(x, tokens.mask, dtype) for dtype in (np.float64, np.float32))
    numpy_ulps = tuple(ulps(*pair) for pair in zip(exact, near, strict=True))
    return Right(x, tokens.mask, exact, numpy_ulps, model.pool(exact[-1], tokens.mask))


def reference_states(x: Array, mask: Array, dtype: Any = np.float64) -> Array:
    """`hidden_states` by NumPy, in that dtype: sentences of one length at a time, so that there is nothing to mask."""
    params = tree_map(lambda array: array.astype(dtype), model.load().params)
    states = np.zeros((len(params["up"]["w"]), *x.shape), dtype)
    lengths = mask.sum(1)
    for length in np.unique(lengths):
        rows = lengths == length
        carry = {"x": x[rows, :length].astype(dtype), "mask": mask[rows, :length]}
        states[:, rows, :length] = run_layers(showing(transformer_encoder), params, carry)[1]
    return states


def showing(layer: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
    """The layer with its hidden state as y, so that a stack returns those of all layers."""

    def shows(carry: Tree, params: Tree) -> tuple[Tree, Tree]:
        new_carry, _ = layer(carry, params)
        return new_carry, new_carry["x"]

    return shows


def hidden_states(implementation: Implementation) -> Callable[[Array, Array], Array]:
    """(x [B, T, d], mask [B, T]) -> hidden states [N, B, T, d]: NumPy in and out, one compiled scan between them."""
    layer = showing(implementation.LAYERS[LAYER])

    def stack(params: Tree, x: Any, mask: Any) -> Any:
        return implementation.scan_layers(layer, params, {"x": x, "mask": mask})[1]

    program = implementation.compile(stack)
    params = tree_map(implementation.from_numpy, model.load().params)

    def run(x: Array, mask: Array) -> Array:
        states = program(params, *(implementation.from_numpy(array) for array in (x, mask)))
        array: Array = implementation.to_numpy(implementation.wait(states))
        return array

    return run


def compare(
    hidden: Array, sentences: tuple[str, ...] = SENTENCES, pairs: Sequence[tuple[int, int]] = PAIRS
) -> Checkpoint:
    """Hidden states [N, B, T, d] in float32, and the embeddings made of them, beside what is right.

    Errors are in ulps of the largest number of a layer, for which `reference/error_bound.py` says what is allowed.
    """
    known = right(sentences)
    if hidden.shape != known.hidden.shape or hidden.dtype != np.float32:
        raise ValueError(f"hidden states: expected float32{[*known.hidden.shape]}, got {hidden.dtype}{[*hidden.shape]}")
    embeddings = model.pool(hidden[-1].astype(np.float64), known.mask)
    return Checkpoint(
        model=model.NAME,
        sentences=len(sentences),
        tokens=int(known.mask.sum()),
        hidden=tuple(
            Hidden(
                layer=i,
                ulps=ulps(exact[known.mask], actual[known.mask]),
                numpy_ulps=near,
                allowed=max(MULTIPLE * near, FLOOR),
            )
            for i, (exact, actual, near) in enumerate(zip(known.hidden, hidden, known.numpy_ulps, strict=True))
        ),
        embeddings=Embeddings(
            difference=float(abs(embeddings - known.embeddings).max()),
            cosine=float((embeddings * known.embeddings).sum(-1).min()),
            allowed=COSINE,
        ),
        pairs=tuple(
            Pair(
                one=sentences[i],
                other=sentences[j],
                similarity=float(embeddings[i] @ embeddings[j]),
                reference=float(known.embeddings[i] @ known.embeddings[j]),
            )
            for i, j in pairs
        ),
    )


def stacked_params(implementation: Implementation, N: int) -> Any:
    """Those of N layers, the six of the checkpoint over and over."""
    return tree_map(implementation.from_numpy, model.repeated(model.load().params, N))


def size(implementation: Implementation, params: Any, of: Size) -> Size:
    """`of`, counted: the stack of those `stacked_params`, from x to the last hidden state, forward or gradient."""
    layer = implementation.LAYERS[LAYER]
    layers: Any = implementation.scan_layers if of.form == "rolled" else implementation.unroll_layers

    def apply(params: Any, x: Any, kept: Any) -> Any:  # kept is of floating point: a mask has no derivative
        return layers(layer, params, {"x": x, "mask": kept > 0})[0]["x"]

    x, kept = (implementation.from_numpy(np.ones(shape, np.float32)) for shape in ((B, T, model.WIDTH), (B, T)))
    cotangent = x if of.program == "gradient" else None
    counts = implementation.graph_size(apply, params, x, kept, cotangent=cotangent, memory=False)
    return of.counted(of.N, counts)


def check(implementation: Implementation, gradients: bool, step: Callable[[str], None]) -> Checkpoint:
    """The checkpoint in one implementation; without the package that holds the model, why there is nothing of it."""
    start = time.perf_counter()
    step(f"{model.NAME}, {len(SENTENCES)} sentences")
    try:
        known = right(SENTENCES)
    except ModuleNotFoundError as error:
        reason, _, install = str(error).partition(": ")
        return Checkpoint(status="not run", model=model.NAME, reason=reason, install=install)
    compared = compare(hidden_states(implementation)(known.x, known.mask))
    sizes = []
    for N in DEPTHS:
        params = stacked_params(implementation, N)
        for of in programs(N, gradients):
            step(f"{model.NAME}, {of.form} N={N}" + (" gradient" if of.program == "gradient" else ""))
            sizes.append(size(implementation, params, of))
    return replace(compared, sizes=tuple(sizes), seconds=time.perf_counter() - start)


def programs(N: int, gradients: bool) -> list[Size]:
    """What is counted at depth N: of the unrolled twin only the six layers, where gradients are."""
    at = partial(Size, layer=model.NAME, d=model.WIDTH, carry_bytes=4 * B * T * model.WIDTH, N=N)
    rolled = [at(program=program) for program in PROGRAMS[: 1 + gradients]]
    return rolled + ([at(program="forward", form="unrolled")] if gradients and DEPTHS[0] == N else [])


def steps(gradients: bool) -> int:
    """How many steps `check` tells of."""
    return 1 + sum(len(programs(N, gradients)) for N in DEPTHS)
