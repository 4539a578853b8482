"""Over random trees, dtypes, depths and options: rolled, unrolled and NumPy's loop agree, exactly, on integers."""

from __future__ import annotations

from functools import partial

import ml_dtypes  # noqa: F401  gives NumPy the name bfloat16
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from implementations.check.comparator import assert_close
from implementations.check.dialect import flat, from_numpy, layer_of, pullback
from implementations.check.problems import is_float
from reference.stack import run_layers, tree_map


@pytest.mark.torch_backend("eager")
def test_a_tree_by_hand(implementation):
    """Two layers `sum of params - carry`, from 1: 2 + 3 - 1 = 4, then 5 + 7 - 4 = 8."""
    params = {"a": np.array([2, 5], np.float32), "b": (np.array([3, 7], np.int32), None)}
    layer = layer_of(make_any, implementation.__name__)
    carry, (_, shown, _) = implementation.scan_layers(layer, *from_numpy(implementation, (params, [np.ones(1)])))
    assert implementation.to_numpy(carry[0]).tolist() == [8]
    assert implementation.to_numpy(shown["new"][0]).tolist() == [[4], [8]]


DTYPES = ("float32", "float64", "bfloat16", "int32")


def make_any(o):
    """For any trees: each carry is subtracted from a sum over all params and xs of its layer, so that order shows."""

    def layer(carry, params, x=None):
        total = 0
        for array in flat((params, x)):
            total = total + o.cast(o.sum(array), "float32")
        new = tree_map(lambda c: o.like(total, c) - c, carry)
        return new, (params, {"carry": carry, "new": new, "none": None}, x)

    return layer


def trees(min_leaves=0):
    """Nested dicts, tuples and lists; leaves are Spec or None."""
    leaf = st.builds(Spec, st.sampled_from([(), (1,), (2,), (2, 3)]), st.sampled_from(DTYPES)) | st.none()
    inner = st.recursive(
        leaf,
        lambda tree: (
            st.dictionaries(st.sampled_from("abc"), tree, max_size=2)
            | st.lists(tree, max_size=2)
            | st.lists(tree, max_size=2).map(tuple)
        ),
        max_leaves=4,
    )
    return inner.filter(lambda tree: len(flat(tree)) >= min_leaves)


class Spec:
    """Shape and dtype of a leaf."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype

    def __repr__(self):
        return f"{self.dtype}{list(self.shape)}"

    def draw(self, rng, *N):
        """Of numbers so small that no sum of theirs is above 256: bfloat16 has all integers up to there."""
        return rng.integers(-1, 2, (*N, *self.shape)).astype(self.dtype)


options = st.fixed_dictionaries(
    {"reverse": st.booleans(), "unroll": st.integers(1, 4), "remat": st.booleans() | st.integers(1, 4)}
)


def check(implementation, specs, N, options, seed):
    rng = np.random.default_rng(seed)
    stacked_params, init, xs = specs
    inputs = (
        tree_map(lambda spec: spec.draw(rng, N), stacked_params),
        tree_map(lambda spec: spec.draw(rng), init),
        tree_map(lambda spec: spec.draw(rng, N), xs),
    )
    expected = run_layers(layer_of(make_any, "numpy"), *inputs, reverse=options["reverse"])
    cotangents = tree_map(lambda a: rng.integers(-1, 2, np.shape(a)).astype(a.dtype) if is_float(a) else None, expected)
    layer = layer_of(make_any, implementation.__name__)
    gradients = {}
    for form, its in (("scan_layers", options), ("unroll_layers", {"reverse": options["reverse"]})):
        stack = partial(getattr(implementation, form), layer, **its)
        outputs, gradients[form] = pullback(implementation, stack, inputs, cotangents)
        assert_close(form, outputs, expected, 0)
    assert_close("gradient", gradients["scan_layers"], gradients["unroll_layers"], 0)


any_stack = given(
    specs=st.tuples(trees(min_leaves=1), trees(), trees()),
    N=st.sampled_from((4, 3, 2, 1, 0)),
    options=options,
    seed=st.integers(0, 99),
)


@pytest.mark.torch_backend("eager")
@settings(
    max_examples=5, phases=[Phase.explicit, Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@any_stack
def test_rolled_unrolled_and_numpy_agree(implementation, specs, N, options, seed):
    check(implementation, specs, N, options, seed)
