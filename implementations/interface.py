"""What every framework folder exports, each name specified once.

`jax_scan`, `torch_compile` and `tf_while` are modules of this shape: the same names, in this order, with these
signatures (the type checker holds each module against the protocol, a test holds the order). `Array` is the
framework's own array. Symbols: N layers, d width. Counts of two frameworks have different units: compare growth
within one framework, never two absolute counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
Apply: TypeAlias = Callable[[Array, Array], Array]  # (weights [N, d, d], x [d]) -> y [d]
Gradient: TypeAlias = Callable[
    [Array, Array, Array], tuple[Array, Array, Array]
]  # (weights, x, cotangent) -> (y, dweights, dx)

LEVELS = ("captured", "lowered", "compiled")


class Implementation(Protocol):
    # stack.py: the file to read
    def scan_apply_layers(self, weights: Array, x: Array) -> Array:
        """Apply N dense layers, `y = weights[i] @ y`, with a loop of constant size. Compiled, callable as it stands."""

    def unroll_apply_layers(self, weights: Array, x: Array) -> Array:
        """The same values by a Python loop over the layers, split once: the twin whose graph grows with N."""

    # transforms.py: derivatives of a whole stack
    def gradient(self, apply: Apply) -> Gradient:
        """The framework's ordinary reverse mode around `apply`: `(weights, x, cotangent) -> (y, dweights, dx)`."""

    def compile_gradient(self, apply: Apply) -> Gradient:
        """`gradient(apply)`, compiled."""

    # layers.py: the scan bodies, `layer(carry, params) -> (carry, y)`
    LAYERS: Mapping[str, Callable[..., tuple[Any, Any]]]

    # alternatives.py: what this framework's users do today, name -> Alternative
    ALTERNATIVES: Mapping[str, Any]

    # graph.py: size at the three levels; everything that touches framework internals
    UNITS: Mapping[str, str]  # level -> what is counted there

    def graph_size(self, apply: Apply, *args: Array, cotangent: Array | None = None) -> dict[str, int]:
        """Count `apply(*args)`, or with `cotangent` its gradient program: "captured", "lowered", "compiled"; "loops"
        left by the compiler; "temp_bytes", the peak memory of the compiled program beside arguments and results."""

    def compile_seconds(self, apply: Apply, *args: Array, cotangent: Array | None = None) -> float:
        """Seconds to trace and compile from cold, without the first execution."""

    def program_count(self) -> int:
        """How many programs `scan_apply_layers` called as it stands has compiled in this process so far."""

    # edges.py: where arrays and programs enter and leave
    def compile(self, apply: Apply) -> Apply:
        """The framework's whole-program compiler, at its strongest setting."""

    def from_numpy(self, array: Any) -> Array:
        """A framework array of the same shape, dtype and bytes (bfloat16 by ml_dtypes); refuses what it would cast."""

    def to_numpy(self, array: Array) -> Any:
        """The NumPy array of the same shape, dtype and bytes."""

    def wait(self, value: Any) -> Any:
        """Return `value` once every array in it has been computed."""

    def versions(self) -> dict[str, str]:
        """Package name -> version, of everything that takes part."""

    def settings(self) -> dict[str, str]:
        """What numbers depend on, by name: device, threads, matmul precision, flags."""
