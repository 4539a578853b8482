"""Bad input is refused before anything is traced: the same exception and the same words in every implementation."""

from __future__ import annotations

import importlib.util
import re

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from implementations import NAMES, REQUIRES, load
from reference import arguments
from reference.arguments import Leaf
from reference.stack import apply_layers
from tests.conftest import loaded


def test_a_wrong_width_by_hand(implementation):
    weights, x = map(implementation.from_numpy, (np.ones((5, 2, 2), np.float32), np.ones(3, np.float32)))
    with pytest.raises(ValueError, match=r"^x: expected shape \(2,\), got \(3,\)$"):
        implementation.scan_apply_layers(weights, x)


WEIGHTS = np.stack([np.eye(7, dtype=np.float32)] * 3)  # [N, d, d]
X = np.arange(7, dtype=np.float32)  # [d]

FLOATS = "expected dtype float16, bfloat16, float32 or float64"
BATCH = "; one vector at a time: vmap_layers batches"
ANY_ARRAY = "expected an array of this framework (from_numpy makes one)"

# what -> (make(weights, x) -> the bad pair, exception, message)
BAD_ARRAYS = {
    "weights 0-d": (lambda w, x: (w[0, 0, 0], x), ValueError, "weights: expected shape (N, d, d), got ()"),
    "weights 1-d": (lambda w, x: (w[0, 0], x), ValueError, "weights: expected shape (N, d, d), got (7,)"),
    "weights 2-d": (lambda w, x: (w[0], x), ValueError, "weights: expected shape (N, d, d), got (7, 7)"),
    "weights 4-d": (lambda w, x: (w[None], x), ValueError, "weights: expected shape (N, d, d), got (1, 3, 7, 7)"),
    "weights wide": (lambda w, x: (w[:, :6], x), ValueError, "weights: expected shape (N, d, d), got (3, 6, 7)"),
    # x fits the columns: without the check, one such layer runs and gives a y of another length
    "weights tall": (lambda w, x: (w[:1, :, :6], x[:6]), ValueError,
        "weights: expected shape (N, d, d), got (1, 7, 6)"),
    "no layers, not square": (lambda w, x: (w[:0, :6], x), ValueError,
        "weights: expected shape (N, d, d), got (0, 6, 7)"),
    "x short": (lambda w, x: (w, x[:6]), ValueError, "x: expected shape (7,), got (6,)"),
    "x of one, which would broadcast": (lambda w, x: (w, x[:1]), ValueError, "x: expected shape (7,), got (1,)"),
    "x empty": (lambda w, x: (w, x[:0]), ValueError, "x: expected shape (7,), got (0,)"),
    "x short, no layers": (lambda w, x: (w[:0], x[:6]), ValueError, "x: expected shape (7,), got (6,)"),
    "x 0-d": (lambda w, x: (w, x[0]), ValueError, "x: expected shape (7,), got ()"),
    "x (B, d)": (lambda w, x: (w, np.stack([x] * 5)), ValueError, f"x: expected shape (7,), got (5, 7){BATCH}"),
    # of the width of a layer: a matrix product would take it
    "x (d, d)": (lambda w, x: (w, w[0]), ValueError, f"x: expected shape (7,), got (7, 7){BATCH}"),
    "x (B, d), no layers": (lambda w, x: (w[:0], x[None]), ValueError, f"x: expected shape (7,), got (1, 7){BATCH}"),
    "x 3-d": (lambda w, x: (w, x[None, None]), ValueError, "x: expected shape (7,), got (1, 1, 7)"),
    "x float64": (lambda w, x: (w, x.astype(np.float64)), TypeError,
        "x: expected dtype float32 (that of weights), got float64"),
    "weights float64": (lambda w, x: (w.astype(np.float64), x), TypeError,
        "x: expected dtype float64 (that of weights), got float32"),
    "x bfloat16": (lambda w, x: (w, x.astype(ml_dtypes.bfloat16)), TypeError,
        "x: expected dtype float32 (that of weights), got bfloat16"),
    "x float16 of bfloat16": (lambda w, x: (w.astype(ml_dtypes.bfloat16), x.astype(np.float16)), TypeError,
        "x: expected dtype bfloat16 (that of weights), got float16"),
    "x integer": (lambda w, x: (w, x.astype(np.int32)), TypeError,
        "x: expected dtype float32 (that of weights), got int32"),
    "weights integer": (lambda w, x: (w.astype(np.int32), x), TypeError, f"weights: {FLOATS}, got int32"),
    "both integer": (lambda w, x: (w.astype(np.int64), x.astype(np.int64)), TypeError, f"weights: {FLOATS}, got int64"),
    "both bool": (lambda w, x: (w.astype(bool), x.astype(bool)), TypeError, f"weights: {FLOATS}, got bool"),
    "both complex": (lambda w, x: (w.astype(np.complex64), x.astype(np.complex64)), TypeError,
        f"weights: {FLOATS}, got complex64"),
    # two faults: dtypes are looked at first, and weights before x
    "dtype and shape": (lambda w, x: (w[0].astype(np.int32), x), TypeError, f"weights: {FLOATS}, got int32"),
    "both shapes": (lambda w, x: (w[0], x[None]), ValueError, "weights: expected shape (N, d, d), got (7, 7)"),
}  # fmt: skip
NO_ARRAYS = {
    "list": ([1.0] * 7, "list"),
    "tuple": ((1.0,) * 7, "tuple"),
    "None": (None, "NoneType"),
    "float": (1.0, "float"),
    "numpy array": (X, "numpy.ndarray"),
    "numpy scalar": (X[0], "numpy.float32"),
}

