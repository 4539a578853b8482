"""What an implementation can and cannot do yet: one table for the tests, the report and the READMEs.

Tests say which rows they hold, by `@pytest.mark.covers(row)`; each cell has one. A `No` names the exception that the
attempt raises, so its tests run and an upstream fix turns them red.
Exceptions are dotted names: nothing here imports a framework.

    python -m implementations capabilities            rewrite the blocks: README.md has the rows that differ,
                                                      implementations/README.md has all
    python -m implementations capabilities --check    fail if a block is stale
"""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from implementations import NAMES, ROOT, files


class Yes(NamedTuple):
    note: str = ""  # shown as yes* with a footnote in the report
    link: str = ""


class No(NamedTuple):
    reason: str
    link: str
    raises: str  # dotted name of the exception
    checked: str  # the version it was last seen with


class NotApplicable(NamedTuple):
    reason: str


State: TypeAlias = Yes | No | NotApplicable

JAX, TORCH, TF = "jax 0.10.2", "torch 2.13.0", "tensorflow 2.21.0"
TORCH_ISSUES = "https://github.com/pytorch/pytorch/issues/"
TF_FORWARD = "https://www.tensorflow.org/api_docs/python/tf/autodiff/ForwardAccumulator"

JAX_STATIC = NotApplicable("shapes are static: one program for each N, all of one size")
XLA_BFLOAT16 = (
    "XLA on the CPU makes a float32 copy of the whole stack, twice its size, before the loop; not of float16",
    "https://github.com/openxla/xla/blob/main/xla/service/cpu/cpu_compiler.cc",  # FloatNormalization
    "builtins.AssertionError",
)
TORCH_INSIDE = Yes(
    "torch.func inside torch.compile runs layer by layer: of size N; .backward() and vjp_layers are of one size",
    f"{TORCH_ISSUES}174067",
)
TORCH_LOOP = Yes("runs layer by layer: right to any order, but of size N", f"{TORCH_ISSUES}91469")
JAX_EXPORT = Yes("by jax.export with a symbolic N, its derivative too")
TORCH_EXPORT = Yes("by torch.export with a Dim, or packed by AOTInductor, forwards alone")
TF_EXPORT = Yes("as a SavedModel with None for N, its derivative too")
JAX_AUTOCAST = NotApplicable("the framework has no autocast; cast_params casts in sight")
TF_AUTOCAST = JAX_AUTOCAST
TF_ZEROS = Yes("where each stacked array has 1000 elements or more: the zeros of fewer are one operation, not two")
TF_STATIC = Yes("under XLA only where N is static")
TF_FORWARD_LOOP = Yes("in a tf.function; around the stack called as it stands layer by layer, of size N", TF_FORWARD)
TF_FORWARD_REVERSE = Yes(
    "around the stack called as it stands, layer by layer; in a tf.function a TypeError", TF_FORWARD
)
CUT_LAYERS = (
    "every device reads every layer: it would be gathered before the loop",
    "https://github.com/openxla/xla/issues/46108",
    "builtins.ValueError",
)
TORCH_PLACED = No("its loops take no DTensor", f"{TORCH_ISSUES}172568", "builtins.TypeError", TORCH)
TF_PLACED = No(
    "its lists, in which a loop keeps what the gradient reads, have no DTensor",
    "https://www.tensorflow.org/guide/dtensor_overview",
    "tensorflow.errors.UnimplementedError",
    TF,
)
JAX_WRAPPED = Yes("which is jax.jit, of arrays that are placed")
TORCH_WRAPPED = No(
    "fully_shard gathers all parameters of a module before it runs, of a stack those of all layers",
    "https://docs.pytorch.org/docs/2.13/distributed.fsdp.fully_shard.html",
    "builtins.AssertionError",
    TORCH,
)
TF_WRAPPED = No(
    "its strategies have each variable whole on each device; with DTensors a loop has no gradient",
    "https://www.tensorflow.org/api_docs/python/tf/distribute/MirroredStrategy",
    "builtins.AssertionError",
    TF,
)
TF_XLA = No(
    "XLA has no collectives for a CPU in TensorFlow: a mesh runs graphs",
    "https://www.tensorflow.org/xla/known_issues",
    "tensorflow.errors.UnimplementedError",
    TF,
)
TF_PER_EXAMPLE = No(
    "a collective has no derivative by which its batched form could be differentiated",
    "https://www.tensorflow.org/api_docs/python/tf/vectorized_map",
    "builtins.LookupError",
    TF,
)
TF_ON_MESH = No(
    "each device is a call from a thread of its own, and a tape sees those of its own thread",
    "https://www.tensorflow.org/api_docs/python/tf/GradientTape",
    "builtins.AssertionError",
    TF,
)

