"""What valid input is, and the words of every error: one place, no framework, so that all frameworks say the same.

A framework folder describes its arrays as `Leaf(shape, dtype)`; sizes unknown at trace time are None and pass. Every
message reads "argument: expected ..., got ...". ValueError is for shapes, TypeError for types and dtypes. Values are
never looked at: NaN and infinity pass through.
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


class Leaf(NamedTuple):
    """Shape and dtype of one array; `shape` is None where even the rank is unknown, a size is None where it is."""

    shape: tuple[int | None, ...] | None
    dtype: str


def not_an_array(name: str, value: object) -> TypeError:
    """The error for a value that is no array of the framework: converting it here could cast it unseen."""
    got = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return TypeError(f"{name}: expected an array of this framework (from_numpy makes one), got {got}")


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


def _differ(a: int | None, b: int | None) -> bool:
    return a is not None and b is not None and a != b


def _shown(shape: tuple[int | None, ...]) -> str:
    sizes = ["?" if size is None else f"{size}" for size in shape]
    return f"({sizes[0]},)" if len(sizes) == 1 else f"({', '.join(sizes)})"