bad_arrays = pytest.mark.parametrize(("make", "exception", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
no_arrays = pytest.mark.parametrize(("value", "name"), NO_ARRAYS.values(), ids=NO_ARRAYS)
both_forms = pytest.mark.parametrize("form", ["scan_apply_layers", "unroll_apply_layers"])


def assert_refused(implementation, form, weights, x, exception, message):
    """Called as it stands: exactly this type, exactly these words, and nothing was traced for it."""
    before = implementation.program_count()
    with pytest.raises(exception) as caught:
        getattr(implementation, form)(weights, x)
    assert type(caught.value) is exception
    assert str(caught.value) == message
    assert implementation.program_count() == before


@both_forms
@bad_arrays
def test_bad_arrays_are_refused(implementation, form, make, exception, message):
    weights, x = map(implementation.from_numpy, map(np.asarray, make(WEIGHTS, X)))
    assert_refused(implementation, form, weights, x, exception, message)


@both_forms
@no_arrays
def test_what_is_no_array_is_refused(implementation, form, value, name):
    weights, x = map(implementation.from_numpy, (WEIGHTS, X))
    assert_refused(implementation, form, value, x, TypeError, f"weights: {ANY_ARRAY}, got {name}")
    assert_refused(implementation, form, weights, value, TypeError, f"x: {ANY_ARRAY}, got {name}")


@both_forms
def test_another_frameworks_array_is_refused(implementation, form):
    """Frameworks would read it through NumPy or DLPack: the gradient would end there, unseen."""
    weights = implementation.from_numpy(WEIGHTS)
    for other in NAMES:
        if other != implementation.__name__ and importlib.util.find_spec(REQUIRES[other]):
            stranger = load(other).from_numpy(X)
            name = f"{type(stranger).__module__}.{type(stranger).__qualname__}"
            assert_refused(implementation, form, weights, stranger, TypeError, f"x: {ANY_ARRAY}, got {name}")


@both_forms
@bad_arrays
def test_words_stand_inside_the_users_compiled_function(implementation, form, make, exception, message):
    """A framework may wrap the type (torch) or put text around (TensorFlow); the words must arrive."""
    weights, x = map(implementation.from_numpy, map(np.asarray, make(WEIGHTS, X)))
    with pytest.raises(Exception, match=re.escape(message)):
        implementation.compile(getattr(implementation, form))(weights, x)


@both_forms
@no_arrays
def test_words_stand_for_what_is_no_array_too(implementation, form, value, name):
    weights, x = map(implementation.from_numpy, (WEIGHTS, X))
    apply = getattr(implementation, form)
    words = f"{ANY_ARRAY}, got {name.partition('.')[0]}"  # torch takes a NumPy scalar for a NumPy array here
    with pytest.raises(Exception, match=re.escape(f"weights: {words}")):
        implementation.compile(lambda x: apply(value, x))(x)
    with pytest.raises(Exception, match=re.escape(f"x: {words}")):
        implementation.compile(lambda weights: apply(weights, value))(weights)


shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(weights=shapes | st.tuples(*[st.integers(0, 3)] * 3), x=shapes)
def test_any_wrong_shape_is_refused(implementation, weights, x):
    assume(len(weights) != 3 or weights[1] != weights[2] or x != weights[1:2])
    arrays = [implementation.from_numpy(np.zeros(shape, np.float32)) for shape in (weights, x)]
    wrong = "x" if len(weights) == 3 and weights[1] == weights[2] else "weights"
    for apply in (implementation.scan_apply_layers, implementation.unroll_apply_layers):
        with pytest.raises(ValueError, match=rf"^{wrong}: expected shape .*, got \(") as caught:
            apply(*arrays)
        assert f"got {x if wrong == 'x' else weights}" in str(caught.value)


@given(N=st.integers(0, 4), d=st.integers(0, 3))
def test_no_right_shape_is_refused(implementation, N, d):
    weights, x = np.ones((N, d, d), np.float32), np.ones(d, np.float32)
    expected = apply_layers(weights, x)
    # torch compiles for seconds for each width: the rolled form meets many widths in tests/refusals/test_robustness.py
    rolled = () if implementation.__name__ == "torch_compile" else (implementation.scan_apply_layers,)
    for apply in (implementation.unroll_apply_layers, *rolled):
        y = implementation.to_numpy(apply(*map(implementation.from_numpy, (weights, x))))
        np.testing.assert_array_equal(y, expected, strict=True)


@pytest.mark.torch_backend("aot_eager")
@pytest.mark.parametrize("N", [0, 1, 3])
def test_width_zero_is_an_ordinary_width(implementation, N):
    """Nothing to multiply, nothing to return; memory of no elements has odd strides in some frameworks."""
    arrays = [implementation.from_numpy(np.zeros(shape, np.float32)) for shape in ((N, 0, 0), (0,), (0,))]
    results = implementation.gradient(implementation.scan_apply_layers)(*arrays)
    assert implementation.to_numpy(implementation.scan_apply_layers(*arrays[:2])).shape == (0,)
    assert [implementation.to_numpy(result).shape for result in results] == [(0,), (N, 0, 0), (0,)]


# Sizes that only run time tells: None in TensorFlow's input_signature.

SIGNATURES = {
    "only ranks known": ([None, None, None], [None]),
    "no rank known": (None, None),
    "N and d unknown, x known": ([None, None, None], [2]),
    "columns known": ([None, None, 2], [None]),
    "rows known": ([None, 2, None], [None]),
    "x unknown": ([None, 2, 2], [None]),
}
# A wrong pair for each of those signatures that admits it.
WRONG_SIZES = {
    "not square, fits x": ((1, 2, 3), (3,), "weights: expected shape (N, d, d), got"),
    "not square, the other way": ((1, 3, 2), (2,), "weights: expected shape (N, d, d), got"),
    "not square, no layers": ((0, 2, 3), (3,), "weights: expected shape (N, d, d), got"),
    "x long": ((3, 2, 2), (3,), "x: expected shape"),
    "x of one": ((3, 2, 2), (1,), "x: expected shape"),
    "x wrong, no layers": ((0, 2, 2), (3,), "x: expected shape"),
}
NOT_BY_RANK = {
    "weights 2-d": ((2, 2), (2,), "weights: expected shape (N, d, d), got"),
    "x 2-d": ((3, 2, 2), (2, 2), "x: expected shape"),
}


def traced_for(signature):
    """`scan_apply_layers` in a graph, not XLA, which drops assertions."""
    implementation = loaded("tf_while")
    import tensorflow as tf

    specs = [tf.TensorSpec(shape, tf.float32) for shape in signature]
    return tf.function(implementation.scan_apply_layers, input_signature=specs, autograph=False)


def admits(signature, *shapes):
    return all(
        known is None
        or (len(known) == len(shape) and all(k in (None, size) for k, size in zip(known, shape, strict=True)))
        for known, shape in zip(signature, shapes, strict=True)
    )


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_wrong_sizes_unknown_at_trace_time_are_refused_at_run_time(signature):
    program = traced_for(signature)
    import tensorflow as tf

    rows = WRONG_SIZES | (NOT_BY_RANK if signature == (None, None) else {})
    tried = {what: row for what, row in rows.items() if admits(signature, *row[:2])}
    assert tried
    for what, (weights, x, words) in tried.items():
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError)) as caught:
            program(tf.ones(weights), tf.ones(x))
        assert words in str(caught.value), what