# capability -> one state for each of NAMES, in that order
TABLE: dict[str, tuple[State, State, State]] = {
    "forward": (Yes(), Yes(), Yes()),
    "N = 0": (Yes(), Yes(), TF_STATIC),
    "N = 1": (Yes(), Yes(), Yes()),
    "float64": (Yes("with jax_enable_x64; without it from_numpy refuses float64"), Yes(), Yes()),
    "bfloat16": (Yes(), Yes(), Yes()),
    "one program for all N": (
        JAX_STATIC,
        Yes("for N >= 2, a dtype and a grad mode; N = 0 and N = 1 have their own"),
        Yes("in graph mode; under XLA one for each N, all of one size"),
    ),
    "one size at every N >= 2, forward and gradient": (Yes(), Yes(), TF_ZEROS),
    "no copy of the weights is kept for the backward pass": (Yes(), Yes(), Yes()),
    "temporary memory reported": (Yes(), Yes("by the profiler, over one call; not by the compiler"), Yes()),
    "bfloat16 weights are read where they are": (No(*XLA_BFLOAT16, JAX), Yes(), No(*XLA_BFLOAT16, TF)),
    "called inside the user's compiled function": (Yes(), Yes(), Yes()),
    "gradient inside the user's compiled function": (Yes(), TORCH_INSIDE, Yes()),
    "reverse mode from outside": (Yes(), Yes(), Yes()),
    "batching from outside (the framework's vmap)": (Yes(), Yes(), Yes()),
    "ensembles from outside (batched weights)": (Yes(), Yes(), Yes()),
    "per-example gradients from outside (batched gradient)": (Yes(), Yes(), Yes()),
    "gradient of a batch from outside": (Yes(), Yes(), Yes()),
    "forward mode from outside": (Yes(), TORCH_LOOP, TF_FORWARD_LOOP),
    "second order from outside, reverse over reverse": (Yes(), TORCH_LOOP, Yes()),
    "second order from outside, forward over reverse": (Yes(), TORCH_LOOP, TF_FORWARD_REVERSE),
    "any layer: nested trees, None, integers, xs and ys": (Yes(), Yes(), Yes()),
    "reverse": (Yes(), Yes(), Yes()),
    "unroll=k, where k does not divide N": (Yes(), Yes(), Yes()),
    "remat=True": (Yes(), Yes(), Yes()),
    "remat=k, where k does not divide N": (Yes(), Yes(), Yes()),
    "any layer, N = 0 and N = 1": (Yes(), Yes(), TF_STATIC),
    "a stack in a stack": (Yes(), Yes(), Yes()),
    "a stack used several times in one program": (Yes(), Yes(), Yes()),
    "a parameter shared by all layers": (Yes(), Yes(), Yes()),
    "a closed-over value gets its gradient": (Yes(), Yes(), Yes()),
    "gradient of a compiled stack": (Yes(), Yes(), Yes()),
    "layers that end in tanh, sigmoid, exp, softmax": (Yes(), Yes(), Yes()),
    "frozen parameters, frozen carry": (Yes(), Yes(), Yes()),
    "`vjp_layers`, compiled": (Yes(), Yes(), Yes()),
    "`jvp_layers`, compiled": (Yes(), Yes(), Yes()),
    "`hvp_layers`, compiled": (Yes(), Yes(), Yes()),
    "`vmap_layers`, compiled": (Yes(), Yes(), Yes()),
    "`vmap_vjp_layers` (per-example gradients), compiled": (Yes(), Yes(), Yes()),
    "`jvp_layers` of layers with attention": (Yes(), Yes(), Yes()),
    "one program for all N, any layer": (JAX_STATIC, Yes("for N >= 2"), Yes("in graph mode")),
    "one exported program for all N": (JAX_EXPORT, TORCH_EXPORT, TF_EXPORT),
    "many devices: data parallel, fully sharded, tensor parallel": (Yes(), Yes(), Yes()),
    "many devices: a pipeline of stages": (Yes(), Yes(), Yes()),
    "collectives in a program that the framework's compiler makes, on a CPU": (Yes(), Yes(), TF_XLA),
    "transforms of a fully sharded stack, within `on_mesh`": (Yes(), Yes(), Yes()),
    "per-example gradients of a fully sharded stack, within `on_mesh`": (Yes(), Yes(), TF_PER_EXAMPLE),
    "a stack on many devices, differentiated from outside of `on_mesh`": (Yes(), Yes(), TF_ON_MESH),
    "arrays that are placed, and no `on_mesh`, with the gradient": (Yes(), TORCH_PLACED, TF_PLACED),
    "the library's own wrapper holds one layer at a time": (JAX_WRAPPED, TORCH_WRAPPED, TF_WRAPPED),
    "a stack cut along its layers, read one at a time": (
        No(*CUT_LAYERS, JAX),
        No(*CUT_LAYERS, TORCH),
        No(*CUT_LAYERS, TF),
    ),
    "a list of layers to a stack, and back": (Yes(), Yes(), Yes()),
    "a list of modules to a stack, and back": (Yes(), Yes(), Yes()),
    "decoding with a cache of keys and values": (Yes(), Yes(), Yes()),
    "cycles of several kinds of layer, with a prefix and a remainder": (Yes(), Yes(), Yes()),
    "gates: early exit, padded depth": (Yes(), Yes(), Yes()),
    "dropout: one key a layer": (Yes(), Yes(), Yes()),
    "mixed precision: bfloat16 carry, float32 params": (Yes(), Yes(), Yes()),
    "autocast around the stack": (JAX_AUTOCAST, Yes(), TF_AUTOCAST),
    "which layer made the NaN": (Yes(), Yes(), Yes()),
    "the stack by name in a profile": (Yes(), Yes(), Yes()),
}


