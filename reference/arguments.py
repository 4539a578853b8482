"""What valid input is, and the words of every error: one place, no framework, so that all frameworks say the same.

A framework folder describes its arrays as `Leaf(shape, dtype)`, its containers as `Branch`; sizes unknown at trace time
are None and pass. Every message reads "argument: expected ..., got ...". ValueError is for shapes, TypeError for types
and dtypes. Values are never looked at: NaN and infinity pass through.
"""

from __future__ import annotations

import numbers
from typing import Any

from reference.containers import AsLeaf, Branch, Leaf, branch, described, leaves, structure  # noqa: F401

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def not_an_array(name: str, value: object) -> TypeError:
    """The error for a value that is no array of the framework: converting it here could cast it unseen."""
    got = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if got.startswith("torch.") and str(getattr(value, "layout", "torch.strided")) != "torch.strided":
        got += f" of {value.layout}"  # type: ignore[attr-defined]
    return TypeError(f"{name}: expected an array of this framework (from_numpy makes one), got {got}")


def runs_twice(operation: str) -> TypeError:
    """The error for a layer that the backward pass runs again, and that draws or writes something when it runs."""
    return TypeError(
        "layer: expected no random numbers and no state where the backward pass runs it again, got "
        f"{operation}; pass keys as xs (layer_keys), return statistics as ys"
    )


def writes_outside(operation: str) -> TypeError:
    """The error for a layer that writes into an array which it has not made, where the framework's loop takes none."""
    return TypeError(
        f"layer: expected arrays from outside left as they are, got {operation} of one; return new arrays, statistics "
        "as ys"
    )


def complex_outside(dtype: str) -> TypeError:
    """The error for a complex array that a layer closes over and that wants a gradient, for which the loop has none."""
    return TypeError(
        f"layer: expected real arrays where it closes over what requires a gradient, got {dtype}; close over "
        "view_as_real of it, or pass it in stacked_params or xs"
    )


def raises_within(operation: str) -> TypeError:
    """The error for an operation of a layer that may raise once it has run, where the framework's loop takes none."""
    return TypeError(
        f"layer: expected operations that do not look at their results, got {operation}; inv_ex, solve_ex and "
        "cholesky_ex of torch.linalg do not"
    )


def wrong_twice(operation: str) -> TypeError:
    """The error for an operation whose second derivative, or forward mode, the framework has wrong."""
    return TypeError(f"layer: expected operations whose second derivative is right, got {operation}; write it out")


def no_forward_mode(name: str) -> TypeError:
    """The error for a derivative of the user's own that has no rule for forward mode."""
    return TypeError(f"layer: expected a jvp of whatever has its own derivative, got none of {name}")


def checkpoint_within(name: str) -> TypeError:
    """The error for a layer that asks to be run again in part, where the stack runs the whole of it again."""
    return TypeError(f"layer: expected no checkpoint within a layer that is differentiated, got {name}; use remat=True")


def leaf(as_leaf: AsLeaf, name: str, value: Any) -> Leaf:
    """Shape and dtype of the argument `name`.

    Raises:
        TypeError: that of `not_an_array`
    """
    found = as_leaf(value)
    if not isinstance(found, Leaf):
        raise not_an_array(name, value)
    return found


def check_dense_stack(weights: Leaf, x: Leaf) -> None:
    """Check the arguments of `scan_apply_layers(weights, x)` and of its unrolled twin.

    Raises:
        TypeError: "weights: expected dtype float16, bfloat16, float32 or float64, got int32",
            "x: expected dtype float32 (that of weights), got float64"
        ValueError: "weights: expected shape (N, d, d), got (2, 3)", "x: expected shape (3,), got (5, 3); ..."
    """
    if weights.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"weights: expected dtype {', '.join(FLOAT_DTYPES[:-1])} or {FLOAT_DTYPES[-1]}, got {weights.dtype}"
        )
    if x.dtype != weights.dtype:
        raise TypeError(f"x: expected dtype {weights.dtype} (that of weights), got {x.dtype}")
    d: int | None = None
    if weights.shape is not None:
        if len(weights.shape) != 3 or _differ(*weights.shape[1:]):
            raise ValueError(f"weights: expected shape (N, d, d), got {_shown(weights.shape)}")
        d = weights.shape[1] if weights.shape[1] is not None else weights.shape[2]
    if x.shape is not None and (len(x.shape) != 1 or _differ(x.shape[0], d)):
        batch = "; one vector at a time: vmap_layers batches" if len(x.shape) == 2 else ""
        raise ValueError(f"x: expected shape {_shown((d,))}, got {_shown(x.shape)}{batch}")