@pytest.mark.parametrize("signature", SIGNATURES.values(), ids=SIGNATURES)
def test_right_sizes_unknown_at_trace_time_are_accepted(signature):
    program = traced_for(signature)
    import tensorflow as tf

    swap, x = np.array([[0, 1], [2, 0]], np.float32), np.array([3, 4], np.float32)
    for N in (0, 1, 3):
        weights = np.stack([swap] * 3)[:N]
        y = program(tf.constant(weights), tf.constant(x))
        np.testing.assert_array_equal(y.numpy(), apply_layers(weights, x))


def test_the_twin_asserts_sizes_unknown_at_trace_time_too():
    """It needs N when it is traced, but no width; one layer that is not square runs: y has another length than x."""
    implementation = loaded("tf_while")
    import tensorflow as tf

    specs = [tf.TensorSpec([1, None, None]), tf.TensorSpec([None])]
    program = tf.function(implementation.unroll_apply_layers, input_signature=specs, autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"weights: expected shape \(N, d, d\), got"):
        program(tf.ones((1, 2, 3)), tf.ones(3))
    assert program(tf.fill((1, 2, 2), 2.0), tf.ones(2)).numpy().tolist() == [4, 4]


# reference/arguments.py by itself.


@pytest.mark.parametrize(
    ("weights", "x"),
    [
        ((3, 7, 7), (7,)),
        ((0, 7, 7), (7,)),
        ((3, 0, 0), (0,)),
        ((None, 7, 7), (7,)),
        ((None, None, 7), (7,)),
        ((None, 7, None), (7,)),
        ((3, None, None), (7,)),
        ((3, None, None), (None,)),
        ((3, 7, 7), (None,)),
        ((3, 7, 7), None),
        (None, (7,)),
        (None, None),
    ],
)
@pytest.mark.parametrize("dtype", arguments.FLOAT_DTYPES)
def test_what_may_be_right_passes(weights, x, dtype):
    arguments.check_dense_stack(Leaf(weights, dtype), Leaf(x, dtype))


