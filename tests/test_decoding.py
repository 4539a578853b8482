"""Decoding with a cache: prefill and then token by token gives what the whole sequence gives, however it is held."""

from __future__ import annotations

import functools
from functools import partial

import numpy as np
import pytest

from reference.cases import SIZES, layer_carry, layer_params
from reference.layers import transformer_decoder
from reference.shapes import HOLDS
from reference.stack import run_layers, tree_map
from tests.conftest import loaded
from tests.dialect import from_numpy
from tests.trees import assert_trees

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


@pytest.mark.usefixtures("without_inductor")
@pytest.mark.parametrize(("dtype", "compiled"), [("float32", True), ("float64", False)])
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