def check_scan(
    as_leaf: AsLeaf, stacked_params: Any, init: Any, xs: Any, reverse: Any = False, unroll: Any = 1, remat: Any = False
) -> Any:
    """Check the arguments of `scan_layers` and of all that is built on it; the number of layers N, None if unknown.

    Raises:
        TypeError: "stacked_params['w']: expected an array of this framework ...", "reverse: expected a bool, got 1",
            "unroll: expected an int of at least 1, got 2.0",
            "remat: expected False, True or an int of at least 1, got None"
        ValueError: "stacked_params: expected at least one array, got none",
            "stacked_params['w']: expected a leading axis of layers, got shape ()",
            "xs: expected a leading axis of 3 (that of stacked_params['w']), got 4", unroll and remat below 1
    """
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse: expected a bool, got {reverse!r}")
    _check_count("unroll", unroll, "an int of at least 1")
    if not isinstance(remat, bool):
        _check_count("remat", remat, "False, True or an int of at least 1")
    for path, value in leaves("init", init, as_leaf):
        leaf(as_leaf, path, value)
    first, num_layers = "", None
    for path, value in (*leaves("stacked_params", stacked_params, as_leaf), *leaves("xs", xs, as_leaf)):
        shape = leaf(as_leaf, path, value).shape
        if shape == ():
            raise ValueError(f"{path}: expected a leading axis of layers, got shape ()")
        size = None if shape is None else shape[0]
        if _differ(size, num_layers):
            raise ValueError(f"{path}: expected a leading axis of {num_layers} (that of {first}), got {size}")
        if not first or num_layers is None:
            first, num_layers = path, size
    if not first:
        raise ValueError("stacked_params: expected at least one array, got none")
    return num_layers


def check_layer(as_leaf: AsLeaf, init: Any, output: Any) -> None:
    """Check what `layer` returned for a carry like `init`.

    Raises:
        TypeError: "layer: expected a pair (new_carry, y), got float32[2, 3]",
            "y[0]: expected an array of this framework ...", and those of `check_like` for the carry
        ValueError: those of `check_like`
    """
    if not (isinstance(output, tuple) and len(output) == 2):
        raise TypeError(f"layer: expected a pair (new_carry, y), got {described(as_leaf, output, typed)}")
    new_carry, y = output
    for path, value in leaves("y", y, as_leaf):
        leaf(as_leaf, path, value)
    check_like(as_leaf, "carry", new_carry, init, "init")


def check_like(as_leaf: AsLeaf, path: str, tree: Any, like: Any, of: str, only_floats: bool = False) -> None:
    """Check that `tree`, called `path`, has the structure, shapes and dtypes of `like`, called `of`.

    With `only_floats`, as for tangents and cotangents, None stands in `tree` where `like` has another dtype.

    Raises:
        TypeError: "carry['h']: expected float32[4] (that of init), got float64[4]",
            "carry: expected (*, *) (that of init), got [*, *]", "carry: expected Point(x=*, y=*) (that of init), got
            Point(y=*, x=*)"
        ValueError: "carry['h']: expected float32[4] (that of init), got float32[8]"
    """
    before, after = dict(leaves(path, like, as_leaf)), dict(leaves(path, tree, as_leaf))
    for where in dict.fromkeys((*before, *after)):
        old, new = (leaf(as_leaf, where, found[where]) if where in found else None for found in (before, after))
        if only_floats and old is not None and not is_float(old):
            old = None
        if old is None and new is None:
            continue
        if old is None or new is None or old.dtype != new.dtype or not _may_be_equal(old.shape, new.shape):
            shown = ["no array" if one is None else typed(one) for one in (old, new)]
            only_shape = old is not None and new is not None and old.dtype == new.dtype
            kind = ValueError if only_shape else TypeError
            raise kind(f"{where}: expected {shown[0]} (that of {of}), got {shown[1]}")
    structures = structure(as_leaf, like, is_float if only_floats else bool), structure(as_leaf, tree)
    if structures[0] != structures[1]:
        shown = [described(as_leaf, one, lambda array: "*") for one in (like, tree)]
        another = "another " if shown[0] == shown[1] else ""  # class of that name, or with other static fields
        raise TypeError(f"{path}: expected {shown[0]} (that of {of}), got {another}{shown[1]}")


