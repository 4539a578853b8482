"""What a user's program does to a function: odd memory, reused arrays, NaN, many shapes; numbers and inputs survive it.

Most stacks here are the exact problem `small_integers_3x7` in float32, so that results are compared by ==, and so that
torch compiles few programs.
"""

from __future__ import annotations

import importlib
import warnings

import ml_dtypes
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from implementations.check.comparator import assert_case, gradient
from implementations.measuring.measure import PROGRAMS, RECOMPILE_DEPTHS
from reference import cases
from reference.cases import Case
from reference.stack import apply_layers, apply_layers_vjp, oracle
from tests.conftest import loaded

CASE = cases.case("small_integers_3x7", "float32")
BYTES = ("float16", "float32", "float64", "bfloat16")

both_forms = pytest.mark.parametrize("form", ["scan_apply_layers", "unroll_apply_layers"])


@pytest.mark.parametrize("stride", [0, 8])
def test_the_stride_of_a_single_number_does_not_matter(implementation, stride):
    """Such an array counts as contiguous whatever its stride, so asking for a contiguous one changes nothing."""
    x = as_laid_out(implementation, as_strided(np.full(4, 3, np.float32), (1,), (stride,)))
    weights = implementation.from_numpy(np.full((2, 1, 1), 2, np.float32))
    assert implementation.to_numpy(implementation.scan_apply_layers(weights, x)).tolist() == [12]


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


# Memory layouts: NumPy views of the same values.


def transposed(array):
    return np.array(array.T).T


def strided(array):
    """Every other element of memory."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def offset(array):
    """Layers that do not begin where memory begins."""
    return np.concatenate([array[:1], array])[1:]


def broadcast(array):
    """The first layer, or the first number, again and again, in the memory of one: stride 0."""
    return as_strided(array.copy(), array.shape, (0, *array.strides[1:]))


LAYOUTS = {layout.__name__: layout for layout in (transposed, strided, offset, broadcast)}


def as_laid_out(implementation, array):
    """torch has strides of its own and takes over NumPy's; the others make what they like of such a NumPy array."""
    if implementation.__name__ == "torch_compile":
        import torch

        return torch.from_numpy(array).to(importlib.import_module("torch_compile.edges").DEVICE)
    return implementation.from_numpy(array)


def laid_out(layout):
    """CASE in another layout; broadcast changes its values too, so what is right is computed from the views."""
    weights, x, cotangent = map(LAYOUTS[layout], CASE.inputs)
    return Case(f"{layout} {CASE.name}", weights, x, cotangent, exact=True)


@pytest.mark.torch_backend("aot_eager")
@both_forms
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(implementation, form, layout):
    case = laid_out(layout)
    arrays = [as_laid_out(implementation, array) for array in case.inputs]
    apply = getattr(implementation, form)
    assert_case(implementation.__name__, case, to_numpy(implementation, implementation.gradient(apply)(*arrays)))
    np.testing.assert_array_equal(implementation.to_numpy(apply(*arrays[:2])), oracle(*case.inputs)[0])


@pytest.mark.parametrize("layout", ["strided", "broadcast"])
def test_memory_layout_does_not_matter_when_compiled_by_the_user(implementation, layout):
    """Here no wrapper of ours can normalise what arrives: torch's scan refuses a carry of other strides."""
    case = laid_out(layout)
    arrays = [as_laid_out(implementation, array) for array in case.inputs]
    results = implementation.compile_gradient(implementation.scan_apply_layers)(*arrays)
    assert_case(implementation.__name__, case, to_numpy(implementation, results))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_numpy_reads_any_layout(implementation, layout):
    for array in laid_out(layout).inputs:
        actual = implementation.to_numpy(implementation.from_numpy(array))
        np.testing.assert_array_equal(actual, array, strict=True)


def to_numpy(implementation, results):
    return tuple(map(implementation.to_numpy, results))


# The edges: from_numpy, to_numpy.


def odd_bits(dtype):
    """Both zeros, both infinities, subnormals, and NaNs that differ in sign and payload."""
    info = ml_dtypes.finfo(dtype)
    array = np.array([0, -0.0, np.inf, -np.inf, info.smallest_subnormal, info.max, 1, np.nan], dtype)
    bits = array.view(f"u{dtype.itemsize}")
    payload = bits[-1:] | np.array([1], bits.dtype)
    negative = payload | bits[1:2]  # the sign bit of -0.0
    return np.concatenate([bits, payload, negative]).view(dtype)