@pytest.mark.parametrize(
    ("weights", "x", "message"),
    [
        ((None, 2, 3), (3,), "weights: expected shape (N, d, d), got (?, 2, 3)"),
        ((None, None), None, "weights: expected shape (N, d, d), got (?, ?)"),
        ((None,), None, "weights: expected shape (N, d, d), got (?,)"),
        ((None, 7, None), (6,), "x: expected shape (7,), got (6,)"),
        ((None, None, 7), (6,), "x: expected shape (7,), got (6,)"),
        ((None, None, 0), (6,), "x: expected shape (0,), got (6,)"),
        ((3, None, None), (None, 7), f"x: expected shape (?,), got (?, 7){BATCH}"),
        (None, (5, 7), f"x: expected shape (?,), got (5, 7){BATCH}"),
        (None, (), "x: expected shape (?,), got ()"),
    ],
)
def test_what_cannot_be_right_is_refused_whatever_is_unknown(weights, x, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        arguments.check_dense_stack(Leaf(weights, "float32"), Leaf(x, "float32"))


@pytest.mark.parametrize(
    ("weights", "x", "message"),
    [
        ("int8", "int8", f"weights: {FLOATS}, got int8"),
        ("float8_e5m2", "float8_e5m2", f"weights: {FLOATS}, got float8_e5m2"),
        ("string", "float32", f"weights: {FLOATS}, got string"),
        ("float16", "bfloat16", "x: expected dtype float16 (that of weights), got bfloat16"),
    ],
)
def test_wrong_dtypes_are_refused_before_shapes(weights, x, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        arguments.check_dense_stack(Leaf((1,), weights), Leaf(None, x))


def test_builtins_are_named_without_their_module():
    assert str(arguments.not_an_array("x", "text")) == f"x: {ANY_ARRAY}, got str"
    assert str(arguments.not_an_array("weights", np.float32(1))) == f"weights: {ANY_ARRAY}, got numpy.float32"
