"""`gradient` and `graph_size` of stacks of trees: integers and None among the arrays, in and out."""

from __future__ import annotations

import numpy as np
import pytest

from reference.arguments import leaves
from reference.stack import tree_map

N = 4
PARAMS = {
    "w": np.full((N, 3), 2, np.float32),
    "rest": [np.ones((N, 3), np.float32), None],
    "k": np.arange(N, dtype=np.int32),
}
INIT = {"h": np.ones(3, np.float32), "count": np.array(0, np.int32)}
COTANGENT = {"out": (np.ones(3, np.float32),)}


def stack(implementation):
    def layer(carry, params):
        h = carry["h"] * params["w"] + params["rest"][0]
        return {"h": h, "count": carry["count"] + params["k"]}, None

    def apply(params, init):
        carry, _ = implementation.scan_layers(layer, params, init)
        return {"out": (carry["h"],)}

    return apply


@pytest.mark.torch_backend("eager")
@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_takes_trees_and_returns_them(implementation, compiled):
    """Of h = 2 h + 1 four times over: 1, 3, 7, 15, 31; for each layer what follows multiplies by 8, 4, 2, 1."""
    params, init, cotangent = tree_map(implementation.from_numpy, (PARAMS, INIT, COTANGENT))
    run = (implementation.compile_gradient if compiled else implementation.gradient)(stack(implementation))
    y, dparams, dinit = run(params, init, cotangent)
    found = {path: implementation.to_numpy(a)[..., 0].tolist() for path, a in leaves("", (y, dparams, dinit))}
    assert found == {
        "[0]['out'][0]": 31,
        "[1]['w']": [8, 12, 14, 15],
        "[1]['rest'][0]": [8, 4, 2, 1],
        "[2]['h']": 16,
    }


def test_graph_size_takes_trees(implementation):
    params, init, cotangent = tree_map(implementation.from_numpy, (PARAMS, INIT, COTANGENT))
    forward, gradient = (
        implementation.graph_size(stack(implementation), params, init, memory=False, **more)
        for more in ({}, {"cotangent": cotangent})
    )
    assert (forward["loops"], gradient["loops"]) == (1, 2)
    assert all(gradient[level] > forward[level] for level in ("lowered", "compiled"))


@pytest.mark.torch_backend("eager")
def test_a_cotangent_unlike_the_result_is_refused_in_the_same_words(implementation):
    params, init = tree_map(implementation.from_numpy, (PARAMS, INIT))
    wrong = {"out": (implementation.from_numpy(np.ones(4, np.float32)),)}
    with pytest.raises(ValueError, match="cotangent") as caught:
        implementation.gradient(stack(implementation))(params, init, wrong)
    assert str(caught.value) == "cotangent[0]['out'][0]: expected float32[3] (that of y), got float32[4]"