@pytest.mark.parametrize("dtype", BYTES)
def test_round_trip_keeps_every_bit(implementation, dtype):
    numbers = odd_bits(dtype_of(dtype))
    empty = [numbers[:0], np.zeros((3, 0, 7), numbers.dtype)]
    for array in (numbers, numbers.reshape(2, 5), numbers[:1].reshape(()), *empty):
        actual = implementation.to_numpy(implementation.from_numpy(array))
        assert (actual.shape, actual.dtype) == (array.shape, array.dtype)
        assert actual.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", BYTES)
def test_from_numpy_takes_read_only_arrays_and_keeps_its_own_memory(implementation, dtype):
    # aligned to 64 bytes, so that a framework that can adopt memory would do so
    memory = np.zeros(64 + 8 * 1024, np.uint8)
    start = -memory.ctypes.data % 64
    source = memory[start : start + dtype_of(dtype).itemsize * 1024].view(dtype_of(dtype))
    source[:] = np.arange(1024) % 256
    before = source.tobytes()
    source.setflags(write=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns where it shares memory that is not writable
        array = implementation.from_numpy(source)
    source.setflags(write=True)
    source[:] = 0
    assert implementation.to_numpy(array).tobytes() == before


def test_to_numpy_gives_memory_of_its_own(implementation):
    array = implementation.from_numpy(np.arange(4096, dtype=np.float32))
    copy = implementation.to_numpy(array)
    copy[:] = 0
    assert implementation.to_numpy(array)[-1] == 4095


# Arguments and results.


@pytest.mark.torch_backend("aot_eager")
@both_forms
@pytest.mark.parametrize("N", [0, 1, 3])
def test_inputs_are_never_modified(implementation, form, N):
    arrays = [implementation.from_numpy(array) for array in (CASE.weights[:N], CASE.x, CASE.cotangent)]
    before = [implementation.to_numpy(array).tobytes() for array in arrays]
    apply = getattr(implementation, form)
    implementation.wait((apply(*arrays[:2]), implementation.gradient(apply)(*arrays)))
    assert [implementation.to_numpy(array).tobytes() for array in arrays] == before
    if implementation.__name__ == "torch_compile":
        # a write of the same values leaves the bytes alone, and autograd's marks are part of a tensor too
        assert [array._version for array in arrays] == [0, 0, 0]
        assert not any(array.requires_grad or array.grad is not None for array in arrays)


@pytest.mark.torch_backend("aot_eager")
@both_forms
@pytest.mark.parametrize("N", [0, 1, 3])
def test_results_never_share_memory_with_arguments(implementation, form, N):
    """Whoever writes into an argument later, or donates it, must not change the result: without layers too."""
    arrays = [CASE.weights[:N], CASE.x, CASE.cotangent]
    apply = getattr(implementation, form)
    if implementation.__name__ == "tf_while":
        assert_survives_assignment(implementation, apply, *arrays[:2])
        return
    arguments = [implementation.from_numpy(array) for array in arrays]
    results = [apply(*arguments[:2]), *implementation.gradient(apply)(*arguments)]
    taken = {address(array) for array in arguments if 0 not in array.shape}
    assert len(taken) == 3 - (N == 0)
    assert not taken & {address(result) for result in results if 0 not in result.shape}


def address(array):
    """Where the memory begins: a JAX array has a buffer, a tensor a storage that its views share."""
    if hasattr(array, "unsafe_buffer_pointer"):
        return array.unsafe_buffer_pointer()
    return array.untyped_storage().data_ptr()


def assert_survives_assignment(implementation, apply, weights, x):
    """TensorFlow's tensors cannot be written to, its variables can."""
    import tensorflow as tf

    variables = tf.Variable(weights), tf.Variable(x)
    y = apply(*variables)
    before = implementation.to_numpy(y)
    for variable in variables:
        variable.assign_add(tf.ones_like(variable))
    np.testing.assert_array_equal(implementation.to_numpy(y), before)
    assert not isinstance(y, tf.Variable)


def test_two_calls_give_the_same_bits(implementation):
    """On numbers that round, which those of CASE do not."""
    case = cases.case("gaussian_3x7", "float32")
    weights, x, _ = map(implementation.from_numpy, case.inputs)
    for apply in (implementation.scan_apply_layers, implementation.unroll_apply_layers):
        first, second = (implementation.to_numpy(apply(weights, x)) for _ in range(2))
        assert first.tobytes() == second.tobytes()
        first, second = (gradient(implementation, apply, case) for _ in range(2))
        assert [leaf.tobytes() for leaf in first] == [leaf.tobytes() for leaf in second]


# Values that are not finite.


def with_value(case, leaf, index, value):
    arrays = {name: getattr(case, name).copy() for name in ("weights", "x", "cotangent")}
    arrays[leaf][index] = value
    return case._replace(**arrays)


DENSE = CASE._replace(weights=CASE.weights + 3, x=CASE.x + 5)  # no zero, so that infinity does not become NaN at once
NOT_FINITE = {
    "NaN in a first weight": with_value(CASE, "weights", (0, 2, 3), np.nan),
    "NaN in a last weight": with_value(CASE, "weights", (2, 4, 1), np.nan),
    "NaN in x": with_value(CASE, "x", 3, np.nan),
    "NaN in the cotangent": with_value(CASE, "cotangent", 3, np.nan),
    "infinity in x": with_value(DENSE, "x", 3, np.inf),
    "minus infinity in x": with_value(DENSE, "x", 0, -np.inf),
    "infinity in a last weight": with_value(DENSE, "weights", (2, 4, 1), np.inf),
    "infinity in a weight, zero in x": with_value(with_value(DENSE, "weights", (0, 2, 3), np.inf), "x", 3, 0),
    "infinity in the cotangent": with_value(DENSE, "cotangent", 6, np.inf),
    "both infinities in x": with_value(with_value(DENSE, "x", 3, np.inf), "x", 4, -np.inf),
    # all of one sign: a sum of +2^180 and -2^180 is infinite, of either sign, or NaN, as products are fused or not
    "overflow": DENSE._replace(weights=DENSE.weights * np.float32(2.0**60), cotangent=DENSE.x),
}


@pytest.mark.torch_backend("aot_eager")
@both_forms
@pytest.mark.parametrize("name", NOT_FINITE)
def test_nan_and_infinity_stand_where_numpy_has_them(implementation, form, name):
    case = NOT_FINITE[name]
    with np.errstate(all="ignore"):
        expected = apply_layers_vjp(*case.inputs)
    # a case that is finite, or nothing but NaN, shows nothing; without the cotangent y is finite by right
    assert not all(np.isfinite(leaf).all() for leaf in expected)
    assert any(not np.isnan(leaf).all() for leaf in expected)
    actual = gradient(implementation, getattr(implementation, form), case)
    for leaf, want in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(leaf, want)  # NaN equals NaN here, and infinity one of its sign
    weights, x, _ = map(implementation.from_numpy, case.inputs)
    y = implementation.to_numpy(getattr(implementation, form)(weights, x))
    np.testing.assert_array_equal(y, expected[0])


# What becomes of numbers below the smallest normal one, on a CPU. XLA and TensorFlow set the processor to flush them to
# zero, which is faster on some; torch leaves it as it is, unless asked by torch.set_flush_denormal(True). The bound in
# `reference/error_bound.py` allows both.
SUBNORMALS = {"jax_scan": "flushed", "torch_compile": "kept", "tf_while": "flushed"}


@both_forms
def test_subnormals_are_treated_as_declared(implementation, form):
    """1 -> 2^-100 -> 2^-140, a subnormal -> 2^-40: powers of two, so nothing is rounded and only flushing shows."""
    if implementation.settings()["device"] != "cpu":
        pytest.skip("declared for CPUs")
    weights = np.stack([2.0**power * np.eye(7) for power in (-100, -40, 100)]).astype(np.float32)
    y = getattr(implementation, form)(*map(implementation.from_numpy, (weights, np.ones(7, np.float32))))
    kept = {"kept": 2.0**-40, "flushed": 0.0}[SUBNORMALS[implementation.__name__]]
    np.testing.assert_array_equal(implementation.to_numpy(y), np.full(7, kept, np.float32))


# Many shapes and dtypes in one process.


@pytest.mark.torch_backend("eager")
def test_many_widths_in_one_process(implementation):
    """More than torch's limit of eight programs for one compiled object; forward, because each costs a compilation."""
    for dtype, widths in (("float32", range(1, 11)), ("bfloat16", (1, 4))):
        for d in widths:
            weights, x = np.full((2, d, d), 2, dtype_of(dtype)), np.arange(d).astype(dtype_of(dtype))
            y = implementation.scan_apply_layers(*map(implementation.from_numpy, (weights, x)))
            np.testing.assert_array_equal(implementation.to_numpy(y), apply_layers(weights, x), strict=True)


@pytest.mark.torch_backend("aot_eager")
def test_programs_are_as_declared_and_made_once(implementation):
    """A new depth costs what PROGRAMS says, a depth seen before nothing. The width is one that no other test uses."""
    x = implementation.from_numpy(np.ones(19, np.float32))
    counts = [implementation.program_count()]
    for _ in range(2):
        for N in RECOMPILE_DEPTHS:
            implementation.scan_apply_layers(implementation.from_numpy(np.ones((N, 19, 19), np.float32)), x)
        counts.append(implementation.program_count())
    assert np.diff(counts).tolist() == [PROGRAMS[implementation.__name__], 0]


@pytest.mark.parametrize("name", ["jax_scan", "tf_while"])
def test_no_depth_is_traced_twice(monkeypatch, name):
    """Counted where it cannot be missed, by the layer itself; in torch, program_count is torch's own count."""
    implementation = loaded(name)
    where, what = {"jax_scan": ("jax_scan.stack", "dense"), "tf_while": ("tensorflow.linalg", "matvec")}[name]
    product, calls = getattr(importlib.import_module(where), what), []

    def counted(*args):
        calls.append(args)
        return product(*args)

    monkeypatch.setattr(f"{where}.{what}", counted)
    arrays = [implementation.from_numpy(np.ones(shape, np.float32)) for shape in ((3, 17, 17), (17,))]
    implementation.scan_apply_layers(*arrays)
    traced = len(calls)
    implementation.scan_apply_layers(*arrays)
    assert 0 < traced == len(calls)


@pytest.mark.torch_backend("aot_eager")
def test_float16_works(implementation):
    """Not in the table of cases, because its range is too small for most of them: here nothing rounds."""
    case = CASE._replace(**{name: getattr(CASE, name).astype(np.float16) for name in ("weights", "x", "cotangent")})
    results = gradient(implementation, implementation.scan_apply_layers, case)
    for leaf, want in zip(results, oracle(*case.inputs), strict=True):
        assert leaf.dtype == np.float16
        np.testing.assert_array_equal(leaf, want)


@pytest.mark.thorough
def test_torch_programs_have_loops_in_cpp_and_one_thread_for_a_small_layer():
    """As `compile` asks for; left to itself, torch writes the loop in Python and wakes a second thread."""
    implementation = loaded("torch_compile")
    as_it_comes = importlib.import_module("torch_compile.alternatives").as_it_comes
    import torch
    from torch._inductor.utils import run_and_get_code

    if torch.cuda.is_available():
        pytest.skip("of the CPU")
    arrays = [implementation.from_numpy(np.ones(shape, np.float32)) for shape in ((3, 64, 64), (64,))]
    for compiler, ours in ((implementation.compile, True), (as_it_comes, False)):
        with torch._inductor.config.patch({"cpp.threads": 2}):
            _, (code,) = run_and_get_code(compiler(lambda w, x: implementation.scan_apply_layers(w, x)), *arrays)
        assert ("inductor_entry_impl" in code) == ours
        assert ("omp parallel" in code) != ours


@pytest.mark.torch_backend("eager")  # which needs none
def test_a_missing_compiler_is_named(monkeypatch):
    """torch would fail from within, pages deep; and the signature works once there is a compiler."""
    implementation = loaded("torch_compile")
    arrays = [implementation.from_numpy(np.ones(shape, np.float32)).cpu() for shape in ((1, 23, 23), (23,))]
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "no-such-compiler -O2")
        with pytest.raises(RuntimeError) as caught:
            implementation.scan_apply_layers(*arrays)
    words = "torch.compile on the CPU needs a C++ compiler: install no-such-compiler, or name another in CXX"
    assert str(caught.value) == words
    assert implementation.to_numpy(implementation.scan_apply_layers(*arrays)).tolist() == [23] * 23