def declared(capability: str, implementation: str) -> State:
    """The declared state; KeyError or ValueError for a name that the table does not have."""
    return TABLE[capability][NAMES.index(implementation)]


def exception(state: No) -> type[BaseException]:
    """The exception class that `state` names; imports the framework it belongs to."""
    found = pkgutil.resolve_name(state.raises)
    if not (isinstance(found, type) and issubclass(found, BaseException)):
        raise TypeError(f"{state.raises} is no exception")
    return found


def matrix(unmeasured: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The table as plain data: names, rows of cells and numbered notes; an implementation `unmeasured` shows why."""
    notes: dict[tuple[str, str], int] = {}  # (text, link) -> number; equal notes share one

    def cell(name: str, state: State) -> str:
        if name in unmeasured:
            return unmeasured[name]
        if isinstance(state, NotApplicable):
            return f"n/a [{notes.setdefault((f'{name}: {state.reason}', ''), len(notes) + 1)}]"
        if isinstance(state, No):
            text = f"{name}: {state.reason} (seen with {state.checked})"
            return f"no [{notes.setdefault((text, state.link), len(notes) + 1)}]"
        if state.note:
            return f"yes* [{notes.setdefault((f'{name}: {state.note}', state.link), len(notes) + 1)}]"
        return "yes"

    rows = [
        {"capability": capability, "states": [cell(name, state) for name, state in zip(NAMES, states, strict=True)]}
        for capability, states in TABLE.items()
    ]
    return {"names": list(NAMES), "rows": rows, "notes": [{"text": text, "link": link} for text, link in notes]}


def in_words(state: State) -> str:
    """A state with its reason and its link, in Markdown."""
    if isinstance(state, NotApplicable):
        return f"n/a: {state.reason}"
    if isinstance(state, No):
        return f"**no**: {state.reason} ([{state.checked}]({state.link}))"
    link = f" ([more]({state.link}))" if state.link else ""
    return f"yes, {state.note}{link}" if state.note else "yes"


def table(whole: bool) -> str:
    """The table in Markdown: the whole of it, or the rows that are not yes everywhere."""
    lines = [f"| | {' | '.join(f'`{name}`' for name in NAMES)} |", "|---|" + "---|" * len(NAMES)]
    for capability, states in TABLE.items():
        if whole or any(state != Yes() for state in states):
            lines.append(f"| {capability} | {' | '.join(map(in_words, states))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m implementations capabilities", description="Rewrite the capability tables of the READMEs."
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a table is stale")
    options = parser.parse_args(arguments)
    stale = 0
    for path, whole in ((ROOT / "README.md", False), (ROOT / "implementations" / "README.md", True)):
        text = path.read_text(encoding="utf-8")
        fresh = files.with_block(text, "capabilities", table(whole))
        if options.check and fresh != text:
            print(f"{path.relative_to(ROOT)}: the table is stale: python -m implementations capabilities")
            stale = 1
        elif not options.check:
            files.replace(path, fresh)
    return stale