def check_tangents(as_leaf: AsLeaf, name: str, tangents: Any, primals: tuple[Any, ...], of: tuple[str, ...]) -> None:
    """Check tangents or cotangents of `primals`, called `of`: one tree like each, or None for zero.

    Raises:
        TypeError: "cotangents: expected a tuple of carry, ys, got float32[7]", and those of `check_like`
        ValueError: those of `check_like`
    """
    if not (isinstance(tangents, tuple) and len(tangents) == len(primals)):
        raise TypeError(f"{name}: expected a tuple of {', '.join(of)}, got {described(as_leaf, tangents, typed)}")
    for i, (tangent, primal, primal_name) in enumerate(zip(tangents, primals, of, strict=True)):
        if tangent is not None:
            check_like(as_leaf, f"{name}[{i}]", tangent, primal, primal_name, only_floats=True)


def check_form(form: Any, remat: Any) -> None:
    """Check how a stack is to be trained: by a scan, or by its unrolled twin, which keeps everything.

    Raises:
        ValueError: "form: expected scan or unroll, got 'loop'", "remat: expected False without a scan, got 2"
    """
    if form not in ("scan", "unroll"):
        raise ValueError(f"form: expected scan or unroll, got {form!r}")
    if form == "unroll" and remat is not False:
        raise ValueError(f"remat: expected False without a scan, got {remat!r}")


def check_rate(as_leaf: AsLeaf, rate: Any) -> None:
    """Check the rate of a dropout; the value of an array is not looked at.

    Raises:
        TypeError: "rate: expected a number from 0 to 1, got '0.5'"
        ValueError: "rate: expected a number from 0 to 1, got 1.5"
    """
    if isinstance(as_leaf(rate), Leaf):
        return
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise TypeError(f"rate: expected a number from 0 to 1, got {rate!r}")
    if not 0 <= rate <= 1:  # type: ignore[operator]  # NaN is not
        raise ValueError(f"rate: expected a number from 0 to 1, got {rate}")


def check_key(key: Leaf, array: Leaf) -> None:
    """Check the key of a dropout where a key is an array of random numbers: it must not be broadcast.

    Raises:
        ValueError: "key: expected shape (2, 3) (that of array, as for layer_keys), got (3,)"
    """
    if key.shape is not None and array.shape is not None and key.shape != array.shape:
        expected = f"shape {_shown(array.shape)} (that of array, as for layer_keys)"
        raise ValueError(f"key: expected {expected}, got {_shown(key.shape)}")


def is_float(array: Leaf) -> bool:
    """Whether derivatives exist for such an array."""
    return "float" in array.dtype or "complex" in array.dtype


def check_batch(as_leaf: AsLeaf, trees: dict[str, Any], in_axes: Any, cotangents: Any = ()) -> int:
    """Check `in_axes`, an axis or None for each of `trees` (name -> tree); the size of the batch, cotangents' too.

    Raises:
        TypeError: "in_axes: expected an axis or None for each of stacked_params, init, xs, got 0"
        ValueError: "init['h']: expected a batch of 3 along axis 0 (that of xs), got shape (2, 7)", "in_axes: expected
            at least one axis, got (None, None, None)"
    """
    axes = in_axes if isinstance(in_axes, (tuple, list)) else ()
    if len(axes) != len(trees) or not all(axis is None or type(axis) is int for axis in axes):
        raise TypeError(f"in_axes: expected an axis or None for each of {', '.join(trees)}, got {in_axes!r}")
    first, batch = "", None
    along = [(*named, axis) for named, axis in zip(trees.items(), axes, strict=True)]
    along += [
        (f"cotangents[{i}]", tree, 0) for i, tree in enumerate(cotangents if isinstance(cotangents, tuple) else ())
    ]
    for name, tree, axis in along:
        for path, value in leaves(name, tree, as_leaf) if axis is not None else ():
            shape = leaf(as_leaf, path, value).shape or ()
            size = shape[axis] if -len(shape) <= axis < len(shape) else None
            if size is None or _differ(size, batch):
                expected = "a batch" if batch is None else f"a batch of {batch}"
                of = f" (that of {first})" if first else ""
                raise ValueError(f"{path}: expected {expected} along axis {axis}{of}, got shape {_shown(shape)}")
            first, batch = first or path, size
    if batch is None or not any(axis is not None for axis in axes):
        raise ValueError(f"in_axes: expected at least one axis, got {in_axes!r}")
    return batch


def typed(array: Leaf) -> str:
    """As errors write it: "float32[4, 4]"."""
    return f"{array.dtype}[{'...' if array.shape is None else _shown(array.shape)[1:-1].rstrip(',')}]"


def _check_count(name: str, value: Any, expected: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if value < 1:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def _may_be_equal(a: tuple[int | None, ...] | None, b: tuple[int | None, ...] | None) -> bool:
    return a is None or b is None or (len(a) == len(b) and not any(map(_differ, a, b)))


def _differ(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


def _shown(shape: tuple[int | None, ...]) -> str:
    sizes = ["?" if size is None else f"{size}" for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"