# The framework's own containers for parameters.


@pytest.mark.torch_backend("aot_eager")
@both_forms
def test_torch_parameters_receive_their_gradient(form):
    """By `.backward()` of a sum. Under Inductor, where the operator's own gradient is wrong: test_torch_defects.py."""
    implementation = loaded("torch_compile")
    import torch

    weights, x = (torch.nn.Parameter(implementation.from_numpy(array)) for array in (CASE.weights, CASE.x))
    getattr(implementation, form)(weights, x).sum().backward()
    _, *expected = oracle(CASE.weights, CASE.x, np.ones(7))
    np.testing.assert_array_equal(to_numpy(implementation, (weights.grad,))[0], expected[0])
    np.testing.assert_array_equal(to_numpy(implementation, (x.grad,))[0], expected[1])


@both_forms
def test_tensorflow_variables_receive_their_gradient(form):
    implementation = loaded("tf_while")
    import tensorflow as tf

    weights, x = tf.Variable(CASE.weights), tf.Variable(CASE.x)
    with tf.GradientTape() as tape:
        y = getattr(implementation, form)(weights, x)
    results = (y, *tape.gradient(y, (weights, x), tf.constant(CASE.cotangent)))
    assert_case(implementation.__name__, CASE, to_numpy(implementation, results))
