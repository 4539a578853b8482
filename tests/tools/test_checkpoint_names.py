"""Named layers to stacks and back, in memory: bytes, order, what is a stack, and the words of every error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from implementations.checkpoints import checkpoint, layer_names
from tests.support.checkpoints import DTYPES, as_bytes, assert_refused, random_array, stacks_of, zeros
from tests.support.checkpoints import checkpoint as some_checkpoint

# Any: they are also called in ways that their types forbid.
stack_names: Any = checkpoint.stack_names
unstack_names: Any = checkpoint.unstack_names

PREFIXES = ("encoder.layer", "decoder.layer")


def assert_stacks(axis=0):
    """`stack_names` does to twelve layers of every dtype, and `unstack_names` undoes, what bytes alone say."""
    shapes = ((2,), (3,), (2, 3), (4, 2, 3)) if axis else ((), (3,), (2, 3), (4, 2, 3))
    tensors = some_checkpoint(shapes=shapes)
    stacked = stack_names(tensors, axis=axis)
    assert {name: as_bytes(array) for name, array in stacked.items()} == stacks_of(tensors, PREFIXES, axis)
    back = unstack_names(stacked, PREFIXES, axis)
    assert {name: as_bytes(array) for name, array in back.items()} == {n: as_bytes(a) for n, a in tensors.items()}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_names_there_and_back(axis):
    assert_stacks(axis)


def by_name(members):
    return sorted(members)  # 0, 1, 10, 11, 2


def dropped(members):
    return members[:-1]


def repeated(members):
    return [*members[:-1], members[0]]


@pytest.mark.parametrize("mutant", [by_name, dropped, repeated])
@pytest.mark.parametrize("plan", ["stack_plan", "unstack_plan"])
def test_layers_in_a_wrong_order_are_seen(plan, mutant, monkeypatch):
    right = getattr(checkpoint, plan)

    def wrong(*arguments):
        made = right(*arguments)
        return made._replace(members={name: mutant(members) for name, members in made.members.items()})

    monkeypatch.setattr(checkpoint, plan, wrong)
    with pytest.raises(AssertionError):
        assert_stacks()


LOSSY = ("float64", "bfloat16", "float8_e5m2", "int32", "uint32", "int64", "uint64")  # of the others float32 holds all


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("dtype", LOSSY)
def test_a_cast_through_float32_is_seen(dtype, monkeypatch):
    right = checkpoint._fill

    def through_float32(arrays, axis):
        made = right(arrays, axis)
        return made.astype(np.float32).astype(made.dtype) if made.dtype == dtype else made

    monkeypatch.setattr(checkpoint, "_fill", through_float32)
    with pytest.raises(AssertionError):
        assert_stacks()


def test_names_without_an_index_are_the_arrays_they_were():
    tensors = {"embed.w": zeros(2), "h.0.w": zeros(2), "h.1.w": zeros(2), "h.norm": zeros(2), "v1.w": zeros(2)}
    stacked = stack_names(tensors)
    assert list(stacked) == ["embed.w", "h.w", "h.norm", "v1.w"]
    assert all(stacked[name] is tensors[name] for name in ("embed.w", "h.norm", "v1.w"))
    back = unstack_names(stacked, ["h"], keep=["h.norm"])
    assert sorted(back) == sorted(tensors)
    assert np.shares_memory(back["h.1.w"], stacked["h.w"])


@pytest.mark.parametrize(
    ("names", "prefixes", "expected"),
    [
        (["0.w", "1.w", "norm"], None, {"w": ["0.w", "1.w"], "norm": None}),
        (["ws.0", "ws.1"], None, {"ws": ["ws.0", "ws.1"]}),
        (["a.0.b.0.w", "a.0.b.1.w"], None, {"a.b.0.w": ["a.0.b.0.w"], "a.b.1.w": ["a.0.b.1.w"]}),
        (["a.0.b.0.w", "a.0.b.1.w"], ["a.0.b"], {"a.0.b.w": ["a.0.b.0.w", "a.0.b.1.w"]}),
        (["a.0.w", "b.0.w"], ["b"], {"a.0.w": None, "b.w": ["b.0.w"]}),
        (["ab.0.w", "a.0.w"], ["a"], {"ab.0.w": None, "a.w": ["a.0.w"]}),
        # no index: not as Python writes one, or the part before or after it is empty
        *(
            ([name, "b.0"], None, {name: None, "b": ["b.0"]})
            for name in ("h.00.w", "h.-1.w", "h.1a.w", "h.²", "h..w", "h.0.", ".0.w", "")
        ),
        (["h.0..w"], None, {"h..w": ["h.0..w"]}),
        (["h/0/w", "h/1/w", "h/norm"], None, {"h/w": ["h/0/w", "h/1/w"], "h/norm": None}),
        (["layer_0/w", "layer_1/w"], None, {"layer/w": ["layer_0/w", "layer_1/w"]}),
        (["a.encoderblock_0.w"], None, {"a.encoderblock.w": ["a.encoderblock_0.w"]}),
        (
            ["block.0.layer.1.w", "block.1.layer.1.w"],
            None,
            {"block.layer.1.w": ["block.0.layer.1.w", "block.1.layer.1.w"]},
        ),
        # a number after an underscore that counts no layers, unless it is said to
        *(
            ([name, "b.0"], None, {name: None, "b": ["b.0"]})
            for name in ("fc_1.w", "conv1.w", "branch_0.w", "layer_1_w")
        ),
        (["fc_0.w", "fc_1.w"], ["fc_"], {"fc.w": ["fc_0.w", "fc_1.w"]}),
        # 10 is after 9
        ([f"h_{i}/w" for i in (10, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8)], None, {"h/w": [f"h_{i}/w" for i in range(11)]}),
        # what one layer has, or what layers of two kinds have, is in no stack
        (["h.0.w", "h.0.bias", "h.1.w"], None, {"h.w": ["h.0.w", "h.1.w"], "h.0.bias": None}),
        (
            ["h.0.w", "h.1.w", "h.2.w", "h.3.w", "h.0.dense", "h.1.dense", "h.2.e.0", "h.3.e.0"],
            None,
            {"h.w": ["h.0.w", "h.1.w", "h.2.w", "h.3.w"]}
            | dict.fromkeys(["h.0.dense", "h.1.dense", "h.2.e.0", "h.3.e.0"]),
        ),
        (["h.0.w\nx"], None, {"h.w\nx": ["h.0.w\nx"]}),
    ],
)
def test_what_is_a_stack(names, prefixes, expected):
    """Name -> its layers, or None where it is in no stack. And back, the prefixes spelled as they were found."""
    tensors = {name: np.full(2, i) for i, name in enumerate(names)}
    stacked = stack_names(tensors, prefixes)
    assert stacked.keys() == expected.keys()
    for name, members in expected.items():
        rows = [tensors[member].tolist() for member in members or [name]]
        assert stacked[name].tolist() == (rows if members else rows[0])
    found = layer_names.stack_plan(checkpoint._leaves_of(tensors), prefixes, 0).layers
    back = unstack_names(stacked, list(found), keep=[name for name, members in expected.items() if not members])
    assert {name: as_bytes(array) for name, array in back.items()} == {n: as_bytes(a) for n, a in tensors.items()}


@given(
    st.dictionaries(
        st.sampled_from(["h", "h_", "h/", "a/layers_", "encoder.layer", "encoder.layer.7.x", "x..y", ""]),
        st.tuples(
            st.integers(1, 12),
            st.sets(st.sampled_from(["w", "mlp.0.b", "3", "z.", ""]), min_size=1),
        ),
    ),
    st.sets(st.sampled_from(["head", "h.norm", "encoder.norm", "encoder.layer", "h.01.w"])),
    st.integers(-2, 1),
    st.integers(0, 99),
)
def test_any_names_there_and_back(stacks, others, axis, seed):
    random = np.random.default_rng(seed)
    tensors = {}
    for prefix, (num_layers, rests) in stacks.items():
        for rest in sorted(rests):
            shape, dtype = tuple(random.integers(0, 3, 1 + random.integers(3))), DTYPES[random.integers(len(DTYPES))]
            for i in random.permutation(num_layers):
                sign = prefix[-1:] if prefix.endswith("/") else "."
                begin = f"{prefix}{'' if not prefix or prefix.endswith(('/', '_')) else '.'}{i}"
                name = begin + (sign + rest if rest else "")
                tensors[name] = random_array(random, shape, dtype)
    tensors |= {name: random_array(random, (2,), DTYPES[0]) for name in others}
    try:
        stacked = stack_names(tensors, list(stacks), axis)
    except ValueError as error:  # names that meet or could not be told apart are refused, never mixed up
        said = ("to be free for its stack", "that is not taken for one of", "names with a layer index")
        assert any(words in str(error) for words in said)  # noqa: PT017
        assert bool(stacks) != (said[2] in str(error))  # noqa: PT017
        return
    back = unstack_names(stacked, list(stacks), axis, keep=others & stacked.keys())
    assert {name: as_bytes(array) for name, array in back.items()} == {n: as_bytes(a) for n, a in tensors.items()}


def named(*names, **others):
    return {name: zeros(4) for name in names} | others


NAME_ERRORS = {
    "missing layer": (
        lambda: stack_names(named("h.0.w", "h.1.w", "h.3.w")),
        ValueError,
        "layer 2 of 'h': expected layers 0 to 3, got none of this index",
    ),
    "first layer missing": (
        lambda: stack_names(named("a.h.1.w", "a.h.2.w")),
        ValueError,
        "layer 0 of 'a.h': expected layers 0 to 2, got none of this index",
    ),
    "missing key": (
        lambda: stack_names(named("h.0.w", "h.0.b", "h.1.w", "h.1.b", "h.2.b")),
        ValueError,
        "layer 2: expected 'h.2.w' (layer 0 has 'h.0.w'), got no array",
    ),
    "missing key in the first layer": (
        lambda: stack_names(named("h.0.b", "h.1.w", "h.1.b", "h.2.w", "h.2.b")),
        ValueError,
        "layer 0: expected 'h.0.w' (layer 1 has 'h.1.w'), got no array",
    ),
    "extra key": (
        lambda: stack_names(named("h.0.w", "h.1.w", "h.2.w", "h.3.w", "h.4.w", "h.1.extra.b", "h.4.extra.b")),
        ValueError,
        "layer 1: expected no 'h.1.extra.b' (layer 0 has none), got one",
    ),
    "missing beside another kind": (
        lambda: stack_names(named("h.0.w", "h.0.dense", "h.1.w", "h.1.e", "h.2.w", "h.2.e", "h.3.w")),
        ValueError,
        "layer 3: expected 'h.3.e' (layer 1 has 'h.1.e'), got no array",
    ),
    "nothing in common": (
        lambda: stack_names(named("h.0.a", "h.1.b", "g.0.w"), ["h"]),
        ValueError,
        "prefixes: expected some tensor that all layers of 'h' have, got none",
    ),
    "no layers": (
        lambda: stack_names(named("w", "layer_norm.w")),
        ValueError,
        "tensors: expected names with a layer index, like 'h.0.w', got none",
    ),
    "half of the layers": (
        lambda: stack_names(named("m/layers_2/w", "m/layers_3/w", "m/layers_6/w")),
        ValueError,
        "layers 0 to 1, 4 to 5 of 'm/layers_': expected layers 0 to 6, got none of these",
    ),
    "two spellings of one stack": (
        lambda: stack_names(named("h.0.w", "h_0.w")),
        ValueError,
        "layer 0, 'h.0.w': expected a stack that is not taken for one of 'h_', got the name 'h.w'",
    ),
    "shape": (
        lambda: stack_names(named("g.0.w", "h.0.w", "h.1.w") | {"h.2.w": zeros(8)}),
        ValueError,
        "layer 2, 'h.2.w': expected float32[4] (that of layer 0), got float32[8]",
    ),
    "dtype": (
        lambda: stack_names(named("h.0.w") | {"h.1.w": zeros(4, dtype="float16")}),
        TypeError,
        "layer 1, 'h.1.w': expected float32[4] (that of layer 0), got float16[4]",
    ),
    "taken": (
        lambda: stack_names(named("h.0.w", "h.w")),
        ValueError,
        "layer 0, 'h.0.w': expected the name 'h.w' to be free for its stack, got a tensor of that name",
    ),
    "two stacks of one name": (
        lambda: stack_names(named("a.0.b.w", "a.b.0.w")),
        ValueError,
        "layer 0, 'a.0.b.w': expected a stack that is not taken for one of 'a.b', got the name 'a.b.w'",
    ),
    "prefix": (
        lambda: stack_names(named("g.0.w", "h.0.w"), ["decoder.layer"]),
        ValueError,
        "prefixes: expected names like 'decoder.layer.0', got none; found: 'g', 'h'",
    ),
    "prefix, and no other": (
        lambda: stack_names(named("w"), ["h"]),
        ValueError,
        "prefixes: expected names like 'h.0', got none",
    ),
    "a string for prefixes": (
        lambda: stack_names(named("h.0.w"), "h"),
        TypeError,
        "prefixes: expected a list of strings, got 'h'",
    ),
    "prefixes no strings": (
        lambda: stack_names(named("h.0.w"), [0]),
        TypeError,
        "prefixes: expected a list of strings, got [0]",
    ),
    "axis": (
        lambda: stack_names(named("h.0.w", "h.1.w"), axis=2),
        ValueError,
        "axis: expected -2 to 1 (for layer 0, 'h.0.w' of shape (4,)), got 2",
    ),
    "axis no int": (lambda: stack_names({}, axis=None), TypeError, "axis: expected an int, got None"),
    "no mapping": (
        lambda: stack_names([zeros(2)]),
        TypeError,
        "tensors: expected a mapping of names to arrays, got list",
    ),
    "name no string": (
        lambda: stack_names({3: zeros(2)}),
        TypeError,
        "tensors: expected names that are strings, got 3",
    ),
    "no array": (
        lambda: stack_names({"h.0.w": [1.0]}),
        TypeError,
        "tensors['h.0.w']: expected a NumPy array, got list",
    ),
    "unstack: other N": (
        lambda: unstack_names({"h.b": zeros(3), "h.w": zeros(4, 4)}, ["h"]),
        ValueError,
        "'h.w': expected 3 layers along axis 0 (that of 'h.b'), got 4",
    ),
    "unstack: no axis": (
        lambda: unstack_names({"h.w": zeros()}, ["h"]),
        ValueError,
        "'h.w': expected an axis 0 of layers, got shape ()",
    ),
    "unstack: N = 0": (
        lambda: unstack_names({"h.w": zeros(0, 4)}, ["h"]),
        ValueError,
        "'h.w': expected at least one layer, got none",
    ),
    "unstack: taken": (
        lambda: unstack_names({"h.w": zeros(3), "h.1.w": zeros(3)}, ["h"], keep=["h.1.w"]),
        ValueError,
        "'h.w': expected the name 'h.1.w' to be free for its layer 1, got a tensor of that name",
    ),
    "unstack: prefix": (
        lambda: unstack_names(named("h.w"), ["h", "g"]),
        ValueError,
        "prefixes: expected names that begin with 'g.', got none",
    ),
    "unstack: keep": (
        lambda: unstack_names(named("h.w"), ["h"], keep=["h.b"]),
        ValueError,
        "keep: expected names of tensors, got 'h.b'",
    ),
    "unstack: a string for prefixes": (
        lambda: unstack_names(named("h.w"), "h"),
        TypeError,
        "prefixes: expected a list of strings, got 'h'",
    ),
}


@pytest.mark.parametrize("case", NAME_ERRORS)
def test_names_that_do_not_fit(case):
    assert_refused(*NAME_ERRORS[case])
