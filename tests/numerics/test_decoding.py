"""Decoding with a cache: prefill and then token by token gives what the whole sequence gives, however it is held."""

from __future__ import annotations

import functools
from functools import partial

import numpy as np
import pytest

from implementations.check.comparator import assert_trees
from implementations.check.dialect import flat, from_numpy, with_arrays
from reference.cases import SIZES, layer_carry, layer_params
from reference.layers import transformer_decoder
from reference.shapes import HOLDS
from reference.stack import run_layers, tree_map
from tests.conftest import loaded

N, B, T, ROOM, PROMPT = 3, 2, 7, 9, 4
PARAMS = layer_params("transformer_decoder", 3, N, **SIZES["transformer_decoder"])
X = layer_carry("transformer_decoder", 3, B, T, **SIZES["transformer_decoder"])
GARBAGE = 1e3  # what the cache has where nothing was written yet: a mask that is off by one reads it


@functools.cache
def right(dtype):
    return {"y": run_layers(transformer_decoder, *tree_map(lambda a: a.astype(dtype), (PARAMS, X)))[0]}


def decoded(implementation, hold, dtype, compiled, change=lambda position: position):
    """y of all positions: those of the prompt at once, the others one by one, each program compiled once."""
    params, x = from_numpy(implementation, tree_map(lambda a: a.astype(dtype), (PARAMS, X)))
    cache = implementation.empty_cache(params, B, ROOM)
    cache = {name: array + GARBAGE for name, array in cache.items()}
    run = partial(implementation.decode, hold=hold)
    run = implementation.compile(run) if compiled else run
    y, cache = run(params, x[:, :PROMPT], cache, _at(implementation, 0))
    ys = [implementation.to_numpy(y)]
    for t in range(PROMPT, T):
        y, cache = run(params, x[:, t : t + 1], cache, _at(implementation, change(t)))
        ys.append(implementation.to_numpy(y))
    return {"y": np.concatenate(ys, 1)}


def _at(implementation, position):
    return implementation.from_numpy(np.array(position, np.int32))


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize(
    ("dtype", "compiled"),
    [("float32", True), pytest.param("float64", False, marks=pytest.mark.thorough("torch_compile"))],
)
@pytest.mark.covers("decoding with a cache of keys and values")
@pytest.mark.parametrize("hold", HOLDS)
def test_decoding_is_the_whole_sequence(implementation, hold, dtype, compiled):
    actual = decoded(implementation, hold, dtype, compiled)
    assert_trees(
        f"{implementation.__name__}, {hold}", actual, right("float64"), right("float32"), dtype=dtype, stacked=()
    )


def test_a_position_off_by_one_is_caught():
    actual = decoded(loaded("jax_scan"), "entries", "float32", True, change=lambda t: t + 1)
    with pytest.raises(AssertionError, match="observed an error"):
        assert_trees("mutant", actual, right("float64"), right("float32"), stacked=())


# What is copied for one token. The cache is 1 MB, each layer's an eighth of it.

SIZE = {"d": 64, "h": 4, "g": 2, "e": 16, "f": 64}
LAYERS, CACHE = 8, (8, 1, 512, 2, 16)
CACHE_BYTES = 2 * int(np.prod(CACHE)) * 4


def step(implementation, hold):
    """One token through `decode`, as a function of flat arrays, and these arrays: params, x, k, v, position."""
    params = layer_params("transformer_decoder", 0, LAYERS, **SIZE)
    given = [*flat(params), np.ones((1, 1, SIZE["d"]), np.float32), *np.zeros((2, *CACHE), np.float32)]

    def run(*arrays):
        *params_and_x, k, v, position = arrays
        y, cache = implementation.decode(
            with_arrays(params, params_and_x[:-1]), params_and_x[-1], {"k": k, "v": v}, position, hold
        )
        return y, cache["k"], cache["v"]

    return run, from_numpy(implementation, [*given, np.array(7, np.int32)])


def test_a_donated_cache_is_copied_by_slices_alone():
    """JAX, where the caller gives the old cache away: XLA's own figure."""
    implementation = loaded("jax_scan")
    import jax

    copied = {}
    for hold in HOLDS:
        run, arrays = step(implementation, hold)
        of_cache = (len(arrays) - 3, len(arrays) - 2)
        memory = jax.jit(run, donate_argnums=of_cache).lower(*arrays).compile().memory_analysis()
        assert memory is not None
        assert memory.alias_size_in_bytes == CACHE_BYTES
        copied[hold] = memory.temp_size_in_bytes
    assert copied["slices"] > CACHE_BYTES
    assert max(copied["entries"], copied["carry"]) < CACHE_BYTES / 2, copied


def test_torch_copies_the_cache_in_the_carry():
    """Its scan has no carry in place: once more for every layer. Entries need next to nothing beside the results."""
    implementation = loaded("torch_compile")
    copied = {}
    for hold in ("entries", "carry"):
        run, arrays = step(implementation, hold)
        copied[hold] = implementation.graph_size(run, *arrays)["temp_bytes"]
    assert copied["carry"] > CACHE_BYTES
    assert copied["entries"] < CACHE_BYTES / LAYERS / 2, copied


def test_a_position_that_does_not_fit_is_refused(implementation):
    params, x = from_numpy(implementation, (PARAMS, X))
    cache = implementation.empty_cache(params, B, ROOM)
    for position, hold, words in (
        (ROOM - T + 1, "entries", "position: expected 0 to 2, so that 7 positions find room for 9, got 3"),
        (0, "all", "hold: expected one of entries, slices, carry, got 'all'"),
    ):
        with pytest.raises(ValueError, match="expected") as caught:
            implementation.decode(params, x, cache, position, hold)
        assert str(caught.value) == words
