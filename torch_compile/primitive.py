"""The scan operator made safe: each mend stands here once, with its reason. JAX needs none of them.

    for x in xs:
        carry, y = body(carry, x)

Trees are flat lists here.
Source: https://github.com/pytorch/pytorch/blob/v2.13.0/torch/_higher_order_ops/scan.py (not a public name yet)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch._guards import TracingContext, active_fake_mode
from torch._higher_order_ops.scan import scan, scan_op
from torch._higher_order_ops.utils import redirect_to_mode
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode

Arrays = list[torch.Tensor]
Step = Callable[[Arrays, Arrays], tuple[Arrays, Arrays]]  # (carry, slices) -> (new_carry, y)


def scan_operator(body: Step, carry: Arrays, xs: Arrays, views_of: torch.Tensor | None = None) -> tuple[Arrays, Arrays]:
    """The operator, for a body that may return what it was given, or no carry, or no y: empty arrays stand in.

    views_of: what xs are views of. The body reads it, for nothing else than that Inductor knows its sizes: it has no
    number for `N // 2` steps unless N is that of an array at hand."""
    num_carries = len(carry)

    def owning(carry: Arrays, x: Arrays) -> tuple[Arrays, Arrays]:
        new_carry, y = body(carry[:num_carries], x)
        return owned(new_carry or carry), [(x[0] if views_of is None else views_of).new_empty(0), *owned(y)]

    if not torch.compiler.is_compiling() and active_fake_mode() is not None:  # of one step, shapes tell all
        new_carry, y = body(carry, [a.new_empty(a.shape[1:]) for a in xs])
        return new_carry, [a.new_empty((xs[0].shape[0], *a.shape)) for a in y]
    if torch.compiler.is_compiling():
        _let_inductor_count()
        _let_checkpoints_see()
    carry, (_, *ys) = scan(owning, owned(carry) or [xs[0].new_empty(0)], xs)
    return list(carry[:num_carries]), ys


@torch.compiler.assume_constant_result  # so it runs while a program is traced, and once
def _let_inductor_count() -> None:
    """Let Inductor read a number from an array, in the one program that is being traced.

    It makes a while loop of the scan, and reads its counter. torch allows that under fullgraph=True alone; elsewhere
    every program with a scan would stop at a DataDependentOutputException. The setting that would allow it for the
    whole process, torch._dynamo.config.capture_scalar_outputs, also changes where a user's own code breaks graphs."""
    context = TracingContext.try_get()
    shapes = context.fake_mode.shape_env if context and context.fake_mode else None
    if shapes is not None:
        shapes.settings = dataclasses.replace(shapes.settings, allow_scalar_outputs=True)


@torch.compiler.assume_constant_result
def _let_checkpoints_see() -> None:
    """`torch.utils.checkpoint` around a stack: its modes have a rule for other operators, and none for this one."""
    for mode in (_CachingTorchDispatchMode, _CachedTorchDispatchMode):
        if mode not in scan_op.python_key_table:
            redirect_to_mode(scan_op, mode)


def owned(arrays: Arrays) -> Arrays:
    """Copies in memory and order of their own: scan refuses outputs that alias inputs and carries of other strides."""
    return [a.clone(memory_format=torch.contiguous_format) for a in arrays]


def distinct(arrays: Arrays) -> Arrays:
    """A copy of what is a view of another: the operator refuses a body that closes over both."""
    apart: Arrays = []
    bases: Arrays = []
    for array in arrays:
        base = array if array._base is None else array._base
        apart.append(array.clone() if any(base is other for other in bases) else array)
        bases.append(base)
    return apart
