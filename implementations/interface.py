"""What every framework folder exports, each name specified once.

`jax_scan`, `torch_compile` and `tf_while` are modules of this shape: the same names, in this order, with these
signatures (the type checker holds each module against the protocol, a test holds the order). `Array` is the
framework's own array. Symbols: N layers, d width. Counts of two frameworks have different units: compare growth
within one framework, never two absolute counts.

    layer        what is repeated: a function (carry, params[, x]) -> (new_carry, y)
    stack        N layers of one kind, one after the other; its params are stacked: arrays [N, ...]
    carry        what goes from layer to layer: the activation
    xs, ys       what each layer is given, and returns, beside the carry: arrays [N, ...]
    rolled       the stack as a loop; unrolled: its twin, with N layers in the graph
    residual     what the forward pass keeps of a layer for the backward pass; remat computes it again instead
    tangent      a direction, forward mode; cotangent: the gradient of the loss by a result, reverse mode
    program      what a framework compiles for one function and one set of shapes
    captured     what a framework traced; lowered: what its compiler is given; compiled: what that makes of it
    leaf         an array in a tree of nested dicts, tuples and lists
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any
Tree: TypeAlias = Any  # nested dicts, tuples and lists of arrays; None holds none
Layer: TypeAlias = Callable[..., tuple[Tree, Tree]]  # (carry, params[, x]) -> (new_carry, y)
Apply: TypeAlias = Callable[..., Tree]  # e.g. (weights [N, d, d], x [d]) -> y [d]
Gradient: TypeAlias = Callable[..., tuple[Tree, ...]]  # (*args, cotangent) -> (y, *dargs)

LEVELS = ("captured", "lowered", "compiled")


class Implementation(Protocol):
    # stack.py: the file to read
    def scan_apply_layers(self, weights: Array, x: Array) -> Array:
        """Apply N dense layers, `y = weights[i] @ y`, with a loop of constant size. Compiled, callable as it stands."""

    def scan_layers(
        self,
        layer: Layer,
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        reverse: bool = False,
        unroll: int = 1,
        remat: bool | int = False,
    ) -> tuple[Tree, Tree]:
        """Apply N layers of any kind, with a loop of constant size: (carry, ys). Semantics: `jax.lax.scan`."""

    def unroll_apply_layers(self, weights: Array, x: Array) -> Array:
        """The same values by a Python loop over the layers, split once: the twin whose graph grows with N."""

    def unroll_layers(
        self, layer: Layer, stacked_params: Tree, init: Tree, xs: Tree = None, *, reverse: bool = False
    ) -> tuple[Tree, Tree]:
        """The same values as `scan_layers`, by a Python loop over the layers."""

    # transforms.py: derivatives and batching of a whole stack. Compiled, each is a program of one size for all N >= 2.
    # They take a stack and its options as `scan_layers` does, and refuse what it refuses, in the same words. Tangents,
    # cotangents and gradients have the trees of what they belong to: None where that is not of floating point; as an
    # argument None for a whole tree is zero. Below, `loop` is `unroll_layers` as a function of the three trees.
    def vjp_layers(
        self,
        layer: Layer,
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        cotangents: tuple[Tree, Tree],
        **options: Any,
    ) -> tuple[Any, Any]:
        """Reverse mode: outputs, pullback = vjp(loop); returns outputs, pullback(cotangents).

        cotangents: (dcarry, dys). Returns (carry, ys), (dstacked_params, dinit, dxs).
        """

    def jvp_layers(
        self,
        layer: Layer,
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        tangents: tuple[Tree, Tree, Tree],
        **options: Any,
    ) -> tuple[Any, Any]:
        """Forward mode: the derivative of loop along tangents.

        tangents: (tstacked_params, tinit, txs). Returns (carry, ys), (tcarry, tys).
        """

    def vmap_layers(
        self,
        layer: Layer,
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        in_axes: Any = (None, 0, None),
        **options: Any,
    ) -> tuple[Any, Any]:
        """Batching: loop for each member of a batch of inits, of stacks (an ensemble), of xs, or of several of them.

        in_axes: the axis of the batch in stacked_params, init and xs, or None for what is shared.
        Returns (carry [B, ...], ys [B, N, ...]).
        """

    def hvp_layers(
        self,
        layer: Layer,
        loss: Callable[[Tree, Tree], Array],
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        tangents: tuple[Tree, Tree, Tree],
        **options: Any,
    ) -> tuple[Any, Any]:
        """Second order: the gradient of loss(*loop(...)) and its derivative along tangents, the Hessian times tangents.

        tangents: (tstacked_params, tinit, txs). Returns (dstacked_params, dinit, dxs) twice: gradient, product.
        """

    def vmap_vjp_layers(
        self,
        layer: Layer,
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        cotangents: tuple[Tree, Tree],
        in_axes: Any = (None, 0, None),
        **options: Any,
    ) -> tuple[Any, Any]:
        """Per-example gradients: `vjp_layers` for each member of a batch.

        cotangents: (dcarry [B, ...], dys [B, N, ...]). Returns (carry, ys), (dstacked_params, dinit, dxs), each array
        [B, ...], of what the batch shares too.
        """

    def gradient(self, apply: Apply) -> Gradient:
        """The framework's ordinary reverse mode around `apply`: `(*args, cotangent) -> (y, *dargs)`, all trees; None in
        dargs for what is not of floating point."""

    def compile_gradient(self, apply: Apply) -> Gradient:
        """`gradient(apply)`, compiled."""

    # recipes.py: what users of layer stacks ask for, around a layer
    def gated(self, layer: Layer) -> Layer:
        """A layer with a gate in xs: early exit, and stacks of several depths in one program."""

    def layer_keys(self, seed: int, num_layers: int, shape: tuple[int, ...]) -> Tree:
        """xs of one key a layer, for layers that call `dropout` on arrays of `shape`."""

    def dropout(self, array: Array, key: Array, rate: float) -> Array:
        """Zero each element with probability `rate`, divide the others by 1 - rate; the key determines the mask."""

    def cast_params(self, layer: Layer, dtype: Any) -> Layer:
        """Mixed precision: floating-point params are cast inside the layer."""

    def locate_nonfinite(
        self, layer: Layer, stacked_params: Tree, init: Tree, xs: Tree = None, *, reverse: bool = False
    ) -> Array:
        """The index of the first layer that makes a NaN or an infinity, -1 for none."""

    def cycled(self, *layers: Layer) -> Layer:
        """Layers of several kinds that come in turn, as one layer: params, xs and ys are tuples, one for each."""

    def scan_cycle(
        self,
        cycle: Layer,
        stacked_params: Tree,
        init: Tree,
        xs: Tree = None,
        *,
        prefix: Sequence[tuple[Layer, Tree]] = (),
        suffix: Sequence[tuple[Layer, Tree]] = (),
        **options: Any,
    ) -> tuple[Tree, tuple[list[Tree], Tree, list[Tree]]]:
        """`scan_layers(cycle, ...)` between single layers, (layer, params) each, that are unlike the others.

        Returns (carry, (ys of the prefix, ys of scan_layers, ys of the suffix)).
        """

    def layer_norms(self, stacked: Tree) -> Array:
        """The Euclidean norm of each layer's arrays, [N]."""

    def clip_layers(self, gradients: Tree, max_norm: float) -> Tree:
        """Gradients [N, ...], each layer's scaled down together where their norm is above max_norm."""

    # modules.py: from the modules that people have to a stack, and back
    def stack_layers(self, trees: Sequence[Tree]) -> Tree:
        """One tree of arrays [N, ...] of the trees of N layers; what differs in one of them is named."""

    def unstack_layers(self, stacked_params: Tree) -> list[Tree]:
        """The trees of the N layers."""

    def from_modules(self, modules: Sequence[Any]) -> tuple[Layer, Tree]:
        """(layer, stacked_params) of N modules of one structure: callable pytrees, nn.Modules, Keras layers.

        layer(carry, params, *args, **kwargs) is (module(carry, *args, **kwargs), y); y is None, or a dict of what the
        module has written, by the names in stacked_params.
        """

    def to_modules(self, stacked_params: Tree, modules: Sequence[Any]) -> list[Any]:
        """`modules` with the parameters of a stack: new ones in JAX, else the same, written into."""

    def scanned(self, modules: Sequence[Any], **options: Any) -> Any:
        """N modules as one of the framework's own kind, whose parameters are the stacked ones; options of
        scan_layers. It is called as (carry, *args, xs=None, **kwargs), and returns the last carry."""

    # decoding.py: token by token through the scanned stack of `transformer_decoder`
    def empty_cache(self, params: Tree, B: int, S: int) -> dict[str, Array]:
        """Keys and values of every layer, k and v [N, B, S, g, e], zero: room for S positions."""

    def decode(
        self, params: Tree, x: Array, cache: dict[str, Array], position: Any, hold: str = "entries"
    ) -> tuple[Array, dict[str, Array]]:
        """Run the new positions x [B, t, d], the first at `position`: (y [B, t, d], the cache with them in it).

        hold: how the cache goes through the scan: new "entries" out, whole "slices" in and out, or in the "carry".
        """

    # training.py: a small language model, the scanned stack of `transformer_decoder` between embedding and head
    def train(
        self,
        params: Tree,
        batches: Any,
        *,
        form: str = "scan",
        remat: bool | int = False,
        learning_rate: float = 0.01,
        b1: float = 0.9,
        b2: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        max_norm: float = 0.5,
    ) -> tuple[Array, Tree]:
        """One compiled step for each of batches [steps, B, T + 1], by AdamW, gradients clipped layer by layer: the
        losses before each step, [steps], and the last params.

        form: "scan", with remat, or "unroll". The update, in NumPy: reference/training.py.
        """

    # layers.py: the scan bodies, `layer(carry, params) -> (carry, y)`
    LAYERS: Mapping[str, Callable[..., tuple[Any, Any]]]

    def init_layers(self, layer: str, seed: int, num_layers: int, dtype: str = "float32", **sizes: int) -> Tree:
        """Stacked params: equal to num_layers inits with keys of their own. sizes: reference/shapes.py."""

    # alternatives.py: what users do today, name -> (apply, compiler, or None if it is compiled already); first the raw
    # primitive as first written, its name "raw ..."
    ALTERNATIVES: Mapping[str, Any]
    # What users write for any layer, compiled as they call the compiler: rolled, unrolled, and what they do instead.
    # Form -> (stack, compiler); stack(layer) is a function of the stacked params and init, which returns the carry.
    LAYER_FORMS: Mapping[str, Any]

    # outside.py: for the checks of any stack. The operations that their layers are written in, by the names that
    # implementations/check/dialect.py has in NumPy, and the framework's own transforms, each a function of
    # (apply, w, x, tw, tx), where apply(w, x) is a stack and tw, tx are tangents
    OPS: Mapping[str, Any]
    AROUND: Mapping[str, Callable[..., Any]]

    def profile_names(self, apply: Apply, *args: Array) -> str:
        """The names in the framework's profile of `apply(*args)`, one a line."""

    # graph.py: size at the three levels
    UNITS: Mapping[str, str]  # level -> what is counted there

    def graph_size(self, apply: Apply, *args: Tree, cotangent: Tree = None, memory: bool = True) -> dict[str, int]:
        """Count `apply(*args)`, or with `cotangent` its gradient program: "captured", "lowered", "compiled"; "loops"
        left by the compiler; with `memory` also "temp_bytes", the peak memory of the compiled program beside arguments
        and results, for which some frameworks compile again or run."""

    def compile_seconds(self, apply: Apply, *args: Tree, cotangent: Tree = None, times: int = 1) -> list[float]:
        """Seconds to trace and compile, without the first execution: from cold, then warm, with what the framework
        keeps of the times before."""

    def program_count(self) -> int:
        """How many programs `scan_apply_layers` called as it stands has compiled in this process so far."""

    # edges.py: where arrays and programs enter and leave
    def compile(self, apply: Apply) -> Apply:
        """The framework's whole-program compiler, at its strongest setting."""

    def set_back(self) -> None:
        """Undo what the folder has set in the framework for more than its own programs, so that another's stack is
        seen as its users see it. Afterwards the folder's own stacks may be wrong."""

    def cold(self) -> AbstractContextManager[None]:
        """Within it nothing is found again that the framework keeps of what it has compiled."""

    def from_numpy(self, array: Any) -> Array:
        """A framework array of the same shape, dtype and bytes (bfloat16 by ml_dtypes); refuses what it would cast."""

    def to_numpy(self, array: Array) -> Any:
        """The NumPy array of the same shape, dtype and bytes."""

    def as_leaf(self, value: Any) -> Any:
        """Shape and dtype of an array, for the checks of arguments; None for what is no array of the framework."""

    def wait(self, value: Any) -> Any:
        """Return `value` once every array in it has been computed."""

    def versions(self) -> dict[str, str]:
        """Package name -> version, of everything that takes part."""

    def settings(self) -> dict[str, str]:
        """What numbers depend on, by name: device, threads, matmul precision, flags."""
